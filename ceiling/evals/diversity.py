"""How many different things a model does: entropy and distinct counts of labels, per problem.

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

Shapes: P problems, n samples per problem, X labels. A negative label means "none" and is not counted.
"""

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


def _counts(count_PX):
    count_PX = np.asarray(count_PX)
    if count_PX.ndim != 2 or not np.issubdtype(count_PX.dtype, np.integer) or np.any(count_PX < 0):
        raise ValueError("diversity: counts must be a [P, X] array of integers >= 0; see label_counts")
    return count_PX
