"""The schema of an experiment's configuration: what may be set, to what, and what is refused.

A task and a regime bring their own sections; everything else is here. `validate` needs nothing but the
configuration; `check_against_task` also needs the loaded task. Both refuse in one line that names the key.

Example:
    config = ceiling.defaults("lab", arms={"grpo": ceiling.arm("grpo", lr=7e-4)})
    config.seeds = (1, 2, 3)
"""

import math
import re

import ml_collections
import numpy as np

from ceiling import tracking
from ceiling.config import ConfigError, Section, flag, number, numbers, ordered, plain, table, text
from ceiling.data import tokenizer_file
from ceiling.devices import DEVICES
from ceiling.model import sae, source
from ceiling.model.config import CHOICES, ModelConfig
from ceiling.model.policy import PICKS, RULES
from ceiling.model.sharding import make_mesh, param_shardings
from ceiling.regimes import base as regimes
from ceiling.rollout import decoding
from ceiling.tasks import base as tasks
from ceiling.train import loop

VECTORS = ("random", "shuffled", "sae", "sae_random")  # what may be put into an arm's start
NULL = "base_redraw"  # the base sampled a second time: what "no change" looks like

MODEL = Section(
    path=text("", doc="a checkpoint directory (Hugging Face layout): the prior is what it holds"),
    preset=text("", doc="a published architecture by name, e.g. qwen3-0.6b: to plan with, or from scratch"),
    width=number(64, whole=True, low=1), ffn=number(128, whole=True, low=1), layers=number(2, whole=True, low=1),
    heads=number(4, whole=True, low=1), kv_heads=number(2, whole=True, low=1), head_dim=number(16, whole=True, low=2),
    rope_base=number(10_000.0, low=1), norm_eps=number(1e-6, low=0),
    tied=flag(True), norms=text("pre", choices=CHOICES["norms"]), norm_offset=flag(False),
    qk_norm=text("", choices=CHOICES["qk_norm"]), qkv_bias=flag(False),
    activation=text("silu", choices=CHOICES["activation"]), embed_scale=flag(False), query_scale=number(0.0, low=0),
    window=number(0, whole=True, low=0), global_every=number(0, whole=True, low=0),
    local_rope_base=number(10_000.0, low=1), rope_scaling=text("", choices=CHOICES["rope_scaling"]),
    rope_factor=number(1.0, low=1e-3), rope_low=number(1.0, low=1e-3), rope_high=number(4.0, low=1e-3),
    rope_trained_tokens=number(8192, whole=True, low=1), max_positions=number(32_768, whole=True, low=1),
    embed_std=number(0.02, low=0), qk_bias_std=number(0.0, low=0),
    param_dtype=text("float32", choices=("float32", "bfloat16")),
    compute_dtype=text("float32", choices=("float32", "bfloat16")),
    scan_layers=flag(True), remat=text("", choices=CHOICES["remat"]),
    attention=text("dense", choices=CHOICES["attention"]), head_chunk_tokens=number(8192, whole=True, low=1),
)  # fmt: skip
ARM = loop.CONFIG | Section(
    start=text("", doc="the arm whose trained policy this one starts from; empty: the prior"),
    teacher=text("", doc="the arm that teaches this one (distill, critic=teacher); empty: config.teacher"),
    spend=number(1.0, low=0, doc="the arm's budget in units of config.budget.flops; 0: it trains nothing"),
    steps=number(0, whole=True, low=0, doc="stop after so many steps, whatever they cost; 0: when the budget is spent"),
    examples=number(0, whole=True, low=0, doc="problems of the pool that the arm trains on; 0: all of them"),
    select=text("first", doc="which: first, variance (of their accuracy in arm select_from), or ids, e.g. '17 203'"),
    select_from=text("", doc="the arm whose training history select=variance ranks the problems by"),
    draw=number(0, whole=True, low=0, doc="noise of its evaluation, 0 being that of all arms, 1 the null arm's"),
    decoding=text("sample", choices=RULES, doc="how the evaluation makes a response (ceiling/model/policy.py)"),
    branches=number(10, whole=True, low=1, doc="first tokens that decoding=cot follows"),
    pick=text("sum", choices=PICKS, doc="decoding=cot answers by its surest path, or by its paths' sum per answer"),
    opening=text("", doc="text that every response of the evaluation is made to start with"),
    vectors=text("", choices=("", *VECTORS), doc="steering vectors put into the start of an arm with spend=0: random "
                 "or shuffled ones for its own, an SAE feature's direction, or a random one of that norm"),
    strength=number(1.0, low=-1e3, high=1e3, doc="factor on them; a feature's vector has its largest activation"),
    feature=number(0, whole=True, low=0, high=15, doc="rank by its score of the feature that vectors=sae steers by"),
)
SAE = Section(
    layer=number(0, whole=True, low=0, doc="layer, from 0, whose activations are decomposed and steered"),
    kind=text("topk", choices=sae.KINDS), latents=number(512, whole=True, low=2),
    k=number(8, whole=True, low=1, doc="active latents of a token (topk)"),
    l1=number(5.0, low=0, doc="weight of the penalty (l1), for activations of mean square norm `width`"),
    documents=number(2048, whole=True, low=10, doc="of the prior's corpus; a tenth measures the autoencoder"),
    steps=number(2000, whole=True, low=1), tokens_per_step=number(1024, whole=True, low=1),
    lr=number(1e-3, low=0, high=10),
    words=text("", doc="texts whose neighbourhood the features are scored by, separated by spaces"),
    before=number(2, whole=True, low=0, doc="tokens before a word that count as near it"),
    after=number(3, whole=True, low=0, doc="tokens after it"),
    alpha=number(0.7, low=0, doc="weight of the entropy over words in a feature's score"),
)  # fmt: skip
EVAL = Section(
    n=number(512, whole=True, low=2, doc="samples per problem"),
    temperature=number(1.0, low=0, high=100), top_p=number(1.0, low=1e-6, high=1),
    ks=numbers((1, 2, 4, 8, 16, 32, 64, 128, 256), whole=True, low=1, doc="budgets of the pass@k curves"),
    verdict_k=number(256, whole=True, low=1, doc="budget that verdicts are about; at most n / 2"),
    margin=number(0.05, low=0, high=1, doc="pass@k difference that counts as no difference"),
    likelihood_samples=number(8, whole=True, low=0, doc="samples per problem scored under the base"),
    gain_samples=number(8, whole=True, low=2, doc="thoughts per problem for RLP's information gain"),
    slots=loop.CONFIG.entries["slots"], max_verifier_errors=loop.CONFIG.entries["max_verifier_errors"],
)  # fmt: skip
PRETRAIN = loop.CONFIG | regimes.load("sft").config | Section(steps=number(1000, whole=True, low=1))
TEACHER = PRETRAIN | Section(path=text("", doc="a checkpoint that teaches as it is; empty: the base, continued"))
TUNING = Section(
    trials=number(1, whole=True, low=1, high=64, doc="learning rates that every arm tries; 1: its own alone"),
    factor=number(2.0, low=1.001, high=100, doc="between neighbouring rates"),
    spend=number(0.1, low=1e-6, high=1, doc="a trial's share of the arm's budget, which it is charged to"),
    problems=number(32, whole=True, low=1, doc="training problems that the trials are judged by"),
    n=number(16, whole=True, low=1, doc="samples of each"),
)
CHECKPOINT = Section(
    every_s=number(60, low=0, doc="seconds between the checkpoints of a stage that trains"),
    every_steps=number(0, whole=True, low=0, doc="steps between them instead; 0: by the clock"),
    keep=number(2, whole=True, low=1, doc="newest checkpoints kept; a damaged one falls back to the one before"),
    grace_s=number(25, low=0, high=86_400, doc="seconds from SIGTERM to the end, saved or not"),
)
HOSTS = Section(
    processes=number(1, whole=True, low=0, doc="processes of this run, one command each; 0: as the launcher says"),
    process=number(-1, whole=True, low=-1, doc="which of them this is, from 0; -1: as the launcher says"),
    coordinator=text("", doc="HOST:PORT of process 0; empty: as the launcher (Slurm, Cloud TPU, ...) says"),
    start_timeout_s=number(300, low=1, high=86_400, doc="seconds until all processes must have come"),
    heartbeat_timeout_s=number(100, low=1, high=86_400, doc="seconds of silence after which a process counts as gone"),
)
PLAN = Section(
    device=text("h100", choices=tuple(DEVICES), doc="what `--plan` plans for; changes nothing of a run"),
    mfu=number(0.35, low=1e-3, high=1, doc="share of the device's peak that training reaches"),
    decode_share=number(0.3, low=1e-3, high=1, doc="share of its roofline that sampling reaches"),
)


