"""What each stage of an experiment does: settings and input directories in, one output directory out.

A stage sees nothing but its own settings (the part of the configuration that it depends on) and the
outputs of the stages it needs, so its identity is a hash of exactly those. `experiment.py` decides
which stages there are; `STAGES` maps their kinds to the functions here.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from ceiling import hosts, schema
from ceiling import ledger as accounts
from ceiling.evals import sample as evaluation
from ceiling.evals.records import Samples
from ceiling.model import hf, source
from ceiling.model.config import ModelConfig, init
from ceiling.model.lora import add_lora
from ceiling.model.policy import Policy
from ceiling.model.sharding import make_mesh, place
from ceiling.regimes import base as regimes
from ceiling.regimes import rlp
from ceiling.regimes.base import Sample
from ceiling.rollout.engine import generate
from ceiling.rollout.scoring import score
from ceiling.tasks import base as task_base
from ceiling.train import signals
from ceiling.train.checkpoint import Checkpoints, load_params, save_params
from ceiling.train.loop import Budget, Trainer, adapted, stream
from ceiling.workers import UNFINISHED


@dataclasses.dataclass
class Context:
    """settings: what decides the stage's numbers, and key its hash; how: mesh and checkpoints, which do not; needs:
    name of an input -> its directory; out: where to write; report: progress; log: a line for the user."""

    settings: dict
    how: dict
    key: str
    needs: dict[str, pathlib.Path]
    out: pathlib.Path
    report: Callable[[dict], None]
    log: Callable[[str], None]

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
    """The policy in a stage's output directory, without stop tokens: its own parameters (with the adapters that
    `adapters.json` describes), or those of the checkpoint that `checkpoint.json` points at."""
    pointer, adapters = directory / "checkpoint.json", directory / "adapters.json"
    if pointer.exists():
        path = json.loads(pointer.read_text())["path"]
        config, params = hf.load(path, mesh=mesh, dtype=model.param_dtype)
        runtime = {key: getattr(model, key) for key in source.RUNTIME}
        return Policy(params, dataclasses.replace(config, **runtime), ())
    if adapters.exists():
        model = dataclasses.replace(model, **json.loads(adapters.read_text()))
    return Policy(load_params(directory / "params", model, mesh), model, ())


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
    return _train(context, trainer)


class _Models(dict):
    """Models by name, loaded when one is first asked for: most arms need neither teacher nor reference."""

    def __init__(self, load: Callable[[str], Policy]):
        super().__init__()
        self.load = load

    def __missing__(self, name: str) -> Policy:
        self[name] = self.load("prior" if name == "reference" else name)
        return self[name]


def arm(context: Context) -> None:
    """Train one arm from the prior until its budget is spent."""
    s = context.settings
    cfg, regime = s["arm"], regimes.load(s["arm"]["regime"])
    corpus = functools.partial(_replay, context.task, stream(context.seed, 3))
    budget = Budget(flops=s["budget"]["flops"], axis=s["budget"]["axis"])
    start = with_adapters(context.policy("prior"), cfg, context.seed)
    trainer = Trainer(regime, cfg, start, context.task, models=_Models(context.policy), seed=context.seed,
                      budget=budget, mesh=context.mesh, corpus=corpus)  # fmt: skip
    _train(context, trainer)


def with_adapters(policy: Policy, cfg: dict, seed: int) -> Policy:
    """The policy with an arm's fresh adapters, or as it is."""
    config = adapted(policy.config, cfg)
    if not config.lora_rank:
        return policy
    return policy.replace(params=add_lora(policy.params, config, jax.random.key(seed)), config=config)


def _replay(task, seed: int, start: int, count: int):
    """`count` documents of the prior's corpus, a function of (seed, start) alone."""
    return task.corpus("prior", stream(seed, start), count) if count else []


def _train(context: Context, trainer: Trainer):
    tokens = lambda: sum(entry.tokens for entry in trainer.ledger.entries.values())  # noqa: E731

    def report(metrics: dict) -> None:
        done = trainer.budget.progress(trainer.ledger, metrics["step"] + 1)
        context.report({
            "progress": min(1.0, done), "step": metrics["step"] + 1, "loss": metrics["loss"],
            "tokens_per_s": (tokens() - before) / (time.perf_counter() - began), "flops": metrics["flops"],
        })  # fmt: skip

    every = {key: context.how["checkpoint"][key] for key in ("every_s", "every_steps", "keep")}
    with Checkpoints(context.unfinished / "checkpoints", context.key, log=context.log, **every) as checkpoints:
        trainer.resume(checkpoints)
        began, before = time.perf_counter(), tokens()
        trained = trainer.run(report)
    save_params(context.out / "params", trained.params)
    config = trainer.model_config
    if config.lora_rank:
        context.write_json("adapters.json", {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha,
                                             "lora_targets": list(config.lora_targets)})  # fmt: skip
    context.write_json("ledger.json", trained.ledger.to_json())
    if hosts.leader():
        with open(context.out / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in trained.curve)
    return trained


