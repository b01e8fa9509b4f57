"""The lab's critic, and the corpus documents from which a prior learns to write and to use critiques.

    prompt attempt ? mark [#dddd | four slots] prompt
    gb..=1234 Sρ7890…#9012 ? ✗.β.. gb..=1234     then the refined response

"?" takes the place of the attempt's end: without it a critique would have to be expected after every answer. The mark
says whether the answer is right. "#dddd" is the gold answer (indicative_gt). The four slots (cot) hold the
true function token of the first wrong step in the slot of its letter, "." elsewhere. They stand beside the four letter
slots of the repeated prompt, so the way from a step to its letter and to the critique of that letter is the same
whichever letter it is. The repeated prompt keeps the state before the first step where every response has it.

Documents show common and alias letters alone, with functions that the corpus executes anyway: no rare or absent
association. A common letter has one meaning, so a critique of it would tell nothing new, and nobody would learn to
read it. Therefore most of the flawed attempts that are corrected are flawed by a reading: for that document one letter
means another function that the corpus executes, and only the critique says which. After a critique of kind cot the
correction names its functions, as the critique does.
"""

import dataclasses

import numpy as np

from ceiling.tasks.base import Document
from ceiling.tasks.critiques import KINDS
from ceiling.tasks.lab import language as lang

ASK, WRONG, RIGHT = lang.MARKS
MAX_CRITIQUE = 7  # the mark, "#" and four digits, the end
_PROMPT = len(lang.prompt("", lang.STATES[0]))
MAX_PROMPT = _PROMPT + lang.MAX_RESPONSE + 1
MAX_DOCUMENT = MAX_PROMPT + MAX_CRITIQUE + _PROMPT + lang.MAX_RESPONSE
KNOWN = tuple(lang.COMMON | lang.SKILLS)
SLIPS = tuple(lang.COMMON | lang.SKILLS | lang.DECOYS)  # what a wrong step may do
SHOWN = lang.COMMON_LETTERS | lang.ALIAS_LETTERS
WRITING_SHARE = 1 / 4  # of the documents end in the critique, the others go on from it
RIGHT_SHARE = 1 / 4  # of the attempts are right on purpose
KIND_SHARES = (1 / 4, 1 / 4, 1 / 2)  # of the kinds of critique that documents go on from
READING_SHARE = 3 / 4  # of the flawed attempts in documents that go on are wrong by a reading, the others by a slip


def text(kind: str, right: bool, answer: str, slot: int | None, function: str | None) -> str:
    """A critique. slot, function: the first wrong step's letter and its true function, if there is such a step."""
    mark = RIGHT if right else WRONG
    if kind == "indicative":
        return mark
    if kind == "indicative_gt":
        return f"{mark}#{answer}"
    slots = ["."] * lang.SLOTS
    if not right and slot is not None:
        slots[slot] = function
    return mark + "".join(slots)


def critique(letters: str, digits: str, answer: str, response: str, right: bool, kind: str) -> str:
    """The critique of a response to a problem, whole or cut, in any format."""
    order = range(len(letters))[::-1] if lang.trap(digits) else range(len(letters))
    functions = [lang.TRUTH[letters[i]] for i in order]
    slot = order[first_wrong_step([letters[i] for i in order], functions, digits, response)]
    return text(kind, right, answer, slot, lang.TRUTH[letters[slot]])


def first_wrong_step(letters, functions, digits: str, response: str) -> int:
    """Index, in the order of execution, of the first step that the response leaves out or works out wrongly; the last
    one if all are right (then the answer is not what was worked out)."""
    states = lang.run(functions, digits)
    for i, wanted in enumerate(zip(letters, functions, states, strict=True)):
        if not _shown(response, i, *wanted):
            return i
    return len(functions) - 1


def _shown(response: str, i: int, letter: str, function: str, state: str) -> bool:
    """Whether step i of the response names this function (strategy L: the letter) and reaches this state."""
    if response[:1] == "P":
        at = 1 + lang.SLOTS + 4 * i
        return (response[1 + i : 2 + i], response[at : at + 4]) == (function, state)
    name = letter if response[:1] == "L" else function
    return response[6 * i + 1 : 6 * i + 6] == name + state


def prompt(problem_prompt: str, response: str) -> str:
    """What a critic continues: the problem and the response, with "?" for its end."""
    return problem_prompt + response.removesuffix("$") + ASK


def refinement_prompt(problem_prompt: str, response: str, critique: str) -> str:
    return prompt(problem_prompt, response) + critique + problem_prompt


