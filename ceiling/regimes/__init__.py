"""Regimes: SFT, distillation, GRPO, RLP. One file each; `base` says what a regime is."""
