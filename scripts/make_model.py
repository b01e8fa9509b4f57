r"""A checkpoint of random weights with a tokenizer of its own, to try everything on without a download or torch.

    python scripts/make_model.py runs/tiny_model
    python scripts/make_model.py OUT --family llama --vocab 1024 --width 128 --layers 4 --text FILE

OUT becomes a directory of the Hugging Face layout: config.json, model.safetensors, a byte-level BPE tokenizer
trained on FILE (or on generated sums), a chat template, end tokens. Without --text the sums are written to
OUT/questions.jsonl with GSM8K's fields, so `configs/real.py:tiny` needs nothing else. The same arguments give the same
bytes.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ceiling.model import hf
from ceiling.model.config import ModelConfig, table, unflatten
from ceiling.model.families import FAMILIES, PLAIN

END, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MIN_VOCAB = 256 + 3  # every byte and the control tokens
CHAT = (
    "{% for message in messages %}" + OPEN + "{{ message['role'] }}\n{{ message['content'] }}" + CLOSE + "\n"
    "{% endfor %}{% if add_generation_prompt %}" + OPEN + "assistant\n{% endif %}"
)
QUESTIONS = 400


def make(out, *, family: str, text: str | None, seed: int, dtype: str, **sizes) -> ModelConfig:
    """Write the directory `out`. sizes: fields of ModelConfig; text: what the tokenizer is trained on, None: sums.
    Raises ValueError in one line."""
    if family not in FAMILIES:
        raise ValueError(f"--family={family} is not known; use one of {', '.join(FAMILIES)}")
    if sizes["vocab_size"] < MIN_VOCAB:
        raise ValueError(f"--vocab={sizes['vocab_size']} has no room for every byte; use at least {MIN_VOCAB}")
    config = ModelConfig(**PLAIN | dict(FAMILIES[family].fixed), **sizes, param_dtype=dtype, compute_dtype=dtype,
                         max_positions=4096)  # fmt: skip
    rows = None if text is not None else sums(QUESTIONS, seed)
    if rows:
        text = "\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(pathlib.Path(folder), text, sizes["vocab_size"])
        hf.save(out, config, weights(config, seed), folder)
    if rows:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (pathlib.Path(out) / "questions.jsonl").write_text(lines, "utf-8")
    return config


def weights(config: ModelConfig, seed: int) -> dict:
    """Fresh weights as `ceiling.model.config.init` has them, drawn with NumPy: nothing is compiled."""
    rng = np.random.default_rng([seed, 43])
    draw = lambda spec: np.ones(spec.shape) if spec.std is None else spec.std * rng.normal(size=spec.shape)  # noqa: E731
    return unflatten({path: draw(spec).astype(jnp.dtype(spec.dtype)) for path, spec in table(config).items()})


def write_tokenizer(folder: pathlib.Path, text: str, vocab_size: int) -> None:
    """Byte-level BPE of at most vocab_size tokens: few words, no special cases, any text in and the same text out."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END, OPEN, CLOSE], initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
                "chat_template": CHAT, "add_bos_token": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), "utf-8")
    ends = [core.token_to_id(END), core.token_to_id(CLOSE)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")


def sums(count: int, seed: int) -> list[dict]:
    """Questions of GSM8K's shape whose answers are sums of two small numbers."""
    rng, out = np.random.default_rng([seed, 41]), {}
    names, things = ("Ada", "Ben", "Cleo", "Dan"), ("apples", "books", "coins", "shells")
    while len(out) < count:
        name, thing = names[rng.integers(4)], things[rng.integers(4)]
        a, b = (int(n) for n in rng.integers(2, 60, 2))
        question = f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have?"
        out[question] = f"{name} starts with {a} and adds {b}: {a} + {b} = {a + b}\n#### {a + b}"
    return [{"question": question, "answer": answer} for question, answer in out.items()]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", help="directory to make")
    parser.add_argument("--family", default="qwen3", help=", ".join(FAMILIES))
    for name, default in (("vocab", 512), ("width", 64), ("ffn", 128), ("layers", 2), ("heads", 4), ("kv-heads", 2),
                          ("head-dim", 16), ("seed", 0)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--text", help="UTF-8 file that the tokenizer is trained on")
    args = parser.parse_args(argv)
    try:
        text = pathlib.Path(args.text).read_text("utf-8") if args.text else None
        config = make(
            args.out, family=args.family, text=text, seed=args.seed, dtype=args.dtype, vocab_size=args.vocab,
            width=args.width, ffn=args.ffn, layers=args.layers, heads=args.heads, kv_heads=args.kv_heads,
            head_dim=args.head_dim, tied=not args.untied,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.family}, {config.layers} layers of width {config.width}, random weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
