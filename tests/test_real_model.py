"""A checkpoint directory through the whole instrument: prior, teacher, adapters, evaluation of what came out."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import ceiling
from ceiling.evals.records import Samples
from ceiling.model import hf

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
SIZES = ["--vocab=300", "--width=16", "--ffn=16", "--layers=1", "--heads=2", "--kv-heads=1", "--head-dim=8"]
CONFIG = """
import ceiling

def get_config(variant=""):
    shared = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2)
    config = ceiling.defaults("questions", arms={
        "sft": ceiling.arm("sft", lora_rank=2, lora_targets="wq wv w_down", **shared),
        "kd": ceiling.arm("distill", loss="divergence", keep="all", **shared),
        "rlp": ceiling.arm("rlp", max_thought_tokens=8, **shared),
    })
    config.seeds = (1,)
    config.model.path, config.teacher.path, config.data.path = MODEL, TEACHER, DATA
    config.task.update(evaluation_problems=3, max_prompt_tokens=160, max_response_tokens=96, chat=True,
                       template="{question}")
    config.budget.flops = 1e8
    config.report.html = False
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1, gain_samples=2)
    return config
"""


def script(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def load(file):
    scope = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)  # noqa: S102 - a config file is Python
    return scope["get_config"]()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(directory, config file, result) of a finished run on random checkpoints of one family."""
    home = tmp_path_factory.mktemp("real")
    for name, seed in (("model", 0), ("teacher", 1)):
        done = script("scripts/make_model.py", str(home / name), f"--seed={seed}", *SIZES)
        assert done.returncode == 0, done.stderr
    shutil.copy(home / "model/tokenizer.json", home / "teacher/tokenizer.json")  # another seed, other merges
    text = CONFIG
    data = home / "model/questions.jsonl"
    for name, path in (("MODEL", home / "model"), ("TEACHER", home / "teacher"), ("DATA", data)):
        text = text.replace(f"= {name}", f"= {str(path)!r}").replace(f" {name},", f" {str(path)!r},")
        text = text.replace(f" {name}\n", f" {str(path)!r}\n")
    file = home / "config.py"
    file.write_text(text)
    result = ceiling.run(load(file), home / "run")
    return home, file, result


def stage(home, name):
    return next((home / "run/stages/seed1" / name).iterdir())


def test_every_arm_is_reported_and_charged(real):
    home, _, result = real
    arms = {row["arm"] for row in result.curves}
    assert arms == {"base", "base_redraw", "sft", "kd", "rlp"}
    models = {(row["arm"], row["phase"], row["model"]) for row in result.ledger}
    assert {("kd", "score", "teacher"), ("kd", "rollout", "teacher"), ("rlp", "score", "ema")} <= models
    assert not (stage(home, "prior") / "params").exists(), "a checkpoint is pointed at, not copied"


def test_records_carry_template_and_tokenizer(real):
    home, _, _ = real
    meta = Samples.load(stage(home, "sft.evaluate") / "records.parquet").meta
    assert len(meta["tokenizer_sha256"]) == len(meta["prompt_sha256"]) == 64


def test_BO3_adapters_leave_the_checkpoint_as_it_was(real):
    from ceiling.model.sharding import make_mesh
    from ceiling.stages import load_policy

    home, _, _ = real
    config, params = hf.load(home / "model")
    policy = load_policy(stage(home, "sft"), config, make_mesh())
    assert policy.config.lora_rank == 2
    np.testing.assert_array_equal(policy.params["layers"]["wq"], params["layers"]["wq"])
    assert np.abs(policy.params["layers"]["wq_lora_b"]).max() > 0


def test_the_evaluation_command_measures_a_stage_and_a_checkpoint(real, tmp_path):
    home, file, _ = real
    for name, checkpoint in (("stage", stage(home, "sft")), ("directory", home / "model")):
        out = tmp_path / name
        done = script("-m", "ceiling.evaluate", f"--config={file}", f"--checkpoint={checkpoint}", f"--workdir={out}",
                      "--config.eval.n=6")  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        results = json.loads(next(out.glob("*/results.json")).read_text())
        samples = Samples.load(next(out.glob("*/records.parquet")))
        assert results["n"] == samples.n == 6 and samples.problems == 3
        at_1 = next(row["mean"] for row in results["curves"] if row["k"] == 1)
        assert at_1 == pytest.approx((samples.counts[:, 1] / 6).mean())
    done = script("-m", "ceiling.evaluate", f"--config={file}", f"--checkpoint={tmp_path}", f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "neither a checkpoint" in done.stderr


@pytest.mark.parametrize("change, message", [
    ({"model.width": 32}, r"config.model.width=32: the architecture comes from config.model.path"),
    ({"model.path": "nowhere"}, r"config.model.path='nowhere': no config.json there"),
    ({"prior.lora_rank": 2}, r"config.prior.lora_rank"),
    ({"arms.kd.lora_targets": "wq wz"}, "lora_targets"),
])  # fmt: skip
def test_C1_refused_in_one_line_before_anything_runs(real, change, message, tmp_path):
    _, file, _ = real
    config = load(file)
    for key, value in change.items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
        if last == "lora_targets":
            section["lora_rank"] = 2
    with pytest.raises(ceiling.ConfigError, match=message) as error:
        ceiling.run(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_teacher_with_another_vocabulary_is_refused(real, tmp_path):
    home, file, _ = real
    other = tmp_path / "other"
    done = script("scripts/make_model.py", str(other), "--vocab=280", *SIZES[1:])
    assert done.returncode == 0, done.stderr
    config = load(file)
    config.teacher.path = str(other)
    with pytest.raises(ceiling.ConfigError, match="its vocabulary is not the student's"):
        ceiling.run(config, tmp_path / "run")
