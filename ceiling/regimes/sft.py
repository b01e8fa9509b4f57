"""Supervised fine-tuning: maximise log p(response | prompt) over given text.

    L = -sum_t m_t log p(y_t | x, y_<t) / sum_t m_t

The same objective serves four sources of text, which differ in what the arm may read:
    demonstrations  the curators' correct responses
    own_samples     the policy's own samples that the verifier accepts (rejection sampling, RFT)
    text            plain passages without reasoning (continued pretraining, CPT)
    corpus          the prior's own corpus (how the prior itself is pretrained)
`replay` replaces a share of every batch by documents of the prior's corpus: without it, continued
pretraining on bare answers destroys the working that the prior had, and is no fair opponent.
"""

from ceiling.config import Section, number, text
from ceiling.regimes.base import Material, Regime, Round, negative_log_likelihood, response_example, text_example

CONFIG = Section(
    source=text("demonstrations", choices=("demonstrations", "own_samples", "text", "corpus")),
    replay=number(0.0, low=0, high=1, doc="share of each batch drawn from the prior's corpus"),
)

_READS = {
    "demonstrations": ("prompt", "solution"),
    "own_samples": ("prompt", "answer"),
    "text": ("text",),
    "corpus": ("text",),
}


def rounds(cfg, task, rng):
    if cfg["source"] != "own_samples":
        return ()
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    return (Round("policy", cfg["samples_per_prompt"], task.max_response_tokens, prompts),)


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
    if cfg["source"] == "text":
        passages = [material.task.passage(p) for p in material.problems]
        repeats = cfg["samples_per_prompt"]
        return [
            text_example(material.encode, p.context, p.stop + p.bridge + p.continuation)
            for _ in range(repeats) for p in passages
        ]  # fmt: skip
    texts = [
        (p.prompt, material.task.demonstration(p, material.rng))
        for _ in range(cfg["samples_per_prompt"]) for p in material.problems
    ]  # fmt: skip
    return [text_example(material.encode, prompt, response) for prompt, response in texts if response]


def loss(params, batch, frozen, forward, cfg):
    return negative_log_likelihood(params, batch, forward)


REGIME = Regime(
    name="sft", config=CONFIG, reads=lambda cfg: _READS[cfg["source"]], rounds=rounds,
    examples=examples, loss=loss,
)  # fmt: skip
