"""The sampler: of single responses, and of episodes with tools."""

from ceiling.rollout.engine import Completions, generate
from ceiling.rollout.episodes import Scene, converse

__all__ = ["Completions", "Scene", "converse", "generate"]
