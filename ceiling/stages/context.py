"""What a stage is given, and the policy that a stage's directory holds.

    params/           the policy's own parameters, or
    checkpoint.json   {"path": a Hugging Face directory} or {"stage": another stage's directory, relative to this one}
    policy.json       {"model": fields in which its architecture differs from the run's, "decoding": its rule}
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

from ceiling import hosts, schema, tracking
from ceiling.model import hf, source
from ceiling.model.config import ModelConfig
from ceiling.model.policy import Decoding, Policy
from ceiling.model.sharding import make_mesh
from ceiling.tasks import base as task_base
from ceiling.train.checkpoint import load_params
from ceiling.workers import UNFINISHED


@dataclasses.dataclass
class Context:
    """settings: what decides the stage's numbers, and key its hash; how: mesh and checkpoints, which do not; needs:
    name of an input -> its directory; out: where to write; report: progress; log: a line for the user; track: where the
    curves of its training are shown, None: nowhere."""

    settings: dict
    how: dict
    key: str
    needs: dict[str, pathlib.Path]
    out: pathlib.Path
    report: Callable[[dict], None]
    log: Callable[[str], None]
    track: tracking.Target | None = None

    @functools.cached_property
    def task(self) -> task_base.Task:
        return schema.load_task(self.settings)

    @functools.cached_property
    def mesh(self):
        return make_mesh(**self.how["mesh"])

    @functools.cached_property
    def model(self) -> ModelConfig:
        return schema.architecture(self.settings["model"], self.task.tokenizer.vocab_size)

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    def policy(self, name: str) -> Policy:
        """The model that an input stage made, or the checkpoint that it names."""
        policy = load_policy(self.needs[name], self.model, self.mesh)
        return policy.replace(stop_ids=self.task.tokenizer.stop_ids)

    @property
    def unfinished(self) -> pathlib.Path:
        """Where the stage keeps what a later call continues from; gone once the stage is complete."""
        return self.out / UNFINISHED

    def write_json(self, name: str, value) -> None:
        if hosts.leader():
            (self.out / name).write_text(json.dumps(value))


def load_policy(directory: pathlib.Path, model: ModelConfig, mesh) -> Policy:
    """The policy in a stage's output directory, without stop tokens. model: the run's architecture."""
    pointer, own = read(directory / "checkpoint.json"), read(directory / "policy.json")
    if "stage" in pointer:
        policy = load_policy(directory / pointer["stage"], model, mesh)
    elif "path" in pointer:
        config, params = hf.load(pointer["path"], mesh=mesh, dtype=model.param_dtype)
        runtime = {key: getattr(model, key) for key in source.RUNTIME}
        policy = Policy(params, dataclasses.replace(config, **runtime), ())
    else:
        model = dataclasses.replace(model, **own.get("model", {}))
        policy = Policy(load_params(directory / "params", model, mesh), model, ())
    if decoding := own.get("decoding"):
        policy = policy.replace(decoding=Decoding(**{**decoding, "opening": tuple(decoding["opening"])}))
    return policy


def read(path: pathlib.Path) -> dict:
    """A JSON file of a stage, or nothing where it wrote none."""
    return json.loads(path.read_text()) if path.exists() else {}
