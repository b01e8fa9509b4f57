r"""Clip-Cov and KL-Cov: entropy kept by handling the few tokens that spend it (arXiv:2505.22617).

One policy-gradient step on softmax logits changes the entropy by about -eta Cov(log pi, pi A), so the tokens to
handle are those with the largest

    cov_t = (log pi(y_t) - mean log pi) (A_t - mean A),      means over the N response tokens of the step.

    clip_cov    of the tokens with cov in [cov_low, cov_high], cov_share * N at random have no surrogate
    kl_cov      the cov_share * N tokens with the largest cov pay cov_beta |log rho| on top of it

The published loss of KL-Cov is the unclipped surrogate: clip_low = clip_high = 0. At rho = 1 its term has a zero
(sub)gradient, so it needs several updates per rollout. As published, at least one token is handled; with cov_share 0
none is.

log pi and A are those of the rollout: the choice is made once, over all its tokens, and no split into updates,
micro-batches or devices changes it (X-3). Clip-Cov's random choice is a permutation of the candidates in the order of
the step's samples and their tokens, by a generator keyed by (seed, step).
"""

import numpy as np

from ceiling.config import Section, number, text

NONE, CLIP_COV, KL_COV = REMEDIES = ("none", "clip_cov", "kl_cov")
CONFIG = Section(
    remedy=text(NONE, choices=REMEDIES, doc="what keeps the entropy up, beside bonus, KL and clip widths"),
    cov_share=number(2e-4, low=0, high=1, doc="share of the step's tokens that the remedy handles"),
    cov_low=number(1.0, doc="clip_cov: smallest covariance handled"),
    cov_high=number(5.0, doc="clip_cov: largest covariance handled"),
    cov_beta=number(1.0, low=0, doc="kl_cov: weight of |log rho|"),
)


def choose(logprobs: list[np.ndarray], advantages, cfg, rng: np.random.Generator) -> list[np.ndarray]:
    """f32 of 0 and 1 for every response: the tokens that the remedy handles. logprobs: per response, under the policy
    that sampled; advantages: one per response."""
    lengths = [len(x) for x in logprobs]
    logp_N, advantage_N = np.concatenate(logprobs).astype(float), np.repeat(np.asarray(advantages, float), lengths)
    cov_N = (logp_N - logp_N.mean()) * (advantage_N - advantage_N.mean())
    count = max(1, int(cfg["cov_share"] * len(cov_N))) if cfg["cov_share"] else 0
    if cfg["remedy"] == CLIP_COV:
        within = np.flatnonzero((cov_N >= cfg["cov_low"]) & (cov_N <= cfg["cov_high"]))
        handled = rng.permutation(within)[:count]
    else:
        handled = np.argsort(-cov_N, kind="stable")[:count]
    out_N = np.zeros(len(cov_N), np.float32)
    out_N[handled] = 1
    return np.split(out_N, np.cumsum(lengths)[:-1])


def terms(batch, cfg) -> dict:
    """What policy_loss is given besides, from the choice that the batch carries."""
    if cfg["remedy"] == CLIP_COV:
        return {"detached_BT": batch.extra["handled"]}
    if cfg["remedy"] == KL_COV:
        return {"anchor_BT": cfg["cov_beta"] * batch.extra["handled"]}
    return {}
