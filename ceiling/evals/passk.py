"""pass@k and its kin, computed from counts and from nothing else.

For one problem with n samples of which c are correct, the unbiased estimate of 1 - (1 - p)^k is

    pass@k = 1 - C(n-c, k) / C(n, k) = 1 - prod_{j=0}^{c-1} (1 - k / (n-j)),        k <= n

(Chen et al., 2107.03374; protocol of Yue et al., 2504.13837). The right-hand side has c factors in [0, 1],
so it is summed as log1p and closed with expm1: no binomial is ever formed, nothing overflows, and small
values keep their relative precision. At k = n the estimate is the indicator "any correct", one noisy draw
per problem, which is why verdicts elsewhere ask for k <= n / 2.

Beside it: Cover@tau (2510.08325), the sampling-efficiency gap (2504.13837), the majority vote, and the two-by-two
table of solvable sets with its ratios (The Invisible Leash, 2507.14843; MATH-Beyond, 2510.11653). "Solved" always
means "at least one correct sample among n": a zero count is not a zero probability, its 95 % upper bound is about
3 / n.

    >>> float(pass_at_k(4, 1, 2))
    0.5
    >>> solvable_sets([3, 0, 2, 0], [5, 1, 0, 0]).tuned_only
    1

Shapes: P problems; any leading axes (S training seeds) broadcast.
"""

import dataclasses

import numpy as np


def pass_at_k(n, c, k):
    """Unbiased pass@k in float64; n, c and k broadcast against each other. Refuses k > n and c > n."""
    n, c, k = np.broadcast_arrays(_integers("n", n), _integers("c", c), _integers("k", k))
    _require(n >= 1, "n must be at least 1; a problem without samples has no pass@k, leave it out")
    _require(c >= 0, "c must not be negative; pass the number of correct samples")
    _require(c <= n, "c must not exceed n; counts come from more samples than stated, correct n")
    _require(k >= 1, "k must be at least 1")
    _require(k <= n, "k must not exceed n; draw more samples or ask for a smaller k")
    if n.size == 0:
        return np.zeros(n.shape)
    pairs, which = np.unique(np.stack([n.ravel(), k.ravel()]), axis=1, return_inverse=True)
    which, c_flat = which.ravel(), c.ravel()
    # All entries of one (n, k) share one table over c, so the cost is that of the distinct pairs.
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(pairs.shape[1] + 1))
    value = np.empty(n.size)
    for index, (n_one, k_one) in enumerate(pairs.T):
        members = order[starts[index] : starts[index + 1]]
        c_members = c_flat[members]
        value[members] = _table(int(n_one), int(k_one), int(c_members.max()))[c_members]
    return value.reshape(n.shape)[()]


def cover_at(n, c, tau):
    """Cover@tau: share of problems (last axis) with c / n >= tau. An array of tau becomes the last axis."""
    n, c = np.broadcast_arrays(_integers("n", n), _integers("c", c))
    _require((n >= 1) & (c >= 0) & (c <= n), "counts must satisfy 0 <= c <= n and n >= 1")
    tau = np.asarray(tau, np.float64)
    _require((tau >= 0) & (tau <= 1), "tau is a success rate and must lie in [0, 1]")
    if n.ndim == 0 or n.shape[-1] == 0:
        raise ValueError(
            "cover_at: needs at least one problem along the last axis; pass counts of shape [..., P]"
        )
    rate = c / n
    # The slack keeps c / n = 0.3 on the right side of a tau computed as 3 * 0.1.
    reached = rate.reshape(rate.shape[:-1] + (1,) * tau.ndim + rate.shape[-1:]) >= tau[..., None] - 1e-12
    return reached.mean(axis=-1)[()]


def sampling_gap(base_n, base_c, arm_n, arm_c, k=256) -> float:
    """Delta_SE = pass@k(base) - pass@1(arm), means over problems; lower is better (2504.13837)."""
    return float(np.mean(pass_at_k(base_n, base_c, k)) - np.mean(pass_at_k(arm_n, arm_c, 1)))