def section(config) -> Section:
    """The schema of this configuration: the task and the regimes it names bring their own keys."""
    arm_sections = {}
    for name, entry in config.get("arms", {}).items():
        if "regime" not in entry:
            raise ConfigError(f"config.arms.{name}.regime: missing; name a file in ceiling/regimes")
        arm_sections[name] = ARM | regimes.load(entry["regime"]).config
    return Section(
        name=text("experiment"),
        seeds=numbers((1, 2, 3), whole=True, low=0, high=2**31 - 1, doc="training seeds; three or more for a verdict"),
        workers=number(1, whole=True, low=1, high=64, doc="stages run at once, in processes of their own; 1: in this"),
        mesh=Section(**{axis: number(1, whole=True, low=1) for axis in ("data", "fsdp", "tensor")}),
        data=Section(path=text("", doc="your own file, for tasks that read one")),
        task=tasks.module(config["task"]["name"]).CONFIG,
        model=MODEL, prior=PRETRAIN, teacher=TEACHER,
        budget=Section(flops=number(4e11, low=1), axis=text("student", choices=("student", "total"))),
        tuning=TUNING, train=Section(mix=table({}, low=0, doc="share of training problems by group, for every arm")),
        arms=Section(**arm_sections), sae=SAE, eval=EVAL,
        aggregates=Section(**{k: text("", doc="groups") for k in config.get("aggregates", {})}),
        plan=PLAN, checkpoint=CHECKPOINT, hosts=HOSTS, tracking=tracking.CONFIG,
        report=Section(
            every_s=number(90, low=0, doc="seconds between updates of the report while running"),
            html=flag(True, "draw report.html; off: results.json and CSV alone, for runs that only feed a table"),
            pair=text("", doc="two arms and a group to show side by side, e.g. 'grpo grpo_x X'"),
        ),
    )  # fmt: skip


