"""Golden files of every supported family, made with transformers: tests/goldens/<name>/.

Each holds a tiny random checkpoint (config.json, model.safetensors) and expected.npz: logits of left-padded,
right-padded and packed batches and a greedy continuation. Every field that a family has is away from its
default. Needs torch and transformers (requirements-parity.txt), not jax.

    python scripts/make_goldens.py tests/goldens
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers

COMMON = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=3, rms_norm_eps=3e-3,
              max_position_embeddings=96, bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 150.0, "factor": 5.0, "low_freq_factor": 1.2, "high_freq_factor": 3.5,
          "original_max_position_embeddings": 24}  # fmt: skip
CASES = {
    "llama": dict(model_type="llama", num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_parameters=LLAMA3,
                  tie_word_embeddings=False, hidden_act="gelu_pytorch_tanh"),
    "llama_tied": dict(model_type="llama", num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True,
                       rope_parameters={"rope_type": "linear", "rope_theta": 70.0, "factor": 3.0}),
    "qwen2": dict(model_type="qwen2", num_attention_heads=6, num_key_value_heads=2, head_dim=8,
                  tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 90.0}),
    "qwen3": dict(model_type="qwen3", num_attention_heads=6, num_key_value_heads=3, head_dim=12,
                  tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 60.0}),
    "olmo2": dict(model_type="olmo2", num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
                  rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
    "gemma3": dict(model_type="gemma3_text", num_attention_heads=4, num_key_value_heads=1, head_dim=12,
                   num_hidden_layers=5, sliding_window=4, query_pre_attn_scalar=20, tie_word_embeddings=True,
                   layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
                   rope_parameters={"full_attention": {"rope_type": "linear", "rope_theta": 200.0, "factor": 2.0},
                                    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}}),
}  # fmt: skip
LENGTHS = (17, 9, 1, 12)
NEW_TOKENS = 24
SEED = 3


def build(name: str):
    """A model whose weights are all away from zero and one, so that one left out shows in the logits."""
    case = {**COMMON, **CASES[name]}
    torch.manual_seed(SEED)
    config = transformers.AutoConfig.for_model(case.pop("model_type"), **case)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            vector = weight.ndim == 1  # a bias or a norm's scale: keeps its fresh value as the mean
            center, std = (weight.mean().round(), 0.3) if vector else (0.0, 1.4 * weight.shape[-1] ** -0.5)
            weight.copy_(center + std * torch.randn_like(weight))
    return model


def sequences(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(1, vocab, n) for n in LENGTHS]


@torch.no_grad()
def logits(model, tokens, *, mask=None, positions=None) -> np.ndarray:
    as_torch = lambda x: None if x is None else torch.as_tensor(np.atleast_2d(x))  # noqa: E731
    out = model(as_torch(tokens), attention_mask=as_torch(mask), position_ids=as_torch(positions), use_cache=False)
    return out.logits.float().numpy()


def padded(rows, left: bool):
    """(tokens, mask, positions), padded with token 0 to the longest row."""
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if left else slice(len(row))
        tokens[i, where], mask[i, where] = row, 1
    return tokens, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def expected(model) -> dict[str, np.ndarray]:
    """Token batches and the logits at their real tokens, each batch run by transformers as such."""
    rows = sequences(model.config.vocab_size)
    out = {}
    for side in ("left", "right"):
        tokens, mask, positions = padded(rows, side == "left")
        out |= {f"{side}_tokens": tokens, f"{side}_mask": mask}
        out[f"{side}_logits"] = logits(model, tokens, mask=mask, positions=positions)[mask > 0]
    packed = np.concatenate(rows)
    positions = np.concatenate([np.arange(len(row)) for row in rows])
    segments = np.concatenate([np.full(len(row), i + 1) for i, row in enumerate(rows)])
    out |= {"packed_tokens": packed[None], "packed_segments": segments[None]}
    out["packed_logits"] = logits(model, packed, positions=positions)[0]
    assert np.abs(out["packed_logits"] - out["right_logits"]).max() < 1e-4, "transformers did not see the packing"
    text, gaps = list(rows[0]), []
    for _ in range(NEW_TOKENS):
        best = np.argsort(row := logits(model, np.asarray(text))[0, -1])
        gaps.append(row[best[-1]] - row[best[-2]])
        text.append(int(best[-1]))
    assert min(gaps) > 1e-3, "greedy decoding depends on rounding here: take other random weights"
    options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    cached = model.generate(torch.as_tensor(rows[0][None]), **options)
    assert cached[0].tolist() == text, "transformers' own cache disagrees with its full forward"
    return out | {"prompt": rows[0], "greedy": np.asarray(text[len(rows[0]) :])}


def write(root: pathlib.Path) -> None:
    for name in CASES:
        model, folder = build(name), root / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        small = {key: value.astype(np.float32 if value.dtype.kind == "f" else np.int32)
                 for key, value in expected(model).items()}  # fmt: skip
        np.savez_compressed(folder / "expected.npz", **small)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, "
              f"{sum(f.stat().st_size for f in folder.iterdir())} bytes")  # fmt: skip


def check(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What transformers computes from a directory that was exported here; nothing may be left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="auto", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return expected(model.eval())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    write(parser.parse_args().folder)
