"""Evaluation: sampling to records, pass@k and kin, diversity, intervals, verdicts."""

from ceiling.evals.passk import cover_at, pass_at_k, solvable_sets
from ceiling.evals.sample import evaluate

__all__ = ["cover_at", "evaluate", "pass_at_k", "solvable_sets"]
