r"""RLP, reinforcement as a pretraining objective (arXiv:2510.01265), from the paper's equations.

For a context x_<t and the text x_t.. that follows it, no verifier and no answer key:

    (1)  c_i ~ pi_theta(. | x_<t)                      G thoughts, i = 1..G
    (2)  S_pred,i = log p_theta(x_t.. | x_<t, c_i)     the policy predicts after thinking
         S_ema    = log p_phi  (x_t.. | x_<t)          a slow copy predicts without
    (3)  r_i = S_pred,i - S_ema                        information gain in nats, a constant
    (4)  A_i = G/(G-1) (r_i - mean_j r_j)              leave-one-out, no division by the std
    (5)  L = -1/(BG) sum_b,i 1/|c_i| sum_u min(rho_u A_i, clip(rho_u) A_i)     thought tokens only
    (6)  phi <- tau phi + (1 - tau) theta              after every update

There is no next-token loss, no KL, and no gradient through S_pred or S_ema. The baseline S_ema is
shared by a group, so it cancels in A: it sets the reported gain, not the gradient.

What the paper leaves open is a setting here: `scored_tokens` of the continuation (the paper scores one
token; 0 scores all of it), clip widths, and updates per rollout. `floor` scores log((1-f) p + f/V) per
token: without it one confident wrong chain costs tens of nats, and a weak executor's thoughts
collapse to the shortest ones. `baseline` "wrapped" gives the slow copy the shortest wrapped
non-thought, so that the template's own shift is not counted as information (invariant RL-2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.config import ConfigError, Section, number, text
from ceiling.data.packing import Example
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Regime, Round, Sample, ScoreRequest, response_example

CONFIG = grpo.POLICY_LOSS | Section(
    ema_decay=number(0.999, low=0, high=1, doc="tau of equation (6)"),
    max_thought_tokens=number(64, whole=True, low=1),
    scored_tokens=number(0, whole=True, low=0, doc="continuation tokens scored; 0 means all"),
    floor=number(0.0, low=0, high=0.5, doc="f in log((1-f) p + f/V); 0 scores the plain log-probability"),
    baseline=text("wrapped", choices=("wrapped", "raw"), doc="what the slow copy sees in place of a thought"),
)


def information_gain(logp_with_thought, logp_without_thought_ema):
    """Equation (3): r = S_pred - S_ema in nats, any shape; a constant in autodiff (RL-4)."""
    return jax.lax.stop_gradient(jnp.asarray(logp_with_thought) - jnp.asarray(logp_without_thought_ema))


def ema(slow, params, decay: float):
    """Equation (6). After k steps with constant params: decay^k slow + (1 - decay^k) params (RL-6)."""
    return jax.tree.map(lambda s, p: decay * s + (1 - decay) * p, slow, params)


def floored(logp, floor: float, vocab_size: int):
    """log((1 - floor) exp(logp) + floor / V): bounds what one token can cost."""
    return np.logaddexp(logp + np.log1p(-floor), np.log(floor / vocab_size)) if floor else np.asarray(logp)


def rounds(cfg, task, rng):
    """Equation (1): G thoughts per context, ended by the passage's stop token or cut at the longest."""
    contexts = lambda material: [task.passage(p).context for p in material.problems]  # noqa: E731
    passage, longest = task.passage(task.evaluation()[0]), cfg["max_thought_tokens"]
    after = len(task.tokenizer.encode(passage.stop + passage.bridge + passage.continuation))
    if longest + after > task.max_response_tokens:
        raise ConfigError(
            f"rlp.max_thought_tokens={longest}: with {after} tokens of closing and continuation it exceeds the "
            f"task's longest response, {task.max_response_tokens}; lower it to {task.max_response_tokens - after}"
        )
    return (Round("policy", cfg["samples_per_prompt"], longest, contexts, stop=passage.stop, judged=False),)


def scores(material: Material, cfg):
    """Equation (2): the continuation after every thought by the policy, without one by the EMA."""
    passages = [material.task.passage(p) for p in material.problems]
    with_thought = [
        continuation_example(material.encode, passage, sample, cfg["scored_tokens"])
        for passage, group in zip(passages, material.samples[0], strict=True) for sample in group
    ]  # fmt: skip
    without = [no_thought_example(material.encode, p, cfg["baseline"], cfg["scored_tokens"]) for p in passages]
    return {"with_thought": ScoreRequest("policy", with_thought), "without": ScoreRequest("ema", without)}


def continuation_example(encode, passage, thought: Sample, scored_tokens: int) -> Example:
    """context + thought + (stop, if the thought was cut) + bridge | continuation, scored on the latter."""
    closing = passage.bridge if thought.stopped else passage.stop + passage.bridge
    head = np.concatenate([thought.prompt, thought.tokens, encode(closing)])
    return _scored(head, encode(passage.continuation), scored_tokens)


def no_thought_example(encode, passage, baseline: str, scored_tokens: int) -> Example:
    """The same continuation after no thought: bare ("raw") or in the shortest wrapper ("wrapped")."""
    middle = passage.empty if baseline == "wrapped" else passage.stop + passage.bridge
    return _scored(encode(passage.context + middle), encode(passage.continuation), scored_tokens)


def _scored(head: np.ndarray, continuation: np.ndarray, scored_tokens: int) -> Example:
    continuation = continuation[: scored_tokens or None]
    mask = np.arange(len(head) + len(continuation)) >= len(head)
    return Example(np.concatenate([head, continuation]), mask.astype(np.float32))


def gains(material: Material, cfg) -> np.ndarray:
    """Equation (3) as f32[N, G] from the scored log-probs."""
    V = material.task.tokenizer.vocab_size
    total = lambda logp: float(np.sum(floored(logp, cfg["floor"], V)))  # noqa: E731
    S_pred = np.array([total(logp) for logp in material.scores["with_thought"]])
    S_ema = np.array([total(logp) for logp in material.scores["without"]])
    N = len(material.problems)
    return np.asarray(information_gain(S_pred.reshape(N, -1), S_ema[:, None]), np.float32)


def examples(material: Material, cfg):
    """Equation (4), attached to the thoughts: context and continuation carry no loss (RL-5)."""
    advantage_NG = grpo.advantages(gains(material, cfg), kind="leave_one_out")
    return [
        response_example(thought, behaviour=thought.logprobs, advantage=a)
        for row, group in zip(advantage_NG, material.samples[0], strict=True)
        for a, thought in zip(row, group, strict=True)
    ]  # fmt: skip


def loss(params, batch, frozen, forward, cfg):
    """Equation (5)."""
    return grpo.surrogate_from_batch(params, batch, forward, cfg)


def metrics(material: Material, cfg):
    gain = gains(material, cfg)
    lengths = [len(s.tokens) for group in material.samples[0] for s in group]
    return {
        "information_gain_nats": float(gain.mean()),
        "helpful_thoughts": float((gain > 0).mean()),
        "thought_tokens": float(np.mean(lengths)),
        "short_thoughts": float(np.mean(np.array(lengths) <= 2)),
    }


REGIME = Regime(
    name="rlp", config=CONFIG, reads=lambda cfg: ("text",), rounds=rounds, scores=scores, examples=examples,
    loss=loss, metrics=metrics, init_aux=lambda params, cfg: jax.tree.map(jnp.copy, params),
    after_update=lambda slow, params, cfg: ema(slow, params, cfg["ema_decay"]),
)  # fmt: skip
