"""The law of entropy and reward: what it recovers, predicts, and will not say (EN-8)."""

import json
import math

import numpy as np
import pytest

from ceiling.evals.entropy_law import FIRST, MIN_POINTS, Law, forecast, rows

A, B = 0.3, 1.1


def run(noise=0.0, steps=236, seed=0):
    """Entropies that fall as in a run, fast at first, and the law's rewards with noise."""
    entropy_T = 0.02 + 1.2 * np.exp(-np.arange(steps) / 40)
    return entropy_T, B - A * np.exp(entropy_T) + noise * np.random.default_rng(seed).normal(size=steps)


def test_EN8_the_law_is_recovered_and_predicts_the_rest():
    law = forecast(*run())
    assert (law.a, law.b, law.ceiling) == pytest.approx((A, B, B - A)) and law.reason is None
    assert law.fit_rmse < 1e-12 and law.rmse < 1e-12 and (law.fitted, law.predicted) == (36, 200)
    assert law.reward(0.0) == pytest.approx(law.ceiling) and law.reward(0.5) == pytest.approx(B - A * math.exp(0.5))


def test_EN8_noise_moves_the_fit_by_what_least_squares_allows():
    sigma, fits = 0.02, [forecast(*run(0.02, seed=s)) for s in range(200)]
    x_F = np.exp(run()[0][:36])
    deviation = sigma / math.sqrt(np.sum((x_F - x_F.mean()) ** 2))  # of the slope, in closed form
    a = np.array([law.a for law in fits])
    assert abs(a.mean() - A) < 4 * deviation / math.sqrt(200) and a.std() == pytest.approx(deviation, rel=0.2)
    assert np.mean([law.fit_rmse for law in fits]) == pytest.approx(sigma * math.sqrt(34 / 36), rel=0.05)
    assert np.mean([law.rmse for law in fits]) > sigma, "what is predicted has the error of the fit beside its own"


def test_EN8_a_run_that_leaves_the_law_shows_in_the_later_error_alone():
    entropy_T, reward_T = run()
    law = forecast(entropy_T, np.where(np.arange(236) < 36, reward_T, 0.2))
    assert law.fit_rmse < 1e-12 and law.rmse == pytest.approx(np.sqrt(np.mean((reward_T[36:] - 0.2) ** 2)))


@pytest.mark.parametrize(
    ("entropy", "reward", "reason"),
    [
        (np.ones(0), np.ones(0), "0 of 0 points"),
        (np.arange(10.0), np.arange(10.0), "2 of 10 points to fit, 3 are needed"),
        (np.full(40, 0.7), np.arange(40.0), "the entropy does not change over the 6 fitted points"),
        (np.arange(40.0), np.zeros(40), "the reward does not change"),
        (np.where(np.arange(40) < 30, np.nan, 0.3), np.arange(40.0), "2 of 10 points"),
    ],
)
def test_EN8_too_little_is_a_reason_and_no_number(entropy, reward, reason):
    law = forecast(entropy, reward)
    assert reason in law.reason and law.a is law.b is law.ceiling is law.rmse is law.fit_rmse is None
    assert round(FIRST * 20) == MIN_POINTS


def test_rows_pair_two_metrics_of_a_run_by_its_flops():
    entropy_T, reward_T = run()
    table = [
        {"arm": "grpo", "seed": 3, "flops": float(t), "metric": metric, "value": float(value)}
        for metric, values in (("right", reward_T), ("sampled_entropy", entropy_T), ("loss", entropy_T))
        for t, value in enumerate(values)
    ]
    rng = np.random.default_rng(0)
    rng.shuffle(table)
    (row,) = rows([*table, {"arm": "sft", "seed": 3, "flops": 0.0, "metric": "loss", "value": 1.0}])
    assert (row["arm"], row["seed"], row["entropy"], row["reward"]) == ("grpo", 3, "sampled_entropy", "right")
    assert row["ceiling"] == pytest.approx(B - A) and row["reason"] is None and json.dumps(row, allow_nan=False)
    assert rows(table, reward="policy_reward") == []
    with pytest.raises(ValueError, match="first = 1.5"):
        forecast(entropy_T, reward_T, first=1.5)
    assert isinstance(forecast(entropy_T, reward_T), Law)
