"""pass@k of any checkpoint: python -m ceiling.evaluate --config FILE --checkpoint DIR --workdir OUT.

DIR is a Hugging Face directory or a stage directory of a run (runs/x/stages/seed1/grpo/<key>). The task and the
sampling come from the config's sections task, data and eval. Samples are streamed to OUT and a call that was
killed continues; OUT gets records.parquet (one row per sample), ledger.json and results.json.

A command, not a module to import: `ceiling.evaluate` in Python is the function of `ceiling/evals/sample.py`.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from ceiling import cli, experiment, schema, workers
from ceiling.config import ConfigError, digest, plain
from ceiling.evals import summary
from ceiling.evals.records import Samples
from ceiling.logs import Progress
from ceiling.model.source import RUNTIME
from ceiling.train import signals

_CONFIG = config_flags.DEFINE_config_file("config", None, "Its task, data, eval, mesh sections", lock_config=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face directory, or stage directory of a run")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the records go; an unfinished evaluation in it is continued")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling noise", lower_bound=0)


def main() -> None:
    out = evaluate(_CONFIG.value, _CHECKPOINT.value, _WORKDIR.value, _SEED.value)
    table = json.loads((out / "results.json").read_text())
    print(f"{'group':24s} {'k':>5s} {'pass@k':>8s}  95 % interval over problems, n = {table['n']}")
    for row in table["curves"]:
        print(f"{row['group']:24s} {row['k']:5d} {row['mean']:8.4f}  [{row['lo']:.4f}, {row['hi']:.4f}]")
    print(f"records: {out / 'records.parquet'}")


def evaluate(config, checkpoint: str, workdir: str, seed: int) -> pathlib.Path:
    """Evaluate one checkpoint and return the directory with its records and results."""
    config = schema.validate(_with_model(plain(config), pathlib.Path(checkpoint)))
    task = schema.load_task(config)
    schema.check_vocabulary(config, task)
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    settings = experiment.evaluation_settings(config, draw=0) | {"seed": seed}
    settings["checkpoint"] = experiment.content_hash("--checkpoint", checkpoint)
    out = workdir / digest(settings)
    grace_s = config["checkpoint"]["grace_s"]
    with experiment.locked(workdir), signals.watched(grace_s), Progress(1, workdir) as progress:
        if not out.exists():
            progress.start("evaluate")
            home = _home(pathlib.Path(checkpoint), workdir)
            job = {"name": "evaluate", "kind": "evaluate", "settings": settings, "out": str(out),
                   "workdir": str(workdir), "how": experiment.how(config),
                   "needs": {"policy": str(home), "base": str(home)}}  # fmt: skip
            workers.perform(job, lambda event: progress.update("evaluate", event), progress.log)
            progress.finish("evaluate")
        _write_results(out, config)
    return out


def _with_model(config: dict, checkpoint: pathlib.Path) -> dict:
    """The config with the checkpoint's model in it."""
    if (checkpoint / "stage.json").exists():
        return {**config, "model": json.loads((checkpoint / "stage.json").read_text())["settings"]["model"]}
    if not (checkpoint / "config.json").exists():
        raise ConfigError(f"--checkpoint={str(checkpoint)!r}: neither a checkpoint (config.json) nor a run's stage")
    runtime = {key: config["model"][key] for key in RUNTIME}
    return {**config, "model": {**schema.MODEL.defaults().to_dict(), **runtime, "path": str(checkpoint)}}


def _home(checkpoint: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """A directory that `stages.load_policy` can read: the stage's own, or one that points at the checkpoint."""
    if (checkpoint / "stage.json").exists():
        return checkpoint
    home = workdir / "checkpoint"
    home.mkdir(exist_ok=True)
    (home / "checkpoint.json").write_text(json.dumps({"path": str(checkpoint.absolute())}))
    return home


def _write_results(out: pathlib.Path, config: dict) -> None:
    """pass@k by group, recomputed from the records."""
    samples = Samples.load(out / "records.parquet")
    cell = summary.Cell(count_P=samples.counts[:, 1])
    evalset = summary.EvalSet(n=samples.n, groups=samples.groups, cells={("checkpoint", 0): cell})
    curves = summary.curves(evalset, [k for k in config["eval"]["ks"] if k <= samples.n])
    content = {"n": samples.n, "meta": samples.meta, "curves": curves}
    (out / "results.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    cli.start(main, ["config", "checkpoint", "workdir"])