def defaults(task: str, arms: dict | None = None) -> ml_collections.ConfigDict:
    """A complete configuration for a task, ready to be changed. task: a name in ceiling/tasks, or a file's path; arms:
    name -> `arm(...)`, drawn in this order. Raises ConfigError for a task or a regime that is not there."""
    arms = arms or {}
    config = section({"task": {"name": task}, "arms": arms}).defaults()
    config.task.name = task  # a file's own section cannot know by which path it is named
    config.arms = ordered(arms)
    for stage in ("prior", "teacher"):
        config[stage].source = "corpus"
        config[stage].samples_per_prompt = 1
    return config


def arm(regime: str, **overrides) -> ml_collections.ConfigDict:
    """One arm's configuration: the defaults of every arm and of the regime, with overrides. regime: a name in
    ceiling/regimes, or a file's path. Raises ConfigError for an unknown regime or key; values are looked at by
    `validate`."""
    return (ARM | regimes.load(regime).config).defaults(regime=regime, **overrides)


def validate(config) -> dict:
    """The resolved configuration as plain JSON-able values. Raises ConfigError, one line that names the key, its value
    and what is allowed. Reads no data and loads no weights."""
    if "task" not in config or "name" not in config["task"]:
        raise ConfigError("config.task.name: missing; name a task, e.g. lab or questions")
    config = plain(config)
    section(config).validate(config, "config")
    tracking.check(config["tracking"])
    for name in config["arms"]:
        if name in ("base", NULL, "prior", "teacher"):
            raise ConfigError(f"config.arms.{name}: the name is taken by the run's own stages; rename the arm")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ConfigError(f"config.arms.{name}: an arm is also a folder; use letters, digits, _ and - in its name")
    for name, entry in {"prior": config["prior"], **config["arms"]}.items():
        _check_adapters(name, entry)
    for stage in ("prior", "teacher"):
        _check_signal(f"config.{stage}", config[stage])
        _check_critic(f"config.{stage}", config[stage])
    for name in in_order(config["arms"]):
        _check_signal(f"config.arms.{name}", config["arms"][name])
        _check_subset(f"config.arms.{name}", config["arms"][name])
        _check_critic(f"config.arms.{name}", config["arms"][name])
        if config["arms"][name]["teacher"] and not taught(config["arms"][name]):
            raise ConfigError(
                f"config.arms.{name}.teacher: only regime 'distill' and critic='teacher' are taught; leave it empty"
            )
    _check_vectors(config, architecture(config["model"], vocab_size=1).layers)
    if len(set(config["seeds"])) != len(config["seeds"]):
        raise ConfigError(f"config.seeds={config['seeds']} repeats a seed; equal seeds are one run, not two")
    if config["hosts"]["processes"] != 1 and config["workers"] != 1:
        raise ConfigError(
            f"config.workers={config['workers']} with config.hosts.processes={config['hosts']['processes']}: a run on "
            "several hosts works on one stage at a time; set workers to 1"
        )
    trials, share = (config["tuning"][key] for key in ("trials", "spend"))
    if trials > 1 and trials * share >= 1:
        raise ConfigError(
            f"config.tuning.spend={share} with config.tuning.trials={trials}: the trials are charged to the arm, and "
            "nothing of its budget is left to train with; lower one of them"
        )
    for name, entry in config["arms"].items():
        if entry["steps"] and entry["spend"] != 1:
            raise ConfigError(
                f"config.arms.{name}.steps={entry['steps']} with spend={entry['spend']:g}: an arm stops after its "
                "steps or at its share of the budget; leave one of them at its default"
            )
        if entry["steps"] and trials > 1:
            raise ConfigError(
                f"config.arms.{name}.steps={entry['steps']} with config.tuning.trials={trials}: a trial is a share of "
                "the budget, which such an arm does not have; set one of them to its default"
            )
    n, k = config["eval"]["n"], config["eval"]["verdict_k"]
    if 2 * k > n:
        raise ConfigError(
            f"config.eval.verdict_k={k} needs eval.n >= {2 * k}, got {n}; a verdict at k close to n is one draw"
        )
    if max(config["eval"]["ks"]) > n:
        raise ConfigError(f"config.eval.ks has k={max(config['eval']['ks'])} above eval.n={n}; lower it or raise n")
    pair = config["report"]["pair"].split()
    if pair and (len(pair) != 3 or not {*pair[:2]} <= config["arms"].keys()):
        raise ConfigError(f"config.report.pair={' '.join(pair)!r} must name two arms and a group, or be empty")
    for name, entry in config["arms"].items():
        if entry["regime"] in ("grpo", "critique_grpo", "rlp") and entry["samples_per_prompt"] < 2:
            raise ConfigError(
                f"config.arms.{name}.samples_per_prompt={entry['samples_per_prompt']}: group advantages need at least 2"
            )
        total = entry["prompts_per_step"] * entry["samples_per_prompt"]
        for key in ("minibatches", "microbatches"):
            if total % entry[key]:
                raise ConfigError(
                    f"config.arms.{name}.{key}={entry[key]} does not divide "
                    f"prompts_per_step * samples_per_prompt = {total}"
                )
        together, groups = entry.get("responses_per_row", 1), entry["minibatches"]
        if together > 1 and entry["samples_per_prompt"] % (together * groups):
            raise ConfigError(
                f"config.arms.{name}.responses_per_row={together} does not divide samples_per_prompt / minibatches = "
                f"{entry['samples_per_prompt'] / groups:g}, the responses to a prompt in an update"
            )
    return config


