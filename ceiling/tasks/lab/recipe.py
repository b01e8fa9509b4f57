"""Sizes and learning rates at which the lab is taught: what configs/lab.py and the claims share.

A prior of this recipe passes its gate with room to spare on every seed that was tried (docs/lab.md). Learning rates
are the best of three per arm on development seeds, the same number of trials for each.
"""

MODEL = dict(width=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, rope_base=100.0, tied=False, qkv_bias=True,
             embed_std=1.0, qk_bias_std=1.0, scan_layers=False)  # fmt: skip
PRIOR = dict(steps=1200, prompts_per_step=48, lr=6e-3, pool=1, mix={"C": 1.0})
TEACHER = dict(steps=700, prompts_per_step=64, lr=6e-3, pool=1, mix={"C": 1.0})
# Shares of training problems. X (depth 4) is left out: composition beyond what is trained on.
MIX = {"C": 0.40, "M": 0.15, "R": 0.15, "V": 0.08, "U": 0.07, "A": 0.08, "Ap": 0.07}
# About as many tokens in a part as a core keeps in its cache: a step takes four fifths of what it takes in 4 parts.
ROWS = dict(prompts_per_step=32, samples_per_prompt=8, microbatches=16)
THOUGHTS = dict(max_thought_tokens=24, floor=0.4)
LR = {"grpo": 1.4e-3, "sft": 2e-3, "distill": 4e-3, "rlp": 1e-3, "text": 4e-3}
