"""The rule that turns effects into verdicts: what it says of clear, of doubtful and of equal arms."""

import dataclasses
import math

import numpy as np
import pytest

from ceiling.claims import base, lab
from ceiling.claims import c0_null as c0
from ceiling.claims import c3_elicitation as c3
from ceiling.config import ConfigError
from ceiling.evals.evalset import Cell, EvalSet

SEEDS, PROBLEMS, N = 5, 12, 32


def evidence(rates: dict, seed: int = 0, seeds: int = SEEDS, spread: float = 0.0):
    """Counts drawn from a rate per arm; spread: the standard deviation of a training seed's luck."""
    rng = np.random.default_rng(seed)
    cells = {}
    for arm, rate in rates.items():
        for s in range(seeds):
            p = np.clip(rate + spread * rng.normal(), 0, 1)
            cells[arm, s] = Cell(count_P=rng.binomial(N, p, PROBLEMS))
    return {"main": base.Evidence({}, EvalSet(N, ["C"] * PROBLEMS, cells), 16)}


def gain(margin=0.0):
    return base.Test("gain", "", lambda e: e["main"].gain("arm", "base", 1, "C"), margin)


@pytest.mark.parametrize("arm, margin, verdict", [
    (0.8, 0.05, base.SUPPORTED), (0.2, 0.05, base.CONTRADICTED), (0.5, 0.0, base.UNRESOLVED),
    (0.8, 0.3, base.UNRESOLVED),  # the margin, not zero, is what an effect must exceed
])  # fmt: skip
def test_verdicts_of_clear_and_of_doubtful_effects(arm, margin, verdict):
    finding = base.judge(gain(margin), evidence({"base": 0.5, "arm": arm}), 1)
    assert finding.verdict == verdict and finding.seeds == SEEDS
    assert (finding.reason == "") == (verdict != base.UNRESOLVED)
    assert finding.interval.lo < arm - 0.5 < finding.interval.hi


def test_too_few_seeds_have_no_verdict_however_clear():
    finding = base.judge(gain(), evidence({"base": 0.1, "arm": 0.9}, seeds=base.MIN_SEEDS - 1), 1)
    assert finding.verdict == base.UNRESOLVED and "a verdict needs 4" in finding.reason


def test_no_verdict_rests_on_one_seed():
    """All five exclude a margin of 0.05 (Student's t: lower limit 0.0645), four of them do not (0.0454)."""
    test = base.Test("", "", lambda e: np.array([0.1, 0.1, 0.1, 0.1, 0.2]), margin=0.05)
    finding = base.judge(test, evidence({"base": 0.5}), 1)
    assert finding.interval.lo == pytest.approx(0.12 - 2.77645 * 0.02, abs=1e-5)
    assert finding.verdict == base.UNRESOLVED and finding.fragile == (0, 1, 2, 3)
    assert finding.reason == "supported with all seeds, but not without seed 0"
    assert base.judge(dataclasses.replace(test, margin=0.045), evidence({"base": 0.5}), 1).verdict == base.SUPPORTED


def test_a_claim_needs_every_test_and_is_contradicted_at_a_corrected_level():
    def finding(verdict, refuted=False):
        return base.Finding("", verdict, None, 0.0, SEEDS, refuted=refuted)

    yes, no, unclear = finding(base.SUPPORTED), finding(base.CONTRADICTED, True), finding(base.UNRESOLVED)
    assert base.overall([yes, yes]) == base.SUPPORTED
    assert base.overall([yes, unclear]) == base.UNRESOLVED
    assert base.overall([yes, no, unclear]) == base.CONTRADICTED
    # At the plain level only: counted as contradicted for the test, not for the claim.
    assert base.overall([yes, finding(base.CONTRADICTED)]) == base.UNRESOLVED
    evidence_ = evidence({"base": 0.50, "arm": 0.42}, seed=3)
    levels = [base.judge(gain(), evidence_, tests) for tests in (1, 10**9)]
    assert [f.verdict for f in levels] == [base.CONTRADICTED] * 2
    assert [f.refuted for f in levels] == [True, False]


def test_PK10_equal_arms_are_seldom_called_different():
    """False verdicts of two arms with the same rates, the luck of training seeds included: at most 5 % of 400."""
    called = [base.judge(gain(), evidence({"base": 0.4, "arm": 0.4}, seed=s, spread=0.1), 1).verdict != base.UNRESOLVED
              for s in range(400)]  # fmt: skip
    assert np.mean(called) <= 0.05


def test_what_is_undefined_is_left_out_or_said():
    def undefined(e):
        raise base.Undefined("nothing to recover")

    some = evidence({"base": 0.5, "arm": 0.9})
    assert base.judge(base.Test("", "", undefined), some, 1).reason == "nothing to recover"
    nan_SP = np.full((SEEDS, 3), np.nan)
    assert "no problem" in base.judge(base.Test("", "", lambda e: nan_SP), some, 1).reason
    nan_SP[:, 0] = [0.3, 0.31, 0.29, 0.3, 0.32]
    nan_SP[1:, 1] = -5  # undefined in one seed: it must not count in the others
    assert base.judge(base.Test("", "", lambda e: nan_SP), some, 1).verdict == base.SUPPORTED