def architecture(section: dict, vocab_size: int) -> ModelConfig:
    """The model of a `config.model` section: spelled out, a preset's, or a checkpoint's."""
    return source.architecture(section, vocab_size, MODEL.defaults().to_dict())


def load_task(config: dict) -> tasks.Task:
    """The task, on the user's data and with the checkpoint's tokenizer where there is one. Needs the sections
    task, data and model; raises ConfigError in one line."""
    return tasks.load(config["task"], config["data"], source.tokenizer(config["model"]))


def check_against_task(config: dict, task) -> None:
    """Refuse what only the loaded task can tell: an hour of pretraining must not end in a message that was
    due before it. Raises ConfigError or ValueError in one line."""
    groups = {group.name for group in task.groups}
    for name, members in config["aggregates"].items():
        if unknown := sorted(set(members.split()) - groups):
            raise ConfigError(f"config.aggregates.{name}: no group {unknown[0]!r}; known: {' '.join(sorted(groups))}")
    for name, entry in config["arms"].items():
        try:
            task.training(mix_of(entry, config), entry["pool"])
            rounds = regimes.load(entry["regime"]).rounds(entry, task, np.random.default_rng(0))
            for other in [entry["select_from"]] if entry["select_from"] else []:
                _check_history(other, config["arms"][other], task)
            for stop in {r.stop for r in rounds} - {None}:
                if len(task.tokenizer.encode(stop)) != 1:
                    raise ConfigError(f"{stop!r} ends a response but is not one token of the tokenizer")
            tokenizer, rule = task.tokenizer, decoding.configured(entry, task.tokenizer)
            decoding.check(rule, tokenizer.stop_ids, tokenizer.vocab_size, task.max_response_tokens)
            if rule.rule == "cot" and not hasattr(task, "answer_span"):
                raise ConfigError(f"decoding=cot chooses by answers; task {task.name} does not say where they stand")
        except ValueError as error:
            raise ConfigError(f"config.arms.{name}: {error}") from None
    try:
        task.tokenizer.encode("".join(config["sae"]["words"].split()))
    except ValueError as error:
        raise ConfigError(f"config.sae.words: {error}") from None
    _check_pretraining(config, task)
    model = check_vocabulary(config, task)
    _check_teacher(config, task, model)
    if math.prod(config["mesh"].values()) > 1:
        param_shardings(model, make_mesh(**config["mesh"]))


