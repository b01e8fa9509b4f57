"""Stages that make a policy: the prior, the teacher, and the arms."""

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from ceiling import hosts, tracking
from ceiling import ledger as accounts
from ceiling.evals import sample as evaluation
from ceiling.model import steering
from ceiling.model.config import ModelConfig, init
from ceiling.model.lora import add_lora, merge_lora
from ceiling.model.policy import Decoding, Policy
from ceiling.model.sharding import place
from ceiling.regimes import base as regimes
from ceiling.rollout.decoding import configured
from ceiling.stages import labels
from ceiling.stages.context import Context, read
from ceiling.stages.mechanisms import intervene
from ceiling.train import subset
from ceiling.train.checkpoint import Checkpoints, save_params
from ceiling.train.loop import Budget, Trainer, adapted, stream


def prior(context: Context) -> None:
    """The base model: a checkpoint as it is, or one pretrained here on the task's prior corpus. Then the gate: does it
    execute what it was shown?"""
    if path := context.settings["model"]["path"]:
        context.write_json("checkpoint.json", {"path": str(pathlib.Path(path).absolute())})
        return
    params = place(init(context.model, jax.random.key(context.seed)), context.model, context.mesh)
    trained = _pretrain(context, Policy(params, context.model, ()), "prior")
    gate = context.task.gate()
    if gate is not None:
        problems, forced, threshold = gate
        policy = Policy(trained.params, context.model, context.task.tokenizer.stop_ids)
        value = evaluation.accuracy(policy, context.task, problems, forced=forced, n=16, seed=stream(context.seed, 1))
        context.write_json("gate.json", {"name": "executed-skill accuracy", "value": value,
                                         "threshold": threshold, "passed": value >= threshold})  # fmt: skip


def teacher(context: Context) -> None:
    """A checkpoint as it is, or the base model continued on the teacher's corpus, which shows what the prior lacks."""
    if path := context.settings["train"]["path"]:
        context.write_json("checkpoint.json", {"path": str(pathlib.Path(path).absolute())})
        return
    _pretrain(context, context.policy("prior"), "teacher")


def _pretrain(context: Context, start: Policy, kind: str):
    cfg = context.settings["train"]
    rows = cfg["prompts_per_step"] * cfg["samples_per_prompt"]
    documents = context.task.corpus(kind, stream(context.seed, 2), cfg["steps"] * rows)
    trainer = Trainer(
        regimes.load("sft"), cfg, with_adapters(start, cfg, context.seed), context.task, models={}, seed=context.seed,
        budget=Budget(steps=cfg["steps"]), mesh=context.mesh,
        corpus=lambda start, count: documents[start : start + count],
    )  # fmt: skip
    return _train(context, trainer, Decoding())


class _Models(dict):
    """Models by name, loaded when one is first asked for: most arms need neither teacher nor reference."""

    def __init__(self, load: Callable[[str], Policy]):
        super().__init__()
        self.load = load

    def __missing__(self, name: str) -> Policy:
        self[name] = self.load("start" if name == "reference" else name)
        return self[name]


