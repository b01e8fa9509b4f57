"""RAFT (arXiv:2304.06767): the policy learns by likelihood from its own best sample of every problem.

Of G samples y_1 .. y_G of a problem x, drawn from the policy as it is, the one that its reward ranks first is kept:

    y* = argmax_j r(x, y_j)        L = -sum_t log p(y*_t | x, y*_<t) / |y*|, over all tokens of the step's y*

No gradient goes through the reward and none pushes other samples down. Unlike rejection sampling (regime sft, source
own_samples), a problem teaches one response however many were right, and one even where none was, if the reward has
grades. `least` leaves out problems whose best sample earns less; the paper has none.
"""

from ceiling.config import Section, number, text
from ceiling.regimes.base import Material, Regime, Round, negative_log_likelihood, response_example
from ceiling.tasks.rewards import REWARDS

CONFIG = Section(
    reward=text("dense", choices=tuple(REWARDS), doc="what ranks the samples of a problem"),
    least=number(0.0, low=0, high=1, doc="a problem whose best sample earns less teaches nothing"),
)


def rounds(cfg, task, rng):
    """One round: G samples per problem by the policy, judged by the task."""
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    return (Round("policy", cfg["samples_per_prompt"], task.max_response_tokens, prompts),)


def best(material: Material, cfg):
    """(reward, sample) of every problem; of equal rewards the first, and samples have no order, so any of them."""
    pay = REWARDS[cfg["reward"]]
    paid = [[(pay(sample.verdict), sample) for sample in group] for group in material.samples[0]]
    return [max(group, key=lambda pair: pair[0]) for group in paid]


def examples(material: Material, cfg):
    return [response_example(sample) for reward, sample in best(material, cfg) if reward >= cfg["least"]]


def loss(params, batch, frozen, forward, cfg):
    """(sum, denominator, metrics): the loop divides once all micro-batches are added."""
    return negative_log_likelihood(params, batch, forward)


def metrics(material: Material, cfg):
    """For the training curves of the report."""
    rewards = [reward for reward, _ in best(material, cfg)]
    return {"best reward": sum(rewards) / len(rewards)}


def reads(cfg):
    """What the arm may read, as the report prints it: a readable answer is paid for without a key."""
    return ("prompt",) if cfg["reward"] == "format" else ("prompt", "answer")


REGIME = Regime(
    name="raft", config=CONFIG, reads=reads, rounds=rounds, examples=examples, loss=loss, metrics=metrics
)  # fmt: skip