def _check_history(name: str, entry: dict, task) -> None:
    """Only an arm whose own samples are judged has accuracies to rank problems by."""
    rounds = regimes.load(entry["regime"]).rounds(entry, task, np.random.default_rng(0))
    if not entry["spend"] or not any(r.judged and r.model == "policy" for r in rounds):
        raise ConfigError(f"select_from={name!r}: that arm has no judged samples of its own; name one that has (grpo)")


def check_vocabulary(config: dict, task) -> ModelConfig:
    """The configured model, refused if it has no place for every token id of the task."""
    model = architecture(config["model"], task.tokenizer.vocab_size)
    tokenizer_file.check_vocabulary(task.tokenizer, model.vocab_size)
    return model


def _check_adapters(name: str, entry: dict) -> None:
    try:
        loop.adapted(ModelConfig(vocab_size=1, width=2, ffn=1, layers=1, heads=1, kv_heads=1, head_dim=2), entry)
    except ValueError as error:
        raise ConfigError(f"config.arms.{name}: {error}") from None
    if name == "prior" and (entry["lora_rank"] or entry["steering"]):
        key = "lora_rank" if entry["lora_rank"] else "steering"
        raise ConfigError(f"config.prior.{key}: a model from scratch has nothing to adapt; set it in an arm")


