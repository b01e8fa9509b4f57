"""Speed of this project on this machine: training, rollouts, GRPO steps, start-up, evaluation.

    python scripts/bench.py [--sizes tiny,small] [--works sft,rollout_even,...] [--repeats 5] [--devices 1]
                            [--axis data] [--json] [--profile DIR]

The work is that of benchmarks/work.py; steps are steps of the real loop, host work included. A row is a median over
repeats after two steps that are not counted, and its share of the limit: the matrix-product rate that this machine
reaches in the same process, or its memory's, whichever binds. FLOPs are the ledger's closed forms (useful work, no
padding). benchmarks/run.py sets the peers beside it.
"""

import functools
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import work  # noqa: E402

# Tokens of a micro-batch on each device: on a CPU its activations stay in the cache. GRPO's is one row of 4 responses.
MICRO_TOKENS = {"sft": 256, "grpo": 512}
RESPONSES_PER_ROW = 4  # of a GRPO step
EVALUATED, SAMPLES = 4096, (16, 64, 256, 1024)  # samples in all, and samples per problem
WORKS = {**work.WORKS, "evaluation": "evaluation"}

_SIZES = flags.DEFINE_list("sizes", list(work.SIZES), "Which of: " + ", ".join(work.SIZES))
_WORKS = flags.DEFINE_list("works", list(WORKS), "Which of: " + ", ".join(WORKS))
_REPEATS = flags.DEFINE_integer("repeats", 5, "Counted repeats of each measurement", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices that share the work; a CPU is cut into so many", lower_bound=1)
_AXIS = flags.DEFINE_enum("axis", "data", ["data", "tensor"], "What they share: the batch, or every weight")
_JSON = flags.DEFINE_bool("json", False, "One JSON object a line instead of the table")
_PROFILE = flags.DEFINE_string("profile", None, "Folder that gets a trace of one more repeat of each work")
_FIRST = flags.DEFINE_enum("first_step", None, ["sft", "grpo"], "Do one step and exit (how starts are timed)")


def seconds_of(call, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one call that is not counted."""
    import jax

    out = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        out.append(time.perf_counter() - began)
    return out[1:]


def matrix_rate(repeats: int) -> float:
    """FLOP/s of a 2048-cubed float32 matrix product: the limit that shares are taken of."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2 * 2048**3 / statistics.median(seconds_of(lambda: product(a), max(repeats, 5)))


def memory_rate(repeats: int) -> float:
    """Bytes/s of a sum over a quarter of a gigabyte: the limit of what reads every weight for a few tokens."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((1 << 26,), jnp.float32)
    total = jax.jit(jnp.sum)
    return a.nbytes / statistics.median(seconds_of(lambda: total(a), max(repeats, 5)))


class Words:
    """The least task there is: given prompts, given demonstrations, a reward by the parity of the first token."""

    groups, guess_rate, name, max_response_tokens = (), None, "bench", work.NEW_TOKENS

    def __init__(self, size: str, regime: str, uneven: bool):
        from ceiling.data.tokens import CharTokenizer

        class Endless(CharTokenizer):
            """No token ends a response: it ends where the work says."""

            stop_ids = ()

        symbols = "".join(chr(0x100 + i) for i in range(work.SIZES[size]["vocab_size"] - 1))
        self.tokenizer = Endless(symbols, symbols[0])  # the end is token 1, as in work.py
        self.texts = work.sequences(size, uneven) if regime == "sft" else work.prompts(size)

    def training(self, mix, size):
        from ceiling.tasks.base import Problem

        decode = self.tokenizer.decode
        return [Problem(i, "", decode(t[: work.PROMPT_TOKENS]), "") for i, t in enumerate(self.texts)]

    def evaluation(self):
        return self.training({}, 0)

    def demonstration(self, problem, rng):
        return self.tokenizer.decode(self.texts[problem.id][work.PROMPT_TOKENS :])

    def verify(self, problem, response):
        from ceiling.tasks.base import Outcome, Verdict

        return Verdict(Outcome(bool(response) and ord(response[0]) % 2))


class Bench:
    """One size on the project's own loop, sampler and evaluator."""

    def __init__(self, size: str):
        import jax

        from ceiling.model import ModelConfig, Policy, init, make_mesh, place

        self.size, self.rows = size, work.ROWS[size]
        self.config = ModelConfig(**work.SIZES[size], qk_norm="head", scan_layers=False)
        self.mesh = make_mesh(**{_AXIS.value: _DEVICES.value})
        self.params = place(init(self.config, jax.random.key(0)), self.config, self.mesh)
        self.policy = Policy(self.params, self.config, stop_ids=())

    def limits(self, uneven: bool):
        """int[prompts, n]: tokens that each sample of a rollout ends after, whatever was drawn."""
        import numpy as np

        prompts, n = self.rows["prompts"], self.rows["samples"]
        return np.reshape(work.lengths(prompts * n, uneven), (prompts, n))

    def steps(self, regime: str, count: int, uneven: bool) -> list[float]:
        """Seconds of each of `count` steps of the loop, after two that are not counted."""
        import ceiling
        from ceiling.model.policy import Policy
        from ceiling.regimes import base as regimes
        from ceiling.train import loop

        task = Words(self.size, regime, uneven)
        prompts, samples = (self.rows["sft"], 1) if regime == "sft" else (self.rows["prompts"], self.rows["samples"])
        tokens = prompts * samples * (work.PROMPT_TOKENS + work.NEW_TOKENS)
        cfg = ceiling.arm(
            regime, prompts_per_step=prompts, samples_per_prompt=samples, pool=prompts, lr=work.LEARNING_RATE,
            clip_norm=work.CLIP_NORM, microbatches=max(1, tokens // (MICRO_TOKENS[regime] * self.mesh.shape["data"])),
            schedule="constant", **({} if regime == "sft" else {"responses_per_row": RESPONSES_PER_ROW}),
        )  # fmt: skip
        generate = loop.generate
        loop.generate = functools.partial(generate, limits=self.limits(uneven))
        try:
            trainer = loop.Trainer(
                regimes.load(regime), cfg.to_dict(), Policy(loop.copied(self.params), self.config, ()), task, models={},
                seed=0, budget=loop.Budget(steps=count + 2), mesh=self.mesh, corpus=lambda step, n: [],
            )  # fmt: skip
            at = []
            trainer.run(lambda metrics: at.append(time.perf_counter()))
        finally:
            loop.generate = generate
        trained, sizes = trainer.ledger.entries["train", "policy"].tokens, self.limits(uneven).ravel()
        given = sum(map(len, task.texts)) if regime == "sft" else sum(work.PROMPT_TOKENS + n for n in sizes)
        if trained != (count + 2) * given:
            raise RuntimeError(f"bench: trained on {trained} tokens, not {(count + 2) * given}: not the work asked for")
        return [b - a for a, b in itertools.pairwise(at[1:])]

    def rollouts(self, count: int, uneven: bool) -> list[float]:
        from ceiling.rollout import generate

        seeds = itertools.count()
        draw = functools.partial(
            generate, self.policy, work.prompts(self.size), n=self.rows["samples"], max_new_tokens=work.NEW_TOKENS,
            limits=self.limits(uneven),
        )  # fmt: skip
        return seconds_of(lambda: draw(seed=next(seeds)).tokens, count)

    def evaluations(self, n: int, count: int) -> list[float]:
        """Seconds of evaluating EVALUATED samples, n for each problem."""
        from ceiling.evals.sample import evaluate
        from ceiling.tasks.base import Problem

        task, seeds = Words(self.size, "grpo", False), itertools.count()
        prompts = itertools.cycle(task.evaluation())
        problems = [Problem(i, "", next(prompts).prompt, "") for i in range(EVALUATED // n)]
        return seconds_of(lambda: evaluate(self.policy, task, n=n, seed=next(seeds), problems=problems).counts, count)

    def flops(self, name: str) -> float:
        """Useful work of one repeat, by the ledger."""
        from ceiling import ledger

        uneven = name.endswith(("uneven", "packed"))
        if "sft" in name:
            return ledger.train_flops(self.config, [len(s) for s in work.sequences(self.size, uneven)])
        if name == "evaluation":
            return 0.0
        limits, prompt = self.limits(uneven), work.PROMPT_TOKENS
        sampling = ledger.sampling_flops(self.config, [prompt] * len(limits), limits)
        if name.startswith("rollout"):
            return sampling
        return sampling + ledger.train_flops(self.config, [prompt + int(n) for n in limits.ravel()])

    def bytes(self, name: str) -> float:
        """What a repeat must read at least where few tokens share it: a rollout all weights for every position."""
        import jax

        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        return weights * float(self.limits(name.endswith("uneven")).max()) if name.startswith("rollout") else 0.0

    def measure(self, name: str, repeats: int) -> list[float]:
        uneven = name.endswith(("uneven", "packed"))
        if name.startswith("rollout"):
            return self.rollouts(repeats, uneven)
        return self.steps(name.split("_")[0], repeats, uneven)


def start_seconds(size: str, regime: str, cache: str) -> float:
    """Seconds from starting a fresh process to the end of its first step, with programs kept in `cache`."""
    began = time.perf_counter()
    command = [sys.executable, __file__, f"--first_step={regime}", f"--sizes={size}", f"--devices={_DEVICES.value}",
               f"--axis={_AXIS.value}"]  # fmt: skip
    # Without what this process was given, so that it starts itself again and keeps programs as a user's command does.
    ours = ("GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
            "JAX_COMPILATION_CACHE_MAX_SIZE")  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    subprocess.run(command, check=True, env={**inherited, "XDG_CACHE_HOME": cache})
    return time.perf_counter() - began


def rows(size: str, names: list[str], repeats: int) -> Iterator[dict]:
    """One row per measurement, as soon as it is there."""
    bench = Bench(size)
    for name in names:
        row = {"work": name, "size": size, "flops": bench.flops(name), "bytes": bench.bytes(name)}
        if name.startswith("start"):
            regime = name.split("_")[1]
            colds = []
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as cache:
                    colds.append(start_seconds(size, regime, cache))
                    warm = start_seconds(size, regime, cache)
                row.setdefault("warm_seconds", []).append(warm)
            yield {**row, "seconds": colds}
        elif name == "evaluation":
            for n in SAMPLES:
                seconds = bench.evaluations(n, repeats)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                yield {**row, "samples_per_problem": n, "samples": EVALUATED, "peak_bytes": peak, "seconds": seconds}
        else:
            yield {**row, "seconds": bench.measure(name, repeats)}
            if _PROFILE.value:
                import jax

                with jax.profiler.trace(str(pathlib.Path(_PROFILE.value) / f"{name}-{size}")):
                    bench.measure(name, 1)


def line(row: dict, matrix: float, memory: float) -> str:
    seconds = statistics.median(row["seconds"])
    name, more = f"{WORKS[row['work']]}, {row['size']}", ""
    if "warm_seconds" in row:
        more = f"{statistics.median(row['warm_seconds']):.2f} s with the programs in the cache"
    elif "samples" in row:
        name += f", n = {row['samples_per_problem']}"
        more = f"{seconds / row['samples'] * 1e3:.3f} ms a sample, peak {row['peak_bytes'] / 1e9:.2f} GB"
    share = f"{max(row['flops'] / matrix, row['bytes'] / memory) / seconds:8.1%}" if row["flops"] else " " * 8
    return f"{name:36s} {seconds:9.3f} s {share}  {more}"


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    for given, known, flag in ((_SIZES.value, work.SIZES, "sizes"), (_WORKS.value, WORKS, "works")):
        if unknown := [name for name in given if name not in known]:
            raise app.UsageError(f"--{flag}: {unknown[0]!r} is not known; use some of {', '.join(known)}")
    import jax

    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    if _FIRST.value:
        Bench(_SIZES.value[0]).steps(_FIRST.value, -1, False)
        return
    matrix, memory = matrix_rate(_REPEATS.value), memory_rate(_REPEATS.value)
    if _JSON.value:
        versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        print(json.dumps({"matrix_rate": matrix, "memory_rate": memory, "versions": versions}), flush=True)
    else:
        print(f"device: {jax.devices()[0].device_kind}; matrix product 2048^3 float32: {matrix / 1e9:.1f} GFLOP/s; "
              f"memory: {memory / 1e9:.1f} GB/s")  # fmt: skip
        print(f"{'work':36s} {'seconds':>9s}   share of the limit")
    for size in _SIZES.value:
        for row in rows(size, _WORKS.value, _REPEATS.value):
            print(json.dumps(row) if _JSON.value else line(row, matrix, memory), flush=True)


if __name__ == "__main__":
    from ceiling import pages, programs

    pages.use()  # as every command does
    programs.keep()
    app.run(main)
