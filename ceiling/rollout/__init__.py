"""The sampler."""

from ceiling.rollout.engine import Completions, generate

__all__ = ["Completions", "generate"]