def _check_vectors(config: dict, layers: int) -> None:
    """Steering has something to act on, and a control differs from what it controls."""
    arms, steered = config["arms"], {"": False}
    for name in in_order(arms):
        entry, key, kind = arms[name], f"config.arms.{name}", arms[name]["vectors"]
        start, of_start = entry["start"] or "prior", steered[entry["start"]]
        steered[name] = bool(of_start or entry["steering"] or kind)
        if kind and entry["spend"]:
            raise ConfigError(f"{key}.vectors={kind!r}: given vectors are evaluated, not trained; set spend=0")
        if of_start and entry["spend"] and not entry["steering"]:
            raise ConfigError(
                f"{key}.steering=False: its start {start!r} is steered, and vectors cannot be merged into the weights; "
                "set steering=True or spend=0"
            )
        if entry["strength"] != 1 and not kind:
            raise ConfigError(f"{key}.strength={entry['strength']}: no vectors to scale; set {key}.vectors, or 1")
        if kind in ("random", "shuffled") and not of_start:
            raise ConfigError(f"{key}.vectors={kind!r}: {start!r} has no vectors; start from a steered arm")
        if kind == "shuffled" and layers == 1:
            raise ConfigError(f"{key}.vectors='shuffled': the vector of one layer has no other place; use 'random'")
        if kind.startswith("sae"):
            _check_autoencoder(config["sae"], layers, key)
            if entry["feature"] >= config["sae"]["latents"]:
                raise ConfigError(f"{key}.feature={entry['feature']}: config.sae.latents={config['sae']['latents']}")


def _check_autoencoder(entry: dict, layers: int, asking: str) -> None:
    if entry["layer"] >= layers:
        raise ConfigError(f"config.sae.layer={entry['layer']}: the model has layers 0 to {layers - 1}")
    if entry["kind"] == "topk" and entry["k"] > entry["latents"]:
        raise ConfigError(f"config.sae.k={entry['k']} is above config.sae.latents={entry['latents']}; lower it")
    if not entry["words"].split():
        raise ConfigError(f"config.sae.words is empty, and {asking}.vectors needs them to choose a feature; name some")


def _check_pretraining(config: dict, task) -> None:
    """The prior and the teacher have problems too, of which those that learn from a corpus read nothing."""
    scratch = not config["model"]["path"]
    taught_here = not config["teacher"]["path"] and any(taught(e) and not e["teacher"] for e in config["arms"].values())
    for stage in ["prior"] * scratch + ["teacher"] * taught_here:
        try:
            if task.training(dict(config[stage]["mix"]), config[stage]["pool"]):
                continue
        except ValueError as error:
            raise ConfigError(f"config.{stage}: {error}") from None
        raise ConfigError(
            f"config.{stage}.mix={dict(config[stage]['mix'])} gives no problems; give groups of the task and their "
            f"shares, e.g. {{{next((g.name for g in task.groups), 'all')!r}: 1.0}}"
        )


def _check_teacher(config: dict, task, model: ModelConfig) -> None:
    """Token ids pass between teacher and student, so both must mean the same text by them."""
    path = config["teacher"]["path"]
    if not path:
        return
    teacher = source.tokenizer({"path": path})
    if teacher.vocabulary != getattr(task.tokenizer, "vocabulary", None):
        raise ConfigError(
            f"config.teacher.path={path!r}: its vocabulary is not the student's, and token ids pass between them; "
            "choose a teacher of the same family"
        )
    size = architecture({**MODEL.defaults().to_dict(), "path": path}, 0).vocab_size
    logits = [name for name, entry in config["arms"].items() if entry.get("loss") == "divergence"]
    if size != model.vocab_size and logits:
        raise ConfigError(
            f"config.arms.{logits[0]}.loss=divergence: the teacher's logits have {size} entries, the student's "
            f"{model.vocab_size}; use loss=sequence"
        )


def _check_critic(key: str, entry: dict) -> None:
    """CG-7: a critic that nobody asks, or that needs what a stage of its own does not have."""
    default = regimes.load(entry["regime"]).config.entries
    for name in ("critic", "critique_kind"):
        if name in entry and not criticised(entry) and entry[name] != default[name].default:
            raise ConfigError(f"{key}.{name}={entry[name]!r}: nothing is criticised here; leave it out")
    if entry.get("source") == "critiques" and not key.startswith("config.arms."):
        raise ConfigError(f"{key}.source='critiques': an arm learns from critiques, not the models it builds on")


