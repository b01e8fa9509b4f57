"""The lab: a task whose pretraining corpus is generated, so that "new" has a meaning.

Letters name maps on 4-digit strings; the corpus shows each letter's true map with a set probability.
Groups, language, corpus and verifier are in the files beside this one.
"""

import numpy as np

from ceiling.config import ConfigError, Section, number, table, text
from ceiling.data import mixture
from ceiling.data.tokens import CharTokenizer
from ceiling.tasks import critiques
from ceiling.tasks.base import Document, Group, Passage, Problem, Verdict
from ceiling.tasks.lab import critic, prior, problems, verifier
from ceiling.tasks.lab import language as lang

CONFIG = Section(
    name=text("lab"),
    seed=number(2026, whole=True, low=0, doc="draws the problems; the same for every training seed"),
    evaluation_per_group=number(32, whole=True, low=1),
    training_per_group=number(1024, whole=True, low=1),
    gate_problems=number(64, whole=True, low=1),
    gate_accuracy=number(0.95, low=0, high=1, doc="executed-skill accuracy below which a prior is unfit"),
    rho=table({"R": 0.05, "V": 0.01, "U": 0.002}, low=0, high=1, doc="share of true associations"),
    strategies=table({"S": 0.25, "P": 0.05, "L": 0.20, "D": 0.10, "B": 0.20, "N": 0.20}, low=0,
                     doc="strategy mixture of the prior's corpus"),
    depths=table({"1": 0.33, "2": 0.33, "3": 0.31, "4": 0.03}, low=0, doc="depth mixture of the corpus"),
    teacher_strategies=table({"S": 0.60, "P": 0.05, "L": 0.30, "D": 0.05}, low=0),
    teacher_depths=table({"1": 0.35, "2": 0.35, "3": 0.25, "4": 0.05}, low=0),
    demonstrations=table({"S": 0.45, "P": 0.10, "L": 0.35, "D": 0.10}, low=0,
                         doc="strategy mixture of the curated demonstrations"),
    demonstrated_groups=text("C R V U X M", doc="groups whose demonstrations the curators have"),
    critiques=number(0.0, low=0, high=0.9, doc="share of the corpora that shows critiques and what to do with them"),
)  # fmt: skip


class Lab:
    """Task; see ceiling.tasks.base.Task."""

    name = "lab"
    groups: tuple[Group, ...] = problems.GROUPS
    max_response_tokens = lang.MAX_RESPONSE
    guess_rate = 1e-4  # one of 10^4 answers is right
    max_critique_tokens, max_critique_prompt_tokens = critic.MAX_CRITIQUE, critic.MAX_PROMPT

    def __init__(self, config):
        self.config = {**config, **{key: mixture.in_order(config, key, names) for key, names in _TABLES.items()}}
        criticised = config["critiques"] > 0
        self.tokenizer = CharTokenizer(lang.SYMBOLS + (lang.MARKS if criticised else ""), eos="$")
        # Without the documents no model of the lab can read a critique, let alone write one; they show one kind of it.
        models = {"policy": ("cot",), "teacher": ("cot",)}
        self.critics = {"task": critiques.KINDS, **models} if criticised else {}
        self.max_document_tokens = critic.MAX_DOCUMENT if criticised else 0
        self.splits = problems.make_splits(
            config["seed"], config["evaluation_per_group"], config["training_per_group"],
            config["gate_problems"],
        )  # fmt: skip

    def evaluation(self) -> list[Problem]:
        return [p for group in self.splits.evaluation.values() for p in group]

    def training(self, mix: dict[str, float], size: int) -> list[Problem]:
        counts = mixture.apportion(mix, size)
        out = []
        for group, count in counts.items():
            pool = self.splits.training.get(group)
            if pool is None or count > len(pool):
                raise ValueError(
                    f"config.train.mix: group {group!r} needs {count} training problems, the lab has "
                    f"{len(pool or ())}; known groups: {' '.join(problems.NAMES)}"
                )
            out += pool[:count]
        return out

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        c = self.config
        if kind == "prior":
            recipe = prior.prior_recipe(c["rho"], c["strategies"], c["depths"].values())
        else:
            recipe = prior.teacher_recipe(c["teacher_strategies"], c["teacher_depths"].values())
        teacher = kind == "teacher"
        criticised = round(c["critiques"] * count)
        documents = prior.write(recipe, seed, count - criticised, conventions=teacher)[0]
        return critic.mixed(documents, recipe, seed, criticised, conventions=teacher)

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str | None:
        if problem.group not in self.config["demonstrated_groups"].split():
            return None
        letters, digits = problem.meta
        shares = self.config["demonstrations"]
        weights = np.array(list(shares.values()))
        strategy = str(rng.choice(list(shares), p=weights / weights.sum()))
        if problem.group == "M":  # only the right-to-left working reaches the truth
            strategy = "B"
        return lang.render(strategy, letters, [lang.TRUTH[c] for c in letters], digits)

    def passage(self, problem: Problem) -> Passage:
        return Passage(problem.prompt, stop="#", bridge="", continuation=problem.answer + "$", empty="D#")

    def verify(self, problem: Problem, response: str) -> Verdict:
        return verifier.verify(*problem.meta, problem.answer, response)

    def answer_span(self, response: str) -> tuple[int, int] | None:
        return verifier.answer_span(response)

    def critique(self, problem: Problem, response: str, verdict: Verdict, kind: str) -> str:
        return critic.critique(*problem.meta, problem.answer, response, verdict.right, kind)

    def critique_prompt(self, problem: Problem, response: str, kind: str | None) -> str:
        return critic.prompt(problem.prompt, response)

    def refinement_prompt(self, problem: Problem, response: str, critique: str) -> str:
        return critic.refinement_prompt(problem.prompt, response, critique)

    def gate(self):
        return self.splits.gate, "S", self.config["gate_accuracy"]


# Names that the tables of the configuration may use, in the order in which they are drawn.
_TABLES = {
    "rho": ("R", "V", "U"), "strategies": tuple(lang.STRATEGIES), "teacher_strategies": tuple(lang.STRATEGIES),
    "demonstrations": tuple(lang.STRATEGIES), "depths": ("1", "2", "3", "4"), "teacher_depths": ("1", "2", "3", "4"),
}  # fmt: skip


def make(config, data, tokenizer=None) -> Lab:
    """The lab reads no user data and has an alphabet of its own: a checkpoint's tokenizer is refused."""
    if tokenizer is not None:
        raise ConfigError("config.model.path: the lab has an alphabet of its own and trains from scratch; leave it out")
    return Lab(config)