def arm(context: Context) -> None:
    """Train one arm from its start until its budget is spent; without a budget, the start as the arm steers and decodes
    it."""
    s = context.settings
    cfg, regime = s["arm"], regimes.load(s["arm"]["regime"])
    decoding = configured(cfg, context.task.tokenizer)
    start = with_adapters(context.policy("start").replace(decoding=decoding), cfg, context.seed)
    if not s["budget"]["flops"]:
        if cfg["vectors"]:
            start = intervene(context, start, cfg)
            save_params(context.out / "params", start.params)
        else:
            home = os.path.relpath(context.needs["start"], context.out.parent)
            context.write_json("checkpoint.json", {"stage": os.path.join("..", home)})
        _describe(context, start.config, start.decoding)
        context.write_json("ledger.json", accounts.Ledger().to_json())
        return
    corpus = functools.partial(_replay, context.task, stream(context.seed, 3))
    axis, search = s["budget"]["axis"], accounts.Ledger()
    budget = Budget(steps=cfg["steps"], axis=axis) if cfg["steps"] else Budget(flops=s["budget"]["flops"], axis=axis)
    if "tune" in context.needs:
        cfg = {**cfg, "lr": read(context.needs["tune"] / "tune.json")["lr"]}
        search = accounts.Ledger.from_json(read(context.needs["tune"] / "ledger.json"))
    known = labels.read(context.needs["labels"]) if "labels" in context.needs else None
    history = subset.read_history(context.needs["history"]) if "history" in context.needs else ()
    pool = context.task.training(dict(cfg["mix"]), cfg["pool"])
    trainer = Trainer(regime, cfg, start, context.task, models=_Models(context.policy), seed=context.seed,
                      budget=budget, mesh=context.mesh, corpus=corpus, labels=known,
                      problems=subset.chosen(pool, cfg, labels=known, history=history), spent=search)  # fmt: skip
    _train(context, trainer, start.decoding)


def with_adapters(policy: Policy, cfg: dict, seed: int) -> Policy:
    """The policy with an arm's fresh adapters or steering vectors, or as it is. Adapters that it came with are
    multiplied out."""
    if policy.config.lora_rank:
        config, params = merge_lora(policy.params, policy.config)
        policy = policy.replace(config=config, params=params)
    config = adapted(policy.config, cfg)
    if config.steering and not policy.config.steering:
        fresh = steering.with_vectors(policy.params, config, np.zeros((config.layers, config.width)))
        policy = policy.replace(params=fresh, config=config)
    if config.lora_rank:
        policy = policy.replace(params=add_lora(policy.params, config, jax.random.key(seed)), config=config)
    return policy


def _describe(context: Context, config: ModelConfig, decoding: Decoding) -> None:
    """policy.json: what `load_policy` must know beside the parameters."""
    fields = ("lora_rank", "lora_alpha", "lora_targets", "steering")
    model = {name: getattr(config, name) for name in fields}
    context.write_json("policy.json", {"model": model, "decoding": dataclasses.asdict(decoding)})


def _replay(task, seed: int, start: int, count: int):
    """`count` documents of the prior's corpus, a function of (seed, start) alone."""
    return task.corpus("prior", stream(seed, start), count) if count else []


def _train(context: Context, trainer: Trainer, decoding: Decoding):
    tokens = lambda: sum(entry.tokens for entry in trainer.ledger.entries.values())  # noqa: E731

    def report(metrics: dict) -> None:
        done = trainer.budget.progress(trainer.ledger, metrics["step"] + 1)
        context.report({
            "progress": min(1.0, done), "step": metrics["step"] + 1, "loss": metrics["loss"],
            "tokens_per_s": (tokens() - before) / (time.perf_counter() - began), "flops": metrics["flops"],
        })  # fmt: skip
        curves.step(metrics, trainer.times[-1], time.time())

    every = {key: context.how["checkpoint"][key] for key in ("every_s", "every_steps", "keep")}
    with (
        Checkpoints(context.unfinished / "checkpoints", context.key, log=context.log, **every) as checkpoints,
        tracking.Curves(context.track, context.settings) as curves,
    ):
        trainer.resume(checkpoints)
        curves.steps(trainer.curve, trainer.times, ended=time.time())
        began, before = time.perf_counter(), tokens()
        trained = trainer.run(report)
    save_params(context.out / "params", trained.params)
    _describe(context, trainer.model_config, decoding)
    context.write_json("ledger.json", trained.ledger.to_json())
    if hosts.leader():
        for name, rows in (("metrics", trained.curve), ("times", trained.times)):
            with open(context.out / f"{name}.jsonl", "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        if trained.history:
            subset.write_history(context.out, trained.history)
    return trained
