"""Two runs in one process, at the same time, give what two processes give: there is no state beside a run's own."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import tensorboardX.crc32c  # noqa: F401 - sets a variable of the environment when it is first imported

import ceiling
from ceiling.evals.records import Samples

pytestmark = [pytest.mark.slow, pytest.mark.hosts]
ROOT = pathlib.Path(__file__).parents[2]

# Of the runs, one in a process of its own: `python -c RUN name workdir`.
RUN = """
import sys
sys.path.insert(0, {tests!r})
from test_two_runs import config
import ceiling
ceiling.run(config(sys.argv[1]), sys.argv[2])
"""


def config(name):
    """Two experiments that differ in everything that a process could keep of the one for the other."""
    rows = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2)
    arm, seed, width, n = {
        "one": (ceiling.arm("grpo", entropy_bonus=0.1, **rows), 1, 16, 4),
        "two": (ceiling.arm("sft", **rows), 2, 24, 6),
    }[name]
    out = ceiling.defaults("lab", arms={"arm": arm})
    out.name, out.seeds, out.train.mix, out.budget.flops, out.report.html = name, (seed,), {"C": 1.0}, 5e6, False
    out.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0, seed=seed)
    out.model.update(width=width, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                     scan_layers=False)  # fmt: skip
    out.prior.update(steps=3, prompts_per_step=4, pool=1, mix={"C": 1.0})
    out.eval.update(n=n, ks=(1, 2), verdict_k=2, likelihood_samples=1, temperature=0.5 + 0.5 * seed)
    return out


def content(workdir):
    """All that a run computed, clocks aside."""
    out = {}
    for path in sorted(workdir.glob("stages/*/*/*/*")):
        name = str(path.relative_to(workdir))
        if path.name in ("metrics.jsonl", "history.jsonl", "likelihood.json", "gate.json"):
            out[name] = path.read_text()
        elif path.name == "records.parquet":
            samples = Samples.load(path)
            out[name] = [samples.table.to_pylist(), samples.counts.tolist()]
        elif path.name == "ledger.json":
            rows = json.loads(path.read_text())["entries"]
            out[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return out


def test_two_runs_at_once_in_one_process_are_those_of_two_processes(tmp_path):
    code = RUN.format(tests=str(ROOT / "tests" / "hosts"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = {
        name: subprocess.Popen([sys.executable, "-c", code, name, str(tmp_path / f"{name}-alone")], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    }  # fmt: skip
    for process in alone.values():
        error = process.communicate()[1]
        assert process.returncode == 0, error[-2000:]
    variables, results, together = dict(os.environ), {}, threading.Barrier(2)

    def run(name):
        together.wait()
        results[name] = ceiling.run(config(name), tmp_path / name)

    threads = [threading.Thread(target=run, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(os.environ) == variables
    for name in ("one", "two"):
        mine, theirs = content(tmp_path / name), content(tmp_path / f"{name}-alone")
        assert mine.keys() == theirs.keys() and len(mine) > 8
        for path, value in mine.items():
            assert value == theirs[path], path
        assert results[name].tables["meta"]["name"] == name
        frame = results[name].curves.to_pandas()
        assert set(frame["arm"]) == {"base", "base_redraw", "arm"} and frame["mean"].between(0, 1).all()
        assert set(results[name].table("sets").to_pandas()["seed"]) == {1 if name == "one" else 2}
        with pytest.raises(KeyError, match="no table 'settings'; there are .*differences"):
            results[name].table("settings")
    assert not content(tmp_path / "one").keys() & content(tmp_path / "two").keys()
