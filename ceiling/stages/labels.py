"""Stage "labels": the majority answer of an untrained policy on every training problem, drawn once and then frozen.

    labels.json    {"sha256": of the canonical labels, "samples": per problem, "labels": {problem id: Label}}
    ledger.json    what drawing them took, charged to no arm: arms of one start and pool share them

Spurious rewards pay for these answers (arXiv:2506.10947). They are the policy's own and need no key; the verifier only
tells which of them are right. A reader checks the hash: labels that changed after an arm began are another experiment.
"""

import dataclasses
import hashlib
import json
import pathlib

from ceiling import hosts
from ceiling import ledger as accounts
from ceiling.evals import sample as evaluation
from ceiling.model.policy import Decoding
from ceiling.stages.context import Context
from ceiling.tasks.base import Outcome
from ceiling.tasks.rewards import Label, majority
from ceiling.train import signals
from ceiling.train.loop import stream

FILE = "labels.json"


def label(context: Context) -> None:
    """Sample the start policy on the pool at temperature 1 and let its answers vote."""
    s, ledger = context.settings["labels"], accounts.Ledger()
    problems = context.task.training(dict(s["mix"]), s["pool"])

    def report(done: int, total: int, tokens: int) -> None:
        context.report({"progress": done / total, "tokens": tokens})
        signals.check(f"after {done} of {total} problems")  # a chunk's records are on disk

    drawn = evaluation.evaluate(
        context.policy("start").replace(decoding=Decoding()), context.task, n=s["samples"], problems=problems,
        seed=stream(context.seed, 11), slots=s["slots"], ledger=ledger, store=context.unfinished / "records",
        max_verifier_errors=s["max_verifier_errors"], report=report,
    )  # fmt: skip
    answer_Pn, names = drawn.labels("answer")
    right_Pn = drawn.matrix("outcome") == Outcome.RIGHT
    found = {
        problem.id: majority([None if i < 0 else names[i] for i in answers], list(right))
        for problem, answers, right in zip(problems, answer_Pn, right_Pn, strict=True)
    }
    if hosts.leader():
        write(context.out / FILE, found, s["samples"])
    own = accounts.Ledger()  # a phase of its own: neither an arm's rollouts nor a measurement
    for entry in ledger.entries.values():
        own.charge("label", "policy", **dataclasses.asdict(entry))
    context.write_json("ledger.json", own.to_json())


def write(path: pathlib.Path, found: dict[int, Label], samples: int) -> None:
    content = {str(problem): dataclasses.asdict(label) for problem, label in sorted(found.items())}
    path.write_text(json.dumps({"sha256": _hash(content), "samples": samples, "labels": content}, indent=1))


def read(directory: pathlib.Path) -> dict[int, Label]:
    """The labels in a stage's output directory; ValueError if they are not what was written (SR-5)."""
    path = directory / FILE
    stored = json.loads(path.read_text())
    if _hash(stored["labels"]) != stored["sha256"]:
        raise ValueError(f"{path}: not the labels of its SHA-256; delete the stage's folder to have it made again")
    return {int(problem): Label(**fields) for problem, fields in stored["labels"].items()}


def _hash(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
