"""The law of entropy and reward, fitted to the start of a run and held against the rest of it (arXiv:2505.22617):

    R = -a e^H + b,    so b - a is the reward at H = 0, the ceiling of the exchange of entropy for reward

Fitted by least squares in e^H, in which the law is linear. The paper takes 36 of 236 steps and finds root mean square
errors of 0.9 and 1.2 % on the rest; H is there -log pi of the sampled tokens, averaged over a response and then over
responses. Exact token entropies are another estimate of another mean: name the one that was used.

    >>> H = np.linspace(1.0, 0.1, 40)
    >>> law = forecast(H, 0.9 - 0.2 * np.exp(H))
    >>> round(law.a, 6), round(law.b, 6), round(law.ceiling, 6)
    (0.2, 0.9, 0.7)

Shapes: T training steps, in order.
"""

import dataclasses

import numpy as np

FIRST = 36 / 236  # share of a run that the law is fitted to
MIN_POINTS = 3  # two coefficients and something to be wrong about


@dataclasses.dataclass(frozen=True)
class Law:
    """a, b, ceiling = b - a; fit_rmse over the fitted points, rmse over the later ones, both in units of the reward;
    fitted, predicted: how many. The numbers are None where `reason` says why there is no law."""

    a: float | None = None
    b: float | None = None
    ceiling: float | None = None
    fit_rmse: float | None = None
    rmse: float | None = None
    fitted: int = 0
    predicted: int = 0
    reason: str | None = None

    def reward(self, entropy):
        """The law's reward at an entropy in nats."""
        return self.b - self.a * np.exp(entropy)


def forecast(entropy_T, reward_T, *, first: float = FIRST) -> Law:
    """The law of the first share of the points, and its error on the later ones. Points with a value that is not
    finite are left out. Refuses nothing: `reason` tells why there is no law."""
    x_T, reward_T = np.exp(np.asarray(entropy_T, np.float64)), np.asarray(reward_T, np.float64)
    if x_T.shape != reward_T.shape or x_T.ndim != 1 or not 0 < first < 1:
        raise ValueError(
            f"entropy_law: entropies {x_T.shape} and rewards {reward_T.shape} must be [T] and first = {first} in (0, 1)"
        )
    finite = np.isfinite(x_T) & np.isfinite(reward_T)
    x_T, reward_T = x_T[finite], reward_T[finite]
    fitted = round(first * len(x_T))
    counts = {"fitted": fitted, "predicted": len(x_T) - fitted}
    if fitted < MIN_POINTS or fitted == len(x_T):
        return Law(**counts, reason=f"{fitted} of {len(x_T)} points to fit, {MIN_POINTS} are needed and later ones")
    for name, values in (("entropy", x_T), ("reward", reward_T)):
        if np.ptp(values[:fitted]) <= 1e-9 * np.max(np.abs(values[:fitted])):
            return Law(**counts, reason=f"the {name} does not change over the {fitted} fitted points")
    slope, b = np.polyfit(x_T[:fitted], reward_T[:fitted], 1)
    error_T = b + slope * x_T - reward_T
    rmse = lambda e: float(np.sqrt(np.mean(e**2)))  # noqa: E731
    return Law(float(-slope), float(b), float(b + slope), rmse(error_T[:fitted]), rmse(error_T[fitted:]), **counts)


def rows(training, *, entropy: str = "sampled_entropy", reward: str = "right", first: float = FIRST) -> list[dict]:
    """The law of every arm and seed that has both metrics: {arm, seed, entropy, reward} and the fields of `Law`.

    training: rows {arm, seed, flops, metric, value}, the table `training` of results.json."""
    runs: dict[tuple, dict[str, dict]] = {}
    for row in training:
        if row["metric"] in (entropy, reward):
            runs.setdefault((row["arm"], row["seed"]), {}).setdefault(row["metric"], {})[row["flops"]] = row["value"]
    out = []
    for (arm, seed), metrics in runs.items():
        at = sorted(set(metrics.get(entropy, ())) & set(metrics.get(reward, ())))
        if at:
            law = forecast(*([metrics[name][flops] for flops in at] for name in (entropy, reward)), first=first)
            names = {"arm": arm, "seed": seed, "entropy": entropy, "reward": reward}
            out.append(names | dataclasses.asdict(law))
    return out
