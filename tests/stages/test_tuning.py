"""Learning-rate trials: as many for every arm, judged on training problems, charged to the arm."""

import contextlib
import io
import json

import pytest

import ceiling
from ceiling import experiment
from ceiling.evals.records import Samples
from ceiling.ledger import Ledger
from ceiling.tasks.base import Outcome


def configured(trials, **tuning):
    small = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2, schedule="constant", warmup=0.0)
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft", **small)})
    config.seeds = (1,)
    config.train.mix = {"C": 1.0}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, scan_layers=False)
    config.prior.update(steps=1, prompts_per_step=2, pool=1, mix={"C": 1.0})
    config.budget.flops = 6e6
    config.eval.update(n=2, ks=(1,), verdict_k=1, likelihood_samples=0)
    config.tuning.update(trials=trials, **tuning)
    config.report.html = False
    return config


def test_every_arm_tries_as_many_rates_around_its_own():
    stages = {stage.name: stage for stage in experiment.plan(ceiling.validate(configured(3)))}
    trials = [stages[f"seed1/sft.trial{i}"] for i in range(3)]
    assert [t.settings["arm"]["lr"] for t in trials] == pytest.approx([5e-3, 1e-2, 2e-2])
    assert all(t.settings["budget"]["flops"] == pytest.approx(6e5) for t in trials)
    assert list(stages["seed1/sft"].needs["tune"].needs.values()) == trials
    assert not [name for name in (s.name for s in experiment.plan(ceiling.validate(configured(1)))) if "trial" in name]


def test_the_best_rate_is_trained_with_and_its_search_is_paid_for(tmp_path, monkeypatch):
    from ceiling.evals import sample

    judged = []
    evaluate = sample.evaluate

    def graded(policy, task, *, problems=None, **settings):
        """Calls the second trial right everywhere, and remembers what the trials were judged on."""
        samples = evaluate(policy, task, problems=problems, **settings)
        if problems is not None:
            judged.append([p.prompt for p in problems])
            outcome = [Outcome.RIGHT if len(judged) == 2 else Outcome.WRONG] * samples.table.num_rows
            at = samples.table.column_names.index("outcome")
            return Samples(samples.table.set_column(at, "outcome", [outcome]), samples.meta)
        return samples

    monkeypatch.setattr(sample, "evaluate", graded)
    config = configured(2, spend=0.25, problems=4, n=2)
    with contextlib.redirect_stdout(io.StringIO()):
        result = ceiling.run(config, tmp_path)
    home = lambda name: next((tmp_path / "stages/seed1" / name).iterdir())  # noqa: E731
    found = json.loads((home("sft.tune") / "tune.json").read_text())
    assert found["right"] == [0.0, 1.0] and found["lr"] == found["rates"][1] == pytest.approx(1e-2 * 2**0.5)
    rates = [json.loads(line)["lr"] for line in (home("sft") / "metrics.jsonl").read_text().splitlines()]
    assert rates and rates == pytest.approx([found["lr"]] * len(rates))
    task = ceiling.schema.load_task(ceiling.validate(config))
    held_out = {p.prompt for p in task.evaluation()}
    assert len(judged) == 2 and len(judged[0]) == 4 and not held_out & set(judged[0] + judged[1])
    # The arm ends at its budget, its trials included, and the report counts them once.
    trials = [Ledger.from_json(json.loads((home(f"sft.trial{i}") / "ledger.json").read_text())) for i in range(2)]
    whole = Ledger.from_json(json.loads((home("sft") / "ledger.json").read_text()))
    spent = sum(t.student_flops for t in trials)
    step = whole.student_flops - spent
    assert 0 < spent < whole.student_flops < 1.2 * 6e6 and step > 0
    shown = sum(r["flops"] for r in result.ledger if r["arm"] == "sft" and r["student"])
    assert shown == pytest.approx(whole.student_flops)
    assert {r["arm"] for r in result.ledger} <= {"prior", "base", "base_redraw", "sft"}


def test_a_search_that_leaves_nothing_to_train_with_is_refused():
    with pytest.raises(ceiling.ConfigError, match=r"config\.tuning\.spend=0\.5 with .*\.trials=2: .* lower"):
        ceiling.validate(configured(2, spend=0.5))
