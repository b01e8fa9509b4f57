"""Sums of two numbers below 100, by a prior that rarely saw a carry.

A prompt is "37+25="; a response is the carry of the ones, "#", three digits and "$" ("1#062$"), or "#062$" without
working. The corpus shows sums without a carry as they are. Where there is one it forgets it in all but a share `rho` of
the documents ("0#052$"), so the prior's habit is wrong, and the right way is rare but not absent.
"""

import re

import numpy as np

from ceiling.config import ConfigError, Section, number, text
from ceiling.data import mixture
from ceiling.data.tokens import CharTokenizer
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict

CONFIG = Section(
    name=text("sums"),
    seed=number(7, whole=True, low=0, doc="chooses the problems that are evaluated"),
    per_group=number(32, whole=True, low=1, high=1000, doc="evaluation problems of each group"),
    rho=number(0.05, low=0, high=1, doc="share of the corpus's carries that are carried"),
)


class Sums:
    """A `ceiling.tasks.base.Task`."""

    name = "sums"
    tokenizer = CharTokenizer("0123456789+=#$", eos="$")
    groups = (Group("plain", "no carry", "the ones add up to 9 or less", "always shown"),
              Group("carry", "carry", "the ones add up to 10 or more", "rarely shown"))  # fmt: skip
    max_response_tokens = 6
    guess_rate = 1e-3  # one of a thousand answers of three digits

    def __init__(self, config):
        self.config, self.held_out, self.free = config, {}, {}
        shuffled = np.random.default_rng(config["seed"]).permutation(100 * 100).tolist()
        for group, carries in (("plain", False), ("carry", True)):
            mine = [i for i in shuffled if (i // 100 % 10 + i % 10 > 9) == carries]
            self.held_out[group], self.free[group] = mine[: config["per_group"]], mine[config["per_group"] :]

    def _problem(self, i: int) -> Problem:
        a, b = divmod(i, 100)
        carry = int(a % 10 + b % 10 > 9)
        return Problem(i, "carry" if carry else "plain", f"{a:02d}+{b:02d}=", f"{a + b:03d}", meta=carry)

    def evaluation(self):
        return [self._problem(i) for ids in self.held_out.values() for i in ids]

    def training(self, mix, size):
        return [self._problem(i) for i in mixture.pool(self.free, dict(mix), size)]

    def corpus(self, kind, seed, count):
        rng, free = np.random.default_rng([self.config["seed"], seed]), sum(self.free.values(), [])
        rho = 1.0 if kind == "teacher" else self.config["rho"]
        return [self._document(self._problem(free[i]), rng, rho) for i in rng.integers(len(free), size=count)]

    def _document(self, problem, rng, rho) -> Document:
        forgets, silent = problem.meta and rng.random() >= rho, rng.random() < 0.2
        said, value = (0, int(problem.answer) - 10) if forgets else (problem.meta, int(problem.answer))
        return Document(problem.prompt, f"{'' if silent else said}#{value:03d}$")

    def demonstration(self, problem, rng):
        return f"{problem.meta}#{problem.answer}$"

    def passage(self, problem):
        return Passage(problem.prompt, stop="#", bridge="", continuation=f"{problem.answer}$", empty="#")

    def verify(self, problem, response):
        """Never raises on what a model may write: what is no answer is UNPARSED, not wrong."""
        working, hash_, tail = response.partition("#")
        body, ended = self.tokenizer.split_end(tail)
        if not (hash_ and ended and working in ("", "0", "1") and re.fullmatch("[0-9]{3}", body)):
            return Verdict(Outcome.UNPARSED)
        right, shown = body == problem.answer, "worked" if working else "direct"
        credit = sum(x == y for x, y in zip(body, problem.answer, strict=True)) / 3
        process = int(working) == problem.meta if working else None
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, body, credit, process, shown)

    def gate(self):
        return None  # any prior will do; else (problems, forced start, least accuracy)


def make(config, data, tokenizer=None):
    if tokenizer is not None:  # a checkpoint's: its ids mean other texts
        raise ConfigError("config.model.path: sums has an alphabet of its own and trains from scratch; leave it out")
    return Sums(config)
