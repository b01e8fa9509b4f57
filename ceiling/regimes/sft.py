"""Supervised fine-tuning: maximise log p(response | prompt) over given text.

    L = -sum_t m_t log p(y_t | x, y_<t) / sum_t m_t

The same objective serves six sources of text, which differ in what the arm may read:
    demonstrations  the curators' correct responses
    expert          those of an expert who shows less (imitation of a narrow expert)
    own_samples     the policy's own samples that the verifier accepts (rejection sampling, RFT)
    critiques       critiques of candidate responses (critique fine-tuning, CFT, arXiv:2501.17703): x is the problem
                    and a candidate, y a critique of it by `critic` (tasks/critiques.py), right or wrong
    text            plain passages without reasoning (continued pretraining, CPT)
    corpus          the prior's own corpus (how the prior itself is pretrained)
`replay` replaces a share of every batch by documents of the prior's corpus: without it, continued
pretraining on bare answers destroys the working that the prior had, and is no fair opponent.

Critiques are of samples from where the arm starts ("reference"), as many as come, or of the file's responses. The
trained policy is asked to solve the problem, never to criticise.
"""

import dataclasses

from ceiling.config import ConfigError, Section, number, text
from ceiling.regimes.base import Material, Regime, Round, negative_log_likelihood, response_example, text_example
from ceiling.regimes.critique_grpo import critic_rounds, critique_texts, responses
from ceiling.tasks import critiques

CONFIG = Section(
    source=text("demonstrations", choices=("demonstrations", "expert", "own_samples", "critiques", "text", "corpus")),
    critic=text("task", choices=("task", "teacher", "file"), doc="who wrote the critiques of source=critiques"),
    critique_kind=text("cot", choices=critiques.KINDS, doc="what that critic may tell"),
    replay=number(0.0, low=0, high=1, doc="share of each batch drawn from the prior's corpus"),
)

_READS = {
    "demonstrations": ("prompt", "solution"),
    "expert": ("prompt", "solution"),
    "own_samples": ("prompt", "answer"),
    "text": ("text",),
    "corpus": ("text",),
}


def reads(cfg):
    if cfg["source"] == "critiques":
        return ("prompt", "answer") + critiques.reads(cfg["critic"], cfg["critique_kind"])
    return _READS[cfg["source"]]


def check(task, source: str) -> None:
    """Raise ConfigError if the task has no such demonstrations."""
    if source == "expert" and not hasattr(task, "expert"):
        raise ConfigError(f"source='expert': task {task.name} has no expert; use source='demonstrations'")


def rounds(cfg, task, rng):
    check(task, cfg["source"])
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    if cfg["source"] == "own_samples":
        return (Round("policy", cfg["samples_per_prompt"], task.max_response_tokens, prompts),)
    if cfg["source"] != "critiques":
        return ()
    critiques.check(task, cfg["critic"], cfg["critique_kind"])
    if cfg["critic"] == "file":
        return ()
    candidates = Round("reference", cfg["samples_per_prompt"], task.max_response_tokens, prompts)
    return (candidates, *critic_rounds(cfg, task))


def longest(cfg, task):
    """Tokens of the longest training sequence, where it can be longer than a prompt and a response."""
    document = getattr(task, "max_document_tokens", 0) if cfg["source"] == "corpus" or cfg["replay"] else 0
    if cfg["source"] != "critiques":
        return document
    return max(document, task.max_critique_prompt_tokens + task.max_critique_tokens)


def examples(material: Material, cfg):
    rows = cfg["prompts_per_step"] * cfg["samples_per_prompt"]
    replayed = rows if cfg["source"] == "corpus" else round(cfg["replay"] * rows)
    out = [text_example(material.encode, d.prompt, d.response) for d in material.replay(replayed)]
    return out + _fresh(material, cfg)[: rows - replayed]


def _fresh(material: Material, cfg):
    """Examples of the source itself; problems without one contribute nothing."""
    if cfg["source"] == "corpus":
        return []
    if cfg["source"] == "own_samples":
        return [response_example(s) for group in material.samples[0] for s in group if s.verdict.right]
    if cfg["source"] == "critiques":
        room = longest(cfg, material.task)
        return [example for example in _criticised(material, cfg) if len(example.tokens) <= room]
    if cfg["source"] == "text":
        passages = [material.task.passage(p) for p in material.problems]
        repeats = cfg["samples_per_prompt"]
        return [
            text_example(material.encode, p.context, p.stop + p.bridge + p.continuation)
            for _ in range(repeats) for p in passages
        ]  # fmt: skip
    return shown(material, cfg["source"], [cfg["samples_per_prompt"]] * len(material.problems))


def shown(material: Material, source: str, rows: list[int]):
    """Examples of "demonstrations" or of the "expert". rows: how many of each problem, drawn in turn; a problem without
    them contributes nothing."""
    write = material.task.expert if source == "expert" else material.task.demonstration
    texts = [
        (p.prompt, write(p, material.rng))
        for i in range(max(rows)) for p, count in zip(material.problems, rows, strict=True) if i < count
    ]  # fmt: skip
    return [text_example(material.encode, prompt, response) for prompt, response in texts if response]


def _criticised(material: Material, cfg):
    """A critique after its problem and candidate, which is all that the student reads, whatever the critic knew."""
    task, encode, kind = material.task, material.encode, cfg["critique_kind"]
    context = lambda problem, response: task.critique_prompt(problem, response, None)  # noqa: E731
    if cfg["critic"] == "file":
        known = [(p, *pair) for p in material.problems for pair in _chosen(task.recorded(p, kind), material, cfg)]
        return [text_example(encode, context(p, y), critique + task.tokenizer.eos) for p, y, critique in known]
    problems, candidates = responses(material)
    contexts = [context(p, task.tokenizer.decode(s.tokens)) for p, s in zip(problems, candidates, strict=True)]
    if cfg["critic"] == "task":
        ended = [critique + task.tokenizer.eos for critique in critique_texts(material, cfg)]
        return [text_example(encode, *texts) for texts in zip(contexts, ended, strict=True)]
    written = [s for group in material.samples[1] for s in group]
    return [
        response_example(dataclasses.replace(s, prompt=encode(x))) for x, s in zip(contexts, written, strict=True)
    ]  # fmt: skip


def _chosen(pairs: list, material: Material, cfg) -> list:
    """Up to samples_per_prompt of them, at random."""
    return [pairs[i] for i in material.rng.permutation(len(pairs))[: cfg["samples_per_prompt"]]]


def counts(material: Material, learned, cfg):
    """Critique tokens that were learned from, whoever wrote them; a teacher's are charged as its rollout, too."""
    if cfg["source"] != "critiques":
        return {}
    replayed = round(cfg["replay"] * cfg["prompts_per_step"] * cfg["samples_per_prompt"])
    return {"critique tokens": sum(int(e.mask.sum()) for e in learned[replayed:])}


def loss(params, batch, frozen, forward, cfg):
    return negative_log_likelihood(params, batch, forward)


REGIME = Regime(
    name="sft", config=CONFIG, reads=reads, rounds=rounds, examples=examples, loss=loss,
    longest=longest, counts=counts,
)  # fmt: skip
