"""The training loop of every arm: draw, sample, verify, score, build, update, until the budget is spent.

Everything a step does is a function of (seed, step), the train state and the ledger, so a stage that is killed and
goes on from a checkpoint of those gives the same result. The loop stops at the step that lands nearest to the budget.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ceiling import ledger as accounts
from ceiling.config import Section, flag, number, table, text
from ceiling.data import order, packing
from ceiling.model import layers
from ceiling.model.config import PROJECTIONS, ModelConfig
from ceiling.model.lora import trainable
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.model.sharding import batch_sharding, put
from ceiling.regimes.base import Material, Regime, Sample, noise_ids
from ceiling.rollout.engine import generate
from ceiling.rollout.episodes import converse, scene_of
from ceiling.rollout.scoring import executed_tokens, score
from ceiling.tasks.base import Outcome, Problem, Task, Verifier, check_errors
from ceiling.tasks.rewards import Label
from ceiling.train import optim, signals
from ceiling.train.checkpoint import Checkpoints
from ceiling.train.step import init_state, make_step

CONFIG = optim.CONFIG | Section(
    regime=text("sft", doc="a file name in ceiling/regimes, or the path of a .py file of your own"),
    title=text("", doc="name in figures; empty: the arm's own name"),
    control=flag(False, "a control arm: drawn thinner, reported beside the arms"),
    prompts_per_step=number(32, whole=True, low=1, doc="problems per update, over all devices"),
    samples_per_prompt=number(8, whole=True, low=1, doc="samples or demonstrations per problem (G)"),
    temperature=number(1.0, low=1e-3, high=100, doc="sampling temperature; RL never truncates (top_p = 1)"),
    minibatches=number(1, whole=True, low=1, doc="updates per rollout, each on its share of the samples"),
    epochs=number(1, whole=True, low=1, doc="passes over one rollout"),
    microbatches=number(1, whole=True, low=1, doc="gradient accumulation; does not change the result"),
    pool=number(2048, whole=True, low=1, doc="training problems"),
    mix=table({}, low=0, doc="share of training problems by group; an arm without one has config.train.mix"),
    max_skipped=number(20, whole=True, low=0, doc="non-finite updates, in all, that the arm survives; none is applied"),
    max_verifier_errors=number(0.05, low=0, high=1, doc="share of verifier errors that stops the arm"),
    slots=number(512, whole=True, low=1, doc="sequences decoded at once; their cache is what sampling keeps in memory"),
    lora_rank=number(0, whole=True, low=0, high=4096, doc="rank of the trained adapters; 0: every weight is trained"),
    lora_alpha=number(16.0, low=0, doc="adapters are added times alpha / rank"),
    lora_targets=text(" ".join(PROJECTIONS), doc="adapted projections"),
    steering=flag(False, "train one vector per layer, added to the residual stream, and nothing else"),
    reset_every=number(0, whole=True, low=0, doc="steps after which the reference policy becomes the policy, and the "
                       "optimiser starts afresh (ProRL, arXiv:2505.24864); 0: never"),
)  # fmt: skip


MAX_IDLE_STEPS = 50  # steps in a row without any student-side work before the arm gives up


@dataclasses.dataclass(frozen=True)
class Budget:
    """flops on an axis ("student" or "total"), or a number of steps."""

    flops: float | None = None
    steps: int | None = None
    axis: str = "student"

    def progress(self, ledger: accounts.Ledger, step: int, before: float = 0.0) -> float:
        """Share of the training that is done; before: what was spent before it began."""
        return (ledger.spent(self.axis) - before) / (self.flops - before) if self.flops else step / self.steps

    def spent(self, ledger: accounts.Ledger, step: int, last_step_flops: float) -> bool:
        """Whether stopping now lands nearer to the budget than one more step like the last would."""
        if self.flops:
            return ledger.spent(self.axis) + last_step_flops / 2 >= self.flops
        return step >= self.steps


@dataclasses.dataclass
class Trained:
    """Final parameters, the arm's ledger, its curve (one dict of metrics per step), its history: (step, problem id,
    right, samples) for every group of its own samples that was judged, and its times: by step, the seconds of every
    phase of the ledger and of the whole, and `idle`, those in which the host worked while the device had nothing to do.
    Times are the one part that another run does not repeat."""

    params: dict
    ledger: accounts.Ledger
    curve: list[dict]
    history: list[tuple[int, int, int, int]]
    times: list[dict]


def layout(cfg, max_tokens: int, mesh: Mapping[str, int]) -> packing.Layout:
    """Micro-batches of one update of an arm whose sequences have up to max_tokens tokens; cfg["max_tokens"]: its
    responses; mesh: devices by axis. Longer rows are a setting of regimes whose examples are groups of samples.
    Rows are grouped by device on a mesh of data alone: on any other, XLA's partitioner (jax 0.10) crashes on groups."""
    devices = mesh["data"] * mesh["fsdp"]
    groups = devices if mesh["fsdp"] * mesh["tensor"] == 1 else 1
    return packing.Layout(
        sequences=cfg["prompts_per_step"] * cfg["samples_per_prompt"] // cfg["minibatches"], parts=cfg["microbatches"],
        max_tokens=max_tokens, responses=cfg.get("responses_per_row", 1), response_tokens=cfg["max_tokens"],
        groups=groups, multiple=devices // groups,
    )  # fmt: skip


