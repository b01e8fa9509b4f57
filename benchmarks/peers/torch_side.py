"""The torch peers: `torch`, a plain loop and transformers' `generate`; `trl`, its SFT and GRPO trainers; and both with
their training steps through torch.compile, which are faster and start an order of magnitude later.

    echo '{"peer": "trl", "work": "sft", "size": "tiny", "repeats": 3, "threads": 1}' \\
        | ENVS/torch/bin/python -m benchmarks.peers.torch_side

Random weights in the shape of Qwen3, float32. Options are those that are fastest here while the work stays the same;
each that is not the library's default says why.
"""

import functools
import tempfile

import torch
import transformers

from benchmarks import work
from benchmarks.peers.side import Stepper, serve


def model_of(size: str) -> transformers.Qwen3ForCausalLM:
    shape = work.SIZES[size]
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=1024,
        pad_token_id=work.PAD,
        bos_token_id=None,
        eos_token_id=work.EOS,
    )
    return transformers.Qwen3ForCausalLM(config)


class Ends(transformers.LogitsProcessor):
    """Row b draws EOS as its lengths[b]-th new token and never before."""

    def __init__(self, lengths: list[int], prompt_tokens: int):
        self.prompt_tokens = prompt_tokens
        self.ending = {n: [row for row, length in enumerate(lengths) if length == n] for n in set(lengths)}

    def __call__(self, ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        scores_BV[:, work.EOS] = -torch.inf
        if rows := self.ending.get(ids_BT.shape[1] + 1 - self.prompt_tokens):
            scores_BV[rows] = -torch.inf
            scores_BV[rows, work.EOS] = 0.0
        return scores_BV


def ends_of(size: str, uneven: bool) -> transformers.LogitsProcessorList:
    count = work.ROWS[size]["prompts"] * work.ROWS[size]["samples"]
    return transformers.LogitsProcessorList([Ends(work.lengths(count, uneven), work.PROMPT_TOKENS)])


def plain(kind: str, size: str, uneven: bool, compiled: bool):
    """A training loop as one writes it, or `generate`; GRPO has no plain form."""
    return plain_rollout(size, uneven) if kind == "rollout" else plain_sft(size, uneven, compiled)


def plain_sft(size: str, uneven: bool, compiled: bool):
    model = model_of(size)
    forward = torch.compile(model) if compiled else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=work.LEARNING_RATE, fused=True)
    rows = [torch.tensor(row) for row in work.sequences(size, uneven)]
    batch = {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=work.PAD)}
    batch["labels"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    if uneven:  # without a mask attention takes its causal path, so even rows pass none
        batch["attention_mask"] = (batch["labels"] != -100).long()

    def step() -> None:
        forward(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad()

    return step


def plain_rollout(size: str, uneven: bool):
    """The dynamic cache: on a CPU a static, compiled one took twice as long, continuous batching four times."""
    model = model_of(size).eval()
    ids_BT = torch.tensor(work.prompts(size)).repeat_interleave(work.ROWS[size]["samples"], 0)
    options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=work.PAD)
    options |= dict(max_new_tokens=work.NEW_TOKENS, attention_mask=torch.ones_like(ids_BT))
    # Even rows need nothing forced: without an EOS every one runs to the end.
    model.generation_config.eos_token_id = work.EOS if uneven else None
    processors = ends_of(size, uneven) if uneven else None
    expected = max(work.lengths(len(ids_BT), uneven))

    def step() -> None:
        out_BT = model.generate(ids_BT, logits_processor=processors, **options)
        assert out_BT.shape[1] == work.PROMPT_TOKENS + expected, out_BT.shape

    return step


def tokenizer_of(size: str) -> transformers.PreTrainedTokenizerFast:
    """One word a token id; made here, since the trainers want a tokenizer and a hub may be out of reach. Special tokens
    have names that no word contains: they are looked for inside words."""
    import tokenizers

    vocab = {str(token): token for token in range(work.SIZES[size]["vocab_size"])}
    vocab |= {"<pad>": vocab.pop(str(work.PAD)), "<eos>": vocab.pop(str(work.EOS))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


class Between(transformers.TrainerCallback):
    """Holds the trainer between two steps until the next is asked for."""

    def __init__(self, gate):
        self.gate = gate

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = not self.gate()


def trl(kind: str, size: str, uneven: bool, compiled: bool) -> Stepper:
    return {"sft": trl_sft, "grpo": trl_grpo}[kind](size, uneven, FAST | {"torch_compile": compiled})


# Both trainers. Off: logs, reports, progress bars and saves, which are not the work; gradient checkpointing and bf16,
# TRL's defaults, which on a CPU only slow float32 work down; the filter that reads every loss back for the log.
FAST = dict(
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    logging_strategy="no",
    logging_nan_inf_filter=False,
    report_to="none",
    disable_tqdm=True,
    save_strategy="no",
    dataloader_pin_memory=False,
    learning_rate=work.LEARNING_RATE,
    lr_scheduler_type="constant",
    max_grad_norm=work.CLIP_NORM,
    max_steps=1_000_000,
)
STEPS_AN_EPOCH = 16  # the same batch over and over; more would lengthen the start, fewer put ends of epochs into steps


def trl_sft(size: str, uneven: bool, options: dict) -> Stepper:
    """Rows of a batch are padded to its longest. Packing is off: without flash attention TRL lays a batch out as one
    row, whose attention costs the square of all its tokens (tiny: 2.2 s a step against 0.83)."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    rows = work.sequences(size, uneven)
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        per_device_train_batch_size=len(rows),
        train_sampling_strategy="sequential",
        max_length=None,
        **options,
    )
    data = datasets.Dataset.from_dict({"input_ids": rows * STEPS_AN_EPOCH})
    return _stepper(SFTTrainer(model_of(size), args, train_dataset=data, processing_class=tokenizer_of(size)))


def trl_grpo(size: str, uneven: bool, options: dict) -> Stepper:
    """One step is one rollout and one update. With one step a generation and no accumulation TRL takes the policy's
    own log-probabilities for the old ones and skips the second forward pass."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    rows = work.ROWS[size]
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        per_device_train_batch_size=rows["prompts"] * rows["samples"],
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        num_generations=rows["samples"],
        max_completion_length=work.NEW_TOKENS,
        beta=0.0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        **options,
    )
    data = datasets.Dataset.from_dict({"prompt": [work.text(row) for row in work.prompts(size)] * STEPS_AN_EPOCH})
    model = model_of(size)
    model.generate = functools.partial(model.generate, logits_processor=ends_of(size, uneven))
    expected = work.lengths(rows["prompts"] * rows["samples"], uneven)

    def reward(completion_ids, **_) -> list[float]:
        assert [len(ids) for ids in completion_ids] == expected
        return [float(row % 2) for row in range(len(completion_ids))]  # groups with an advantage; nothing to compute

    return _stepper(GRPOTrainer(model, reward, args=args, train_dataset=data, processing_class=tokenizer_of(size)))


def _stepper(trainer: transformers.Trainer) -> Stepper:
    def train(gate) -> None:
        trainer.add_callback(Between(gate))
        trainer.train()

    return Stepper(train)


if __name__ == "__main__":
    peers = {"torch": plain, "trl": trl}
    makers = {name: functools.partial(make, compiled=False) for name, make in peers.items()}
    makers |= {f"{name}_compiled": functools.partial(make, compiled=True) for name, make in peers.items()}
    serve(makers, ["torch", "transformers", "trl"], torch.set_num_threads)
