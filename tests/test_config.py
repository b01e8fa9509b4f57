"""Configuration: everything wrong is refused in one line before anything compiles (C1)."""

import copy
import importlib.util
import math
import pathlib

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling import experiment
from ceiling.config import ConfigError, Section, digest, flag, number, numbers, plain, table, text
from ceiling.tasks import lab

ROOT = pathlib.Path(__file__).parents[1]


def load(name, variant=""):
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.fixture
def config():
    """The tiny lab as plain values: tests put anything anywhere in it, as ml-collections would not let them."""
    return plain(load("lab", "tiny"))


def put(config, path, value):
    *parents, last = path.split(".")
    for name in parents:
        config = config[name]
    config[last] = value


def refused(config, *parts, error=ConfigError):
    with pytest.raises(error) as caught:
        ceiling.validate(config)
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert part in message, (part, message)
    return message


# ---- numbers

NOT_NUMBERS = [math.nan, math.inf, -math.inf, -1, 10**23, 10**400, "1", "nan", None, True, [1], {}, 1j]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("path", ["arms.grpo.lr", "prior.lr", "prior.steps", "arms.grpo.prompts_per_step", "eval.n",
                                  "model.width", "mesh.data", "workers", "task.seed", "arms.rlp.floor",
                                  "eval.top_p"])  # fmt: skip
def test_c1_a_number_that_is_none_is_refused_naming_its_key(config, path, value):
    put(config, path, value)
    refused(config, f"config.{path}=")


@pytest.mark.parametrize("path, value", [
    ("prior.steps", 0), ("arms.sft.samples_per_prompt", 0), ("arms.grpo.clip_low", 1.5), ("arms.grpo.temperature", 0.0),
    ("eval.n", 1), ("budget.flops", 0), ("eval.top_p", 0.0), ("eval.top_p", 1.01), ("arms.rlp.ema_decay", 1.5),
    ("workers", 0), ("workers", 1000), ("model.head_dim", 1), ("arms.grpo.lr", 11.0), ("task.gate_accuracy", 1.1),
])  # fmt: skip
def test_c1_out_of_range(config, path, value):
    put(config, path, value)
    refused(config, f"config.{path}={value!r}", "out of range", "[")


@pytest.mark.parametrize("value", [2.5, 64.0, 1e3])
@pytest.mark.parametrize("path", ["model.width", "prior.steps", "eval.n", "arms.grpo.microbatches"])
def test_c1_whole_numbers_are_ints(config, path, value):
    """64.0 would be a shape (64.0,) three stages later."""
    put(config, path, value)
    refused(config, f"config.{path}={value!r}", "whole number")


@pytest.mark.parametrize("path", ["seeds", "eval.ks"])
@pytest.mark.parametrize("value", [[], (), 3, "12", None, {}, [[1]], [None], ["1"], [math.nan], [-1], [1.5],
                                  [1.0], [True], [10**23]],
                         ids=lambda v: repr(v)[:12])  # fmt: skip
def test_c1_lists_of_numbers(config, path, value):
    put(config, path, value)
    refused(config, f"config.{path}")


@pytest.mark.parametrize("path", ["task.rho", "task.strategies", "train.mix", "arms.grpo.mix"])
@pytest.mark.parametrize("value", [{"C": math.nan}, {"C": -1.0}, {"C": "x"}, {"C": 0.0}, {"C": 0, "R": 0},
                                  [0.5], 1.0, None, {"C": None}],
                         ids=lambda v: repr(v)[:16])  # fmt: skip
def test_c1_tables(config, path, value):
    if path == "task.rho" and value == {"C": 0.0}:
        value = {"R": 0.0}
    put(config, path, value)
    refused(config, f"config.{path}")


