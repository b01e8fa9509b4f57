"""Runs a claim: its experiments, then its tests on what they left.

All claims share one folder of stages, so a prior that several of them start from is trained once:

    WORKDIR/stages/                  shared; a finished stage is never run again
    WORKDIR/<id>/<experiment>/       results.json and csv of that experiment
    WORKDIR/<id>/claim.json          verdict, intervals, arms and ledgers: all that the claim's page shows
"""

import dataclasses
import json
import math
import pathlib

import numpy as np

from ceiling import experiment, results, schema
from ceiling.claims import base
from ceiling.evals.stats import crossed_interval


def run(claim: base.Claim, scale: base.Scale, workdir, scale_name: str = "") -> dict:
    """Run what is missing of a claim, judge it, and return the content of its claim.json."""
    workdir = pathlib.Path(workdir)
    experiments = claim.experiments(scale).items()
    config = next(iter(dict(experiments).values()))  # all of a claim are of one size
    size = {"flops": config.budget.flops, "problems": config.task.evaluation_per_group, "n": config.eval.n,
            "k": config.eval.verdict_k, "prior": config.prior.steps, "teacher": config.teacher.steps}  # fmt: skip
    evidence = base.paired({
        name: _evidence(config, workdir, workdir / claim.id / name) for name, config in experiments
    })  # fmt: skip
    if not all(e.seeds for e in evidence.values()):
        raise RuntimeError(f"{claim.id}: no seed's prior passed its gate in every experiment, so nothing pairs up")
    arms = [{"experiment": name, **row} for name, e in evidence.items() for row in _arms(e, claim.groups)]
    findings = [base.judge(test, evidence, len(claim.tests)) for test in claim.tests]
    content = {
        "id": claim.id, "title": claim.title, "finding": claim.finding, "sources": list(claim.sources),
        "refuted_by": claim.refuted_by, "tried": claim.tried, "groups": claim.groups,
        "verdict": base.overall(findings), "scale": {"name": scale_name, **dataclasses.asdict(scale), **size},
        "tests": [
            {**dataclasses.asdict(finding), "statement": test.statement, "unit": test.unit}
            for test, finding in zip(claim.tests, findings, strict=True)
        ],
        "arms": arms, "measured": claim.measured(evidence) if claim.measured else [],
    }  # fmt: skip
    (workdir / claim.id / "claim.json").write_text(json.dumps(_finite(content), indent=1))
    return content


def _evidence(config, workdir: pathlib.Path, home: pathlib.Path) -> base.Evidence:
    """The evidence of one experiment, run first if it is not finished."""
    home.mkdir(parents=True, exist_ok=True)
    shared = home / "stages"
    if not shared.exists():
        (workdir / "stages").mkdir(exist_ok=True)
        shared.symlink_to(pathlib.Path("../../stages"), target_is_directory=True)
    result = experiment.run(config, home)
    config = schema.validate(config)
    stages = experiment.plan(config)
    finished = [stage for stage in stages if stage.directory(home).exists()]
    task = schema.load_task(config)
    evalset = results.evalset(config, task, finished, home)
    if evalset is None:
        raise RuntimeError(f"{home}: no prior passed its gate, so there is nothing to judge; see {home}/results.json")
    return base.Evidence(result.tables, evalset, config["eval"]["verdict_k"], tuple(task.evaluation()))


def _arms(evidence: base.Evidence, groups: str) -> list[dict]:
    """What the page shows of every arm: its change of pass@1 and pass@k on the claim's groups, and its ledger."""
    ledger = evidence.tables["ledger"]
    out = []
    for arm in evidence.tables["meta"]["arms"]:
        name = arm["name"]
        if name not in evidence.evalset.arms:
            continue
        row = {"arm": name, "title": arm["title"], "control": arm["control"], "reads": arm["reads"], "k": evidence.k}
        for k in (1, evidence.k):
            label = "at_1" if k == 1 else "at_k"
            row[label] = float(evidence.passk(name, k, groups).mean())
            change = crossed_interval(evidence.gain(name, "base", k, groups), base.LEVEL)
            row[f"{label}_change"] = [change.mean, change.lo, change.hi]
        mine = [r for r in ledger if r["arm"] == name and r["phase"] != "evaluate"]
        seeds = len({r["seed"] for r in mine}) or 1
        calls = [r["value"] for r in evidence.tables["counters"] if (r["arm"], r["name"]) == (name, "tool calls")]
        row |= {
            "student_flops": sum(r["flops"] for r in mine if r["student"]) / seeds,
            "teacher_flops": sum(r["flops"] for r in mine if not r["student"]) / seeds,
            "tokens": sum(r["tokens"] for r in mine) / seeds, "seconds": sum(r["seconds"] for r in mine) / seeds,
            "tool_calls": sum(calls) / seeds,
        }  # fmt: skip
        out.append(row)
    return out


def _finite(value):
    """JSON has no nan: an interval that there is none of becomes null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
