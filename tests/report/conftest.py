"""Tables of an invented run with every kind of arm and group, for the page to show."""

import numpy as np
import pytest

from ceiling.report import TABLES

GROUPS = {  # name: (title, prior, base pass@1, base pass@K)
    "C": ("common", "rho 1", 0.30, 1.00),
    "R": ("rare", "rho .05", 0.04, 0.93),
    "V": ("very rare", "rho .01", 0.01, 0.55),
    "U": ("ultra rare", "rho .002", 0.002, 0.20),
    "A": ("absent, whole answer", "0", 0.0, 0.0),
    "Ad": ("absent, digit by digit", "0", 0.0, 0.0),
    "X": ("depth 4", "edge of composition", 0.02, 0.94),
    "M": ("minority convention", "reached by one strategy", 0.05, 0.90),
}
AGGREGATES = {"all": list(GROUPS), "all_without_traps": [g for g in GROUPS if g != "M"]}
ARMS = {  # name: (title, regime, reads, control, (pass@1, pass@K) as a function of the base's)
    "base": ("base", "base", [], False, lambda a, b: (a, b)),
    "base_redraw": ("null: base drawn again", "base", [], False, lambda a, b: (a * 1.01, b * 1.005)),
    "sft": ("SFT, oracle solutions", "sft", ["solution"], False, lambda a, b: (0.4 + 0.3 * b, 0.4 + 0.6 * b)),
    "sft_self": ("SFT, own correct", "sft", ["answer"], False, lambda a, b: (0.45 * b + 0.1 * a, b)),
    "distill": (
        "distillation",
        "distill",
        ["teacher text", "teacher logits"],
        False,
        lambda a, b: (0.55 + 0.2 * b, 1.0),
    ),
    "grpo": ("GRPO", "grpo", ["answer"], False, lambda a, b: (0.75 * b, 0.82 * b + 0.02)),
    "grpo_no_x": ("GRPO, depth 4 left out", "grpo", ["answer"], False, lambda a, b: (0.6 * b, 0.62 * b)),
    "rlp": ("RLP", "rlp", ["raw text"], False, lambda a, b: (0.7 * b, 0.95 * b + 0.05)),
    "cpt": ("continued pretraining", "sft", ["raw text"], True, lambda a, b: (0.3 * b, 0.98 * b)),
    "random": ("random reward", "grpo", [], True, lambda a, b: (0.9 * a, 0.8 * b)),
}
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SEEDS = [11, 12, 13]


def synthetic():
    """A finished run of the shape the lab has: 8 groups, 2 aggregates, 8 trained arms, 3 seeds."""
    rng = np.random.default_rng(0)
    tables = {name: [] for name in TABLES}
    for arm, (*_, control, shape) in ARMS.items():
        for group in [*GROUPS, *AGGREGATES]:
            members = AGGREGATES.get(group, [group])
            first = np.mean([GROUPS[g][2] for g in members]), np.mean([GROUPS[g][3] for g in members])
            ends = [shape(*GROUPS[g][2:]) for g in members]
            last = np.mean([e[0] for e in ends]), np.mean([e[1] for e in ends])
            _evaluation_rows(tables, rng, arm, group, first, last, control)
        for seed in SEEDS:
            _training_rows(tables, rng, arm, seed)
    return {"meta": _meta(), **tables, **_rest(tables)}


