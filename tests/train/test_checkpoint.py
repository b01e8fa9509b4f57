"""Parameters and training states on disk: bit-exact, every damage noticed, refused with both values when they differ
(R3 to R6). The faults are real ones: bytes flipped in files, a full file system, one that is mounted read-only."""

import dataclasses
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ceiling.model import make_mesh
from ceiling.model.sharding import param_shardings
from ceiling.train.checkpoint import Checkpoints, load_params, save_params

SHAPE = dict(odd=True, vocab_size=16, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    config, params = make_model(**SHAPE)
    path = tmp_path_factory.mktemp("checkpoint") / "params"
    save_params(path, params)
    return path, config, params


def equal_bits(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_save_and_load_are_bit_exact(saved):
    path, config, params = saved
    loaded = load_params(path, config, make_mesh())
    jax.tree.map(equal_bits, loaded, params)


def test_odd_values_and_bfloat16_survive(make_model, tmp_path):
    config, params = make_model(param_dtype="bfloat16")
    odd = jnp.array([jnp.nan, jnp.inf, -0.0, 1e-30], jnp.bfloat16)
    params = {**params, "final_norm": params["final_norm"].at[:4].set(odd)}
    save_params(tmp_path / "p", params)
    jax.tree.map(equal_bits, load_params(tmp_path / "p", config, make_mesh()), params)


def test_load_onto_eight_devices_is_sharded_and_equal(saved):
    path, config, params = saved
    mesh = make_mesh(2, 2, 2)
    loaded = load_params(path, config, mesh)
    jax.tree.map(equal_bits, loaded, params)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}, wanted {s}"),
                 loaded, param_shardings(config, mesh))  # fmt: skip
    wq = loaded["layers"]["wq"]
    assert {s.data.shape for s in wq.addressable_shards} == {(2, wq.shape[1] // 2, wq.shape[2] // 2, wq.shape[3])}


def test_saved_from_eight_devices_loads_on_one(saved, tmp_path):
    path, config, params = saved
    save_params(tmp_path / "p", load_params(path, config, make_mesh(2, 2, 2)))
    jax.tree.map(equal_bits, load_params(tmp_path / "p", config, make_mesh()), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(param_dtype="bfloat16"), r"embed is .*float32.* on disk, the config wants .*bfloat16"),
        (dict(ffn=32), r"w_\w+ is .*24.* on disk, the config wants .*32"),
        (dict(layers=3), r"layers/\w+ is \(\(2, .* on disk, the config wants \(\(3, "),
        (dict(tied=True), r"which weights exist: head"),
        (dict(qk_norm=""), r"which weights exist: layers/k_norm, layers/q_norm"),
    ],
    ids=str,
)
def test_R6_another_dtype_shape_or_set_of_weights_is_refused(saved, change, message):
    path, config, _ = saved
    with pytest.raises(ValueError, match=message):
        load_params(path, dataclasses.replace(config, **change), make_mesh())


# ---- a final `params` directory, and the checkpoints of an unfinished stage: every file, every damage


def flip(path):
    """One bit in the middle of the file; an empty file gets a byte."""
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1 << (len(content) % 8)
    path.write_bytes(content)


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


DAMAGES = {"flipped": flip, "truncated": truncate, "deleted": lambda path: path.unlink()}


def files(directory):
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


def test_R3_R4_every_file_of_params_flipped_truncated_and_deleted_is_refused(saved, tmp_path):
    path, config, _ = saved
    names = files(path)
    assert len(names) >= 8 and "manifest.json" in map(str, names)
    for name in names:
        for damage in DAMAGES.values():
            copy = tmp_path / "params"
            shutil.copytree(path, copy)
            damage(copy / name)
            with pytest.raises(ValueError, match="delete the stage's folder") as caught:
                load_params(copy, config, make_mesh())
            assert "\n" not in str(caught.value)
            assert str(name) in str(caught.value)
            shutil.rmtree(copy)


def state(value, dtype=jnp.float32):
    return {"params": {"w": jnp.full((3, 4), value, dtype)}, "step": jnp.int32(value), "aux": None}


