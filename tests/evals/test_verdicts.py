"""Verdicts: every rule reached and tested, error rates under the null by simulation, PK-10."""

import inspect
import math

import numpy as np
import pytest

from ceiling.evals import verdicts
from ceiling.evals.verdicts import false_expansion_rate, judge

N, K, MARGIN = 64, 32, 0.02
SEEDS, PROBLEMS = 3, 40


def _rates(rng, shape=(0.3, 2.0), seeds=SEEDS, problems=PROBLEMS):
    """Success rates [S, P]: problems differ, training seeds differ, many problems near zero."""
    rate_SP = rng.beta(*shape, size=(1, problems)) * np.exp(0.3 * rng.normal(size=(seeds, 1)))
    return np.clip(rate_SP, 0, 1)


def _draw(rng, rate_SP, n=N):
    return rng.binomial(n, rate_SP)


def _judge(rng, base_rate, arm_rate, **options):
    base, null, arm = _draw(rng, base_rate), _draw(rng, base_rate), _draw(rng, arm_rate)
    return judge(base, arm, null, N, **({"k": K, "margin": MARGIN} | options))


def test_expanded_and_its_reason_carries_the_numbers():
    rng = np.random.default_rng(0)
    base_rate = np.full((SEEDS, PROBLEMS), 0.3)
    base_rate[:, :15] = 0.0
    arm_rate = np.where(base_rate == 0, 0.2, base_rate)
    found = _judge(rng, base_rate, arm_rate)
    assert found.verdict == "expanded"
    one_sample = K / (N * SEEDS * PROBLEMS)
    assert found.delta_k.lo > found.resolution == max(abs(found.null_k.lo), abs(found.null_k.hi), one_sample)
    assert found.tuned_only == pytest.approx(15, abs=0.5) and found.base_only < 0.5
    assert found.new_problems == pytest.approx(45, abs=1) and found.null_new_problems == 0
    assert found.base_upper == pytest.approx(3 / (2 * N), rel=0.02)
    assert f"{found.delta_k.mean:+.3f}" in found.reason and f"0 of {2 * N}" in found.reason


def test_a_habit_amplified_expands_without_anything_new():
    rng = np.random.default_rng(1)
    base_rate = np.full((SEEDS, PROBLEMS), 0.02)
    base = np.maximum(_draw(rng, base_rate), 1)  # every problem solved at least once by the base
    found = judge(base, _draw(rng, base_rate + 0.5), _draw(rng, base_rate), N, k=K, margin=MARGIN)
    assert found.verdict == "expanded" and found.new_problems == 0 and found.tuned_only == 0


def test_contracted():
    rng = np.random.default_rng(2)
    base_rate = np.full((SEEDS, PROBLEMS), 0.2)
    arm_rate = base_rate.copy()
    arm_rate[:, :20] = 0.0
    found = _judge(rng, base_rate, arm_rate)
    assert found.verdict == "contracted" and found.base_only == pytest.approx(20, abs=0.5)
    assert found.delta_k.hi < -found.resolution


def test_re_weighted():
    rng = np.random.default_rng(3)
    rate = np.full((SEEDS, PROBLEMS), 0.4)
    found = _judge(rng, rate, rate + 0.4)
    assert found.verdict == "re-weighted" and found.delta_1.lo > 0.3 and abs(found.delta_k.mean) < 0.001
    assert _judge(rng, rate + 0.4, rate).verdict == "re-weighted", (
        "a loss at pass@1 alone is a re-weighting too"
    )


def test_a_saturated_group_does_not_expand_by_a_rounding_sized_gain():
    """pass@256 from 1 - 1e-9 to 1 - 1e-12 everywhere, beside a null draw that hardly moves."""
    base = np.full((SEEDS, PROBLEMS), 30)
    null = base + np.eye(SEEDS, PROBLEMS, dtype=int)
    found = judge(base, base + 10, null, 512, k=256, margin=0.0)
    assert 1e-5 > found.delta_k.lo > max(abs(found.null_k.lo), abs(found.null_k.hi))
    assert found.resolution == 256 / (512 * SEEDS * PROBLEMS) and found.verdict == "re-weighted"


