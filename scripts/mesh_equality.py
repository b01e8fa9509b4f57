"""Eight simulated devices against one: every regime's update, sampling and scoring, for every shape of mesh.

    python scripts/mesh_equality.py [--write]      # prints the table; --write puts it into docs/reliability.md

Float32 on CPU. An update is compared in its loss and in Adam's first moment after it, which is the gradient times a
constant: the largest difference, as a share of the largest entry. Sampling must give the same tokens; its recorded
log-probabilities, and scores, are compared in nats. Exit status 1 where a difference exceeds TOLERANCE.
"""

import argparse
import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import tables  # noqa: E402

import ceiling  # noqa: E402
from ceiling.config import plain  # noqa: E402
from ceiling.data.packing import Batch, Example  # noqa: E402
from ceiling.model import ModelConfig, Policy, make_mesh, place, table  # noqa: E402
from ceiling.model.config import unflatten  # noqa: E402
from ceiling.plan.programs import Setting, train_step  # noqa: E402
from ceiling.rollout import generate  # noqa: E402
from ceiling.rollout.scoring import score  # noqa: E402

TOLERANCE = 1e-4
MESHES = {"1x8": (1, 8, 1), "8x1": (8, 1, 1), "2x4": (1, 2, 4), "4x2": (1, 4, 2), "2x2x2": (2, 2, 2)}
CONFIG = ModelConfig(vocab_size=32, width=16, ffn=32, layers=2, heads=8, kv_heads=4, head_dim=4, tied=False,
                     embed_std=1.0, qk_norm="head", remat="block", head_chunk_tokens=16)  # fmt: skip
PROMPT, RESPONSE = 6, 10
BATCH = dict(prompts_per_step=4, samples_per_prompt=4, microbatches=2)
ARMS = {
    "sft": ceiling.arm("sft", **BATCH),
    "distill, sequence": ceiling.arm("distill", **BATCH),
    "distill, divergence": ceiling.arm("distill", loss="divergence", keep="all", beta=0.5, **BATCH),
    "grpo": ceiling.arm("grpo", **BATCH),
    "grpo, KL and entropy": ceiling.arm("grpo", kl="k3", kl_beta=0.1, entropy_bonus=0.1, **BATCH),
    "rlp": ceiling.arm("rlp", max_thought_tokens=2, **BATCH),
}


def weights(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    draw = lambda row: np.ones(row.shape) if row.std is None else rng.normal(0, row.std, row.shape)  # noqa: E731
    return unflatten({path: draw(row).astype(np.float32) for path, row in table(CONFIG).items()})


def update(cfg: dict, mesh) -> tuple[float, list[np.ndarray]]:
    """(loss, first moments) after one update of the real train step on made-up rows."""
    program = train_step(Setting(CONFIG, mesh, {}, PROMPT, RESPONSE), cfg)
    state, batch, frozen, lr = program.args
    on = lambda value, like: jax.device_put(np.asarray(value, like.dtype), like.sharding)  # noqa: E731
    fill = lambda tree, made: jax.tree.map(lambda like, value: on(value, like), tree, made)  # noqa: E731
    zeros = jax.tree.map(lambda like: on(np.zeros(like.shape), like), state.opt_state)
    aux = None if state.aux is None else fill(state.aux, weights(2))
    state = state.replace(params=fill(state.params, weights(0)), opt_state=zeros, aux=aux,
                          step=on(0, state.step), skipped=on(0, state.skipped))  # fmt: skip
    frozen = {k: p.replace(params=fill(p.params, weights(1))) for k, p in frozen.items()}
    state, metrics = program.run(state, fill(batch, rows(batch)), frozen, on(1e-3, lr))
    moments = [np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
               if ".mu" in jax.tree_util.keystr(path)]  # fmt: skip
    assert moments and max(np.abs(m).max() for m in moments) > 1e-4, "an update that changes nothing shows nothing"
    return float(metrics["loss"]), moments


def rows(like: Batch) -> Batch:
    """One sequence a row, of uneven lengths, the last row empty."""
    rng, (M, R, W) = np.random.default_rng(3), like.tokens_RW.shape
    lengths = rng.integers(PROMPT + 1, W + 1, (M, R))
    lengths[:, -1] = 0
    at = np.broadcast_to(np.arange(W), (M, R, W))
    inside = at < lengths[..., None]
    tokens = np.where(inside, rng.integers(1, CONFIG.vocab_size, (M, R, W)), 0)
    of_group = np.arange(R) % (R // like.groups)
    index = np.where(inside & (at > 0), of_group[:, None] * W + at - 1, 0)
    extra = {k: rng.normal(-1 if v.ndim == 3 else 0, 0.5, (M, R, *v.shape[2:])) for k, v in like.extra.items()}
    return like.replace(
        tokens_RW=tokens, segments_RW=inside, positions_RW=np.where(inside, at, 0), prefixes_RW=inside,
        targets_BT=tokens, mask_BT=inside & (at >= PROMPT), index_BT=index, extra=extra,
    )  # fmt: skip


def draws(mesh) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(tokens, recorded log-probs, scores of them) of 5 prompts, 6 samples each, in 8 slots."""
    policy = Policy(place(weights(0), CONFIG, mesh), CONFIG, (3,))
    prompts = [[5, 6, 7], [4], [9, 1, 2, 8, 7], [5, 6, 7], [2, 2]]
    out = generate(policy, prompts, n=6, max_new_tokens=RESPONSE, seed=11, slots=8)
    texts = [np.concatenate([p, out.response(i, j)]).astype(np.int32) for i, p in enumerate(prompts) for j in range(6)]
    examples = [Example(t, np.ones(len(t), np.float32)) for t in texts]
    return out.tokens, out.logprobs, score(policy.params, CONFIG, examples, max_tokens=16)[0]


def compare() -> list[tuple[str, dict[str, float]]]:
    """(what, {mesh: largest difference}) for every row of the table."""
    out, one = [], make_mesh()
    for name, arm in ARMS.items():
        loss, moments = update(plain(arm), one)
        found = {}
        for mesh, sizes in MESHES.items():
            other, others = update(plain(arm), make_mesh(*sizes))
            largest = max(np.abs(m).max() for m in moments)
            gradient = max(np.abs(a - b).max() for a, b in zip(moments, others, strict=True)) / largest
            found[mesh] = max(float(gradient), abs(loss - other))
        out.append((f"update: {name}", found))
        print(*out[-1], flush=True)
    tokens, logprobs, scores = draws(one)
    sampled, scored = {}, {}
    for mesh, sizes in MESHES.items():
        other = draws(make_mesh(*sizes))
        same = np.array_equal(tokens, other[0])
        sampled[mesh] = float(np.abs(logprobs - other[1]).max()) if same else float("inf")
        scored[mesh] = float(max(np.abs(a - b).max() for a, b in zip(scores, other[2], strict=True))) if same else 0.0
    return [*out, ("sampling: equal tokens, log-probs", sampled), ("scoring: log-probs", scored)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    write, found = parser.parse_args().write, compare()
    rows = [[name, *(f"{row[mesh]:.1e}" for mesh in MESHES)] for name, row in found]
    worst = max(max(row.values()) for _, row in found)
    good = f"every sampled token is equal, and no difference is above {TOLERANCE:g}"
    verdict = good if worst <= TOLERANCE else f"WRONG: a difference above {TOLERANCE:g}, or another token (inf)"
    text = f"Largest differences; {verdict}.\n\n{tables.markdown(['', *MESHES], rows)}"
    print(text)
    if write:
        tables.write(tables.RELIABILITY, "scripts/mesh_equality.py", text)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
