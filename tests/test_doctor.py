"""The doctor: every check says FAILED, with what to do, when what it looks at is broken, and ok when it is not."""

import collections
import dataclasses
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from ceiling import doctor
from ceiling.tasks.base import Outcome, Verdict


@pytest.fixture(scope="module")
def specimen():
    return doctor.trained()


def one(findings, ok, *words):
    """The only finding that is not ok (or the last one), with words that must stand in its line."""
    findings = list(findings)
    failed = [f for f in findings if not f.ok]
    assert len(failed) == (not ok), [str(f) for f in findings]
    finding = findings[-1] if ok else failed[0]
    line = str(finding)
    assert line.startswith("ok      " if ok else "FAILED  ") and bool(finding.do) is not ok and "\n" not in line
    for word in words:
        assert word in line, line
    return line


# --- what is installed, and where -------------------------------------------------------------------------


def test_versions_that_are_there_are_one_line(tmp_path):
    line = one(doctor.versions(tmp_path), True, f"jax {jax.__version__}", "python ", "ceiling ")
    for name in ("jaxlib", "flax", "optax", "orbax-checkpoint", "datasets", "ml-collections"):
        assert f" {name} " in line


@pytest.mark.parametrize("have, state", [(None, "is missing"), ("0.2.7", "0.2.7 is too old"), ("0.2.7.dev1", "old")])
def test_a_missing_or_old_requirement_is_named_with_what_installs_it(have, state, tmp_path, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: have if name == "optax" else real(name))
    one(doctor.versions(tmp_path), False, "optax", state, 'pip install "optax>=0.2.8"')


def test_versions_are_compared_as_numbers():
    assert doctor._order("0.10.2") > doctor._order("0.9.30") and doctor._order("5.0") <= doctor._order("5.0.0")
    assert doctor._order("1.2rc1") == (1, 2)


def test_extras_may_be_missing_but_not_old(tmp_path, monkeypatch):
    have = {"math-verify": None, "reasoning-gym": "0.1.25", "jax-cuda13-plugin": None, "libtpu": "0.0.20"}
    monkeypatch.setattr(doctor, "_version", have.get)
    lines = [str(f) for f in doctor.extras(tmp_path)]
    assert 'ok      extra verify: not installed (pip install "ceiling[verify]")' in lines
    assert "ok      extra tasks: reasoning-gym 0.1.25" in lines and "ok      extra tpu: jax[tpu] 0.0.20" in lines
    assert any(line.startswith("ok      extra gpu: not installed") for line in lines), "jax itself is no GPU plugin"
    assert len({line.split(":")[0] for line in lines}) == len(lines), "one line for every extra"
    have["furo"] = "2026.1"
    some = "docs: furo 2026.1; not installed: sphinx, myst-parser (pip"
    assert any(some in str(finding) for finding in doctor.extras(tmp_path))
    have["reasoning-gym"] = "0.1.2"
    one(doctor.extras(tmp_path), False, "reasoning-gym 0.1.2 is too old", 'pip install "ceiling[tasks]"')


def test_an_accelerator_that_jax_does_not_see_is_loud(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "gpu", lambda: "")
    monkeypatch.setattr(doctor, "tpu", lambda: "")
    one(doctor.devices(tmp_path), True, "backend cpu", f"{jax.device_count()} device(s)", "compute dtype float32")
    monkeypatch.setattr(doctor, "gpu", lambda: "GPU 0: NVIDIA H200")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    one(doctor.devices(tmp_path), False, "A GPU IS HERE (GPU 0: NVIDIA H200)", 'pip install "ceiling[gpu]"')
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    one(doctor.devices(tmp_path), False, "unset JAX_PLATFORMS")
    monkeypatch.setattr(doctor, "gpu", lambda: "")
    monkeypatch.setattr(doctor, "tpu", lambda: "TPU v5e at 0000:00:05.0")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    one(doctor.devices(tmp_path), False, "A TPU IS HERE (TPU v5e at 0000:00:05.0)", 'pip install "ceiling[tpu]"')
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    one(doctor.devices(tmp_path), True, "backend gpu")


