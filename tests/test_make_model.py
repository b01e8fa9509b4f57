"""The maker of random checkpoints: everything a run asks of a checkpoint is there, and the same call makes the same."""

import importlib.util
import pathlib

import pytest

from ceiling.data import prompts, tokenizer_file
from ceiling.model import hf
from ceiling.model.config import parameter_count
from ceiling.model.families import FAMILIES
from ceiling.schema import MODEL, load_task
from ceiling.tasks import questions

ROOT = pathlib.Path(__file__).parents[1]


def script():
    spec = importlib.util.spec_from_file_location("make_model", ROOT / "scripts" / "make_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = ("--width", "16", "--ffn", "24", "--layers", "2", "--heads", "2", "--kv-heads", "1", "--head-dim", "8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "model"
    assert script().main([str(path), *SMALL, "--vocab", "400"]) == 0
    return path


def test_a_checkpoint_that_loads(made):
    config, params = hf.load(made)
    assert (config.vocab_size, config.width, config.layers, config.qk_norm) == (400, 16, 2, "head")
    assert sum(leaf.size for leaf in [params["embed"], params["final_norm"], *params["layers"].values()]) == \
        parameter_count(config)  # fmt: skip
    assert hf.stop_ids(made) == (0, 2)


def test_a_tokenizer_that_gives_back_any_text_and_knows_its_turns(made):
    tokenizer = tokenizer_file.load(made)
    assert tokenizer.vocab_size <= 400
    text = "Ünï 12+3\n\t#### 15 ☃"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = prompts.render(tokenizer, "2 + 2?", template="{question}", system="be brief", chat=True)
    assert prompt.endswith("2 + 2?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(prompt).count(tokenizer.encode("<|im_start|>")[0]) == 3
    assert set(tokenizer.stop_ids) == {0, 2} and tokenizer.eos == "<|endoftext|>"


def test_its_questions_are_a_task(made):
    task = load_task({
        "task": questions.CONFIG.defaults(evaluation_problems=20).to_dict(),
        "data": {"path": str(made / "questions.jsonl")}, "model": {**MODEL.defaults().to_dict(), "path": str(made)},
    })  # fmt: skip
    assert len(task.evaluation()) == 20 and task.left_out == 0
    problem = task.evaluation()[0]
    assert task.verify(problem, task.demonstration(problem, None)).right
    assert not task.verify(problem, f"#### {int(problem.answer) + 1}{task.tokenizer.eos}").right


def test_the_same_arguments_give_the_same_bytes_another_seed_other_weights(made, tmp_path):
    script().main([str(tmp_path / "again"), *SMALL, "--vocab", "400"])
    script().main([str(tmp_path / "other"), *SMALL, "--vocab", "400", "--seed", "1"])
    for file in sorted(made.iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    name = "model.safetensors"
    assert (made / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    options = ["--family", family, "--vocab", "300", "--dtype", "bfloat16"]
    assert script().main([str(tmp_path / "m"), *SMALL, *options]) == 0
    config = hf.read_config(tmp_path / "m")
    assert all(getattr(config, key) == value for key, value in FAMILIES[family].fixed.items())
    assert config.param_dtype == "bfloat16"


def test_a_text_of_ones_own(tmp_path):
    (tmp_path / "text").write_text("wug wug wug wugs " * 50)
    assert script().main([str(tmp_path / "m"), *SMALL, "--vocab", "300", "--text", str(tmp_path / "text")]) == 0
    assert len(tokenizer_file.load(tmp_path / "m").encode("wug wug")) < 5
    assert not (tmp_path / "m" / "questions.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab", "100"], "--vocab=100 has no room for every byte; use at least 259"),
        (["--family", "gpt9"], "--family=gpt9 is not known; use one of llama"),
        (["--heads", "3", "--kv-heads", "2"], "model.heads=3 is not a multiple of model.kv_heads=2"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_refusals_are_one_line_and_make_nothing(arguments, message, tmp_path, capsys):
    assert script().main([str(tmp_path / "m"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "m").exists()
