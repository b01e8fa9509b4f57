"""Registered experiments on published findings: what each claims, how it is tested, what came out.

    python -m ceiling.claims [C1 C4 ...] --workdir runs/claims
"""