def test_not_resolved_when_nothing_moves_or_the_interval_is_wide():
    rng = np.random.default_rng(4)
    rate = np.full((SEEDS, PROBLEMS), 0.5)
    still = _judge(rng, rate, rate)
    assert still.verdict == "not resolved" and "no change seen" in still.reason
    mixed = np.tile([0.0, 0.2], PROBLEMS // 2) * np.ones((SEEDS, 1))
    wide = _judge(rng, np.full((SEEDS, PROBLEMS), 0.05), mixed)
    assert wide.verdict == "not resolved" and "neither" in wide.reason


def test_a_wide_margin_turns_a_small_uncertain_change_into_re_weighted():
    rng = np.random.default_rng(5)
    base_rate = np.full((SEEDS, PROBLEMS), 0.3)
    arm_rate = base_rate + 0.3
    arm_rate[:, :2] = 0.02
    base, null, arm = _draw(rng, base_rate), _draw(rng, base_rate), _draw(rng, arm_rate)
    assert judge(base, arm, null, N, k=K, margin=0.0).verdict == "not resolved"
    assert judge(base, arm, null, N, k=K, margin=0.1).verdict == "re-weighted"


def test_fewer_than_three_seeds_never_resolve():
    rng = np.random.default_rng(6)
    base_rate = np.zeros((2, PROBLEMS))
    found = _judge(rng, base_rate, base_rate + 0.5)
    assert found.delta_k.lo > found.resolution, "the same numbers with a third seed would be expanded"
    assert found.verdict == "not resolved" and "2 training seed(s)" in found.reason
    one = _judge(rng, base_rate[:1], base_rate[:1] + 0.5)
    assert one.verdict == "not resolved" and not one.delta_k.over_seeds
    three = np.zeros((3, PROBLEMS))
    assert _judge(rng, three, three + 0.5).verdict == "expanded"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "expanded"), (-1, "contracted")])
def test_seeds_that_disagree_in_sign_do_not_resolve(sign, verdict):
    """Twelve seeds pull hard one way, one a little the other: the interval clears r, the answer is no."""
    low, high = np.zeros((13, PROBLEMS), int), np.full((13, PROBLEMS), 2)
    low[:, 0] = 2
    base, arm = (low, high) if sign > 0 else (high, low)
    null = base.copy()
    null[0, 0] = 3  # so that the null draw is not the base draw again
    assert judge(base, arm, null, N, k=K, margin=MARGIN).verdict == verdict
    arm[5] = base[5]
    arm[5, -1] = 0 if sign > 0 else 3
    base[5, -1] = null[5, -1] = 2
    found = judge(base, arm, null, N, k=K, margin=MARGIN)
    assert found.delta_k.lo > found.resolution or found.delta_k.hi < -found.resolution
    assert found.verdict == "not resolved" and "disagree in sign" in found.reason


def test_a_noisy_null_arm_raises_the_bar():
    """The same gain counts beside a quiet null draw and not beside a noisy one."""
    base = np.full((SEEDS, PROBLEMS), 2)
    arm = base.copy()
    arm[:, :20] = 20
    quiet, noisy = base.copy(), base.copy()
    quiet[0, 0] = 3
    noisy[:, ::2], noisy[:, 1:8:2] = 9, 0
    assert judge(base, arm, quiet, N, k=K, margin=0).verdict == "expanded"
    found = judge(base, arm, noisy, N, k=K, margin=0)
    assert 0 < found.delta_k.lo < found.resolution and found.verdict == "not resolved"
    assert "neither" in found.reason and "disagree" not in found.reason


def test_a_null_arm_that_is_the_base_again_is_found_out():
    rng = np.random.default_rng(8)
    rate = np.full((SEEDS, PROBLEMS), 0.3)
    base = _draw(rng, rate)
    found = judge(base, np.full_like(base, N), base.copy(), N, k=2, margin=MARGIN)
    assert found.verdict == "not resolved" and "not a second draw" in found.reason
    zero = np.zeros_like(base)
    assert judge(zero, zero + 20, zero, N, k=K, margin=MARGIN).verdict == "expanded", (
        "0 twice is no suspicion"
    )


def test_new_problems_need_zero_in_both_draws_and_min_hits():
    base = np.array([[0, 0, 0, 0, 5]] * 3)
    null = np.array([[0, 0, 1, 2, 4]] * 3)
    arm = np.array([[1, 2, 9, 9, 9]] * 3)
    found = judge(base, arm, null, N, k=K, margin=MARGIN)
    assert (found.new_problems, found.null_new_problems) == (3, 3)
    assert (found.tuned_only, found.null_tuned_only, found.base_only) == (4.0, 2.0, 0.0)
    assert judge(base, arm, null, N, k=K, margin=MARGIN, min_hits=1).new_problems == 6
    assert judge(base, arm, null, N, k=K, margin=MARGIN, min_hits=3).new_problems == 0