def _check_subset(key: str, entry: dict) -> None:
    """The choice of training problems is complete and does not contradict itself."""
    count, select = entry["examples"], entry["select"]
    if count > entry["pool"]:
        raise ConfigError(f"{key}.examples={count} is more than its pool of {entry['pool']}; lower it or raise pool")
    if (select == "variance") != bool(entry["select_from"]):
        raise ConfigError(
            f"{key}.select_from={entry['select_from']!r} with select={select!r}: select=variance, and nothing else, "
            "ranks by the history of another arm; set both or neither"
        )
    if select == "variance" and not count:
        raise ConfigError(f"{key}.examples=0: select=variance picks that many problems; set it")
    if select not in ("first", "variance"):
        words = select.split()
        if not words or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
            raise ConfigError(f"{key}.select={select!r} is not allowed; use first | variance | different problem ids")
        if count not in (0, len(words)):
            raise ConfigError(f"{key}.examples={count}: select names {len(words)} problems; set it to that, or to 0")


def _check_signal(key: str, entry: dict) -> None:
    """A policy gradient's settings that only make sense together. Regimes without such a key are not asked."""
    get = entry.get
    if get("advantage") == "pass_at_k" and entry["pass_k"] >= entry["samples_per_prompt"]:
        raise ConfigError(
            f"{key}.pass_k={entry['pass_k']} must be below samples_per_prompt={entry['samples_per_prompt']}: "
            "the baseline of a sample is the subsets of k without it"
        )
    if get("remedy") == "kl_cov" and entry["minibatches"] * entry["epochs"] == 1:
        raise ConfigError(
            f"{key}.remedy=kl_cov: its |log rho| has no gradient at rho = 1, so with one update per rollout it does "
            "nothing; raise minibatches or epochs"
        )
    if get("remedy") == "clip_cov" and entry["cov_low"] > entry["cov_high"]:
        raise ConfigError(f"{key}.cov_low={entry['cov_low']} is above cov_high={entry['cov_high']}; lower it")
    never = get("reward") == "none" or get("reward") == "random" and entry["gamma"] in (0, 1)
    if never and get("drop_uninformative"):
        raise ConfigError(f"{key}.drop_uninformative=True: reward={entry['reward']} pays all alike; set it False")
    if entry["reset_every"] and get("kl", "none") == "none":
        raise ConfigError(f"{key}.reset_every={entry['reset_every']}: there is no reference to reset; set kl, or 0")


def label_samples(entry: dict) -> int:
    """Samples per problem that an arm's majority labels are voted from; 0: it needs no labels."""
    return regimes.load(entry["regime"]).labels(entry) if entry["spend"] else 0


def criticised(entry: dict) -> bool:
    """Whether an arm learns from critiques."""
    return entry.get("source") == "critiques" or entry.get("refined", 0) > 0


def taught(entry: dict) -> bool:
    """Whether an arm learns from a teacher: the arm that it names, or config.teacher."""
    return entry["regime"] == "distill" or (criticised(entry) and entry["critic"] == "teacher")


def upstream(entry: dict) -> list[str]:
    """Arms that an arm needs trained before it."""
    return [name for name in (entry["start"], entry["teacher"], entry["select_from"]) if name]


def in_order(arms: dict) -> list[str]:
    """Names of the arms, each after those it needs. Raises ConfigError on an unknown name or a circle."""
    out: list[str] = []
    while left := [name for name in arms if name not in out]:
        for name in left:
            if unknown := [need for need in upstream(arms[name]) if need not in arms]:
                raise ConfigError(f"config.arms.{name}: no arm {unknown[0]!r} to build on; known: {', '.join(arms)}")
        ready = [name for name in left if set(upstream(arms[name])) <= set(out)]
        if not ready:
            raise ConfigError(f"config.arms.{left[0]}: the arms {', '.join(left)} need each other in a circle")
        out += ready
    return out


def mix_of(entry: dict, config: dict) -> dict:
    """An arm's training mix: its own, or everybody's, or the only group of a task without groups."""
    return entry["mix"] or config["train"]["mix"] or {"all": 1.0}