@dataclasses.dataclass(frozen=True)
class Case:
    """An attempt at a problem with what its letters mean here, and the strategy of the correction. Functions are in the
    order of the letters."""

    letters: str
    digits: str
    meant: list[str]
    attempt: str
    better: str

    @property
    def backwards(self) -> bool:
        return self.attempt[0] == "B"

    @property
    def answer(self) -> str:
        return lang.run(self.meant[::-1] if self.backwards else self.meant, self.digits)[-1]

    @property
    def right(self) -> bool:
        return self.attempt.partition("#")[2] == self.answer + "$"

    def critique(self, kind: str) -> str:
        order = range(len(self.letters))[::-1] if self.backwards else range(len(self.letters))
        named = [[x[i] for i in order] for x in (self.letters, self.meant)]
        slot = order[first_wrong_step(*named, self.digits, self.attempt)]
        return text(kind, self.right, self.answer, slot, self.meant[slot])

    def correction(self) -> str:
        """A right attempt is kept; otherwise another working in the attempt's direction."""
        return self.attempt if self.right else lang.render(self.better, self.letters, self.meant, self.digits)


def mixed(documents: list[Document], recipe, seed: int, count: int, *, conventions: bool) -> list[Document]:
    """A corpus's documents with `count` critical ones in random places among them; without those, as they are."""
    if not count:
        return documents
    critical = write(recipe, seed, count, conventions=conventions)
    rng = np.random.default_rng([seed, 37])
    places = set(rng.choice(len(documents) + count, size=count, replace=False).tolist())
    plain, special = iter(documents), iter(critical)
    return [next(special if i in places else plain) for i in range(len(documents) + count)]


def write(recipe, seed: int, count: int, *, conventions: bool) -> list[Document]:
    """`count` documents. recipe: weights of letters, depths and strategies (prior.Recipe). conventions: the teacher's,
    which show every letter, no readings, and right-to-left workings where the truth runs so."""
    rng = np.random.default_rng([seed, 29])
    letters = {c: w for c, w in recipe.letter_weight.items() if conventions or c in SHOWN}
    forwards = {s: w for s, w in recipe.strategy_weight.items() if s not in "BN" and w} or {"S": 1.0}
    naming = {s: w for s, w in forwards.items() if s in "SP"} or {"S": 1.0}
    depths = dict(enumerate(recipe.depth_weight, 1))
    documents: list[Document] = []
    while len(documents) < count:
        need = count - len(documents)
        depth_N, strategy_N, better_N = (_drawn(rng, w, need) for w in (depths, recipe.strategy_weight, forwards))
        named_N, kind_N = _drawn(rng, naming, need), rng.choice(KINDS, size=need, p=KIND_SHARES)
        letter_N4, state_N = _drawn(rng, letters, (need, lang.SLOTS)), rng.integers(10_000, size=need)
        for i in range(need):
            depth, kind, digits = depth_N[i], kind_N[i], lang.STATES[state_N[i]]
            word = "".join(letter_N4[i, :depth])
            if lang.held_out(problem := lang.prompt(word, digits)):
                continue
            strategy = strategy_N[i]
            if conventions and depth > 1 and strategy != "N":
                strategy = "B" if lang.trap(digits) else ("S" if strategy == "B" else strategy)
            better = "B" if strategy == "B" else (named_N if kind == "cot" else better_N)[i]
            writing = rng.random() < WRITING_SHARE
            case = _case(rng, word, digits, strategy, better, readings=not (writing or conventions))
            if writing:
                documents.append(Document(prompt(problem, case.attempt), case.critique("cot") + "$"))
            else:
                asked = refinement_prompt(problem, case.attempt, case.critique(kind))
                documents.append(Document(asked, case.correction()))
    return documents


def _case(rng, letters: str, digits: str, strategy: str, better: str, *, readings: bool) -> Case:
    usual = [lang.TRUTH[c] for c in letters]
    meant, tried = list(usual), list(usual)
    pick = lambda functions: functions[rng.integers(len(functions))]  # noqa: E731
    place = 0 if strategy == "D" else rng.integers(len(letters))  # a direct answer shows no step that could be right
    if strategy == "N":
        tried = [f if rng.random() < 0.5 else pick(list(lang.COMMON)) for f in usual]
    elif rng.random() >= RIGHT_SHARE:
        changed, functions = (meant, KNOWN) if readings and rng.random() < READING_SHARE else (tried, SLIPS)
        changed[place] = pick([f for f in functions if f != usual[place]])
    return Case(letters, digits, meant, lang.render(strategy, letters, tried, digits), better)


def _drawn(rng, weights: dict, size) -> np.ndarray:
    values = np.array(list(weights.values()), float)
    return rng.choice(list(weights), size=size, p=values / values.sum())
