"""The documented sbatch script on a real Slurm: one node, two tasks, the numbers of one process.

Needs root and Debian's slurm-wlm and munge; a cluster of this test's own, in a temporary directory, is started and
stopped. Nothing of the system's own Slurm or munge, if there is one, is touched.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.hosts]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
# {home}: a directory; the node has two CPUs whatever the machine has.
CONFIGURATION = """
ClusterName=ceiling
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=60 State=UP
"""


@pytest.fixture(scope="module")
def slurm(runs, tmp_path_factory):
    """The environment in which `sbatch` finds a running cluster of one node."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("starting slurmd needs root")
    home = tmp_path_factory.mktemp("slurm")
    node = os.uname().nodename.split(".")[0]
    for name in ("state", "spool"):
        (home / name).mkdir()
    configuration = home / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(home=home, node=node, ports=(runs.free_port(), runs.free_port())))
    (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # nothing uses it; Slurm 22 knows no "disabled"
    key = home / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = [f"--key-file={key}", *(f"--{what}-file={home}/munge.{what}" for what in ("pid", "log", "seed"))]
    env = {**os.environ, "SLURM_CONF": str(configuration)}
    daemons = (
        ["munged", "--foreground", "--force", f"--socket={home}/munge.socket", *munge],
        ["slurmctld", "-D", "-c", "-f", str(configuration)],
        ["slurmd", "-D", "-N", node, "-f", str(configuration)],
    )
    output = open(home / "daemons.log", "w")  # noqa: SIM115 - closed below
    started = []
    try:
        for daemon in daemons:
            started.append(subprocess.Popen(daemon, env=env, stdout=output, stderr=output))
            time.sleep(1)
        until = time.monotonic() + 60
        while (state := _state(env)) != "idle":
            if time.monotonic() > until:
                ends = "; ".join(_end_of(path) for path in sorted(home.glob("*.log")))
                pytest.skip(f"Slurm does not start on this machine (node: {state}): {ends}")
            time.sleep(0.5)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)
        output.close()


def _state(env) -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def _end_of(path: pathlib.Path) -> str:
    return f"{path.name}: " + " | ".join(path.read_text(errors="replace").splitlines()[-3:])


def test_the_sbatch_script_gives_the_numbers_of_one_process(runs, slurm, alone, lab_config, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    env = {**slurm, **{key: runs.environment(1)[key] for key in ("PYTHONPATH", "XLA_FLAGS")},
           "CEILING_PYTHON": sys.executable}  # fmt: skip
    words = ["sbatch", "--wait", "--nodes=1", "--ntasks=2", f"--output={log}", "scripts/slurm/train.sbatch",
             str(lab_config), str(workdir)]  # fmt: skip
    done = subprocess.run(words, cwd=runs.root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    for name in ("prior", "grpo", "sft"):
        curves = [next((home / "stages" / "seed1" / name).iterdir()) / "metrics.jsonl" for home in (alone, workdir)]
        assert curves[0].read_text() == curves[1].read_text(), name
    assert "[7/7]" in (workdir / "log.txt").read_text()