def adapted(config: ModelConfig, cfg) -> ModelConfig:
    """The model that an arm trains: where it starts from, with the arm's adapters and steering vectors if any."""
    if cfg["lora_rank"]:
        config = dataclasses.replace(config, **{key: cfg[key] for key in ("lora_rank", "lora_alpha", "lora_targets")})
    return dataclasses.replace(config, steering=config.steering or cfg["steering"])


class Trainer:
    """The mutable things of one arm: state, ledger, curve, position. `run` is the loop.

    policy: what is trained, with fresh adapters if the arm has them; its parameters are donated. models: name
    ("teacher", "reference") -> Policy, read when the regime first asks for one. problems: those trained on, if not
    the whole pool of the configuration. labels: by problem id, for a regime that asks for them. spent: what the
    arm's ledger begins with, and its budget has gone for already."""

    def __init__(self, regime: Regime, cfg, policy: Policy, task: Task, *,
                 models: Mapping[str, Policy], seed: int, budget: Budget, mesh, corpus: Callable,
                 problems: list[Problem] | None = None, labels: dict[int, Label] | None = None,
                 spent: accounts.Ledger | None = None):  # fmt: skip
        self.regime, self.model_config, self.task, self.seed = regime, policy.config, task, seed
        self.budget, self.models, self.mesh, self.corpus = budget, models, mesh, corpus
        rounds = regime.rounds(cfg, task, np.random.default_rng(0))
        longest = max((r.max_tokens for r in rounds), default=task.max_response_tokens)
        self.cfg = cfg = {**cfg, "max_tokens": longest}
        self.pool = task.training(dict(cfg["mix"]), cfg["pool"]) if problems is None else problems
        self.labels, self.verify = labels, Verifier(task)
        self.ledger, self.curve, self.history, self.checkpoints = spent or accounts.Ledger(), [], [], None
        self.before = self.ledger.spent(budget.axis)
        self.step, self.last, self.idle = 0, 0.0, 0  # steps done; FLOPs of the last; idle ones in a row
        self.times, self.alone, self.flying = [], 0.0, False  # seconds that this step's host work kept an idle device
        self.reference = policy.replace(params=copied(policy.params)) if cfg["reset_every"] else None
        self.frozen = {name: self._policy(name) for name in regime.frozen(cfg)}
        self.max_tokens = max(len(task.tokenizer.encode(p.prompt)) for p in self.pool + task.evaluation())
        self.max_tokens = max(self.max_tokens + task.max_response_tokens, regime.longest(cfg, task))
        self.layout = layout(cfg, self.max_tokens, mesh.shape)
        aux = regime.init_aux(policy.params, cfg) if regime.init_aux else None
        self.optimiser, self.trained = optimiser, trained = optim.make(cfg), trainable(policy.config)
        forward = Forward(policy.config)
        after = regime.after_update
        self.state = init_state(policy.params, optimiser, aux, trained)
        self.update = make_step(
            lambda params, batch, frozen: regime.loss(params, batch, frozen, forward, cfg), optimiser,
            after and (lambda aux, params: after(aux, params, cfg)), trained,
            unrolled=not policy.config.scan_layers,
        )  # fmt: skip

    def resume(self, checkpoints: Checkpoints) -> None:
        """Save there from now on, and start from its newest good checkpoint if it has one."""
        self.checkpoints = checkpoints
        if found := checkpoints.restore(self._device_state()):
            state, host = found
            if self.reference is None:
                self.state = state
            else:
                self.state = state["state"]
                self._refer(state["reference"])
            self.ledger, self.curve = accounts.Ledger.from_json(host["ledger"]), host["curve"]
            self.history = [tuple(row) for row in host["history"]]
            self.step, self.last, self.idle, self.times = (host[key] for key in ("step", "last", "idle", "times"))

    def run(self, report: Callable[[dict], None]) -> Trained:
        """Train until the budget is spent. report receives one dict of metrics per step, a step late. Raises
        signals.Stopped, after a checkpoint, if the process is asked to stop."""
        pending = None
        while not self.budget.spent(self.ledger, self.step, self.last):
            if self.cfg["reset_every"] and self.step and self.step % self.cfg["reset_every"] == 0:
                self._reset()
            before, began, seconds = self.ledger.spent(self.budget.axis), time.perf_counter(), self.ledger.seconds()
            lr = optim.learning_rate(self.cfg, self.budget.progress(self.ledger, self.step, self.before))
            settle, self.alone = functools.partial(self._settle, pending, report), 0.0
            examples, metrics = self._gather(self.step, settle)
            pending = {**self._update(self.step, examples, lr, settle), **metrics}
            spent = {phase: value - seconds.get(phase, 0.0) for phase, value in self.ledger.seconds().items()}
            whole = {"step": self.step, "seconds": time.perf_counter() - began, "idle": self.alone}
            self.times.append({**whole, **{phase: value for phase, value in spent.items() if value}})
            self.last = self.ledger.spent(self.budget.axis) - before
            self.idle = self.idle + 1 if self.last <= 0 else 0
            if self.idle >= MAX_IDLE_STEPS:
                raise RuntimeError(
                    f"{self.regime.name}: {self.idle} steps in a row had nothing to learn from, so the budget is never "
                    "spent; its source gives no examples (is every sample filtered out as wrong?)"
                )
            self.step += 1
            asked = signals.asked()
            if self.checkpoints and (asked or self.checkpoints.due(self.step)):
                self._settle(pending, report)
                self._save()
            if asked:
                if self.checkpoints:
                    self.checkpoints.wait()
                signals.check(f"after step {self.step}")
        self._settle(pending, report)
        return Trained(self.state.params, self.ledger, self.curve, self.history, self.times)

    def _reset(self) -> None:
        """ProRL's reset, a function of the step and the state: the policy is its own reference from here on, and the
        optimiser remembers nothing."""
        self._refer(copied(self.state.params))
        fresh = init_state(self.state.params, self.optimiser, trainable=self.trained)
        self.state = self.state.replace(opt_state=fresh.opt_state)

    def _refer(self, params) -> None:
        self.reference = self.reference.replace(params=params)
        if "reference" in self.frozen:
            self.frozen["reference"] = self.reference

    def _device_state(self):
        """The arrays that a checkpoint holds: the train state, and the reference where it changes."""
        return self.state if self.reference is None else {"state": self.state, "reference": self.reference.params}

    def _save(self):
        """A checkpoint of everything that the next step depends on; the directory that it will be in."""
        host = {"step": self.step, "last": self.last, "idle": self.idle, "ledger": self.ledger.to_json(),
                "curve": self.curve, "history": self.history, "times": self.times}  # fmt: skip
        return self.checkpoints.save(self.step, self._device_state(), host)

    def _gather(self, step: int, settle: Callable[[], None]):
        """Everything before the update: (examples, host metrics). `settle` waits for the last update; a step that
        samples nothing does not call it, and its work is done while the device is busy."""
        cfg, regime = self.cfg, self.regime
        draw = cfg["prompts_per_step"] * cfg.get("oversample", 1)
        chosen = order.indices(self.seed, step * draw, draw, len(self.pool))
        rng = np.random.default_rng([self.seed, step, 31])
        material = Material(
            task=self.task, problems=[self.pool[i] for i in chosen], samples=[], scores={},
            replay=lambda count: self.corpus(step * count, count), rng=rng, labels=self.labels, key=(self.seed, step),
        )  # fmt: skip
        rounds = regime.rounds(cfg, self.task, rng)
        if rounds:
            settle()
        for number_, spec in enumerate(rounds):
            material.samples.append(self._sample(material, spec, step, number_))
        self._remember(step, rounds, material)
        for name, request in regime.scores(material, cfg).items():
            material.scores[name] = self._score(request)
        start = time.perf_counter()
        examples = regime.examples(material, cfg)
        metrics = regime.metrics(material, cfg)
        for name, amount in regime.counts(material, examples, cfg).items():
            self.ledger.count(name, amount)
        self.ledger.expose(p.id for p in material.problems)
        self._worked("host", "policy", start)
        return examples, metrics

    def _worked(self, phase: str, model: str, start: float) -> None:
        """Charge host work since `start`."""
        seconds = time.perf_counter() - start
        self.ledger.charge(phase, model, seconds=seconds)
        self.alone += 0.0 if self.flying else seconds

    def _remember(self, step: int, rounds, material: Material) -> None:
        """How often the policy was right on each problem, by its first judged round of the step."""
        for spec, groups in zip(rounds, material.samples, strict=True):
            if spec.judged and spec.model == "policy":
                for problem, group in zip(material.problems, groups, strict=True):
                    self.history.append((step, problem.id, sum(s.verdict.right for s in group), len(group)))
                return

    def _sample(self, material: Material, spec, step: int, round_: int) -> list[list[Sample]]:
        start = time.perf_counter()
        tokenizer = self.task.tokenizer
        stops = tokenizer.stop_ids if spec.stop is None else tuple(tokenizer.encode(spec.stop))
        prompts = [material.encode(text) for text in spec.prompts(material)]
        each = len(prompts) // len(material.problems)
        problems = [p for p in material.problems for _ in range(each)]  # of the prompts
        sampler = self._policy(spec.model).replace(stop_ids=stops)
        sampling = dict(n=spec.n, max_new_tokens=spec.max_tokens, temperature=self.cfg["temperature"], top_p=1.0,
                        seed=stream(self.seed, step, round_), problem_ids=noise_ids(problems),
                        slots=self.cfg["slots"])  # fmt: skip
        scene = scene_of(self.task, problems) if spec.judged and spec.stop is None else None
        if scene is not None:
            out = converse(sampler, prompts, scene=scene, **sampling)
            for name, amount in out.events.items():
                self.ledger.count(name, amount)
        else:
            # Prompts of their own per response are prefilled a slotful at a time: their caches are not shared.
            shared = 32_768 if each == 1 else max(self.cfg["slots"], spec.n)
            out = generate(sampler, prompts, chunk_requests=shared, **sampling)
        self.ledger.charge(
            "rollout", spec.model, seconds=time.perf_counter() - start, sequences=out.lengths.size,
            flops=accounts.sampling_flops(sampler.config, [len(p) for p in prompts], out.lengths, out.drawn),
            tokens=out.lengths.sum() + sum(map(len, prompts)), executed_tokens=out.executed_tokens,
        )  # fmt: skip
        start = time.perf_counter()
        pairs = [(i, j) for i in range(len(prompts)) for j in range(spec.n)]
        verdicts = [None] * len(pairs)
        if spec.judged:
            responses = [(problems[i], out.text(i, j, tokenizer.decode)) for i, j in pairs]
            verdicts = self.verify.many(responses)
            self._count_verdicts([v.outcome for v in verdicts])
            self._worked("verify", spec.model, start)

        def sample(i, j, verdict):
            own, logprobs = out.written(i, j), out.logprobs[i, j, : out.lengths[i, j]]
            logprobs = logprobs if own is None else logprobs[own]
            return Sample(prompts[i], out.response(i, j), logprobs, bool(out.stopped[i, j]), verdict, own)

        samples = [sample(i, j, verdict) for (i, j), verdict in zip(pairs, verdicts, strict=True)]
        own = each * spec.n
        return [samples[i * own : (i + 1) * own] for i in range(len(material.problems))]

    def _count_verdicts(self, outcomes: list[Outcome]) -> None:
        for outcome in Outcome:
            self.ledger.count(f"verdicts {outcome.name.lower()}", outcomes.count(outcome))
        check_errors(self.verify, outcomes, self.cfg["max_verifier_errors"])

    def _score(self, request) -> list[np.ndarray]:
        start = time.perf_counter()
        judge = self._policy(request.model)
        logprobs, _ = score(
            judge.params, judge.config, request.examples, max_tokens=self.max_tokens, temperature=request.temperature
        )
        lengths = [len(e.tokens) for e in request.examples]
        self.ledger.charge(
            "score", request.model, flops=accounts.forward_flops(judge.config, lengths),
            tokens=sum(lengths),
            executed_tokens=executed_tokens(judge.params, judge.config, len(lengths), self.max_tokens),
            sequences=len(lengths), seconds=time.perf_counter() - start,
        )  # fmt: skip
        return logprobs

    def _update(self, step: int, examples, lr: float, settle: Callable[[], None]) -> dict:
        """Dispatch the step's updates and charge them; metrics stay on the device. `settle` is called once the first
        batch is packed: the last update may have gone on until then."""
        cfg = self.cfg
        if not examples:
            settle()
        metrics = {"loss": 0.0, "grad_norm": 0.0, "skipped": self.state.skipped}
        for _ in range(cfg["epochs"]):
            for part in range(cfg["minibatches"]):
                mine = examples[part :: cfg["minibatches"]]
                if not mine:
                    continue  # every sample was filtered out: no step at all, not one of momentum and decay
                self.ledger.count("updates")
                start = time.perf_counter()
                lengths = [len(e.tokens) for e in mine]
                batch, live = packing.micro_batches(mine, self.layout)
                if self.mesh.size > 1:
                    batch = put(batch, batch_sharding(self.mesh, leading=1))
                self._worked("host", "policy", start)
                settle()
                start = time.perf_counter()
                numbers = layers.numbers(self.model_config)
                self.state, metrics = self.update(
                    self.state, batch, self.frozen, np.float32(lr), np.int32(live), numbers
                )
                self.flying = True
                self.ledger.charge("train", "policy", seconds=time.perf_counter() - start)
                executed = live * batch.tokens_RW[0].size
                done = dict(tokens=sum(lengths), executed_tokens=executed, sequences=len(lengths))
                flops = accounts.train_flops(self.model_config, lengths)
                self.ledger.charge("train", "policy", flops=flops, **done)
                for name, model in self.frozen.items():
                    self.ledger.charge("score", name, flops=accounts.forward_flops(model.config, lengths), **done)
        supervised = sum(int(e.mask[1:].sum()) for e in examples)  # nothing predicts token 0
        self.ledger.count("supervised tokens", cfg["epochs"] * supervised)
        self.ledger.count("empty training slots", cfg["minibatches"] * self.layout.sequences - len(examples))
        return {"step": step, "lr": lr, "flops": self.ledger.spent(self.budget.axis), "device": metrics}

    def _policy(self, model: str) -> Policy:
        if model in ("policy", "ema"):
            return Policy(self.state.params if model == "policy" else self.state.aux, self.model_config, ())
        if model == "reference" and self.reference is not None:
            return self.reference
        return self.models[model]

    def _settle(self, pending: dict | None, report) -> None:
        """Fetch the metrics of a dispatched step (the wait is charged to training) and report them."""
        if pending is None or "device" not in pending:
            return
        start = time.perf_counter()
        fetched = {k: float(v) for k, v in jax.device_get(pending.pop("device")).items()}
        self.ledger.charge("train", "policy", seconds=time.perf_counter() - start)
        self.flying = False
        pending.update(fetched)
        self.curve.append(pending)
        report(pending)
        if fetched.get("skipped", 0) > self.cfg["max_skipped"]:
            kept = ""
            if self.checkpoints:
                kept = f"; the last good parameters are in {self._save()}"
                self.checkpoints.wait()
            raise FloatingPointError(
                f"{self.regime.name}: {int(fetched['skipped'])} updates had non-finite gradients "
                f"(limit {self.cfg['max_skipped']}); lower the learning rate. No bad update was applied{kept}"
            )


@jax.jit
def copied(params):
    """The same arrays in memory of their own: the train step donates its state."""
    return jax.tree.map(jnp.copy, params)


def stream(seed: int, *path: int) -> int:
    """An independent 31-bit seed for a position in a run; equal arguments give equal seeds. The path's
    length is part of the key: SeedSequence takes trailing zeros for no entries at all."""
    return int(np.random.SeedSequence([seed, len(path), *path]).generate_state(1)[0] >> 1)