class Kept(Checkpoints):
    """Checkpoints whose log can be read."""

    def __init__(self, directory, identity="settings", **options):
        self.lines = []
        super().__init__(directory, identity, log=self.lines.append, **options)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Steps 10 and 20 of one stage."""
    directory = tmp_path_factory.mktemp("stage") / "checkpoints"
    with Kept(directory) as kept:
        for step in (10, 20):
            kept.save(step, state(step), {"step": step, "curve": [0.1] * step})
    return directory


def restored(directory, like=None, **options):
    """(step or None, lines) of a restore; what comes back is checked."""
    with Kept(directory, **options) as kept:
        found = kept.restore(like or state(0))
        if found is None:
            return None, kept.lines
        arrays, host = found
        jax.tree.map(equal_bits, arrays, state(host["step"]))
        assert host["curve"] == [0.1] * host["step"]
        return host["step"], kept.lines


def test_R3_R4_every_file_of_a_checkpoint_flipped_truncated_and_deleted_falls_back(two_steps, tmp_path):
    names = files(two_steps / "00000020")
    assert len(names) >= 8 and {"manifest.json", "host.json"} < set(map(str, names))
    for name in names:
        for damage in DAMAGES.values():
            copy = tmp_path / "checkpoints"
            shutil.copytree(two_steps, copy)
            damage(copy / "00000020" / name)
            step, lines = restored(copy)
            assert step == 10, (name, damage)
            assert [name_ in lines[0] for name_ in ("00000020", str(name), "not used")] == [True] * 3
            assert lines[1:] == ["continues from step 10"] and "\n" not in lines[0]
            assert restored(copy) == (10, ["continues from step 10"]), "the damaged one is gone for good"
            shutil.rmtree(copy)


def test_R3_all_steps_damaged_is_a_fresh_start(two_steps, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_steps, copy)
    for step in ("00000010", "00000020"):
        flip(copy / step / "host.json")
    step, lines = restored(copy)
    assert step is None and len(lines) == 2


def test_R5_junk_and_unfinished_steps_are_named_and_not_used(two_steps, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_steps, copy)
    (copy / "00000030").mkdir()  # empty: Orbax would take it for the newest
    shutil.copytree(copy / "00000020", copy / "00000040")  # a step that lies about its number
    shutil.copytree(copy / "00000020/state", copy / "00000050/state.orbax-checkpoint-tmp")
    (copy / "00000060").symlink_to(copy / "00000060")  # unreadable, for root as well
    (copy / "00000020/state/extra").write_text("not ours")
    (copy / "3").mkdir()
    (copy / "notes.txt").write_text("mine")
    (copy / "70.orbax-checkpoint-tmp").mkdir()
    step, lines = restored(copy)
    assert step == 10
    for name in ("00000030", "00000040", "00000050", "00000060", "00000020", "/3 ", "notes.txt", "70.orbax"):
        assert sum(name in line and "not used" in line for line in lines) == 1, name
    assert (copy / "notes.txt").exists() and (copy / "3").exists(), "what is not ours stays"


@pytest.mark.parametrize(
    ("like", "identity", "message"),
    [
        (lambda: state(0), "other", r"have the hash settings, this stage's other"),
        (lambda: state(0, jnp.bfloat16), "settings", r"params/w is \(\(3, 4\), 'float32'\) on disk.*bfloat16"),
        (lambda: {**state(0), "params": {"w": jnp.zeros((3, 5))}}, "settings", r"w is \(\(3, 4\), .*\(\(3, 5\)"),
        (lambda: {**state(0), "aux": jnp.zeros(())}, "settings", "which weights exist: aux"),
    ],
    ids=["settings", "dtype", "shape", "keys"],
)
def test_R6_a_checkpoint_of_something_else_is_refused_with_both_values(two_steps, like, identity, message):
    with pytest.raises(ValueError, match=message):
        restored(two_steps, like(), identity=identity)
    assert restored(two_steps)[0] == 20, "and stays as it is"


def test_the_newest_are_kept_and_a_step_saved_again_replaces_the_old(tmp_path):
    with Kept(tmp_path, keep=2) as kept:
        for step in (1, 2, 3, 4, 4):
            kept.save(step, state(step), {"step": step, "curve": [0.1] * step})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000003", "00000004"]
    assert restored(tmp_path)[0] == 4


def test_what_is_saved_is_the_state_at_the_call_although_its_buffers_are_donated_at_once(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    now = {"params": {"w": jnp.zeros((512, 512))}, "step": jnp.int32(0), "aux": None}
    with Kept(tmp_path, keep=9) as kept:
        for step in range(5):
            kept.save(step, now, {})
            now = bump(bump(now))
        for step in reversed(range(5)):
            found, _ = kept.restore(jax.tree.map(jnp.copy, now))
            assert float(found["params"]["w"].min()) == float(found["params"]["w"].max()) == 2 * step
            shutil.rmtree(tmp_path / f"{step:08d}")


# ---- file systems that refuse


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KB, or a skip with the reason."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def big(step):
    return {"w": jax.random.normal(jax.random.key(step), (128, 256))}  # 128 KB that do not compress


def test_R5_a_full_disk_is_one_clear_line_and_the_older_checkpoint_stays(small_disk):
    line = r"could not be written \(No space left on device\).*continues from step 2"
    with pytest.raises(OSError, match=line) as caught:
        with Kept(small_disk / "checkpoints", keep=2) as kept:
            for step in (1, 2, 3, 4):
                kept.save(step, big(step), {"step": step})
    assert "\n" not in str(caught.value)
    with Kept(small_disk / "checkpoints") as kept:
        arrays, host = kept.restore(big(0))
        assert host["step"] == 2
        equal_bits(arrays["w"], big(2)["w"])
        assert sorted(os.listdir(small_disk / "checkpoints")) == ["00000001", "00000002"], "no half-written one"


def test_R5_a_read_only_directory_is_one_clear_line_and_the_older_checkpoint_stays(small_disk):
    with Kept(small_disk / "checkpoints") as kept:
        kept.save(1, big(1), {"step": 1})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Kept(small_disk / "checkpoints") as kept:
        with pytest.raises(OSError, match=r"could not be written \(Read-only file system\).*from step 1") as caught:
            kept.save(2, big(2), {"step": 2})
            kept.wait()
        assert "\n" not in str(caught.value)
        with pytest.raises(OSError, match="weights could not be written"):
            save_params(small_disk / "params", big(1))
        arrays, _ = kept.restore(big(0))
        equal_bits(arrays["w"], big(1)["w"])