@pytest.mark.parametrize("seed_luck", [0.0, 0.5])
def test_trap_identical_models_are_hardly_ever_expanded(seed_luck):
    """A null run: the base's rates, up to training luck of mean zero. 5 % false verdicts at most."""
    rng = np.random.default_rng(9)
    runs, found, found_true = 300, [], []
    for _ in range(runs):
        base_rate = _rates(rng)
        luck = seed_luck * rng.normal(size=(SEEDS, 1))
        arm_rate = np.clip(base_rate * np.exp(luck), 0, 1)
        found.append(_judge(rng, base_rate, arm_rate).verdict)
        found_true.append(_judge(rng, base_rate, np.clip(arm_rate + 0.05, 0, 1)).verdict)
    assert found.count("expanded") / runs <= 0.05
    assert found.count("contracted") / runs <= 0.05
    assert found_true.count("expanded") / runs > 0.9, "without power a false rate of zero means nothing"


def test_verdict_is_blind_to_names_and_to_the_order_of_problems_and_seeds():
    names = set(inspect.signature(judge).parameters)
    assert names == {"base_c_SP", "arm_c_SP", "null_c_SP", "n", "k", "margin", "level", "min_hits"}
    rng = np.random.default_rng(10)
    base_rate = _rates(rng)
    base, null, arm = (_draw(rng, rate) for rate in (base_rate, base_rate, np.clip(base_rate + 0.1, 0, 1)))
    one = judge(base, arm, null, N, k=K, margin=MARGIN)
    s, p = rng.permutation(SEEDS), rng.permutation(PROBLEMS)
    other = judge(base[s][:, p], arm[s][:, p], null[s][:, p], N, k=K, margin=MARGIN)
    assert (one.verdict, one.new_problems, one.tuned_only) == (
        other.verdict,
        other.new_problems,
        other.tuned_only,
    )
    assert other.delta_k.lo == pytest.approx(one.delta_k.lo)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 33}, "n / 2"),
        ({"k": 0}, "n / 2"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"min_hits": 0}, "min_hits"),
        ({"arm_c_SP": np.zeros((3, 4), int)}, "share one non-empty shape"),
        ({"arm_c_SP": np.full((3, 5), 65)}, "arm counts must be integers"),
        ({"null_c_SP": np.full((3, 5), 0.5)}, "null counts must be integers"),
    ],
)
def test_judge_refuses(change, message):
    zero = np.zeros((3, 5), int)
    arguments = {"base_c_SP": zero, "arm_c_SP": zero, "null_c_SP": zero, "n": N, "k": K, "margin": MARGIN}
    with pytest.raises(ValueError, match=message):
        judge(**(arguments | change))


def test_PK10_identical_models_gain_and_lose_within_the_binomial_null():
    rng = np.random.default_rng(11)
    found = []
    for _ in range(400):
        rate = _rates(rng)
        found.append(false_expansion_rate(_draw(rng, rate), _draw(rng, rate), N))
    z = np.array([one.z for one in found])
    assert abs(z.mean()) < 0.2 and z.std() == pytest.approx(1, abs=0.15)
    assert np.mean(np.abs(z) > 3) < 0.02
    gap = np.array([one.rate - one.expected for one in found])
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))
    assert np.mean([one.rate for one in found]) > 0.03, "no problem near the edge, nothing tested"


def test_PK10_different_models_fall_outside_the_binomial_null():
    rng = np.random.default_rng(12)
    rate = _rates(rng, shape=(0.3, 8.0))
    found = false_expansion_rate(_draw(rng, rate), _draw(rng, np.clip(rate + 0.1, 0, 1)), N)
    assert found.z > 4 and found.rate > found.expected


def test_false_expansion_at_a_smaller_budget_is_unbiased_and_exact_by_hand():
    # One success among 2n = 4 samples: it is in the null draw with probability 1/2.
    one = false_expansion_rate([[0]], [[1]], 2)
    assert (one.rate, one.gained, one.lost) == (1.0, 1, 0)
    assert (one.expected, one.z) == pytest.approx((0.5, 1.0))
    # n = 2, k = 1, total 1: the base's one sample misses and the null's one hits with probability 1/4.
    assert false_expansion_rate([[0]], [[1]], 2, 1).expected == pytest.approx(0.25)
    assert false_expansion_rate([[0, 2]], [[0, 2]], 2).z is None
    rng = np.random.default_rng(13)
    gap = []
    for _ in range(400):
        rate = _rates(rng)
        one = false_expansion_rate(_draw(rng, rate), _draw(rng, rate), N, 8)
        gap.append(one.rate - one.expected)
    assert abs(np.mean(gap)) < 4 * np.std(gap) / math.sqrt(len(gap))
    with pytest.raises(ValueError, match="k = 65"):
        false_expansion_rate([[0]], [[1]], N, 65)


def test_the_docstring_states_every_rule():
    for word in (
        verdicts.EXPANDED,
        verdicts.CONTRACTED,
        verdicts.REWEIGHTED,
        verdicts.UNRESOLVED,
        "n / 2",
        "margin",
    ):
        assert word in verdicts.__doc__