def test_the_memory_that_jax_has_of_a_device_is_told(tmp_path, monkeypatch):
    chip = types.SimpleNamespace(device_kind="Tesla T4", platform="gpu", compute_capability="7.5",
                                 memory_stats=lambda: {"bytes_limit": 11 * doctor.GIB})  # fmt: skip
    monkeypatch.setattr(jax, "devices", lambda: [chip])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    one(doctor.devices(tmp_path), True, "1 device(s): Tesla T4, 11.0 GiB of memory for jax", "compute dtype float32")


@pytest.mark.parametrize("platform, capability, dtype", [
    ("cpu", None, "float32"), ("tpu", None, "bfloat16"), ("gpu", "7.5", "float32"), ("gpu", "8.0", "bfloat16"),
    ("gpu", "12.0", "bfloat16"), ("rocm", "gfx942", "bfloat16"),
])  # fmt: skip
def test_the_compute_dtype_is_what_the_device_multiplies_fast(platform, capability, dtype):
    known = {} if capability is None else {"compute_capability": capability}
    assert doctor.compute_dtype(types.SimpleNamespace(platform=platform, **known)) == dtype


def test_a_tpu_is_found_on_the_bus_and_googles_other_devices_are_none(tmp_path, monkeypatch):
    def plug(place, vendor, device):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / place / "device").write_text(f"{device}\n")

    monkeypatch.setattr(doctor, "PCI", tmp_path)
    assert doctor.tpu() == ""
    plug("0000:00:03.0", doctor.GOOGLE, "0x0042")  # a network card
    plug("0000:00:04.0", "0x8086", "0x0063")
    assert doctor.tpu() == ""
    plug("0000:00:05.0", doctor.GOOGLE, "0x0063")
    assert doctor.tpu() == "TPU v5e at 0000:00:05.0"


def test_a_gpu_is_found_by_its_tool_or_its_device_file(monkeypatch):
    says = lambda code, text: lambda *a, **k: subprocess.CompletedProcess(a, code, text, "")  # noqa: E731
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", says(0, "GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID)\n"))
    assert doctor.gpu() == "GPU 0: NVIDIA L4"
    files = []
    monkeypatch.setattr(pathlib.Path, "glob", lambda self, pattern: iter(files))
    monkeypatch.setattr(doctor.subprocess, "run", says(9, "no driver"))
    assert doctor.gpu() == ""
    files.append(pathlib.Path("/dev/nvidia0"))
    assert doctor.gpu() == "/dev/nvidia0", "the tool fails where the driver does, and the GPU is there all the same"


def test_memory_and_disk_have_a_least(tmp_path, monkeypatch):
    Usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(doctor, "free_memory", lambda: 8 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(0, 0, 9 * doctor.GIB))
    one(doctor.room(tmp_path), True, "disk 9.0 GiB free", str(tmp_path))
    monkeypatch.setattr(doctor, "free_memory", lambda: 1.5 * doctor.GIB)
    one(doctor.room(tmp_path), False, "memory 1.5 GiB", "workers=1")
    monkeypatch.setattr(doctor, "free_memory", lambda: 8 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(0, 0, doctor.GIB / 2))
    one(doctor.room(tmp_path), False, f"disk 0.5 GiB free at {tmp_path}", "--workdir")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(0, 0, 9 * doctor.GIB))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    one(doctor.room(tmp_path), False, f"{tmp_path} cannot be written")


def test_memory_is_the_machines_or_its_control_groups(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4194304 kB\n", "/sys/fs/cgroup/memory.max": "max\n",
             "/sys/fs/cgroup/memory.current": "1024\n"}  # fmt: skip
    monkeypatch.setattr(doctor, "_text", lambda path: files.get(path, ""))
    assert doctor.free_memory() == 4 * doctor.GIB
    files["/sys/fs/cgroup/memory.max"] = f"{doctor.GIB + 1024}\n"
    assert doctor.free_memory() == doctor.GIB
    files.clear()
    assert doctor.free_memory() > 0