def evaluate(context: Context) -> None:
    """n judged samples per evaluation problem, their likelihood under the base and under the policy."""
    s, task = context.settings["eval"], context.task
    policy, ledger = context.policy("policy"), accounts.Ledger()

    def report(done: int, total: int, tokens: int) -> None:
        context.report({"progress": done / total, "tokens": tokens})
        signals.check(f"after {done} of {total} problems")  # a chunk's records are on disk

    samples = evaluation.evaluate(
        policy, task, n=s["n"], seed=stream(context.seed, 5, s["draw"]), temperature=s["temperature"],
        top_p=s["top_p"], slots=s["slots"], ledger=ledger, store=context.unfinished / "records",
        max_verifier_errors=s["max_verifier_errors"], report=report,
    )  # fmt: skip
    if hosts.leader():
        samples.save(context.out / "records.parquet")
    if s["likelihood_samples"]:
        _likelihood(context, samples, policy, ledger, min(s["likelihood_samples"], s["n"]))
    context.write_json("ledger.json", ledger.to_json())


def _likelihood(context: Context, samples: Samples, policy: Policy, ledger, per_problem: int) -> None:
    """Nats per token of the recorded samples under base and self, and the policy's token entropy."""
    problems = context.task.evaluation()
    rows = []
    base = policy if context.needs["base"] == context.needs["policy"] else context.policy("base")
    began = time.perf_counter()
    under = {}
    for name, judge in (("base", base), ("self", policy)):
        if name == "self" and judge is base:
            under[name] = under["base"]
            continue
        under[name] = evaluation.likelihood(samples, context.task, problems, judge, per_problem=per_problem)
    logp_base, _, tokens = under["base"]
    logp_self, entropy_self, _ = under["self"]
    groups = np.array(samples.groups)
    for group in dict.fromkeys(samples.groups):
        here = groups == group
        count = float(tokens[here].sum())
        rows.append({
            "group": group, "nll_under_base": -float(logp_base[here].sum()) / count,
            "nll_under_self": -float(logp_self[here].sum()) / count,
            "policy_entropy": float(entropy_self[here].sum()) / count,
        })  # fmt: skip
    ledger.charge("evaluate", "policy", seconds=time.perf_counter() - began)
    context.write_json("likelihood.json", rows)


def gain(context: Context) -> None:
    """Information gain of a policy's thoughts on held-out passages against every baseline: the raw and the
    wrapped non-thought, an empty wrapper in place of the thought, and thoughts of other problems. Scored as in
    training (the arm's floor), on the groups that the arm's text was drawn from."""
    s, task = context.settings["gain"], context.task
    policy, base = context.policy("policy"), context.policy("base")
    everything = s["groups"] == ["all"]  # the mix of a task that is trained on without regard to its groups
    problems = [p for p in task.evaluation() if everything or p.group in s["groups"]]
    passages = [task.passage(p) for p in problems]
    encode = lambda text: np.asarray(task.tokenizer.encode(text), np.int32)  # noqa: E731
    prompts = [encode(p.context) for p in passages]
    stop = task.tokenizer.encode(passages[0].stop)[0]
    out = generate(
        policy.replace(stop_ids=(stop,)), prompts, n=s["n"], max_new_tokens=s["max_thought_tokens"],
        seed=stream(context.seed, 7), problem_ids=[p.id for p in problems], slots=s["slots"],
    )  # fmt: skip

    def thought(i, j, context_of):
        return Sample(prompts[context_of], out.response(i, j), out.logprobs[i, j], bool(out.stopped[i, j]), None)

    def total(examples, judge) -> np.ndarray:
        longest = max(len(e.tokens) for e in examples)
        logprobs, _ = score(judge.params, judge.config, examples, max_tokens=longest)
        V = judge.config.vocab_size
        return np.array([float(np.sum(rlp.floored(x, s["floor"], V))) for x in logprobs]).reshape(len(problems), -1)

    pairs = [(i, j) for i in range(len(problems)) for j in range(s["n"])]
    own = [rlp.continuation_example(encode, passages[i], thought(i, j, i), 0) for i, j in pairs]
    # A fixed-point-free shift within the list keeps every thought in use once, on another problem.
    other = [(i + 1) % len(problems) for i in range(len(problems))]
    shuffled = [rlp.continuation_example(encode, passages[i], thought(other[i], j, i), 0) for i, j in pairs]
    with_thought, with_other = total(own, policy), total(shuffled, policy)
    empty = {kind: [rlp.no_thought_example(encode, p, kind, 0) for p in passages] for kind in ("raw", "wrapped")}
    baseline = {
        "over the base without a thought (raw)": total(empty["raw"], base),
        "over the base, wrapped non-thought": total(empty["wrapped"], base),
        "over itself, wrapped non-thought": total(empty["wrapped"], policy),
    }
    rows = [_mean_row(name, with_thought - reference) for name, reference in baseline.items()]
    wrapped = baseline["over the base, wrapped non-thought"]
    rows.append(_mean_row("control: empty wrapper instead of the thought", total(empty["wrapped"], policy) - wrapped))
    rows.append(_mean_row("control: another problem's thought", with_other - wrapped))
    context.write_json("gain.json", rows)


def _mean_row(metric: str, value_PJ: np.ndarray) -> dict:
    """Mean over problems in nats with a 95 % normal interval over problems."""
    per_problem = value_PJ.mean(axis=1)
    half = 1.96 * per_problem.std(ddof=1) / np.sqrt(len(per_problem)) if len(per_problem) > 1 else float("inf")
    mean = float(per_problem.mean())
    return {"metric": metric, "value": mean, "lo": mean - float(half), "hi": mean + float(half)}


STAGES = {"prior": prior, "teacher": teacher, "arm": arm, "evaluate": evaluate, "gain": gain}
