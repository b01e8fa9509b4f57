"""Search in a generated world, so that "new" has a meaning: relations have aliases in the documents, and the corpus
shows each relation's true alias with a set probability.

Language, world, corpus and verifier are in the files beside this one.
"""

import numpy as np

from ceiling.config import Section, number, table, text
from ceiling.data import mixture
from ceiling.data.tokens import CharTokenizer
from ceiling.tasks.base import Document, Group, Passage, Problem, Turns, Verdict
from ceiling.tasks.search import language as lang
from ceiling.tasks.search import prior, verifier, world
from ceiling.tasks.search.calls import WORLD
from ceiling.tasks.search.environment import SearchEngine, Store

CONFIG = Section(
    entities=number(120, whole=True, low=24, doc="of the world that problems live in"),
    joint=number(0.5, low=0, high=1, doc="share of the pairs of keywords with a document of their own"),
    evaluation_per_group=number(32, whole=True, low=1),
    training_per_group=number(512, whole=True, low=1),
    gate_problems=number(64, whole=True, low=1),
    gate_accuracy=number(0.8, low=0, high=1, doc="accuracy on common relations below which a prior is unfit"),
    rho=table({"E": 0.05, "F": 0.01}, low=0, high=1, doc="share of true aliases of the rare relations"),
    strategies=table({"H": 0.45, "J": 0.20, "V": 0.35}, low=0, doc="strategies of the prior's corpus"),
    depths=table({"1": 0.40, "2": 0.50, "3": 0.10}, low=0, doc="hops of the prior's corpus"),
    plans=number(0.3, low=0, high=0.9, doc="share of transcripts that begin with their aliases"),
    empty_plans=number(0.1, low=0, high=0.1, doc="share of transcripts that begin with ? in place of them"),
    recoveries=number(0.03, low=0, high=1, doc="share of the prior's transcripts that recover from a wrong call"),
    teacher_strategies=table({"H": 0.35, "J": 0.30, "V": 0.35}, low=0),
    teacher_depths=table({"1": 0.20, "2": 0.60, "3": 0.20}, low=0),
    teacher_recoveries=number(0.15, low=0, high=1),
    demonstrations=table({"H": 0.35, "J": 0.30, "V": 0.35}, low=0, doc="strategies of diverse curators"),
    demonstrated_groups=text("C R V X W", doc="groups whose demonstrations they have"),
    expert=table({"H": 1.0}, low=0, doc="strategies of the narrow expert"),
    expert_groups=text("C", doc="groups whose demonstrations it has"),
)  # fmt: skip