@pytest.mark.parametrize("path, value", [
    ("model.tied", 1), ("model.tied", "True"), ("arms.grpo.control", None), ("arms.grpo.reward", "exakt"),
    ("arms.grpo.reward", 3), ("arms.sft.source", ""), ("model.compute_dtype", "float16"), ("budget.axis", "students"),
    ("arms.grpo.advantage", "group_stdd"), ("name", 5), ("data.path", None), ("report.pair", 3),
])  # fmt: skip
def test_c1_texts_and_flags(config, path, value):
    put(config, path, value)
    refused(config, f"config.{path}={value!r}")


def test_c1_choices_suggest_the_nearest(config):
    put(config, "arms.grpo.reward", "exakt")
    refused(config, "exact | dense | process | format", "did you mean 'exact'?")


# ---- keys


@pytest.mark.parametrize("path, nearest", [
    ("arms.grpo.lrr", "lr"), ("arms.grpo.sample_per_prompt", "samples_per_prompt"), ("modle", "model"),
    ("model.widht", "width"),
    ("eval.tempreature", "temperature"), ("task.evaluation_per_grop", "evaluation_per_group"), ("seed", "seeds"),
    ("arms.rlp.max_thought_token", "max_thought_tokens"), ("prior.step", "steps"), ("budget.flop", "flops"),
])  # fmt: skip
def test_c1_unknown_key_suggests_the_nearest(config, path, nearest):
    put(config, path, 1)
    refused(config, f"config.{path}: unknown key", f"did you mean '{nearest}'?")


def test_c1_another_regimes_key_is_unknown(config):
    put(config, "arms.sft.advantage", "group_std")
    refused(config, "config.arms.sft.advantage: unknown key")


@pytest.mark.parametrize(
    "path", ["seeds", "eval.n", "model.width", "arms.grpo.lr", "budget", "train.mix", "task.rho", "mesh"]
)
def test_c1_missing_key(config, path):
    *parents, last = path.split(".")
    where = config
    for name in parents:
        where = where[name]
    del where[last]
    refused(config, f"config.{path}: missing")


@pytest.mark.parametrize("path", ["model", "eval", "mesh", "budget", "prior", "train"])
@pytest.mark.parametrize("value", [5, None, [1], "x"])
def test_c1_a_section_that_is_no_section(config, path, value):
    put(config, path, value)
    refused(config, f"config.{path}={value!r}")


def test_c1_names_of_tasks_regimes_and_variants(config):
    for value in ("labb", "", "base", "qa-file"):
        broken = copy.deepcopy(config)
        broken["task"]["name"] = value
        refused(broken, f"config.task.name={value!r}", "corpus, gym, lab, questions")
    for value in ("grop", "base", "", "../sft"):
        broken = copy.deepcopy(config)
        broken["arms"]["grpo"]["regime"] = value
        refused(broken, f"regime={value!r}", "critique_grpo, distill, early_experience, grpo, rlp, sft")
    del config["arms"]["grpo"]["regime"]
    refused(config, "config.arms.grpo.regime: missing")
    refused({}, "config.task.name: missing")
    for name in ("lab", "lab_full", "qa_file"):
        with pytest.raises(ValueError, match=rf"{name}.*:huge is not a variant|lab\.py:huge is not a variant"):
            load(name, "huge")
    with pytest.raises(ConfigError, match="'nope' is not known"):
        ceiling.arm("nope")
    with pytest.raises(ConfigError, match="unknown key 'lrr'.*did you mean 'lr'"):
        ceiling.arm("grpo", lrr=1.0)
    with pytest.raises(ConfigError, match="'nope' is not a task"):
        ceiling.defaults("nope")


# ---- values that do not fit together


@pytest.mark.parametrize("n, k", [(8, 5), (8, 8), (8, 100), (2, 2)])
def test_c1_verdict_k_above_half_of_n(config, n, k):
    config["eval"].update(n=n, verdict_k=k, ks=[1])
    refused(config, f"config.eval.verdict_k={k}", f"eval.n >= {2 * k}")


