"""Launch files: YAML that loads, with the keys its reader needs, and a command that our own parser takes."""

import importlib.util
import math
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from ceiling import schema
from ceiling.config import plain

ROOT = pathlib.Path(__file__).parents[2]
SHARED = "/shared"


def command_of(name: str) -> tuple[str, int, int]:
    """(shell text, hosts, devices of a host) of a launch file, read the way its reader does."""
    launch = yaml.safe_load((ROOT / "scripts" / "launch" / name).read_text())
    if name == "skypilot.yaml":
        assert launch.keys() == {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
        assert SHARED in launch["file_mounts"]
        return launch["run"], launch["num_nodes"], int(launch["resources"]["accelerators"].split(":")[1])
    assert launch["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and launch["kind"] == "JobSet"
    (job,) = launch["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["sh", "-c"]
    assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]} == {pod["volumes"][0]["name"]: SHARED}
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert math.prod(map(int, topology.split("x"))) == chips * spec["parallelism"]
    return container["args"][0], spec["parallelism"], chips


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts" / "launch").iterdir()))
def test_a_launch_file_names_a_config_that_exists_and_a_mesh_of_all_devices(name):
    text, hosts, devices = command_of(name)
    subprocess.run(["sh", "-n", "-c", text], check=True)
    words = shlex.split(text.replace("\\\n", " "))
    values = dict(re.fullmatch(r"--config\.([\w.]+)=(.*)", word).groups() for word in words if "--config." in word)
    path, _, variant = words[words.index("--config") + 1].partition(":")
    spec = importlib.util.spec_from_file_location("launched", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = plain(module.get_config(variant))
    for key, value in values.items():
        section, last = config, key.split(".")
        for part in last[:-1]:
            section = section[part]
        assert last[-1] in section, f"--config.{key} does not exist"
        if value.isdigit():
            section[last[-1]] = int(value)
    schema.section(config).validate(config, "config")
    assert math.prod(config["mesh"].values()) == hosts * devices
    assert config["hosts"]["processes"] in (0, 1) and "processes" in "".join(values)
    assert words[words.index("--workdir") + 1].startswith(SHARED)


def test_the_sbatch_script_is_a_shell_script_with_the_options_that_it_explains():
    path = ROOT / "scripts" / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert re.findall(r"^#SBATCH --(\S+)", text, re.M) == ["job-name=ceiling", "requeue", "open-mode=append",
                                                           "signal=TERM@60"]  # fmt: skip
    assert (ROOT / re.search(r"(configs/\w+\.py)", text).group(1)).exists()