class GeneratedSearch:
    """Task; see ceiling.tasks.base.Task."""

    name = "search"
    groups: tuple[Group, ...] = world.GROUPS
    max_response_tokens = lang.MAX_RESPONSE
    guess_rate = 1e-3  # one of 10^3 names is right

    def __init__(self, config):
        self.config = {**config, **{key: mixture.in_order(config, key, names) for key, names in _TABLES.items()}}
        self.tokenizer = CharTokenizer(lang.SYMBOLS, eos="$")
        self.splits = world.make(
            config["seed"], config["entities"], config["joint"], config["evaluation_per_group"],
            config["training_per_group"], config["gate_problems"],
        )  # fmt: skip
        store = Store(self.splits.documents, lambda texts: [lang.words(text) for text in texts])
        shown = lambda body: (body,) if lang.read_document(body) else ()  # noqa: E731
        self.environment = SearchEngine(store, WORLD, 1, "".join, shown, lang.MAX_CALLS, lang.MAX_OBSERVATION,
                                        timeout_s=10.0, workers=0)  # fmt: skip

    def evaluation(self) -> list[Problem]:
        return [p for group in self.splits.evaluation.values() for p in group]

    def training(self, mix: dict[str, float], size: int) -> list[Problem]:
        return mixture.pool(self.splits.training, dict(mix), size)

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        return prior.write(self.recipe(kind), seed, count)[0]

    def recipe(self, kind: str) -> prior.Recipe:
        """The teacher's corpus has every alias right, and what the prior lacks more often."""
        c = self.config
        always, even = dict.fromkeys(lang.RELATIONS, 1.0), dict.fromkeys(lang.RELATIONS, 1.0)
        shared = (c["plans"], c["empty_plans"])
        if kind == "teacher":
            return prior.Recipe(always, even | {"G": 2.0}, c["teacher_depths"], c["teacher_strategies"], *shared,
                                c["teacher_recoveries"], c["joint"])  # fmt: skip
        return prior.Recipe(always | c["rho"] | {"G": 0.0}, even, c["depths"], c["strategies"], *shared,
                            c["recoveries"], c["joint"])  # fmt: skip

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> Turns | None:
        """By one of the strategies of diverse curators."""
        return self._shown(problem, rng, "demonstrations", "demonstrated_groups")

    def expert(self, problem: Problem, rng: np.random.Generator) -> Turns | None:
        """By the narrow expert."""
        return self._shown(problem, rng, "expert", "expert_groups")

    def _shown(self, problem: Problem, rng, mixture_key: str, groups_key: str) -> Turns | None:
        if problem.group not in self.config[groups_key].split():
            return None
        table_ = self.config[mixture_key]
        weights = np.array(list(table_.values()))
        return self.worked(problem, str(rng.choice(list(table_), p=weights / weights.sum())))

    def worked(self, problem: Problem, strategy: str) -> Turns:
        start, path = problem.meta
        ask = self.splits.world.ask
        return lang.episode(lang.feasible(strategy, len(path)), start, world.aliases(path), ask)

    def passage(self, problem: Problem) -> Passage:
        first = self.worked(problem, "H")[0]
        return Passage(problem.prompt, stop="#", bridge="", continuation=first, empty=f"{prior.NO_PLAN}#")

    def verify(self, problem: Problem, response: Turns) -> Verdict:
        return verifier.verify(self.splits.world, *problem.meta, problem.answer, response)

    def gate(self):
        """Without a forced start: every strategy of the prior is right where its aliases are."""
        return self.splits.gate, "", self.config["gate_accuracy"]

    # ---- early experience

    def states(self, problem: Problem, rng: np.random.Generator) -> list[Turns]:
        """The states before each action of an expert's demonstration; none where the expert has none."""
        turns = self.expert(problem, rng) or ()
        return [(*turns[:i], "") for i in range(0, len(turns), 2)]

    def expert_action(self, problem: Problem, state: Turns) -> str:
        """What the expert does in one of its states, by the most frequent of its strategies that lead there."""
        table_ = self.config["expert"]
        for strategy in sorted((s for s in table_ if table_[s] > 0), key=lambda s: -table_[s]):
            turns = self.worked(problem, strategy)
            if len(turns) >= len(state) and turns[: len(state) - 1] == state[:-1]:
                return turns[len(state) - 1]
        raise ValueError(f"search: no state of an expert's demonstration: {''.join(state)!r}")

    def reflection(self, problem: Problem, state: Turns, expert_action: str, expert_observation: str, action: str,
                   observation: str) -> str:  # fmt: skip
        """A thought that puts what a search found beside what the expert's found, and ends where the expert's action
        follows. Nothing in it depends on the gold answer."""
        return "?".join(_found(seen) for seen in (observation, expert_observation)) + "#"


def _found(observation: str) -> str:
    """The object that a document names; nothing where there is none."""
    return "".join(lang.read_document(observation.removeprefix(lang.OPENING).removesuffix(lang.CLOSING)).values())


# Names that the tables of the configuration may use, in the order in which they are drawn.
_STRATEGIES, _DEPTHS = tuple(lang.STRATEGIES), tuple(map(str, lang.DEPTHS))
_TABLES = {
    "rho": tuple(lang.RARE), "strategies": _STRATEGIES, "teacher_strategies": _STRATEGIES,
    "demonstrations": _STRATEGIES, "expert": _STRATEGIES, "depths": _DEPTHS, "teacher_depths": _DEPTHS,
}  # fmt: skip
