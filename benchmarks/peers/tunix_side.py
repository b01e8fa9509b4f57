"""Tunix's side: its SFT trainer, its sampler and its GRPO learner on its own Qwen3, random weights, float32.

    echo '{"peer": "tunix", "work": "sft", "size": "tiny", "repeats": 3, "threads": 1}' \\
        | ENVS/tunix/bin/python -m benchmarks.peers.tunix_side

Threads follow from the cores that the process may use. Peer `tunix` has a cache of exactly the tokens of a row, the
best case; `tunix_1024` the library's default of 1024.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import peft_trainer, utils

from benchmarks import work
from benchmarks.peers.side import Stepper, serve

ROW_TOKENS = work.PROMPT_TOKENS + work.NEW_TOKENS
NEVER = 2**30  # a step that does not come: no evaluation, no end
NO_TOKEN = -1  # as the only EOS: no row ends early


class Words:
    """The tokenizer that Tunix asks for: token n is the word "n"."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return work.text(tokens)

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return work.EOS

    def pad_id(self) -> int:
        return work.PAD


def model_of(size: str) -> qwen3.Qwen3:
    shape = work.SIZES[size]
    config = qwen3.ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["width"],
        hidden_dim=shape["ffn"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=shape["tied"],
    )
    return qwen3.Qwen3(config, rngs=nnx.Rngs(0))


def optimiser() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(work.CLIP_NORM), optax.adamw(work.LEARNING_RATE))


def stepper(train, model: nnx.Module, batch) -> Stepper:
    """Steps of train(batches), all on the same batch; a step has ended when the model's parameters are there."""

    def batches(gate):
        yield batch
        while jax.block_until_ready(jax.tree.leaves(nnx.state(model))) and gate():
            yield batch

    return Stepper(lambda gate: train(batches(gate)))


def sft(size: str, uneven: bool) -> Stepper:
    """Rows padded to the longest; the trainer has no packing for SFT."""
    rows = work.sequences(size, uneven)
    ids_BT = np.full((len(rows), max(map(len, rows))), work.PAD, np.int32)
    for row, tokens in zip(ids_BT, rows, strict=True):
        row[: len(tokens)] = tokens

    def inputs(batch: peft_trainer.TrainingInput) -> dict:
        mask_BT = batch.input_mask
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": mask_BT,
            "positions": utils.build_positions_from_mask(mask_BT),
            "attention_mask": utils.make_causal_attn_mask(mask_BT),
        }

    model = model_of(size)
    trainer = peft_trainer.PeftTrainer(model, optimiser(), peft_trainer.TrainingConfig(eval_every_n_steps=NEVER))
    trainer.with_gen_model_input_fn(inputs)
    batch = peft_trainer.TrainingInput(input_tokens=ids_BT, input_mask=ids_BT != work.PAD)
    return stepper(trainer.train, model, batch)


PLAIN = sampler.Sampler


class EndingSampler(PLAIN):
    """Row b draws EOS as its lengths[b]-th new token and never before."""

    lengths_B: jax.Array  # set by whoever puts it in the sampler's place

    def _sample(self, logits, eos, cache, sampler_state):
        ends_B = self.lengths_B == sampler_state.decoding_step + 2 - work.PROMPT_TOKENS
        is_eos_V = jnp.arange(logits.shape[-1]) == work.EOS
        logits = jnp.where(ends_B[:, None, None] == is_eos_V, logits, -jnp.inf)
        return super()._sample(logits, eos, cache, sampler_state)


def sampler_of(size: str, uneven: bool) -> type[sampler.Sampler]:
    if not uneven:
        return PLAIN
    count = work.ROWS[size]["prompts"] * work.ROWS[size]["samples"]
    return type("Ending", (EndingSampler,), {"lengths_B": jnp.array(work.lengths(count, uneven))})


def rollout(size: str, uneven: bool, cache_size: int):
    shape, rows = work.SIZES[size], work.ROWS[size]
    cache = sampler.CacheConfig(cache_size, shape["layers"], shape["kv_heads"], shape["head_dim"])
    sample = sampler_of(size, uneven)(model_of(size), Words(), cache)
    prompts = [work.text(prompt) for prompt in work.prompts(size) for _ in range(rows["samples"])]
    # The sampler's tokens leave out the EOS.
    expected = [n - uneven for n in work.lengths(len(prompts), uneven)]
    seeds = itertools.count()

    def step() -> None:
        out = sample(
            prompts,
            max_generation_steps=work.NEW_TOKENS,
            max_prompt_length=work.PROMPT_TOKENS,
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[work.EOS if uneven else NO_TOKEN],
            seed=next(seeds),
        )
        assert [len(tokens) for tokens in out.tokens] == expected

    return step


def grpo(size: str, uneven: bool, cache_size: int) -> Stepper:
    """One step is one rollout and one update; beta 0 and one iteration, so no second forward pass is due."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    rows, roles = work.ROWS[size], (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optimiser(), eval_every_n_steps=NEVER, max_steps=NEVER
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=work.NEW_TOKENS,
            max_prompt_length=work.PROMPT_TOKENS,
            kv_cache_size=cache_size,
            temperature=1.0,
            top_p=1.0,
            eos_tokens=None if uneven else [NO_TOKEN],
        ),
    )
    sampler.Sampler = sampler_of(size, uneven)  # where the cluster looks its sampler up
    cluster = rl_cluster.RLCluster(actor=model_of(size), tokenizer=Words(), cluster_config=config)
    expected = [n - uneven for n in work.lengths(rows["prompts"] * rows["samples"], uneven)]

    def reward(completions, **_) -> list[float]:
        assert [len(text.split()) for text in completions] == expected
        return [float(row % 2) for row in range(len(completions))]

    algorithm = grpo_learner.GRPOConfig(num_generations=rows["samples"], num_iterations=1, beta=0.0)
    learner = grpo_learner.GRPOLearner(cluster, algorithm, reward)
    batch = {"prompts": np.array([work.text(prompt) for prompt in work.prompts(size)])}
    return stepper(learner.train, cluster.actor_trainer.model, batch)


def tunix(kind: str, size: str, uneven: bool, cache_size: int):
    if kind == "sft":
        return sft(size, uneven)
    return {"rollout": rollout, "grpo": grpo}[kind](size, uneven, cache_size)


if __name__ == "__main__":
    serve(
        {
            "tunix": functools.partial(tunix, cache_size=ROW_TOKENS),
            "tunix_1024": functools.partial(tunix, cache_size=1024),
        },
        ["google-tunix", "jax", "flax", "optax"],
    )
