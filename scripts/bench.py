"""Speed of the machine and of this project on it: training, rollouts, one GRPO step, start-up.

    python scripts/bench.py [--sizes tiny,small] [--repeats 5]

Each row is a median over repeats after warm-up, and its share of the matrix-product rate that this
machine reaches in the same process. FLOPs are the ledger's closed forms (useful work, no padding).
"""

import functools
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from absl import app, flags, logging

SIZES = {
    "tiny": dict(vocab_size=64, width=128, ffn=384, layers=4, heads=4, kv_heads=2, head_dim=32, tied=True),
    "small": dict(vocab_size=512, width=512, ffn=1536, layers=8, heads=8, kv_heads=4, head_dim=64, tied=True),
}
# Workloads: rows of the SFT step, prompts and samples of the rollout and of the GRPO step.
WORK = {"tiny": dict(sft_rows=64, prompts=16, samples=8), "small": dict(sft_rows=16, prompts=4, samples=8)}
SFT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 128, 32, 96

_SIZES = flags.DEFINE_list("sizes", ["tiny", "small"], "Which of: tiny, small")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Counted repeats of each measurement", lower_bound=1)
_START = flags.DEFINE_bool("start", True, "Also time a fresh process up to its first step")
_ONLY_FIRST_STEP = flags.DEFINE_bool("only_first_step", False, "Run one SFT step and exit (used by --start)")


def median_seconds(work, repeats: int) -> float:
    """Median over repeats of the seconds that work() takes, after one call that is not counted."""
    import jax

    jax.block_until_ready(work())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matrix_rate(repeats: int) -> float:
    """FLOP/s of a 2048-cubed float32 matrix product: the limit that shares are taken of."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2 * 2048**3 / median_seconds(lambda: product(a), max(repeats, 5))


class Bench:
    """The workloads of one size, on the project's own step, sampler and packing."""

    def __init__(self, size: str):
        import jax
        import numpy as np

        from ceiling.model import ModelConfig, Policy, init, make_mesh, place
        from ceiling.model.sequences import Forward
        from ceiling.regimes import base as regimes
        from ceiling.train import loop, optim
        from ceiling.train.step import init_state, make_step

        self.work, self.rng = WORK[size], np.random.default_rng(0)
        self.config = ModelConfig(**SIZES[size], scan_layers=False)
        params = place(init(self.config, jax.random.key(0)), self.config, make_mesh())
        self.policy = Policy(jax.tree.map(lambda x: x.copy(), params), self.config, stop_ids=())
        self.optimiser = optim.make(optim.CONFIG.defaults())
        self.state = init_state(params, self.optimiser)
        forward, self.steps = Forward(self.config), {}
        for name in ("sft", "grpo"):
            regime = regimes.load(name)
            cfg = {**(loop.CONFIG | regime.config).defaults().to_dict(), "max_tokens": NEW_TOKENS}
            loss = functools.partial(regime.loss, forward=forward, cfg=cfg)
            self.steps[name] = make_step(loss, self.optimiser)

    def batch(self, rows: int, tokens: int, extra: dict):
        import numpy as np

        from ceiling.data.packing import Example, pack, stack

        V = self.config.vocab_size
        mask = np.ones(tokens, np.float32)
        examples = [Example(self.rng.integers(1, V, tokens), mask, dict(extra)) for _ in range(rows)]
        return stack([pack(examples, sequences=rows, max_tokens=tokens, row_tokens=tokens, rows=rows)])

    def sft(self):
        batch = self.batch(self.work["sft_rows"], SFT_TOKENS, {})

        def run():
            self.state, metrics = self.steps["sft"](self.state, batch, {}, 1e-4)
            return metrics

        return run

    def rollout(self):
        from ceiling.rollout import generate

        prompts = self.rng.integers(1, self.config.vocab_size, (self.work["prompts"], PROMPT_TOKENS)).tolist()
        seeds = itertools.count()

        def run():
            out = generate(
                self.policy, prompts, n=self.work["samples"], max_new_tokens=NEW_TOKENS, seed=next(seeds)
            )
            return out.lengths

        return run

    def grpo(self):
        """Rollout and update; the reward is trivial, so what is timed is the regime's own work."""
        import numpy as np

        rollout = self.rollout()
        rows = self.work["prompts"] * self.work["samples"]
        tokens = PROMPT_TOKENS + NEW_TOKENS

        def run():
            rollout()
            batch = self.batch(rows, tokens, {"behaviour": np.zeros(tokens), "advantage": 1.0})
            self.state, metrics = self.steps["grpo"](self.state, batch, {}, 1e-4)
            return metrics

        return run


def measure(size: str, repeats: int, rate: float) -> Iterator[tuple]:
    """(name, seconds, tokens/s, share of the matrix rate) per workload, as soon as each is measured."""
    from ceiling import ledger

    bench = Bench(size)
    rows, samples = bench.work["sft_rows"], bench.work["prompts"] * bench.work["samples"]
    full = PROMPT_TOKENS + NEW_TOKENS
    train = ledger.train_flops(bench.config, [SFT_TOKENS] * rows)
    prompts, n = bench.work["prompts"], bench.work["samples"]
    sample = ledger.sampling_flops(bench.config, [PROMPT_TOKENS] * prompts, [[NEW_TOKENS] * n] * prompts)
    update = ledger.train_flops(bench.config, [full] * samples)
    jobs = [
        ("train step (SFT)", bench.sft(), rows * SFT_TOKENS, train),
        ("rollout", bench.rollout(), samples * NEW_TOKENS, sample),
        ("GRPO step", bench.grpo(), samples * NEW_TOKENS, sample + update),
    ]
    for name, work, tokens, flops in jobs:
        seconds = median_seconds(work, repeats)
        yield f"{name}, {size}", seconds, tokens / seconds, flops / seconds / rate


def first_step_seconds(size: str) -> float:
    """Seconds from starting a fresh process to the end of its first SFT step, compilation included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--only_first_step", f"--sizes={size}"], check=True)
    return time.perf_counter() - began


def first_step_flops(size: str) -> float:
    from ceiling import ledger
    from ceiling.model import ModelConfig

    lengths = [SFT_TOKENS] * WORK[size]["sft_rows"]
    return ledger.train_flops(ModelConfig(**SIZES[size]), lengths)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    if _ONLY_FIRST_STEP.value:
        import jax

        jax.block_until_ready(Bench(_SIZES.value[0]).sft()())
        return
    import jax

    rate = matrix_rate(_REPEATS.value)
    print(f"device: {jax.devices()[0].device_kind}; matrix product 2048^3 float32: {rate / 1e9:.1f} GFLOP/s")
    print(f"{'work':28s} {'seconds':>9s} {'tokens/s':>10s} {'share of matrix rate':>21s}")
    for size in _SIZES.value:
        for name, seconds, tokens, share in measure(size, _REPEATS.value, rate):
            print(f"{name:28s} {seconds:9.3f} {tokens:10.0f} {share:21.1%}", flush=True)
    if _START.value:
        for size in _SIZES.value:
            seconds, flops = first_step_seconds(size), first_step_flops(size)
            tokens = WORK[size]["sft_rows"] * SFT_TOKENS
            name = f"start to first step, {size}"
            print(f"{name:28s} {seconds:9.2f} {tokens / seconds:10.0f} {flops / seconds / rate:21.2%}", flush=True)


if __name__ == "__main__":
    app.run(main)