def test_every_registered_claim_says_what_would_have_refuted_it():
    claims = [base.load(id) for id in base.ids()]
    assert [claim.id for claim in claims] == base.ids() and len(claims) >= 8
    for claim in claims:
        assert claim.refuted_by and claim.sources and claim.tests, claim.id
        names = [test.name for test in claim.tests]
        assert len(set(names)) == len(names) and all(test.statement.endswith(".") for test in claim.tests)
    with pytest.raises(ConfigError, match="'C99' is not registered; known: C0, C1"):
        base.load("C99")


def test_experiments_are_paired_on_the_seeds_that_all_of_them_have():
    """Seed 1 of the second experiment failed its gate: effects across experiments must not pair seed 1 with seed 2."""
    first, second = evidence({"base": 0.5, "arm": 0.6})["main"], evidence({"base": 0.5, "arm": 0.6}, seed=1)["main"]
    cells = {key: cell for key, cell in second.evalset.cells.items() if key[1] != 1}
    second = dataclasses.replace(second, evalset=dataclasses.replace(second.evalset, cells=cells))
    both = base.paired({"main": first, "other": second})
    assert both["main"].seeds == both["other"].seeds == [0, 2, 3, 4]
    across = base.Test("", "", lambda e: e["main"].passk("arm", 1, "C") - e["other"].passk("arm", 1, "C"))
    assert base.judge(across, both, 1).seeds == 4
    np.testing.assert_array_equal(both["main"].passk("arm", 1, "C"), first.passk("arm", 1, "C")[[0, 2, 3, 4]])


def test_recovery_is_told_of_two_targets_seed_by_seed():
    """Vectors give 3/4 of what reward training gained and 1/4 of what distillation did: a difference of 1/2 per seed.
    A target that gained nothing in one seed leaves nothing to recover."""
    problems, effect = 12, {test.name: test.effect for test in c3.CLAIM.tests}["RL against distilled targets"]

    def told(grpo):
        at = {"base": [4] * 4, "grpo": grpo, "distill": [12, 20, 28, 12], "steer_of_grpo": [10, 16, 10, 16],
              "steer_of_teacher": [6, 8, 10, 6]}  # fmt: skip
        cells = {(arm, s): Cell(np.full(problems, count)) for arm, by in at.items() for s, count in enumerate(by)}
        return effect({"main": base.Evidence({}, EvalSet(N, ["C"] * problems, cells), 16)})

    np.testing.assert_allclose(told([12, 20, 12, 20]), [1 / 2] * 4)
    with pytest.raises(base.Undefined, match="grpo has no gain over the base in seed 2"):
        told([12, 20, 4, 20])
    with pytest.raises(base.Undefined, match="seed 1"):
        told([12, 2, 12, 20])


@pytest.mark.parametrize("calls, verdict", [(0, base.SUPPORTED), (3, base.UNRESOLVED), (20, base.CONTRADICTED)])
def test_a_rate_has_the_exact_interval_of_its_cases(calls, verdict):
    """160 cases: none called leaves a rate of at most 1 - 0.025^(1/160) = 0.023, below 0.05; three leave 0.054."""
    test = base.Rate("", "", lambda e: np.arange(160) < calls, limit=0.05)
    finding = base.judge(test, evidence({"base": 0.5}), 1)
    assert finding.verdict == verdict and finding.interval.mean == pytest.approx(0.05 - calls / 160)
    worst = 0.05 - finding.interval.lo  # the rate at which so few calls have a chance of 2.5 %
    chance = sum(math.comb(160, i) * worst**i * (1 - worst) ** (160 - i) for i in range(calls + 1))
    assert chance == pytest.approx(0.025)


def test_a_rate_is_called_anew_without_each_seed():
    seen = []

    def cases(e):
        seen.append(tuple(e["main"].seeds))
        return np.full(160, 3 not in e["main"].seeds)  # seed 3 alone keeps the rule from calling everything expanded

    finding = base.judge(base.Rate("", "", cases, limit=0.05), evidence({"base": 0.5}), 1)
    assert seen == [(0, 1, 2, 3, 4)] + [tuple(s for s in range(SEEDS) if s != out) for out in range(SEEDS)]
    assert finding.verdict == base.UNRESOLVED and finding.fragile == (3,)


def test_PK10_null_draws_are_called_by_the_rule_of_the_verdicts():
    """Counts of one rate under every name: (next to) no cell is called. Half of the null draws made better on C: these
    ten cells are called, and they alone."""
    groups = [g for g in [*lab.TRAINED.split(), "X"] for _ in range(PROBLEMS)]
    rng = np.random.default_rng(0)
    cells = {(arm, s): Cell(count_P=rng.binomial(N, 0.2, len(groups)))
             for arm in ("base", "base_redraw", *c0.NAMES) for s in range(4)}  # fmt: skip
    called = c0.called_expanded({"main": base.Evidence({}, EvalSet(N, groups, cells), 4)}).reshape(8, 20)
    assert called.mean() < 0.05
    for arm in c0.NAMES[::2]:
        for s in range(4):
            better_P = cells[arm, s].count_P.copy()
            better_P[:PROBLEMS] = N
            cells[arm, s] = Cell(count_P=better_P)
    changed = c0.called_expanded({"main": base.Evidence({}, EvalSet(N, groups, cells), 4)}).reshape(8, 20)
    np.testing.assert_array_equal(changed[0, ::2], True)
    np.testing.assert_array_equal(changed[1:], called[1:])
    np.testing.assert_array_equal(changed[0, 1::2], called[0, 1::2])
