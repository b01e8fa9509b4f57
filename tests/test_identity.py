"""Identity of a configuration and its stages: what makes another run; and what the command line may change (C1)."""

import copy
import math
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling import experiment
from ceiling.config import ConfigError, digest, plain

ROOT = pathlib.Path(__file__).parents[1]
VALUE = st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.lists(st.integers()))


@pytest.fixture
def config():
    """The tiny lab as plain values."""
    scope = {}
    exec((ROOT / "configs/lab.py").read_text(), scope)  # noqa: S102 - a config file is Python
    return plain(scope["get_config"]("tiny"))


def put(config, path, value):
    *parents, last = path.split(".")
    for name in parents:
        config = config[name]
    config[last] = value


# ---- identity


def _shuffled(value):
    if isinstance(value, dict):
        return {key: _shuffled(value[key]) for key in sorted(value, reverse=True)}
    return [_shuffled(v) for v in value] if isinstance(value, list) else value


def test_digest_is_stable_and_ignores_the_order_of_keys(config):
    assert digest(config) == digest(_shuffled(config)) == digest(ml_collections.ConfigDict(config))
    assert digest([1, 2]) != digest([2, 1])
    with pytest.raises(ValueError):
        digest({"x": math.nan})


def test_digest_is_the_same_in_another_process_and_under_another_hash_seed():
    code = "from ceiling.config import digest; print(digest({'b': [1, 2.5, 'ä'], 'a': {'y': None, 'x': True}}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**env, "PYTHONHASHSEED": s}, text=True, capture_output=True, check=True
        ).stdout.strip()
        for s in ("0", "1")
    }
    assert seen == {digest({"a": {"x": True, "y": None}, "b": (1, 2.5, "ä")})}


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(max_size=4), VALUE, max_size=4), st.text(max_size=4), st.integers())  # fmt: skip
def test_digest_changes_with_any_value(values, key, value):
    changed = {**values, key: [value]}
    assert (digest(values) == digest(changed)) == (values.get(key) == [value])
    assert digest(values) == digest(dict(reversed(values.items())))


def _keys(config):
    return {s.name: s.key for s in experiment.plan(ceiling.validate(config))}


@pytest.mark.parametrize("path, value, touched", [
    ("arms.grpo.lr", 2e-4, {"grpo", "grpo.evaluate"}),
    ("arms.sft.lr", 2e-4, {"sft", "sft.evaluate"}),
    ("arms.rlp.floor", 0.1, {"rlp", "rlp.evaluate", "rlp.gain"}),
    ("eval.gain_samples", 3, {"rlp.gain", "rlp_empty.gain"}),
    ("teacher.lr", 2e-4, {"teacher", "distill", "distill.evaluate"}),
    ("eval.n", 16, "evaluate"), ("eval.top_p", 0.9, "evaluate"), ("eval.temperature", 0.5, "evaluate"),
    ("prior.lr", 2e-4, "all"), ("model.width", 32, "all"), ("task.seed", 1, "all"), ("budget.flops", 1e9, "arms"),
    ("train.mix", {"C": 1.0}, "arms with the common mix"),
    ("workers", 2, set()), ("report.every_s", 1, set()), ("name", "other", set()), ("eval.margin", 0.1, set()),
    ("eval.ks", [1, 2], set()), ("eval.verdict_k", 2, set()), ("aggregates", {"mine": "C R"}, set()),
    ("report.pair", "", set()),
])  # fmt: skip
def test_a_changed_value_changes_the_stages_that_depend_on_it_and_no_others(config, path, value, touched):
    before = _keys(config)
    put(config, path, value)
    after = _keys(config)
    assert before.keys() == after.keys()
    changed = {name.removeprefix("seed1/") for name in before if before[name] != after[name]}
    arms = set(config["arms"])
    trained = arms | {f"{a}.evaluate" for a in arms} | {"rlp.gain", "rlp_empty.gain"}
    expected = {
        "all": {name.removeprefix("seed1/") for name in before},
        "evaluate": {name.removeprefix("seed1/") for name in before if name.endswith(".evaluate")},
        "arms": trained, "arms with the common mix": trained - {"grpo_x", "grpo_x.evaluate"},
    }.get(touched if isinstance(touched, str) else None, touched)  # fmt: skip
    assert changed == expected


def test_a_new_seed_or_arm_leaves_the_others_alone(config):
    before = _keys(config)
    config["seeds"] = [5, 1]
    after = _keys(config)
    assert before.items() <= after.items() and len(after) == 2 * len(before)
    assert not set(before.values()) & {key for name, key in after.items() if name.startswith("seed5/")}
    config["seeds"] = [1]
    config["arms"]["again"] = copy.deepcopy(config["arms"]["grpo"])
    assert before.items() <= _keys(config).items()
    assert [*_keys(config)] == [s.name for s in experiment.plan(ceiling.validate(config))]  # names are unique


def test_a_changed_file_behind_a_pattern_is_another_run(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    pattern = str(tmp_path / "*.jsonl")
    before = experiment.content_hash("config.data.path", pattern)
    assert experiment.content_hash("config.data.path", pattern) == before
    (tmp_path / "b.jsonl").write_text('{"x": 1}')
    changed = experiment.content_hash("config.data.path", pattern)
    (tmp_path / "c.jsonl").write_text("{}")
    assert len({before, changed, experiment.content_hash("config.data.path", pattern)}) == 3


def test_another_file_of_the_same_name_is_another_run(tmp_path):
    path = tmp_path / "data.jsonl"
    keys = []
    for content in ("1", "2", "1"):
        path.write_text(content)
        config = ceiling.defaults("questions", arms={"sft": ceiling.arm("sft")})
        config.data.path = str(path)
        keys.append(_keys(config))
    assert keys[0] == keys[2] and not set(keys[0].values()) & set(keys[1].values())


# ---- overrides on the command line


def command(*arguments, config="configs/lab.py:tiny"):
    return subprocess.run(
        [sys.executable, "-m", "ceiling", "--config", config, *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


REFUSED = {
    "a value out of range": ("--config.arms.grpo.lr=nan", "config.arms.grpo.lr=nan", 2),
    "a misspelt key": ("--config.arms.grpo.lrr=1", "lrr", 2),
    "a misspelt section": ("--config.modle.width=1", "modle", 2),
    "a wrong type": ("--config.model.width=wide", "config.model.width", 2),
    "seeds beyond jax": ("--config.seeds=(1,100000000000000000000000)", "config.seeds", 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_c1_command_line_refuses_with_one_line_that_names_the_key(case, tmp_path):
    argument, part, code = REFUSED[case]
    done = command("--workdir", str(tmp_path / "run"), argument)
    assert done.returncode == code and part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr[-500:]
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1
    assert not list(tmp_path.rglob("stage.json"))


def test_c1_command_line_config_that_does_not_load(tmp_path):
    for name in ("configs/lab.py:huge", "configs/nope.py"):
        done = command("--workdir", str(tmp_path / "run"), config=name)
        assert done.returncode != 0 and name.removeprefix("configs/").partition(":")[0] in done.stderr


def test_schema_has_no_unused_import_of_the_compiler():
    """Reading and checking a configuration must not start jax: a refusal costs no compilation."""
    code = "import sys; import ceiling, ceiling.config, ceiling.tasks.lab; sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        == 0
    )
    assert ConfigError is ceiling.ConfigError
