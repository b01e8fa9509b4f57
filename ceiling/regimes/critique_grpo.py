r"""Critique-GRPO: policy gradients on responses and on their refinements after a critique (arXiv:2506.03106).

For a question x, from the paper's equations:

    (1)  y_i ~ pi(. | x)                       n initial responses
    (2)  c_i = critique of y_i                 by a template, the policy itself, or a teacher (tasks/critiques.py)
    (3)  z_i ~ pi(. | x, y_i, c_i)             a refinement of each
    (4)  U = n - k of the y and k of the z     right refinements first, else random ones; they take the places of
                                               wrong initial responses only
    (5)  A = R - mean_U R                      no division by the std
    (6)  L = -sum over U of A f / (rows * longest response)
         f = rho = pi/pi_old, clipped or not   per token of y
         f = p / (p + gamma), p = pi(z_t | x, z_<t)      per token of z

The update sees the question and the response alone: refinements are trained as if the question had been answered so at
once. They were sampled under another prompt, so there is no ratio to correct them with. Instead f'(p) = gamma/(p +
gamma)^2, so the gradient of log p has the weight gamma p/(p + gamma)^2: largest at p = gamma, near 0 for tokens that
the policy would never write, about gamma for those that it always writes.

Without refinements (k = 0) this is Dr. GRPO. A verdict that is not "right" is a wrong response here, whatever the
reason: an answer that nobody can read pays nothing. Recorded critiques (critic="file") are of other responses.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.config import ConfigError, Section, number, text
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Regime, Round, Sample, response_example
from ceiling.tasks import critiques
from ceiling.tasks.rewards import REWARDS

CONFIG = Section(
    reward=text("exact", choices=tuple(REWARDS)),
    critic=text("task", choices=("task", "policy", "teacher"), doc="who writes the critiques"),
    critique_kind=text("indicative", choices=critiques.KINDS, doc="what the critic may tell"),
    refined=number(1, whole=True, low=0, doc="refinements in a group of samples_per_prompt; the rest is initial"),
    gamma=number(0.1, low=1e-6, high=100, doc="refinements weigh p / (p + gamma) per token"),
    aggregation=dataclasses.replace(grpo.POLICY_LOSS.entries["aggregation"], default="constant"),
    clip_low=dataclasses.replace(grpo.POLICY_LOSS.entries["clip_low"], default=0.0),
    clip_high=dataclasses.replace(grpo.POLICY_LOSS.entries["clip_high"], default=0.0),
    entropy_bonus=grpo.POLICY_LOSS.entries["entropy_bonus"],
)


def shaped(p, gamma: float):
    """f(p) = p / (p + gamma): f(0) = 0, f(1) = 1/(1 + gamma), f'(p) = gamma / (p + gamma)^2 (CG-2)."""
    return p / (p + gamma)


def rounds(cfg, task, rng):
    """Equations (1) to (3): one prompt per problem, then one per response."""
    n, k, longest = cfg["samples_per_prompt"], cfg["refined"], task.max_response_tokens
    if k >= n:
        raise ConfigError(f"refined={k} leaves no initial response of samples_per_prompt={n}; lower it")
    initial = Round("policy", n, longest, lambda material: [p.prompt for p in material.problems])
    if not k:
        return (initial,)
    critiques.check(task, cfg["critic"], cfg["critique_kind"])
    refinement = Round("policy", 1, longest, lambda material: refinement_prompts(material, cfg))
    return (initial, *critic_rounds(cfg, task), refinement)


def critic_rounds(cfg, task) -> tuple[Round, ...]:
    """The round in which a model writes a critique of every response of round 0, if a model does."""
    if cfg["critic"] not in ("policy", "teacher"):
        return ()
    known = cfg["critique_kind"] if cfg["critic"] == "teacher" else None  # a policy has no key to look at
    prompts = lambda material: [  # noqa: E731
        task.critique_prompt(problem, task.tokenizer.decode(s.tokens), known)
        for problem, s in zip(*responses(material), strict=True)
    ]
    return (Round(cfg["critic"], 1, task.max_critique_tokens, prompts, judged=False),)


def responses(material: Material):
    """Problems and samples of round 0, response by response."""
    pairs = [(p, s) for p, group in zip(material.problems, material.samples[0], strict=True) for s in group]
    return tuple(zip(*pairs, strict=True))


def critique_texts(material: Material, cfg) -> list[str]:
    """Equation (2): a critique of every response of round 0. A right one has the stock line for kind "cot"."""
    task, kind, decode = material.task, cfg["critique_kind"], material.task.tokenizer.decode
    own = lambda p, s: task.critique(p, decode(s.tokens), s.verdict, kind)  # noqa: E731
    problems, samples = responses(material)
    if cfg["critic"] == "task":
        return [own(p, s) for p, s in zip(problems, samples, strict=True)]
    written = [task.tokenizer.split_end(decode(s.tokens))[0] for group in material.samples[1] for s in group]
    stock = [kind == "cot" and s.verdict.right for s in samples]
    return [own(*of) if use else text for *of, text, use in zip(problems, samples, written, stock, strict=True)]


def refinement_prompts(material: Material, cfg) -> list[str]:
    task = material.task
    problems, samples = responses(material)
    return [
        task.refinement_prompt(p, task.tokenizer.decode(s.tokens), critique)
        for p, s, critique in zip(problems, samples, critique_texts(material, cfg), strict=True)
    ]