def _evaluation_rows(tables, rng, arm, group, base, tuned, control):
    for k in KS:
        ours, theirs = _curve(tuned, k), _curve(base, k)
        half = 0.04 if 0 < ours < 1 else 0.0
        tables["curves"].append(
            dict(
                arm=arm,
                group=group,
                k=k,
                mean=ours,
                lo=max(0.0, ours - half),
                hi=min(1.0, ours + half),
                seeds=3,
            )
        )
        if arm != "base":
            gap = ours - theirs
            row = dict(arm=arm, group=group, k=k, mean=gap, lo=gap - 0.04, hi=gap + 0.04)
            tables["differences"].append(row)
    noise = rng.uniform(0.9, 1.1)
    tables["diversity"].append(
        dict(
            arm=arm,
            group=group,
            strategy_entropy=1.5 * noise * (1 - tuned[0]),
            strategy_entropy_lo=0.1,
            strategy_entropy_hi=1.6,
            strategy_entropy_delta=-tuned[0],
            strategy_entropy_delta_lo=-0.9,
            strategy_entropy_delta_hi=0.1,
            distinct_strategies=4.0 * noise,
            distinct_correct=2.5 * tuned[1] * noise,
            answer_entropy=1.2 * noise,
            answer_entropy_corrected=1.3 * noise,
            unique_answers=9.0 * noise,
            unique_answers_equal_tokens=7.0 * noise,
            distinct_responses=5.25,
            distinct_2=0.4375,
            process_valid_share=0.8,
            mean_length=17.5,
        )
    )
    if arm == "base":
        return
    if arm != "base_redraw":
        _verdict_row(tables, arm, group, base, tuned)
    gap = base[1] - tuned[0]
    span = dict(delta_se=gap, delta_se_lo=gap - 0.04, delta_se_hi=gap + 0.04)
    tables["sampling_gap"].append(dict(arm=arm, group=group, k=256, **span, seeds=3))
    delta_k = tuned[1] - base[1]
    at = [k for k in KS if _curve(tuned, k) < _curve(base, k)]
    k = float(at[0]) if at and at[0] > 1 else None
    tables["crossings"].append(
        dict(arm=arm, group=group, share=0.97 if k else 0.02, k=k, k_lo=k and k / 2, k_hi=k and 1.7 * k)
    )
    for seed in SEEDS:
        new, lost = int(max(0, 64 * delta_k)), int(max(0, -64 * delta_k)) + int(rng.integers(0, 2))
        both = max(0, int(64 * base[1]) - lost)
        sets = dict(both=both, base_only=lost, tuned_only=new, neither=max(0, 64 - both - lost - new))
        reached, rest = both + lost, new + sets["neither"]
        sets |= dict(expansion=new / rest if rest else None, shrinkage=lost / reached if reached else None)
        tables["sets"].append(dict(arm=arm, group=group, seed=seed, **sets))
        if not control:
            nll = dict(nll_under_base=0.3 + 2 * max(0, delta_k), nll_under_self=0.25 * (1 - tuned[0]))
            tables["likelihood"].append(dict(arm=arm, seed=seed, group=group, **nll))


def _curve(ends, k):
    return float(np.clip(ends[0] + (ends[1] - ends[0]) * (np.log2(k) / 8) ** 0.8, 0, 1))


def _verdict_row(tables, arm, group, base, tuned):
    delta_1, delta_k = tuned[0] - base[0], tuned[1] - base[1]
    verdict = "expanded" if delta_k > 0.05 else "contracted" if delta_k < -0.05 else "re-weighted"
    verdict = "not resolved" if abs(delta_1) < 0.03 and verdict == "re-weighted" else verdict
    tables["verdicts"].append(
        dict(
            arm=arm,
            group=group,
            verdict=verdict,
            reason=f"change at k 256 is {delta_k:+.3f}, margin 0.05",
            delta_1=delta_1,
            delta_1_lo=delta_1 - 0.03,
            delta_1_hi=delta_1 + 0.03,
            delta_k=delta_k,
            delta_k_lo=delta_k - 0.04,
            delta_k_hi=delta_k + 0.04,
            null_k_lo=-0.02,
            null_k_hi=0.02,
            new_problems=int(max(0, 40 * delta_k)),
            base_upper=0.0058,
            tuned_only=int(max(0, 44 * delta_k)),
            base_only=int(max(0, -44 * delta_k)),
            null_tuned_only=1,
            seeds=3,
            n=512,
            k=256,
        )
    )