def test_c1_k_above_n(config):
    config["eval"].update(n=8, verdict_k=4, ks=[1, 9])
    refused(config, "config.eval.ks", "k=9", "eval.n=8")


def test_c1_the_largest_values_that_fit_are_accepted(config):
    config["eval"].update(n=8, verdict_k=4, ks=[1, 8])
    assert ceiling.validate(config)["eval"]["ks"] == [1, 8]


def test_c1_duplicate_seeds(config):
    config["seeds"] = [3, 1, 3]
    refused(config, "config.seeds=[3, 1, 3]", "repeats")


@pytest.mark.parametrize("seed", [2**32, 2**40, 2**63])
def test_c1_seeds_that_jax_would_alias_or_refuse(config, seed):
    """jax keys keep 32 bits of a seed: 2**32 and 0 would be one run under two names."""
    config["seeds"] = [0, seed]
    refused(config, "config.seeds")


@pytest.mark.parametrize("arm", ["grpo", "grpo_x", "rlp", "rlp_empty"])
def test_c1_n2_groups_of_one_are_refused_where_advantages_are_relative(config, arm):
    config["arms"][arm]["samples_per_prompt"] = 1
    refused(config, f"config.arms.{arm}.samples_per_prompt=1", "at least 2")
    config["arms"][arm]["samples_per_prompt"] = 2
    config["arms"]["sft"]["samples_per_prompt"] = 1  # fine where nothing is relative
    ceiling.validate(config)


@pytest.mark.parametrize("key", ["minibatches", "microbatches"])
@pytest.mark.parametrize("value", [3, 16])
def test_c1_batches_that_do_not_divide(config, key, value):
    config["arms"]["grpo"][key] = value
    refused(config, f"config.arms.grpo.{key}={value}", "prompts_per_step * samples_per_prompt = 8")


@pytest.mark.parametrize(("together", "minibatches"), [(3, 1), (4, 1), (2, 2)])
def test_c1_rows_of_more_responses_than_an_update_has(config, together, minibatches):
    config["arms"]["grpo"].update(responses_per_row=together, minibatches=minibatches)
    refused(config, f"config.arms.grpo.responses_per_row={together}", f"minibatches = {2 // minibatches},")


@pytest.mark.parametrize("changes, part", [
    (dict(heads=3, kv_heads=2), "model.heads=3"), (dict(heads=2, kv_heads=4), "model.heads=2"),
    (dict(head_dim=15), "model.head_dim=15"),
])  # fmt: skip
def test_c1_head_counts(config, changes, part):
    config["model"].update(changes)
    refused(config, part, error=ValueError)


@pytest.mark.parametrize("name", ["base", "base_redraw"])
def test_c1_reserved_arm_names(config, name):
    config["report"]["pair"] = ""
    config["arms"][name] = config["arms"].pop("sft")
    refused(config, f"config.arms.{name}", "taken")


@pytest.mark.parametrize("name", ["prior", "teacher", "base.evaluate", "grpo.evaluate", "../x", "a/b", "", "a b", ".."])
def test_c1_arm_names_that_would_be_another_stages_or_another_directory(config, name):
    config["report"]["pair"] = ""
    config["arms"][name] = config["arms"].pop("sft")
    refused(config, f"config.arms.{name}")


@pytest.mark.parametrize("pair", ["grpo", "grpo grpo_x", "grpo nobody X", "a b c d"])
def test_c1_report_pair(config, pair):
    config["report"]["pair"] = pair
    refused(config, f"config.report.pair={pair!r}")


@pytest.mark.parametrize("groups", ["C Q", "nothing"])
def test_c1_aggregates_of_groups_that_do_not_exist_are_refused_before_a_stage_runs(
    config, groups, tmp_path, monkeypatch
):
    config["aggregates"] = {"mine": groups}

    def too_late(*_):
        raise AssertionError("a stage was started")

    monkeypatch.setattr(experiment.workers, "execute", too_late)
    with pytest.raises(ValueError, match="aggregates"):
        ceiling.run(config, tmp_path / "run")


