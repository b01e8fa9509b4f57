"""The same number of learning-rate trials for every arm, charged to its ledger.

An arm's trials are short runs of itself from the same start, at rates around its own. The best is the one whose policy
is right most often on problems of the arm's own training pool; evaluation problems are never looked at. What the trials
spent counts against the arm's budget, so a searched arm trains that much less.
"""

import numpy as np

from ceiling import ledger as accounts
from ceiling.evals import sample as evaluation
from ceiling.stages.context import Context, read
from ceiling.train.loop import stream


def tune(context: Context) -> None:
    """tune.json: the rates, the share of right samples after each trial, and the best rate. ledger.json: all trials."""
    s, task = context.settings["tune"], context.task
    problems = task.training(dict(s["mix"]), s["pool"])[:: max(1, s["pool"] // s["problems"])]
    ledger, right = accounts.Ledger(), []
    for i in range(len(s["rates"])):
        ledger.merge(accounts.Ledger.from_json(read(context.needs[f"trial{i}"] / "ledger.json")))
        samples = evaluation.evaluate(context.policy(f"trial{i}"), task, n=s["n"], seed=stream(context.seed, 9),
                                      problems=problems, slots=s["slots"], ledger=ledger)  # fmt: skip
        right.append(float(samples.counts[:, 1].mean() / s["n"]))
    best = int(np.argmax(right))  # the lowest rate of equals
    context.write_json("tune.json", {"rates": s["rates"], "right": right, "lr": s["rates"][best]})
    context.write_json("ledger.json", ledger.to_json())
