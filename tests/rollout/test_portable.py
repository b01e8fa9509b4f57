"""Every program lowers for a GPU on a machine without one; the checker of collectives can fail."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import ceiling
from ceiling.config import plain
from ceiling.model import ModelConfig, make_mesh
from ceiling.plan import compiled
from ceiling.plan.programs import Setting, programs
from ceiling.plan.slices import PROGRAMS

TINY = ModelConfig(vocab_size=32, width=16, ffn=32, layers=2, heads=4, kv_heads=2, head_dim=8, remat="block",
                   compute_dtype="bfloat16")  # fmt: skip
SMALL = dict(prompts_per_step=2, samples_per_prompt=2, slots=4)


def setting(mesh, model=TINY):
    arms = {
        "sft": ceiling.arm("sft", **SMALL), "distill": ceiling.arm("distill", loss="divergence", keep="all", **SMALL),
        "grpo": ceiling.arm("grpo", kl="k3", kl_beta=0.1, **SMALL),
        "rlp": ceiling.arm("rlp", max_thought_tokens=4, **SMALL),
    }  # fmt: skip
    return Setting(model, mesh, {name: plain(arm) for name, arm in arms.items()}, 8, 16)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_lowers_for_cuda(name):
    made = programs(setting(make_mesh()))
    assert set(made) == set(PROGRAMS), "and there is no program beside them"
    exported = made[name]().export("cuda")
    assert exported.platforms == ("cuda",) and exported.nr_devices == 1 and len(exported.mlir_module_serialized) > 1000


def test_a_step_of_devices_that_share_the_batch_lowers_for_cuda():
    exported = programs(setting(make_mesh(2)))["grpo"]().export("cuda")
    assert exported.platforms == ("cuda",) and exported.nr_devices == 2


def test_a_model_that_recomputes_unrolled_layers_fills_its_cache():
    unrolled = dataclasses.replace(TINY, scan_layers=False)
    assert programs(setting(make_mesh(), unrolled))["prefill"]().lower().out_info


def test_gradients_are_exchanged_once_a_step_and_not_in_every_part():
    at = setting(make_mesh(2, 1, 1))
    at.arms["sft"]["microbatches"] = 2  # without `live`, whose loop has no number of turns to be read
    found = compiled.collectives(programs(at)["sft"]().lower().compile().as_text())
    assert found and all(c.times == 1 and c.kind == "all-reduce" for c in found)


def test_tensor_devices_gather_nothing_but_a_number_or_two_of_a_slot():
    """What was drawn; rotations and masks are the same on all of them."""
    found = compiled.collectives(programs(setting(make_mesh(1, 1, 2)))["sampling"]().lower().compile().as_text())
    assert {c.kind for c in found} == {"all-reduce", "all-gather", "all-to-all"}, "sums, what was drawn, logits"
    assert all(math.prod(c.shape) <= 2 * SMALL["slots"] for c in found if c.kind == "all-gather")


# --- the judgement on collectives -----------------------------------------------------------------------------

CONFIG = ModelConfig(vocab_size=1024, width=512, ffn=1024, layers=4, heads=8, kv_heads=4, head_dim=64)


def compile_with(*layouts):
    """Collectives of a program that moves arrays, given as (shape, layout before, layout after)."""
    mesh = make_mesh(1, 4, 2)
    at = lambda spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at(before)) for shape, before, _ in layouts]
    run = jax.jit(lambda *arrays: [x + 1 for x in arrays], out_shardings=[at(after) for *_, after in layouts])
    return compiled.collectives(run.lower(*args).compile().as_text()), mesh


def test_whole_weights_of_all_layers_and_logits_are_told_from_one_layers_weight():
    found, mesh = compile_with(
        ((4, 512, 1024), (None, "fsdp", "tensor"), (None, None, "tensor")),
        ((4096, 1024), ("fsdp", "tensor"), ("fsdp", None)),
        ((512, 1024), ("fsdp", "tensor"), (None, "tensor")),
    )
    assert sorted((c.shape, c.group) for c in found if c.kind == "all-gather") == [
        ((4, 512, 512), 4), ((512, 512), 4), ((1024, 1024), 2)]  # fmt: skip
    wrong = compiled.unexpected(found, CONFIG, mesh)
    assert len(wrong) == 2 and "[4, 512, 512]" in "".join(wrong) and "logits: " in "".join(wrong)


def test_a_collective_in_loops_counts_as_often_as_it_runs():
    mesh = make_mesh(1, 8, 1)
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))

    def program(weights, x):
        inner = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.scan(inner, x, weights)[0], x)

    found = compiled.collectives(jax.jit(program).lower(weights, x).compile().as_text())
    assert 15 in {c.times for c in found if c.group == 8}
