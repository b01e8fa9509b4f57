"""Agents that search: regimes at one ledger value and early experience at one number of updates, from one prior.

    python -m ceiling --config configs/agents.py --workdir runs/agents
    python -m ceiling --config configs/agents.py:tiny --workdir runs/agents_tiny    # a smoke run: minutes, no verdicts

The task is in ceiling/tasks/search; docs/agents.md says what its groups are, and how to bring documents and questions
of your own.
"""

from ceiling.claims.agents import ARMS, experiment
from ceiling.claims.lab import SCALES

COMPARED = "grpo sft expert distill rlp il world world_il reflection"


def get_config(variant: str = ""):
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/agents.py:{variant} is not a variant; use configs/agents.py or :tiny")
    config = experiment(SCALES[variant or "quick"], COMPARED)
    config.name = "agents"
    config.seeds = (1,) if variant else (61, 62, 63)
    config.aggregates = {"beyond the expert": "R V X W"}
    config.report.html, config.report.every_s = True, 300
    return config


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": ARMS[name].lr * scale for name in COMPARED.split()})
