"""Sizes and learning rates at which the generated world is taught: what configs/agents.py and the claims share."""

MODEL = dict(width=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, rope_base=100.0, tied=False, qkv_bias=True,
             embed_std=1.0, qk_bias_std=1.0, scan_layers=False)  # fmt: skip
PRIOR = dict(prompts_per_step=48, lr=6e-3, pool=1, mix={"C": 1.0})
TEACHER = dict(prompts_per_step=48, lr=6e-3, pool=1, mix={"C": 1.0})
# Shares of training problems. X (three hops) and W (after a forced wrong call) are in: no demonstration of the narrow
# expert is, but an agent that acts may meet them.
MIX = {"C": 0.40, "R": 0.25, "V": 0.10, "A": 0.05, "X": 0.10, "W": 0.10}
# About as many tokens in a part as a core keeps in its cache: updates take six tenths of what they take in 4 parts.
ROWS = dict(prompts_per_step=32, samples_per_prompt=8, microbatches=32, pool=1024, slots=256)
THOUGHTS = dict(max_thought_tokens=6, floor=0.4)
LR = {"grpo": 1.4e-3, "sft": 2e-3, "distill": 4e-3, "rlp": 1e-3, "early_experience": 2e-3}