def test_c1_mesh_larger_than_the_machine_is_refused_before_anything_compiles(config, tmp_path):
    config["mesh"]["data"] = 4 * jax.device_count()
    with pytest.raises((ValueError, RuntimeError), match=r"mesh.*devices?") as caught:
        ceiling.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("run/stages/*/*/????????????????"))


@pytest.mark.parametrize("path, value, part", [
    ("train.mix", {"C": 0.5, "Z": 0.5}, "'Z'"), ("arms.grpo_x.mix", {"Q": 1.0}, "'Q'"),
    ("arms.sft.pool", 4000, "training problems"),
    ("arms.rlp.max_thought_tokens", 100, "max_thought_tokens"), ("task.strategies", {"Q": 1.0}, "task.strategies.Q"),
    ("task.depths", {"5": 1.0}, "task.depths.5"), ("task.rho", {"R": 0.1, "V": 0.1, "U": 0.1, "A": 0.1}, "task.rho.A"),
])  # fmt: skip
def test_c1_what_only_the_task_can_refuse_is_refused_before_a_stage_runs(
    config, path, value, part, tmp_path, monkeypatch
):
    """An hour of pretraining must not end in a message that was due before it."""
    put(config, path, value)

    def too_late(*_):
        raise AssertionError("a stage was started")

    monkeypatch.setattr(experiment.workers, "execute", too_late)
    with pytest.raises(ValueError, match=part) as caught:
        ceiling.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_c1_run_refuses_bad_configs_and_bad_data_without_making_anything(config, tmp_path):
    config["arms"]["grpo"]["lr"] = math.nan
    with pytest.raises(ConfigError, match="lr=nan"):
        ceiling.run(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="config.data.path is empty"):
        ceiling.run(ceiling.defaults("questions"), tmp_path / "run")
    qa = ceiling.defaults("questions")
    qa.data.path = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"missing.*No such file"):
        ceiling.run(qa, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# ---- the schema itself

LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
                 st.lists(st.integers(), max_size=2),
                 st.dictionaries(st.text(max_size=3), st.floats(), max_size=2))  # fmt: skip
TOY = Section(
    x=number(1.0, low=0, high=2), i=number(1, whole=True, low=0), t=text("a", choices=("a", "b")), f=flag(False),
    w=table({"p": 1.0}, low=0), l=numbers((1, 2), whole=True, low=0), s=Section(y=number(0.0)),
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.sampled_from(["x", "i", "t", "f", "w", "l", "s", "z"]), LEAF))
def test_c1_whatever_is_given_the_answer_is_acceptance_or_one_line(values):
    config = {**plain(TOY.defaults()), **values}
    try:
        TOY.validate(config, "config")
    except ConfigError as error:
        assert str(error).startswith("config.") and "\n" not in str(error)
    else:
        assert "z" not in config and math.isfinite(config["x"]) and 0 <= config["x"] <= 2
        assert isinstance(config["i"], int) and config["t"] in ("a", "b") and isinstance(config["f"], bool)
        assert not config["w"] or sum(config["w"].values()) > 0
        assert config["l"] and all(isinstance(v, int) for v in config["l"])


def test_the_example_of_the_module_validates():
    TOY.validate(TOY.defaults(), "config")
    TOY.validate(lab_defaults := TOY.defaults(x=0.5, w={"q": 2.0}), "config")
    assert lab_defaults.x == 0.5
    lab.CONFIG.validate(lab.CONFIG.defaults(), "config.task")


@pytest.mark.parametrize("name", ["lab", "lab_full", "qa_file"])
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_every_config_of_the_repository_is_valid(name, variant):
    resolved = ceiling.validate(load(name, variant))
    assert resolved["arms"] and digest(resolved) == digest(ceiling.validate(load(name, variant)))
    assert 2 * resolved["eval"]["verdict_k"] <= resolved["eval"]["n"]
