"""A sweep as a Slurm job array, through submitit (the extra `slurm`): a job for what points share, an array with a task
per point that waits for it, and a job that writes the table. All need the run directory on a file system they share."""

import importlib
import pathlib
import subprocess

from ceiling.config import ConfigError
from ceiling.sweeps import table
from ceiling.sweeps.points import Point
from ceiling.sweeps.run import command, missing_shared

DEFAULTS = {"timeout_min": 1440}  # submitit's own is 5


class Job:
    """One command as what submitit submits. Before its time is over the command is asked to stop, which it does with
    everything saved, and the job is queued again."""

    def __init__(self, words: list[str]):
        self.words = words

    def __call__(self) -> None:
        self.process = subprocess.Popen(self.words)
        if code := self.process.wait():
            raise RuntimeError(f"{' '.join(self.words)} ended with code {code}; its last lines say why")

    def checkpoint(self):
        """Called by submitit's signal handler while __call__ waits."""
        self.process.terminate()
        self.process.wait()
        return importlib.import_module("submitit").helpers.DelayedSubmission(Job(self.words))


def submit(points: list[Point], workdir: pathlib.Path, at_once: int, options: dict) -> dict[str, str]:
    """Submit every point that is not finished; returns name -> job id, "shared" and "table" among them.

    The points are written down (`run.write_down`) before, and stay so until the jobs have ended. at_once: tasks of the
    array that run side by side; options: submitit's, e.g. gpus_per_node, slurm_partition. ConfigError if submitit is
    missing.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError:
        raise ConfigError('--slurm needs submitit: pip install "ceiling[slurm]"') from None
    workdir = workdir.resolve()  # jobs start where Slurm likes
    todo, jobs = [point for point in points if not table.finished(point, workdir)], {}
    if not todo:
        return jobs

    def executor(name: str, after: str | None, **more):
        out = submitit.AutoExecutor(folder=workdir / "slurm", cluster="slurm")
        if after:
            more["slurm_dependency"] = f"afterany:{after}"
        out.update_parameters(name=name, **{**DEFAULTS, **options, **more})
        return out

    if missing_shared(points, todo, workdir):
        jobs["shared"] = executor("sweep-shared", None).submit(Job(command(workdir, "shared"))).job_id
    array = executor("sweep", jobs.get("shared"), slurm_array_parallelism=at_once)
    tasks = array.submit_array([Job(command(workdir, "point", point.name)) for point in todo])
    jobs |= {point.name: task.job_id for point, task in zip(todo, tasks, strict=True)}
    number = tasks[0].job_id.partition("_")[0]
    jobs["table"] = executor("sweep-table", number).submit(Job(command(workdir, "table"))).job_id
    return jobs
