"""How many different things a model does: entropy and distinct counts of labels, and n-grams, per problem.

A label is whatever names one sample's way or result: the strategy an oracle reads off it, or its canonical
answer. Everything is computed from counts per problem and label,

    entropy    H = -sum_x q_x log q_x  (nats),   q_x = c_x / N
    Miller-Madow (1955)   H + (labels seen - 1) / (2 N), which removes the leading bias of H at small N
    distinct at m   sum_x [1 - C(N - c_x, m) / C(N, m)]   (Hurlbert 1971)

The last is rarefaction: the exact expected number of distinct labels among m of the N samples drawn without
replacement. Arms with different numbers of correct samples must be compared at one m, since more samples show
more labels whatever the model does.

    >>> count_PX = label_counts([0, 0, 0, 0], [0, 0, 1, 1], problems=1, labels=2)
    >>> distinct(count_PX).tolist(), distinct_at(count_PX, 2).round(3).tolist()
    ([2], [1.667])

Labels that are counted within a number of tokens and not of samples: `distinct_within`. On the tokens themselves:
distinct-n, self-BLEU and, for any similarity of samples, the Vendi score.

Shapes: P problems, n samples per problem, X labels. A negative label means "none" and is not counted.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

from ceiling.evals.passk import pass_at_k


def label_counts(problem_index, label_index, problems: int, labels: int):
    """int64[P, X] from two equally shaped arrays, one entry per sample; negative labels are left out."""
    problem, label = np.asarray(problem_index).ravel(), np.asarray(label_index).ravel()
    if problem.shape != label.shape:
        raise ValueError(
            f"label_counts: {problem.size} problem indices for {label.size} labels; pass one of each"
        )
    if problem.size and (problem.min() < 0 or problem.max() >= problems):
        raise ValueError(f"label_counts: problem index outside 0 .. {problems - 1}; check `problems`")
    if label.size and label.max() >= labels:
        raise ValueError(f"label_counts: label {label.max()} outside 0 .. {labels - 1}; check `labels`")
    kept = label >= 0
    flat = problem[kept].astype(np.int64) * labels + label[kept]
    return np.bincount(flat, minlength=problems * labels).reshape(problems, labels)


def row_counts(label_Pn, keep_Pn=None):
    """int64[P, X] of one label per sample, where a label only has to mean the same thing within its problem.

    Labels are renumbered per problem, so X is the largest number of distinct labels on one problem and not
    the number of labels in the world: canonical answers of a whole data set stay cheap. keep_Pn restricts to
    some samples (the correct ones, say).
    """
    label_Pn = np.asarray(label_Pn)
    if label_Pn.ndim != 2:
        raise ValueError(f"row_counts: labels must be [P, n], got shape {label_Pn.shape}")
    label_Pn = label_Pn.astype(np.int64)
    if keep_Pn is not None:
        keep_Pn = np.asarray(keep_Pn, bool)
        if keep_Pn.shape != label_Pn.shape:
            raise ValueError(
                f"row_counts: keep {keep_Pn.shape} must have the shape of the labels {label_Pn.shape}"
            )
        label_Pn = np.where(keep_Pn, label_Pn, -1)
    problems, samples = label_Pn.shape
    if label_Pn.size == 0:
        return np.zeros((problems, 1), np.int64)
    sorted_Pn = np.sort(label_Pn, axis=1)
    new_Pn = np.ones((problems, samples), bool)
    new_Pn[:, 1:] = sorted_Pn[:, 1:] != sorted_Pn[:, :-1]
    rank_Pn = np.cumsum(new_Pn & (sorted_Pn >= 0), axis=1) - 1
    rank_Pn = np.where(sorted_Pn >= 0, rank_Pn, -1)
    rows_Pn = np.broadcast_to(np.arange(problems)[:, None], rank_Pn.shape)
    return label_counts(rows_Pn, rank_Pn, problems, max(int(rank_Pn.max()) + 1, 1))


def label_entropy(count_PX, *, miller_madow: bool = False):
    """Entropy in nats per problem, f64[P]; nan where a problem has no labelled sample."""
    count_PX = _counts(count_PX)
    total_P = count_PX.sum(axis=1)
    q_PX = count_PX / np.maximum(total_P, 1)[:, None]
    log_PX = np.log(q_PX, out=np.zeros_like(q_PX), where=q_PX > 0)
    entropy_P = np.abs(np.sum(q_PX * log_PX, axis=1))  # the sum is <= 0; abs also turns -0 into 0
    if miller_madow:
        entropy_P = entropy_P + (distinct(count_PX) - 1) / (2 * np.maximum(total_P, 1))
    return np.where(total_P > 0, entropy_P, np.nan)


def distinct(count_PX):
    """Distinct labels seen per problem, int64[P]. Grows with the number of samples: see distinct_at."""
    return np.sum(_counts(count_PX) > 0, axis=1)


def distinct_at(count_PX, m: int):
    """Expected distinct labels among m of the samples, f64[P]; nan where a problem has fewer than m."""
    if m < 1:
        raise ValueError(f"distinct_at: m must be at least 1, got {m}")
    count_PX = _counts(count_PX)
    total_P = count_PX.sum(axis=1)
    out_P = np.full(total_P.shape, np.nan)
    enough = total_P >= m
    if enough.any():
        # A label is seen among m draws exactly as a problem is solved within a budget of m.
        out_P[enough] = pass_at_k(total_P[enough, None], count_PX[enough], m).sum(axis=1)
    return out_P


def distinct_of_sets(label_PnC, keep_Pn, m: int):
    """Expected distinct labels among m samples that have several labels each (the calls of an episode), f64[P]; nan
    where fewer than m are kept. Negative labels are none; a label that a sample has twice counts once in it."""
    sorted_PnC, keep_Pn = np.sort(np.asarray(label_PnC), axis=2), np.asarray(keep_Pn, bool)
    first_PnC = np.ones(sorted_PnC.shape, bool)
    first_PnC[:, :, 1:] = sorted_PnC[:, :, 1:] != sorted_PnC[:, :, :-1]
    problems, total_P = len(sorted_PnC), keep_Pn.sum(axis=1)
    once = np.where(first_PnC & keep_Pn[:, :, None], sorted_PnC, -1).reshape(problems, -1)
    count_PX, enough_P = row_counts(once), total_P >= m  # samples that have the label
    out_P = np.full(problems, np.nan)
    if enough_P.any():
        out_P[enough_P] = pass_at_k(total_P[enough_P, None], count_PX[enough_P], m).sum(axis=1)
    return out_P


def distinct_within(label_Pn, length_Pn, budget_P):
    """Distinct labels among the first samples that together have at most budget_P tokens, f64[P]; nan where all of
    them have fewer. At equal n a model of long responses has spent more; here it shows fewer of them."""
    label_Pn, used_Pn, budget_P = np.asarray(label_Pn), np.cumsum(length_Pn, axis=1), np.asarray(budget_P)
    if used_Pn.shape != label_Pn.shape or budget_P.shape != label_Pn.shape[:1]:
        raise ValueError(
            f"distinct_within: labels {label_Pn.shape}, lengths {used_Pn.shape} and budgets {budget_P.shape} must be "
            "[P, n], [P, n] and [P]"
        )
    seen_P = distinct(row_counts(label_Pn, used_Pn <= budget_P[:, None]))
    return np.where(used_Pn[:, -1] >= budget_P, seen_P, np.nan)


def distinct_n(tokens, lengths_n, n: int, *, budget: int) -> float:
    """Different n-grams / n-grams among the first `budget` tokens of some samples, in (0, 1] (arXiv:1510.03055); nan
    where they have fewer tokens, since the ratio falls with every token. tokens: all samples' tokens, one sample after
    the other; lengths_n: how many each has. An n-gram lies within one sample."""
    if n < 1 or budget < n:
        raise ValueError(f"distinct_n: n = {n} must be at least 1 and budget = {budget} at least n")
    tokens = np.asarray(tokens)[:budget]
    sample = np.repeat(np.arange(len(lengths_n)), lengths_n)[:budget]
    if len(tokens) < budget:
        return math.nan
    whole = sample[: budget - n + 1] == sample[n - 1 :]
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n)[whole].tolist()
    return len(set(map(tuple, grams))) / len(grams) if grams else math.nan


def self_bleu(samples: Sequence, *, order: int = 4, cap: int = 64) -> float:
    """Mean BLEU of each sample against all the others (arXiv:1802.01886), for the first `cap`: 1 for equal samples, low
    for different ones; nan for fewer than two.

        BLEU = min(1, e^(1 - r / c)) * exp(mean_o log p_o)

    with c the sample's length and r the nearest of the others' (the shorter of two), p_o the share of its o-grams that
    another sample has, each counted as often as in the one that has it most (Papineni et al. 2002). Not smoothed: 0
    where no o-gram is shared. A sample shorter than `order` has only the orders up to its length."""
    samples = list(samples)[:cap]
    if len(samples) < 2:
        return math.nan
    if not all(len(sample) for sample in samples):
        raise ValueError("self_bleu: a sample has no tokens; leave it out")
    lengths = np.array([len(sample) for sample in samples])
    shared = [_shared(samples, o) for o in range(1, order + 1)]
    scores = []
    for i, own in enumerate(lengths):
        others = np.delete(lengths, i)
        nearest = min(others, key=lambda other: (abs(other - own), other))
        found = np.array([shared[o][i] / (own - o) for o in range(min(order, own))])
        mean_log = np.mean(np.log(found)) if found.all() else -math.inf
        scores.append(min(1.0, math.exp(1 - nearest / own)) * math.exp(mean_log))
    return float(np.mean(scores))


def vendi(kernel_nn) -> float:
    """exp of the entropy of K / n's eigenvalues (arXiv:2210.02410): 1 for equal samples, n for n that have nothing in
    common. K is positive semi-definite with ones on its diagonal; the score is as good as this similarity."""
    kernel_nn = np.asarray(kernel_nn, np.float64)
    n = len(kernel_nn)
    if kernel_nn.shape != (n, n) or not n or not np.allclose(kernel_nn, kernel_nn.T):
        raise ValueError(f"vendi: the kernel must be a symmetric [n, n] matrix, got shape {kernel_nn.shape}")
    if not np.allclose(np.diag(kernel_nn), 1):
        raise ValueError("vendi: a sample's similarity to itself must be 1; normalise the kernel")
    share_n = np.linalg.eigvalsh(kernel_nn) / n
    if share_n[0] < -1e-8:
        raise ValueError(f"vendi: the kernel has the eigenvalue {n * share_n[0]:.2g}; it must be none below 0")
    share_n = share_n[share_n > 0]
    return float(np.exp(-np.sum(share_n * np.log(share_n))))


def _shared(samples: Sequence, n: int) -> list[int]:
    """For each sample how many of its n-grams another one has, each counted as often as in the one that has it most."""
    texts = [np.asarray(sample).tolist() for sample in samples]
    counted = [collections.Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in texts]
    most: dict[tuple, tuple[int, int, int]] = {}  # n-gram -> (largest count, whose, largest count of the rest)
    for i, counts in enumerate(counted):
        for gram, count in counts.items():
            first, whose, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, i, first) if count > first else (first, whose, max(second, count))
    elsewhere = lambda gram, i: most[gram][2 if most[gram][1] == i else 0]  # noqa: E731
    return [sum(min(c, elsewhere(gram, i)) for gram, c in counts.items()) for i, counts in enumerate(counted)]


def _counts(count_PX):
    count_PX = np.asarray(count_PX)
    if count_PX.ndim != 2 or not np.issubdtype(count_PX.dtype, np.integer) or np.any(count_PX < 0):
        raise ValueError("diversity: counts must be a [P, X] array of integers >= 0; see label_counts")
    return count_PX