def _training_rows(tables, rng, arm, seed):
    if arm.startswith("base"):
        return
    reward = ARMS[arm][1] in ("grpo", "rlp")
    parts = [("sampling", "student", 2.6e11, True), ("scoring", "student", 0.8e11, True)] if reward else []
    parts.append(("training", "student", 1.8e11 if reward else 5.2e11, True))
    if arm == "distill":
        parts.append(("teacher sampling", "teacher", 3.1e11, False))
    for phase, model, spent, student in parts:
        row = dict(arm=arm, seed=seed, phase=phase, model=model, flops=spent, tokens=spent / 1.6e5)
        tables["ledger"].append(row | dict(sequences=30_720, seconds=spent / 9e9, student=student))
    for name, value in (
        ("unique_problems", 3840),
        ("supervised_tokens", 0 if reward else 512_000),
        ("verifier_correct", 12_000 if reward else 0),
        ("verifier_wrong", 18_720 if reward else 0),
    ):
        tables["counters"].append(dict(arm=arm, seed=seed, name=name, value=value))
    metrics = ["reward", "entropy", "thought_length"] if reward else ["loss"]
    for metric in metrics:
        walk = np.cumsum(rng.normal(0.004, 0.01, 120))
        for step in range(120):
            value = {"reward": 0.1 + walk[step], "loss": 2 - walk[step], "entropy": 1.5 - walk[step]}
            tables["training"].append(
                dict(
                    arm=arm,
                    seed=seed,
                    flops=5.2e11 * (step + 1) / 120,
                    metric=metric,
                    value=float(value.get(metric, 15 + 3 * walk[step])),
                )
            )
    if arm == "rlp":
        for metric, value in (
            ("raw", 15.2),
            ("wrapped_no_thought", 6.1),
            ("empty_wrapper", 0.4),
            ("shuffled_thought", -41.0),
        ):
            tables["rlp"].append(
                dict(
                    seed=seed, arm=arm, metric=metric, value=value + rng.normal(), lo=value - 2, hi=value + 2
                )
            )
        tables["gates"].append(
            dict(
                seed=seed,
                name="executor_accuracy",
                value=0.93 + 0.01 * (seed - 10),
                threshold=0.95,
                passed=seed > 11,
            )
        )


def _meta():
    config = {
        "task": {"name": "lab", "depth": [1, 2, 3]},
        "train": {"lr": 7e-4, "batch_rows": 256},
        "seeds": SEEDS,
    }
    groups = [
        dict(name=g, title=title, description=f"problems of group {g}", prior=prior, trap=g == "M")
        for g, (title, prior, *_) in GROUPS.items()
    ]
    arms = [
        dict(name=a, title=title, regime=regime, reads=reads, control=control, description=f"the arm {title}")
        for a, (title, regime, reads, control, _) in ARMS.items()
    ]
    pair = dict(
        title="Depth 4 in the mix or not",
        arms=["grpo", "grpo_no_x"],
        group="X",
        description="Two runs that differ in one thing: whether depth 4 is practised.",
    )
    return dict(
        name="quickstart",
        version="0.1.0",
        config=config,
        config_hash="3f9ac1",
        device="2 CPU cores",
        packages={"jax": "0.10.2", "numpy": "2.3"},
        wall_s=1930.0,
        seeds=SEEDS,
        n=512,
        ks=KS,
        verdict_k=256,
        margin=0.05,
        stages=dict(done=40, total=40),
        complete=True,
        notes=["Seeds are fresh."],
        task=dict(name="lab", groups=groups),
        aggregates=AGGREGATES,
        arms=arms,
        base="base",
        null="base_redraw",
        pairs=[pair],
    )


def _rest(tables):
    return dict(
        budget=dict(unit="FLOP", axis="student", target_flops=5.2e11),
        null=dict(
            false_expansion=[dict(group=g, k=256, rate=0.02, expected=0.02, cells=192) for g in GROUPS]
        ),
    )


@pytest.fixture(scope="module")
def results():
    return synthetic()