def majority_at(answer_Pn, correct_Pn, k: int):
    """Share of k-sample votes that a right answer wins, f64[P]: what k samples yield to a user who cannot check them,
    and so the control for a rule of decoding that costs as much. The n samples are cut into n // k votes in order. A
    negative answer label does not vote; a tie goes to each of its answers with equal chance; no vote at all is lost."""
    answer_Pn, correct_Pn = np.asarray(answer_Pn), np.asarray(correct_Pn, bool)
    if answer_Pn.ndim != 2 or answer_Pn.shape != correct_Pn.shape or not 1 <= k <= answer_Pn.shape[1]:
        raise ValueError(
            f"majority_at: answers {answer_Pn.shape} and correct {correct_Pn.shape} must share one shape [P, n], and "
            f"k = {k} lie in 1 .. n"
        )
    votes = answer_Pn.shape[1] // k
    out = []
    for answer_n, correct_n in zip(answer_Pn, correct_Pn, strict=True):
        answer_Bk, correct_Bk = (x[: votes * k].reshape(votes, k) for x in (answer_n, correct_n))
        alike_Bk = np.sum(answer_Bk[:, :, None] == answer_Bk[:, None, :], axis=2) * (answer_Bk >= 0)
        leading_Bk = (alike_Bk == alike_Bk.max(axis=1, keepdims=True)) & (answer_Bk >= 0)
        # Leading answers have equally many samples, so a share of samples is a share of answers.
        won_B = np.sum(leading_Bk & correct_Bk, axis=1) / np.maximum(leading_Bk.sum(axis=1), 1)
        out.append(won_B.mean())
    return np.array(out)


@dataclasses.dataclass(frozen=True)
class SolvableSets:
    """Problems by who solves them (at least one correct sample), and the ratios of 2507.14843 and 2510.11653.

    srr: share of the base's solved problems that are kept. ndr: share of the arm's solved problems that are
    discoveries. sds: harmonic mean of the two. nscr: (gained - lost) / solved by either. expansion: share of the
    problems without a solution by the base that the arm solves. shrinkage: share of the base's solved problems that
    are lost. None means 0 / 0.
    """

    both: int
    base_only: int
    tuned_only: int
    neither: int
    srr: float | None
    ndr: float | None
    sds: float | None
    nscr: float | None
    expansion: float | None
    shrinkage: float | None


def solvable_sets(base_c, arm_c) -> SolvableSets:
    """Two-by-two table for one training seed; base_c and arm_c are counts [P] at the same n."""
    base_P, arm_P = _integers("base_c", base_c), _integers("arm_c", arm_c)
    if base_P.ndim != 1 or base_P.shape != arm_P.shape:
        raise ValueError(
            f"solvable_sets: base_c {base_P.shape} and arm_c {arm_P.shape} must be [P], same problems; "
            "call once per training seed"
        )
    _require((base_P >= 0) & (arm_P >= 0), "counts must not be negative")
    base, arm = base_P > 0, arm_P > 0
    both, lost = int(np.sum(base & arm)), int(np.sum(base & ~arm))
    gained, neither = int(np.sum(~base & arm)), int(np.sum(~base & ~arm))
    srr, ndr = _ratio(both, both + lost), _ratio(gained, both + gained)
    sds = None
    if srr is not None and ndr is not None:
        sds = 2 * srr * ndr / (srr + ndr) if srr + ndr > 0 else 0.0
    return SolvableSets(
        both, lost, gained, neither, srr, ndr, sds, _ratio(gained - lost, both + gained + lost),
        _ratio(gained, gained + neither), _ratio(lost, both + lost),
    )  # fmt: skip


def _table(n: int, k: int, c_max: int):
    """pass@k for c = 0 .. c_max at one (n, k), f64[c_max + 1]."""
    step = k / (n - np.arange(c_max, dtype=np.float64))
    with np.errstate(divide="ignore"):
        # A factor reaches zero when c > n - k: every k-subset then holds a correct sample.
        log_factor = np.log1p(-np.minimum(step, 1.0))
    table = np.zeros(c_max + 1)
    table[1:] = -np.expm1(np.cumsum(log_factor))
    return table


def _integers(name: str, value):
    array = np.asarray(value)
    if array.dtype == bool or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"passk: {name} must hold integers, got {array.dtype}; pass counts")
    if not np.issubdtype(array.dtype, np.integer):
        if not np.all(np.isfinite(array)) or np.any(array != np.rint(array)):
            raise ValueError(f"passk: {name} must hold whole numbers; pass counts, not rates")
    return array.astype(np.int64)


def _require(holds, message: str):
    if not np.all(holds):
        raise ValueError(f"passk: {message}")


def _ratio(above: int, below: int) -> float | None:
    return above / below if below else None
