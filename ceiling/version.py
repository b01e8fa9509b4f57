"""The version; part of every stage's identity, so results of another version are never mixed in."""

__version__ = "0.1.0"
