"""A plan against reality: exact where bytes are a matter of shapes, within a stated tolerance where XLA decides."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ceiling
from ceiling import ledger as accounts
from ceiling.config import ConfigError, plain
from ceiling.data.packing import WHOLE, Batch, Example, Layout, micro_batches
from ceiling.model.config import ModelConfig, abstract, parameter_count
from ceiling.model.lora import trainable
from ceiling.model.sequences import Forward
from ceiling.model.sharding import make_mesh, param_shardings, place
from ceiling.plan import main_plan, memory, plan, programs, work
from ceiling.regimes.base import load as regime
from ceiling.rollout import cache as kv
from ceiling.train import optim
from ceiling.train.loop import CONFIG as LOOP
from ceiling.train.loop import layout
from ceiling.train.step import TrainState, init_state, make_step

ROOT = pathlib.Path(__file__).parents[1]
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SIZES = dict(vocab_size=256, width=64, ffn=128, layers=4, heads=4, kv_heads=2, head_dim=16)
WIDE = dict(vocab_size=256, width=128, ffn=256, layers=3, heads=8, kv_heads=4, head_dim=16, tied=False, qkv_bias=True)


def config_file(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def arm(name, **settings):
    return plain(ceiling.arm(name, **settings))


# --- exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 3])
def test_weights_and_optimiser_are_exact(dtype, rank):
    config = ModelConfig(**WIDE, param_dtype=dtype, lora_rank=rank)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract(config))
    cfg = plain(LOOP.defaults())
    state = init_state(jax.tree.map(jnp.asarray, params), optim.make(cfg), None, trainable(config))
    assert memory.weights(config, ONE) == nbytes(state.params)
    assert memory.optimiser(config, cfg, ONE) == nbytes(state.opt_state)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)], ids=str)
def test_a_device_holds_what_the_plan_says(sizes):
    config, mesh = ModelConfig(**WIDE), make_mesh(*sizes)
    params = place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract(config)), config, mesh)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert memory.weights(config, dict(mesh.shape)) == held


@pytest.mark.parametrize("scan", [True, False])
def test_the_cache_is_exact(scan):
    config = ModelConfig(**SIZES, scan_layers=scan, compute_dtype="bfloat16")
    assert memory.kv_cache(config, 5, 24, ONE) == nbytes(kv.empty(config, 5, 24))
    assert memory.kv_cache(config, 5, 24, ONE) == 4 * 2 * 5 * 2 * 24 * 16 * 2
    cache = kv.empty(config, 5, 24)
    assert {x.shape for x in jax.tree.leaves(cache.v)} == ({(4, 5, 2, 24, 16)} if scan else {(5, 2, 24, 16)})
    assert {x.shape for x in jax.tree.leaves(cache.k)} == ({(4, 5, 2, 24, 16)} if scan else {(5, 2, 16, 24)}), "turned"


@pytest.mark.parametrize("scan", [True, False])
def test_decoding_lowers_with_stacked_and_with_unrolled_layers(scan):
    setting = programs.Setting(ModelConfig(**SIZES, scan_layers=scan), make_mesh(), {}, 32, 32)
    cfg = arm("grpo", prompts_per_step=4, samples_per_prompt=2)
    assert ("stablehlo.while" in programs.decode(setting, cfg).lower().as_text()) == scan


def test_the_slow_copy_is_exact():
    config, cfg = ModelConfig(**SIZES), arm("rlp")
    params = init_params(config)
    assert memory.slow_state(regime("rlp"), config, cfg, ONE) == nbytes(regime("rlp").init_aux(params, cfg))
    assert memory.slow_state(regime("sft"), config, cfg, ONE) == 0


@pytest.mark.parametrize(("responses", "devices"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_the_planned_batch_is_the_one_that_is_packed(responses, devices):
    P, R, rows = 5, 6, dict(prompts_per_step=4, samples_per_prompt=4, microbatches=2, responses_per_row=responses)
    cfg = {**arm("grpo", **rows), "max_tokens": R}
    setting = programs.Setting(ModelConfig(**SIZES), make_mesh(devices), {}, P, R)
    planned = programs.batch(work.updates(regime("grpo"), cfg, P, R)[0], cfg, setting)
    mask = np.arange(P + R) >= P
    full = [Example(np.full(P + R, prompt), mask, {"behaviour": 1.0 * mask, "advantage": 1.0}) for prompt in range(4)]
    packed, live = micro_batches(full * 4, layout(cfg, P + R, setting.mesh.shape))
    assert live == 2 and planned.groups == packed.groups == devices
    assert jax.tree.map(jnp.shape, planned) == jax.tree.map(jnp.shape, packed)


def init_params(config):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract(config))


# --- against XLA ------------------------------------------------------------------------------------------------


@functools.cache
def compiled_step(config, rows, tokens, cells=WHOLE):
    """memory_analysis of the real train step on two micro-batches of `rows` full rows."""
    shape = lambda *sizes, dtype=jnp.int32: jax.ShapeDtypeStruct((2, *sizes), dtype)  # noqa: E731
    square = [shape(rows, tokens) for _ in range(5)]
    batch = Batch(*square, shape(rows, tokens, dtype=jnp.float32), shape(rows, tokens), {}, cells)
    forward, optimiser = Forward(config), optim.make(plain(optim.CONFIG.defaults()))

    def loss(params, batch, frozen):
        logp_BT, _ = forward.logprobs(params, batch)
        return -jnp.sum(logp_BT * batch.mask_BT), jnp.sum(batch.mask_BT), {}

    params, zero = abstract(config), jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(params, jax.eval_shape(optimiser.init, params), None, zero, zero)
    step = make_step(loss, optimiser, None, trainable(config), unrolled=not config.scan_layers)
    return step.lower(state, batch, {}, jax.ShapeDtypeStruct((), jnp.float32)).compile().memory_analysis()


# estimate / XLA's temporary memory, measured on a CPU with jax 0.10.2 in float32: 1.13 and 1.18 without remat, 1.31
# and 1.23 with "dots", 1.35 and 1.11 with "block"; sampling 1.11. A plan that errs must err on this side.
LOW, HIGH = 1.0, 1.5


@pytest.mark.parametrize(("remat", "scan"), [("", True), ("dots", True), ("block", True), ("", False)])
@pytest.mark.parametrize(
    ("sizes", "at"), [(SIZES, Layout(8, 2, 128)), (WIDE, Layout(4, 2, 256)), (SIZES, Layout(16, 2, 128, 4, 96))],
    ids=["small", "wide", "cells"],
)  # fmt: skip
def test_the_step_needs_about_what_the_plan_says(sizes, at, remat, scan):
    config = ModelConfig(**sizes, remat=remat, scan_layers=scan, head_chunk_tokens=256)
    analysis = compiled_step(config, at.rows, at.row_tokens, at.cells)
    cfg = arm("sft")
    adds = memory.update(config, at, ONE)
    assert adds["gradients"] == 2 * memory.weights(config, ONE)
    ratio = sum(adds.values()) / analysis.temp_size_in_bytes
    print(f"remat={remat} scan={scan}: estimate / measured = {ratio:.3f}")
    assert LOW < ratio < HIGH
    held = memory.weights(config, ONE) + memory.optimiser(config, cfg, ONE)
    assert held <= analysis.argument_size_in_bytes < held + 100_000  # the batch is beside it


def test_what_is_recomputed_need_not_be_kept():
    """XLA's figure and the plan's, on the compilations of the test above: a whole block, all but its products, none."""
    none, dots, block = (ModelConfig(**WIDE, remat=r, head_chunk_tokens=256) for r in ("", "dots", "block"))
    measured = [compiled_step(config, 2, 256).temp_size_in_bytes for config in (none, dots, block)]
    planned = [sum(memory.update(config, Layout(4, 2, 256), ONE).values()) for config in (none, dots, block)]
    for bytes_of in (measured, planned):
        assert bytes_of[0] > 1.2 * bytes_of[1] > 1.2 * 1.05 * bytes_of[2], (measured, planned)


def test_sampling_needs_about_what_the_plan_says():
    config = ModelConfig(**SIZES)
    prompts, n, P, R, slots = 8, 8, 128, 128, 32
    cfg = arm("grpo", prompts_per_step=prompts, samples_per_prompt=n, slots=slots)
    program = programs.sampling(programs.Setting(config, make_mesh(), {}, P, R), cfg)
    measured = program.lower().compile().memory_analysis().temp_size_in_bytes
    adds = memory.sample(config, prompts=prompts, n=n, prompt_tokens=P, max_tokens=R, slots=slots, mesh=ONE)
    ratio = sum(adds.values()) / measured
    print(f"sampling: estimate / measured = {ratio:.3f}")
    assert LOW < ratio < HIGH


def test_remat_and_micro_batches_and_adapters_save_memory():
    config, rows = ModelConfig(**WIDE), Layout(16, 2, 64)
    full = memory.update(config, rows, ONE)
    remat = memory.update(dataclasses.replace(config, remat="block"), rows, ONE)
    more = memory.update(config, Layout(16, 4, 64), ONE)
    lora = memory.update(dataclasses.replace(config, lora_rank=2), rows, ONE)
    split = memory.update(config, rows, {"data": 2, "fsdp": 1, "tensor": 2})
    assert remat["activations"] < 0.7 * full["activations"]
    assert more["activations"] < 0.6 * full["activations"]
    assert lora["gradients"] < 0.3 * full["gradients"]
    assert split["activations"] < 0.5 * full["activations"]


# --- work -------------------------------------------------------------------------------------------------------


def numbers(name, **settings):
    config = ModelConfig(**SIZES)
    cfg = arm(name, prompts_per_step=3, samples_per_prompt=4, **settings)
    one = work.update(regime(name), cfg, prompt_tokens=10, response_tokens=20)
    return config, work.flops(one, dict.fromkeys(("policy", "ema", "reference", "teacher"), config), cfg), one


def test_FL7_grpo_samples_and_trains_on_all_of_it_and_pays_for_what_it_drops():
    config, flops, _ = numbers("grpo")
    lengths = np.full((3, 4), 20)
    assert flops == {
        ("rollout", "policy"): accounts.sampling_flops(config, [10] * 3, lengths),
        ("train", "policy"): accounts.train_flops(config, [30] * 12),
    }  # fmt: skip
    _, dapo, one = numbers("grpo", oversample=2, drop_uninformative=True)
    assert dapo["rollout", "policy"] == 2 * flops["rollout", "policy"]
    assert dapo["train", "policy"] == flops["train", "policy"] and one.models == set()


def test_a_reference_and_a_teacher_are_held_and_charged():
    config, flops, one = numbers("grpo", kl="k3", kl_beta=0.01)
    assert one.models == {"reference"} and flops["score", "reference"] == accounts.forward_flops(config, [30] * 12)
    _, flops, one = numbers("grpo", kl="k1", kl_in="reward", kl_beta=0.01)
    assert one.models == {"reference"} and ("score", "reference") in flops
    _, flops, one = numbers("distill", loss="divergence", keep="all")
    assert one.models == {"teacher"} and flops["score", "teacher"] > 0 and flops["rollout", "teacher"] > 0


def test_CG8_critiques_are_planned_for_as_long_as_responses_and_paid_by_who_writes_them():
    config, flops, one = numbers("critique_grpo", critic="teacher", critique_kind="cot")
    assert [(r.model, r.prompts, r.n, r.prompt_tokens) for r in one.rounds] == [
        ("policy", 3, 4, 10), ("teacher", 12, 1, 30), ("policy", 12, 1, 50)]  # fmt: skip
    assert one.trained == (30,) * 12 and one.models == {"teacher"} and flops["rollout", "teacher"] > 0
    _, flops, one = numbers("sft", source="critiques")
    assert one.trained == (50,) * 12 and one.models == {"reference"}, "question, candidate, critique and its end"


def test_rlp_scores_every_thought_and_one_baseline_a_context():
    config, flops, one = numbers("rlp", max_thought_tokens=9)
    (policy, with_thought), (slow, without) = one.scored
    assert (policy, len(with_thought), slow, len(without)) == ("policy", 12, "ema", 3)
    assert one.trained == (19,) * 12, "context and thought"
    assert flops["train", "policy"] == accounts.train_flops(config, [19] * 12)


# --- the whole --------------------------------------------------------------------------------------------------


def test_every_real_variant_validates_and_divides_over_its_mesh_and_samples_of_them_fit():
    module = config_file("real")
    for i, model in enumerate(module.MODELS):
        for j, device in enumerate(module.DEVICES):
            config = ceiling.validate(module.get_config(f"{model},{device}"))
            param_shardings(ceiling.schema.architecture(config["model"], 0), make_mesh(**config["mesh"]))
            if (i + j) % 3 == 0:
                made = plan(config)
                assert made.fits, (model, device, [(s.name, s.peak, s.largest) for s in made.stages])
                assert 50 < next(s for s in made.stages if s.name == "grpo").updates < 1000
    with pytest.raises(ValueError, match="qwen9,h100 is not a variant; use tiny or MODEL"):
        module.get_config("qwen9,h100")


@pytest.mark.parametrize("name", ["limit_of_rlvr", "gym", "lab", "qa_file"])
def test_every_config_has_a_plan(name):
    made = plan(config_file(name).get_config())
    json.dumps(made.to_json(), allow_nan=False)
    assert made.fits and made.hours > 0
    assert made.to_json()["stages"][0]["peak"][1] > sum(made.stages[0].held.values())


def real(**settings):
    config = config_file("real").get_config("qwen3-1.7b,h100")
    config.update_from_flattened_dict(settings)
    return config


@pytest.mark.parametrize(
    ("settings", "stage", "advice"),
    [
        ({"plan.device": "t4"}, "sft", "optimiser take most in update; set config.arms.sft.lora_rank, or raise"),
        ({"arms.grpo.slots": 2048}, "grpo", "cache take most in sampling; lower config.arms.grpo.slots"),
        ({"arms.sft.microbatches": 1}, "sft", "raise config.arms.sft.microbatches"),
        ({"model.remat": ""}, "sft", "set config.model.remat=block"),
        ({"eval.slots": 4096}, "evaluation", "lower config.eval.slots"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_what_to_turn(settings, stage, advice):
    text = main_plan(real(**settings))
    assert next(line for line in text.splitlines() if line.startswith(f"{stage} does not fit")).count(advice) == 1


def test_the_table_and_its_notes():
    text = main_plan(real())
    assert "1.72 B parameters on 1 x h100, 73.60 GB usable" in text and "DOES NOT FIT" not in text
    assert "config.teacher.path='checkpoints/qwen3-4b' is not there" in text
    half = real(**{"model.param_dtype": "bfloat16"})
    assert "grpo: lr=1e-06 on bfloat16 weights rounds to no change" in main_plan(half)


def test_time_follows_the_stated_shares_and_devices():
    slow, fast = plan(real(**{"plan.mfu": 0.1})), plan(real(**{"plan.mfu": 0.2}))
    for a, b in zip(slow.stages[:-1], fast.stages[:-1], strict=True):
        assert a.seconds["update"] == pytest.approx(2 * b.seconds["update"])
        assert a.seconds["sampling"] == b.seconds["sampling"]
    many = plan(real(**{"mesh.fsdp": 4}))
    for a, b in zip(many.stages[:-1], plan(real()).stages[:-1], strict=True):
        assert 4 * a.seconds["update"] == pytest.approx(b.seconds["update"])
        # Slots are divided over the data axes, but every part reads the weights for its fewer slots.
        assert 2 * a.seconds["sampling"] <= b.seconds["sampling"] <= 4 * a.seconds["sampling"]


def test_an_arm_makes_the_updates_that_its_budget_buys_or_that_it_was_given():
    config = real(**{"budget.flops": 1e18})
    config.arms.sft.steps = 7
    found = {stage.name: stage for stage in plan(config).stages}
    assert found["sft"].updates == 7
    student = sum(amount for key, amount in found["grpo"].flops.items() if not key.endswith("/teacher"))
    assert found["grpo"].updates == pytest.approx(1e18 / student)


def test_a_refused_configuration_has_no_plan():
    with pytest.raises(ConfigError, match="config.plan.device='abacus' is not allowed"):
        plan(real(**{"plan.device": "abacus"}))
    with pytest.raises(ConfigError, match="config.plan.mfu=0.0 is out of range"):
        plan(real(**{"plan.mfu": 0}))


def test_parameters_are_counted():
    made = plan(real())
    grpo = next(s for s in made.stages if s.name == "grpo")
    assert made.parameters == grpo.trained == 1_720_574_976
    lora = next(s for s in plan(real(**{"arms.grpo.lora_rank": 8})).stages if s.name == "grpo")
    config = ceiling.schema.architecture(plain(real().model), 0)
    adapted = dataclasses.replace(config, lora_rank=8)
    assert lora.trained == parameter_count(adapted) - parameter_count(config)