def union(initial: list[Sample], refinements: list[Sample], k: int, rng) -> list[tuple[Sample, bool]]:
    """Equation (4): (response, whether it is a refinement), as many as there are initial ones. Where fewer than k of
    these are wrong, fewer refinements come in: a right response never leaves."""
    wrong = [i for i, s in enumerate(initial) if not s.verdict.right]
    k = min(k, len(wrong))
    leaving = set(rng.permutation(wrong)[:k].tolist())
    drawn = rng.permutation(len(refinements)).tolist()
    best = sorted(drawn, key=lambda i: not refinements[i].verdict.right)[:k]
    return [(s, False) for i, s in enumerate(initial) if i not in leaving] + [(refinements[i], True) for i in best]


def examples(material: Material, cfg):
    """Equation (5), each response after the plain question (CG-4). Extras: advantage; refined, 1 or 0; behaviour, the
    sampler's log-probs of an initial response, 0 where there is no ratio (CG-5)."""
    reward = REWARDS[cfg["reward"]]
    later = material.samples[-1] if cfg["refined"] else [[]] * len(material.problems)
    out, groups = [], []
    for initial, refinements in zip(material.samples[0], later, strict=True):
        groups.append(union(initial, refinements, cfg["refined"], material.rng))
    rewards_NG = np.array([[reward(s.verdict) for s, _ in group] for group in groups], np.float32)
    advantages_NG = grpo.advantages(rewards_NG, kind="group_mean")
    for group, initial, row in zip(groups, material.samples[0], advantages_NG, strict=True):
        for (s, refined), a in zip(group, row, strict=True):
            behaviour = np.zeros_like(s.logprobs) if refined else s.logprobs
            s = dataclasses.replace(s, prompt=initial[0].prompt)
            out.append(response_example(s, behaviour=behaviour, advantage=a, refined=float(refined)))
    return out


def loss(params, batch, frozen, forward, cfg):
    """Equation (6). Sums and denominators of the two kinds of rows add up, whatever the aggregation."""
    constant = jax.lax.stop_gradient
    logp_BT, entropy_BT = forward.logprobs(
        params, batch, temperature=cfg["temperature"], entropy=cfg["entropy_bonus"] > 0
    )
    refined_B1, advantage_B = constant(batch.extra["refined"])[:, None], batch.extra["advantage"]
    initial_BT, refined_BT = batch.mask_BT * (1 - refined_B1), batch.mask_BT * refined_B1
    own_BT, behaviour_BT = constant(logp_BT), batch.extra["behaviour"]
    on_policy = cfg["minibatches"] * cfg["epochs"] == 1
    total, denom, metrics = grpo.policy_loss(
        logp_BT, own_BT if on_policy else behaviour_BT, None, advantage_B, initial_BT, ratio="token",
        aggregation=cfg["aggregation"], clip_low=cfg["clip_low"] or None, clip_high=cfg["clip_high"] or None,
        kl=None, beta=0.0, max_tokens=cfg["max_tokens"],
    )  # fmt: skip
    p_BT = jnp.exp(jnp.where(refined_BT > 0, logp_BT, 0.0))
    reshaped_BT = -shaped(p_BT, cfg["gamma"]) * constant(advantage_B)[:, None]
    refined_total, refined_denom = grpo.aggregate(reshaped_BT, refined_BT, cfg["aggregation"], cfg["max_tokens"])
    total, denom = total + refined_total, denom + refined_denom
    if cfg["entropy_bonus"]:
        bonus, _ = grpo.aggregate(entropy_BT, batch.mask_BT, cfg["aggregation"], cfg["max_tokens"])
        total = total - cfg["entropy_bonus"] * bonus
    tokens, refined_tokens = jnp.sum(initial_BT), jnp.sum(refined_BT)
    metrics["sampler_trainer_gap"] = (jnp.sum(jnp.abs(own_BT - behaviour_BT) * initial_BT), tokens)
    metrics["sampled_nll"] = (-jnp.sum(behaviour_BT * initial_BT), tokens)
    metrics["refined_probability"] = (jnp.sum(constant(p_BT) * refined_BT), refined_tokens)
    return total, denom, metrics


def counts(material: Material, learned, cfg):
    """Tokens that the critiques add to what is read; those that a model wrote are charged as its rollout, too."""
    if not cfg["refined"]:
        return {}
    encode = material.encode
    return {"critique tokens": sum(len(encode(critique)) for critique in critique_texts(material, cfg))}


def metrics(material: Material, cfg):
    reward = REWARDS[cfg["reward"]]
    _, initial = responses(material)
    out = {
        "reward": float(np.mean([reward(s.verdict) for s in initial])),
        "right": float(np.mean([s.verdict.right for s in initial])),
        "truncated": float(np.mean([not s.stopped for s in initial])),
    }
    if cfg["refined"]:
        refined = [s.verdict.right for group in material.samples[-1] for s in group]
        after = [new for s, new in zip(initial, refined, strict=True) if not s.verdict.right]
        lost = [not any(s.verdict.right for s in group) for group in material.samples[0]]
        found = [any(s.verdict.right for s in group) for group in material.samples[-1]]
        saved = [now for before, now in zip(lost, found, strict=True) if before]
        out |= {
            "refined_right": float(np.mean(refined)),
            "mended": float(np.mean(after)) if after else 0.0,  # wrong responses whose refinement is right
            "rescued_groups": float(np.mean(saved)) if saved else 0.0,  # problems with no right response before
        }
    return out


def reads(cfg):
    return ("prompt", "answer") + (critiques.reads(cfg["critic"], cfg["critique_kind"]) if cfg["refined"] else ())


REGIME = Regime(
    name="critique_grpo", config=CONFIG, reads=reads, rounds=rounds, examples=examples, loss=loss, metrics=metrics,
    counts=counts,
)  # fmt: skip
