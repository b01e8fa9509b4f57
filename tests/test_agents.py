"""Agents through the whole command: what tools wrote is in the records, in the ledger, and in no loss."""

import importlib.util
import pathlib

import numpy as np
import pytest

import ceiling
from ceiling import experiment, schema
from ceiling.evals.records import Samples

pytestmark = pytest.mark.slow

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "agents.py"


def configs_agents():
    spec = importlib.util.spec_from_file_location("config_agents", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smoke variant with the two ways of learning that agents add: acting, and next states.
    A few dozen steps are enough for a prior that calls its tool, seldom to any purpose."""
    config = configs_agents().get_config("tiny")
    config.arms = {name: config.arms[name] for name in ("grpo", "world")}
    config.model.layers, config.report.html, config.eval.n = 1, False, 16
    config.prior.update(steps=60, lr=3e-2, prompts_per_step=32)
    workdir = tmp_path_factory.mktemp("agents")
    result = ceiling.run(config, workdir)
    stages = {stage.name: stage.directory(workdir) for stage in experiment.plan(schema.validate(config))}
    return config, result.tables, stages


def test_records_say_who_wrote_what(run):
    config, tables, stages = run
    task = schema.load_task(schema.validate(config))
    samples = Samples.load(stages["seed1/base.evaluate"] / "records.parquet")
    called = 0
    for p in range(samples.problems):
        for j in range(samples.n):
            tokens, own = samples.tokens(p, j), samples.own(p, j)
            assert len(tokens) == len(own)
            row = samples.table.slice(p * samples.n + j, 1).to_pylist()[0]
            observed = task.tokenizer.decode(tokens[~own]).replace("[?]", "")  # a call that found nothing
            assert observed == "".join(f"[{document}]" for document in row["documents"])
            assert len(row["turns"]) in (2 * len(row["calls"]) + 1, 2 * len(row["calls"]) - 1)  # cut before an answer
            called += len(row["documents"])
    assert called  # an agent that never calls shows nothing


def test_the_ledger_counts_calls_by_arm(run):
    _, tables, stages = run
    counted = {row["arm"]: row["value"] for row in tables["counters"] if row["name"] == "tool calls"}
    assert counted["grpo"] > 0 and counted["world"] > 0


def test_EE3_arms_stop_after_the_updates_that_they_were_given(run):
    config, tables, _ = run
    updates = {row["arm"]: row["value"] for row in tables["counters"] if row["name"] == "updates"}
    spent = sum(row["flops"] for row in tables["ledger"] if row["arm"] == "world" and row["student"])
    assert updates["world"] == config.arms.world.steps == 1
    assert spent < 0.9 * config.budget.flops  # more could have been bought


def test_measures_of_episodes_are_recomputed_from_the_records(run):
    _, tables, stages = run
    samples = Samples.load(stages["seed1/grpo.evaluate"] / "records.parquet")
    lists = samples.table["calls"].to_pylist()
    for row in (r for r in tables["diversity"] if r["arm"] == "grpo"):
        here = [i for i, group in enumerate(samples.groups) if row["group"] in (group, *_aggregates(tables, group))]
        means = [np.mean([len(calls) for calls in lists[p * samples.n : (p + 1) * samples.n]]) for p in here]
        assert row["calls"] == pytest.approx(np.mean(means))


def _aggregates(tables, group):
    return [name for name, groups in tables["meta"]["aggregates"].items() if group in groups]


def test_trials_of_a_number_of_steps_are_refused():
    config = configs_agents().get_config("tiny")
    config.tuning.trials = 2
    with pytest.raises(ceiling.config.ConfigError, match="steps"):
        schema.validate(config)
