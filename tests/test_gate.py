"""A seed whose prior failed its gate: reported as such, and nothing is spent on what would start from it."""

import json

import ceiling


def test_nothing_is_run_from_a_prior_that_failed_its_gate(tmp_path):
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft", prompts_per_step=2, samples_per_prompt=2, pool=8)})
    config.seeds = (1,)
    config.train.mix = {"C": 1.0}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=1.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, scan_layers=False)
    config.prior.update(steps=1, prompts_per_step=2, pool=1, mix={"C": 1.0})
    config.budget.flops = 1e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2)

    for config.workers in (1, 2):  # the second call finds the prior there, and decides the same
        config.report.html = config.workers == 1
        result = ceiling.run(config, tmp_path)
        assert [path.name for path in (tmp_path / "stages" / "seed1").iterdir()] == ["prior"]
        assert result.curves == [] and result.verdicts == []
        tables = json.loads((tmp_path / "results.json").read_text())
        assert tables["meta"]["stages"] == {"done": 1, "total": 1} and tables["meta"]["complete"]
        assert [(row["seed"], row["passed"]) for row in tables["gates"]] == [(1, False)]
        assert tables["meta"]["notes"][0].startswith("seed 1: the prior failed its gate")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("its prior failed the gate") == 2 * 4  # base, arm, the arm's evaluation, redraw
