r"""Distillation from a teacher: on its samples, or on its whole next-token distribution.

loss = "sequence": cross-entropy on teacher responses, forward KL over sequences up to a constant.
loss = "divergence": the generalised Jensen-Shannon divergence per token, in TRL's convention. With
student S, teacher T and M = (1 - beta) S + beta T,

    beta = 0:  KL(T || S)   forward, mass-covering
    beta = 1:  KL(S || T)   reverse, mode-seeking
    else:      beta KL(T || M) + (1 - beta) KL(S || M)

The mixture tends to 0 at both ends; only divided by beta (1 - beta) does it converge to those KLs
(GKD, arXiv:2306.13649; methods as released). `on_policy` is the share of steps whose responses are
the student's own (sampling is not differentiated); the others use the teacher's.
Responses are either verifier-filtered (`keep` = "right") or all kept; filtered work stays charged.
"""

import jax
import jax.numpy as jnp

from ceiling.config import Section, number, text
from ceiling.model.logprobs import log_softmax_at, map_chunks
from ceiling.model.sequences import Forward
from ceiling.model.transformer import unembed
from ceiling.regimes.base import Material, Regime, Round, negative_log_likelihood, response_example

CONFIG = Section(
    loss=text("sequence", choices=("sequence", "divergence")),
    beta=number(0.0, low=0, high=1, doc="0 forward KL, 1 reverse KL, between: JSD mixture"),
    kd_temperature=number(1.0, low=1e-3, doc="divides both models' logits in the divergence"),
    on_policy=number(0.0, low=0, high=1, doc="share of steps on the student's own samples"),
    keep=text("right", choices=("right", "all"), doc="which sampled responses are learned from"),
)


def divergence(student_logits_BTV, teacher_logits_BTV, mask_BT, *, beta, temperature):
    """Generalised JSD summed over masked tokens, and the token count: (sum, denom), f32 scalars.

    The gradient flows to both arguments; callers stop it at the teacher."""
    per_token = token_divergence(student_logits_BTV, teacher_logits_BTV, beta, temperature)
    mask_BT = mask_BT.astype(jnp.float32)
    return jnp.sum(per_token * mask_BT), jnp.sum(mask_BT)


def token_divergence(student_logits, teacher_logits, beta: float, temperature: float):
    """Divergence in nats over the last axis."""
    log_s = log_softmax_at(student_logits, temperature)
    log_t = log_softmax_at(teacher_logits, temperature)
    if beta == 0.0:
        return _kl(log_t, log_s)
    if beta == 1.0:
        return _kl(log_s, log_t)
    log_m = jnp.logaddexp(log_s + jnp.log1p(-beta), log_t + jnp.log(beta))
    return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def _kl(log_p, log_q):
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0.0), axis=-1)  # 0 log 0 is 0, a one-hot teacher's case


def rounds(cfg, task, rng):
    model = "policy" if rng.random() < cfg["on_policy"] else "teacher"
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    return (Round(model, cfg["samples_per_prompt"], task.max_response_tokens, prompts),)


def examples(material: Material, cfg):
    keep_all = cfg["keep"] == "all"
    return [
        response_example(s) for group in material.samples[0] for s in group if keep_all or s.verdict.right
    ]  # fmt: skip


def loss(params, batch, frozen, forward, cfg):
    if cfg["loss"] == "sequence":
        return negative_log_likelihood(params, batch, forward)
    teacher = frozen["teacher"]
    student_MD = forward.activations(params, batch)
    teacher_MD = jax.lax.stop_gradient(Forward(teacher.config).activations(teacher.params, batch))

    def chunk(student_CD, teacher_CD):
        teacher_CV = jax.lax.stop_gradient(unembed(teacher.params, teacher.config, teacher_CD))
        student_CV = unembed(params, forward.config, student_CD)
        return token_divergence(student_CV, teacher_CV, cfg["beta"], cfg["kd_temperature"])

    per_token_M = map_chunks(chunk, forward.config.head_chunk_tokens, student_MD, teacher_MD)
    total = jnp.sum(forward.view(per_token_M, batch) * batch.mask_BT)
    tokens = jnp.sum(batch.mask_BT)
    return total, tokens, {"divergence": (jax.lax.stop_gradient(total), tokens)}


def reads(cfg):
    teacher = "teacher logits" if cfg["loss"] == "divergence" else "teacher text"
    return ("prompt", "answer", teacher) if cfg["keep"] == "right" else ("prompt", teacher)


REGIME = Regime(
    name="distill", config=CONFIG, reads=reads, rounds=rounds, examples=examples, loss=loss,
    frozen=lambda cfg: ("teacher",) if cfg["loss"] == "divergence" else (),
)  # fmt: skip
