"""A checkpoint's tokenizer files, small enough to be made in a test: byte-level BPE with two end tokens."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<|begin|>", "<|end|>", "<|turn_end|>", "<|turn|>", "<|pad|>"]


def write_tokenizer(directory, *, bos=False, template=None, **config):
    """tokenizer.json and its settings in `directory`, made at once from a few words."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["#### 12 pens and 24 more pens, how many?", "so the answer is #### 36"] * 3,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=sorted(alphabet), show_progress=False),
    )
    core.add_special_tokens(SPECIAL)
    if bos:
        around = [(token, core.token_to_id(token)) for token in ("<|begin|>", "<|end|>")]
        core.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=around)
    directory.mkdir(parents=True, exist_ok=True)
    core.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": {"content": "<|turn_end|>"}, "bos_token": "<|begin|>", "pad_token": "<|pad|>", **config}
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ends = [core.token_to_id("<|end|>"), core.token_to_id("<|turn_end|>")]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return directory


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(**settings) -> a directory with a tokenizer."""
    return lambda name="checkpoint", **settings: write_tokenizer(tmp_path / name, **settings)