def test_the_folder_of_programs_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new" / "folder"))
    one(doctor.programs(tmp_path), True, str(tmp_path / "new" / "folder"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "folder"))
    one(doctor.programs(tmp_path), False, str(tmp_path / "file" / "folder"), "set JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    one(doctor.programs(tmp_path), True, "kept nowhere, as set")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    one(doctor.programs(tmp_path), True, "this process has none")


# --- does it compute --------------------------------------------------------------------------------------


def test_the_self_check_passes_here_and_leaves_nothing(specimen, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "trained", lambda: specimen)
    findings = list(doctor.self_check(tmp_path))
    assert [f.ok for f in findings] == [True] * 4, [str(f) for f in findings]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("losses", [[3.0] * 30, [3.0] * 25 + [2.9] * 5, [3.0] * 25 + [float("nan")] * 5])
def test_a_loss_that_does_not_fall(specimen, losses):
    one([doctor.learns(dataclasses.replace(specimen, losses=losses))], False, "training: loss 3.000", "should fall")


def test_a_sampler_that_says_other_log_probs(specimen, monkeypatch):
    from ceiling import rollout

    real = rollout.generate

    def off(*args, **kwargs):
        out = real(*args, **kwargs)
        out.logprobs[2, 1, 0] += 1e-3
        return out

    monkeypatch.setattr(rollout, "generate", off)
    one([doctor.samples_as_it_scores(specimen)], False, "sampling", "1.0e-03", "1e-05 is allowed")


@pytest.mark.parametrize("outcome, shown", [(Outcome.RIGHT, "another problem's is RIGHT"), (Outcome.WRONG, "is WRONG"),
                                            (Outcome.ERROR, "a right answer is ERROR")])  # fmt: skip
def test_a_verifier_that_says_one_thing(specimen, outcome, shown, monkeypatch):
    monkeypatch.setattr(specimen.task, "verify", lambda problem, response: Verdict(outcome))
    one([doctor.tells_right_from_wrong(specimen)], False, shown, "RIGHT and WRONG")


def test_a_checkpoint_with_one_other_bit(specimen, tmp_path, monkeypatch):
    from ceiling.train.checkpoint import Checkpoints

    real = Checkpoints.restore

    def flipped(self, like):
        state, host = real(self, like)
        leaves, tree = jax.tree.flatten(state)
        big = max(range(len(leaves)), key=lambda i: leaves[i].size)
        leaves[big] = leaves[big].at[(0,) * leaves[big].ndim].multiply(1 + 2**-23)
        return jax.tree.unflatten(tree, leaves), host

    monkeypatch.setattr(Checkpoints, "restore", flipped)
    one([doctor.comes_back(specimen, tmp_path / "self")], False, str(tmp_path), "another disk")


# --- the whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(doctor.CHECKS))
def test_a_check_that_raises_is_a_finding_and_the_others_go_on(name, tmp_path, monkeypatch):
    def broken(home):
        yield doctor.Finding(True, "so far")
        raise OSError("first\nsecond")

    others = {key: lambda home, key=key: iter([doctor.Finding(True, key)]) for key in doctor.CHECKS}
    monkeypatch.setattr(doctor, "CHECKS", {**others, name: broken})
    heard = []
    found = doctor.report(tmp_path / "not" / "there", heard.append)
    assert heard == found and len(found) == len(doctor.CHECKS) + 1
    one(found, False, f"{name} (OSError: first second)", doctor.REMEDIES[name])
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("ok", [True, False])
def test_the_exit_code_says_whether_anything_failed(ok, monkeypatch, capsys):
    checks = {"versions": lambda home: iter([doctor.Finding(ok, "this", "" if ok else "do that")])}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(doctor.flags, "FLAGS", types.SimpleNamespace(workdir="."))
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    assert stop.value.code == (0 if ok else 1)
    assert capsys.readouterr().out == ("ok      this\n" if ok else "FAILED  this: do that\n")


def test_jax_is_not_started_by_importing_it():
    """Otherwise the command could not say that jax is broken, nor have it keep compiled programs."""
    code = "import sys, ceiling.doctor; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
