"""The plan of a run before it costs anything: does it fit, what does an update cost, how long will it take.

Computed from the configuration alone: no weights, no data set, no device. Every prompt and response is taken at its
longest, so memory is what the worst batch needs, an update's cost is an upper bound, and the number of updates that
the budget buys is a lower bound. Seconds come from two stated shares: `config.plan.mfu` of the device's peak for
training and scoring, `config.plan.decode_share` of the memory-or-compute roofline for sampling. Compilation, verifiers
and the host are not in them.

Example:
    print(main_plan(config))          # the table of `python -m ceiling --config X --plan`
    plan(config).to_json()
"""

import dataclasses
import math
import pathlib

import numpy as np

from ceiling import schema
from ceiling.config import ConfigError
from ceiling.data.tokens import ByteTokenizer
from ceiling.devices import DEVICES
from ceiling.evals.sample import CHUNK_TOKENS
from ceiling.ledger import BUDGET_PHASES
from ceiling.model.config import ModelConfig, parameter_count, table
from ceiling.model.lora import trainable
from ceiling.model.sharding import BATCH, parts
from ceiling.plan import memory, work
from ceiling.regimes import base as regimes
from ceiling.train.loop import adapted, layout

USABLE = 0.92  # of a device's memory: the allocator and the runtime keep the rest
ASSUMED_PROBLEMS = 500  # where the number of evaluation problems is only known from the file


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage or the evaluation of one policy. held and phases: bytes on one device by kind, all the time and
    on top of it in each phase; flops: of one update by phase and model; seconds: of one update by phase; updates:
    what its budget buys."""

    name: str
    regime: str
    trained: int
    held: dict[str, float]
    phases: dict[str, dict[str, float]]
    flops: dict[str, float]
    seconds: dict[str, float]
    updates: float
    knobs: dict[str, str]

    @property
    def peak(self) -> tuple[str, float]:
        """The phase that needs most, and its bytes with what is held."""
        name = max(self.phases, key=lambda phase: sum(self.phases[phase].values()))
        return name, sum(self.held.values()) + sum(self.phases[name].values())

    @property
    def hours(self) -> float:
        return self.updates * sum(self.seconds.values()) / 3600

    @property
    def largest(self) -> str:
        """The kind that takes most of the peak."""
        return max((kinds := self.held | self.phases[self.peak[0]]), key=kinds.get)


@dataclasses.dataclass(frozen=True)
class Plan:
    """parameters: of the model; lengths: (prompt, response) tokens; stages: training, then one evaluation; counts:
    how often each stage runs; notes: what was assumed, and what will not work."""

    name: str
    device: str
    devices: int
    limit: float
    parameters: int
    lengths: tuple[int, int]
    stages: tuple[Stage, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return all(stage.peak[1] <= self.limit for stage in self.stages)

    @property
    def hours(self) -> float:
        """All stages one after another."""
        return sum(stage.hours * self.counts[stage.name] for stage in self.stages)

    def to_json(self) -> dict:
        stages = [
            {**dataclasses.asdict(s), "peak": list(s.peak), "hours": s.hours, "fits": s.peak[1] <= self.limit}
            for s in self.stages
        ]  # fmt: skip
        return {**dataclasses.asdict(self), "lengths": list(self.lengths), "notes": list(self.notes), "stages": stages,
                "fits": self.fits, "hours": self.hours}  # fmt: skip


def plan(config) -> Plan:
    """The plan of a configuration. Raises ConfigError in one line where the configuration itself is refused."""
    config = schema.validate(config)
    world = _World(config)
    names = {arm: f"config.arms.{arm}" for arm in config["arms"]}
    stages, seeds = [], len(config["seeds"])
    if not config["model"]["path"]:
        stages.append(world.training("prior", {**config["prior"], "regime": "sft"}, "config.prior"))
    if any(schema.taught(entry) for entry in config["arms"].values()) and not config["teacher"]["path"]:
        stages.append(world.training("teacher", {**config["teacher"], "regime": "sft"}, "config.teacher"))
    stages += [world.training(arm, config["arms"][arm], names[arm]) for arm in names]
    stages.append(world.evaluation())
    counts = {stage.name: seeds for stage in stages} | {"evaluation": seeds * (len(names) + 2)}
    return Plan(
        config["name"], config["plan"]["device"], math.prod(config["mesh"].values()), USABLE * world.device.memory,
        parameter_count(world.model), world.lengths, tuple(stages), counts, tuple(dict.fromkeys(world.notes)),
    )  # fmt: skip


def main_plan(config) -> str:
    """The plan as text."""
    from ceiling.plan.text import show

    return show(plan(config))


class _World:
    """What every stage of a configuration shares."""

    def __init__(self, config: dict):
        self.config, self.notes, self.mesh = config, [], config["mesh"]
        self.device = DEVICES[config["plan"]["device"]]
        task = config["task"]
        if "max_prompt_tokens" in task:
            self.lengths = (task["max_prompt_tokens"], task["max_response_tokens"])
            self.problems = self._problems(task)
            vocab_size = ByteTokenizer().vocab_size
        else:  # a generated task: loading it is cheap, and nothing else knows its lengths
            loaded = schema.load_task(config)
            longest = max(len(loaded.tokenizer.encode(p.prompt)) for p in loaded.evaluation())
            self.lengths, self.problems = (longest, loaded.max_response_tokens), len(loaded.evaluation())
            vocab_size = loaded.tokenizer.vocab_size
        self.model = schema.architecture(config["model"], vocab_size)
        self.teacher = self._teacher()

    def _problems(self, task: dict) -> int:
        if "evaluation_per_task" in task:
            return task["evaluation_per_task"] * len(task["tasks"].split())
        if not task["evaluation_problems"]:
            self.notes.append(f"the number of evaluation problems is the file's; {ASSUMED_PROBLEMS} are assumed")
        return task["evaluation_problems"] or ASSUMED_PROBLEMS

    def _teacher(self) -> ModelConfig:
        """Its config.json's, a preset's of its folder's name, or the student's."""
        path = self.config["teacher"]["path"]
        if not path:
            return self.model
        section = {**schema.MODEL.defaults().to_dict(), "path": path, "preset": pathlib.Path(path).name.lower(),
                   "param_dtype": self.config["model"]["param_dtype"],
                   "compute_dtype": self.config["model"]["compute_dtype"]}  # fmt: skip
        try:
            return schema.architecture(section, 0)
        except ConfigError:
            self.notes.append(f"config.teacher.path={path!r} is not there; it is taken to be as large as the student")
            return self.model

    def training(self, name: str, cfg: dict, key: str) -> Stage:
        """An arm, or the pretraining of the prior or the teacher."""
        regime, mesh = regimes.load(cfg["regime"]), self.mesh
        model = adapted(self.model, cfg)
        mine = trainable(model)
        configs = {"policy": model, "ema": model, "reference": self.model, "teacher": self.teacher}
        kinds = work.updates(regime, cfg, *self.lengths)
        one = max(kinds, key=lambda kind: sum(r.model == "policy" for r in kind.rounds))
        held = {
            "weights": memory.weights(model, mesh), "optimiser": memory.optimiser(model, cfg, mesh),
            "slow copy": memory.slow_state(regime, model, cfg, mesh),
            "other models": sum(memory.weights(configs[m], mesh) for m in set().union(*(k.models for k in kinds))),
        }  # fmt: skip
        flops = {f"{phase}/{m}": amount for (phase, m), amount in work.flops(one, configs, cfg).items()}
        self._check_rounding(name, cfg, model, mine)
        return Stage(
            name, cfg["regime"], sum(math.prod(table(model)[p].shape) for p in mine), held,
            self._phases(one, configs, cfg), flops, self._seconds(one, configs, cfg, flops),
            cfg["steps"] or self.config["budget"]["flops"] / self._on_axis(flops),
            _knobs(key, model, cfg),
        )  # fmt: skip

    def _on_axis(self, flops: dict[str, float]) -> float:
        total = self.config["budget"]["axis"] == "total"
        counted = [amount for key, amount in flops.items()
                   if key.split("/")[0] in BUDGET_PHASES and (total or not key.endswith("/teacher"))]  # fmt: skip
        return max(sum(counted), 1.0)

    def _phases(self, one: work.Update, configs: dict, cfg: dict) -> dict[str, dict[str, float]]:
        mesh, longest = self.mesh, max((sum(self.lengths), *one.trained))
        response = max((r.max_tokens for r in one.rounds), default=self.lengths[1])
        rows = layout({**cfg, "max_tokens": response}, longest, mesh)
        out = {"update": memory.update(configs["policy"], rows, mesh, len(one.frozen), self.device.tpu)}
        for i, r in enumerate(one.rounds):
            out["sampling" if not i else f"sampling {i + 1}"] = memory.sample(
                configs[r.model], prompts=r.prompts, n=r.n, prompt_tokens=r.prompt_tokens, max_tokens=r.max_tokens,
                slots=cfg["slots"], mesh=mesh, tpu=self.device.tpu,
            )  # fmt: skip
        for model, lengths in one.scored:
            needs = memory.score(configs[model], sequences=len(lengths), tokens=longest, mesh=mesh)
            out["scoring"] = memory.largest(out.get("scoring", {}), needs)
        return out

    def _seconds(self, one: work.Update, configs: dict, cfg: dict, flops: dict) -> dict[str, float]:
        settings, groups = self.config["plan"], parts(self.mesh, BATCH)
        devices = math.prod(self.mesh.values())
        rate = {m: work.peak_flops(c, self.device) * settings["mfu"] * devices for m, c in configs.items()}
        update = flops["train/policy"] / rate["policy"]
        for m in one.frozen:
            update += cfg["epochs"] * flops[f"score/{m}"] / rate[m]
        scored = sum(flops[f"score/{m}"] / rate[m] for m in {m for m, _ in one.scored} - set(one.frozen))
        sampling = sum(
            work.sampling_seconds(
                memory.local(configs[r.model], self.mesh["tensor"]), self.device,
                requests=math.ceil(r.prompts * r.n / groups), slots=math.ceil(cfg["slots"] / groups),
                capacity=r.prompt_tokens + r.max_tokens, steps=r.max_tokens,
                share=settings["decode_share"],
            ) for r in one.rounds
        )  # fmt: skip
        return {"sampling": sampling, "scoring": scored, "update": update}

    def evaluation(self) -> Stage:
        """n samples per problem from one policy, and their likelihood under it and under the base."""
        e, mesh, (P, R) = self.config["eval"], self.mesh, self.lengths
        chunk = max(1, min(16_384, CHUNK_TOKENS // R))
        per_call = max(1, chunk // e["n"])
        phases = {"sampling": memory.sample(
            self.model, prompts=min(per_call, self.problems), n=e["n"], prompt_tokens=P, max_tokens=R, slots=e["slots"],
            mesh=mesh, chunk_requests=chunk, tpu=self.device.tpu,
        )}  # fmt: skip
        judged = self.problems * min(e["likelihood_samples"], e["n"])
        if judged:
            phases["scoring"] = memory.score(self.model, sequences=judged, tokens=P + R, mesh=mesh)
        groups = parts(mesh, BATCH)
        requests, slots = math.ceil(self.problems * e["n"] / groups), math.ceil(e["slots"] / groups)
        local, share = memory.local(self.model, mesh["tensor"]), self.config["plan"]["decode_share"]
        seconds = {"sampling": work.sampling_seconds(
            local, self.device, requests=requests, slots=slots, capacity=P + R, steps=R, share=share)}  # fmt: skip
        lengths = np.full((self.problems, e["n"]), R)
        flops = {"evaluate/policy": work.accounts.sampling_flops(self.model, [P] * self.problems, lengths)}
        if judged:
            scoring = 2 * judged * work.accounts.forward_flops(self.model, P + R)
            rate = work.peak_flops(self.model, self.device) * self.config["plan"]["mfu"] * math.prod(mesh.values())
            flops["score/policy"], seconds["scoring"] = scoring, scoring / rate
        weights = memory.weights(self.model, mesh)
        held = {"weights": weights, "other models": weights if judged else 0}
        knobs = {"cache": "lower config.eval.slots", "logits": "lower config.eval.slots",
                 "scoring rows": "set config.eval.likelihood_samples=0 or lower config.task.max_response_tokens",
                 "prompts": "lower config.task.max_prompt_tokens", **_weights_knobs()}  # fmt: skip
        return Stage("evaluation", "", 0, held, phases, flops, seconds, 1, knobs)

    def _check_rounding(self, name: str, cfg: dict, model: ModelConfig, mine) -> None:
        """A bfloat16 weight near its initial size takes no update below about 2^-9 of itself."""
        if model.param_dtype == "bfloat16" and cfg["lr"] * 2**9 < 0.5 / math.sqrt(model.width):
            what = "adapters" if model.lora_rank else "weights"
            self.notes.append(
                f"{name}: lr={cfg['lr']:g} on bfloat16 {what} rounds to no change in most of them; "
                "set config.model.param_dtype=float32"
            )


def _weights_knobs() -> dict[str, str]:
    more = "raise config.mesh.fsdp (more devices)"
    kinds = ("weights", "optimiser", "gradients", "slow copy", "other models")
    return dict.fromkeys(kinds, more) | {"weight copies": "raise config.mesh.tensor (more devices)"}


def _knobs(key: str, model: ModelConfig, cfg: dict) -> dict[str, str]:
    """What to turn for each kind of memory."""
    each = cfg["prompts_per_step"] * cfg["samples_per_prompt"] // cfg["minibatches"] // cfg["microbatches"]
    if model.remat != "block":
        activations = "set config.model.remat=block"
    elif each > 1:
        activations = f"raise {key}.microbatches"
    else:
        activations = "lower config.task.max_response_tokens"
    trained = "raise config.mesh.fsdp" if model.lora_rank else f"set {key}.lora_rank, or raise config.mesh.fsdp"
    return _weights_knobs() | {
        "optimiser": trained, "gradients": trained, "activations": activations,
        "cache": f"lower {key}.slots", "logits": f"lower config.model.head_chunk_tokens or {key}.slots",
        "prompts": f"lower {key}.prompts_per_step or config.task.max_prompt_tokens",
        "results": f"lower {key}.prompts_per_step", "scoring rows": "lower config.task.max_response_tokens",
    }  # fmt: skip
