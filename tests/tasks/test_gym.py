"""reasoning-gym tasks: freezing, splits, guess rates, verdicts on hostile text (D1, D2, V1, V2, V5, V7)."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

from ceiling.config import ConfigError
from ceiling.data.tokenizer_file import load as load_tokenizer
from ceiling.tasks import gym, gym_worker
from ceiling.tasks.base import Outcome, load
from ceiling.tasks.pool import Pool

pytest.importorskip("sympy", reason="the extra ceiling[tasks] is not installed")
EOS = "\x03"
SMALL = dict(tasks="lcm mini_sudoku", training_per_task=12, evaluation_per_task=6)
LISTED = [name for names in gym_worker.EXCLUDED.values() for name in names.split()]


def settings(**overrides):
    config = gym.CONFIG.defaults(**{**SMALL, **overrides})
    gym.CONFIG.validate(config, "config.task")
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("gym") / "made" / "items.jsonl")
    return gym.make(settings(), {"path": path}), path


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Two evaluation items and a training item of every allowed task."""
    path = tmp_path_factory.mktemp("gym") / "all.jsonl"
    request = {"tasks": sorted(gym_worker.ALLOWED), "training": 1, "evaluation": 2, "seed": 3, "out": str(path)}
    gym._freeze(request)
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- freezing


def test_the_trainer_never_imports_reasoning_gym(small):
    code = (
        "import sys; from ceiling.tasks import gym; task = gym.make(gym.CONFIG.defaults(tasks='lcm mini_sudoku', "
        "training_per_task=12, evaluation_per_task=6), {'path': sys.argv[1]}); "
        "print(len(task.evaluation()), [m for m in sys.modules if m.split('.')[0] in ('reasoning_gym', 'sympy')])"
    )
    done = subprocess.run([sys.executable, "-c", code, small[1]], capture_output=True, text=True,
                          cwd=pathlib.Path(__file__).parents[2])  # fmt: skip
    assert done.stdout.strip() == "12 []", done.stderr


def test_d1_splits_share_no_question_and_are_of_the_sizes_asked_for(small):
    task, path = small
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    count = collections.Counter((row["task"], row["split"]) for row in rows)
    assert count == {(t, s): n for t in ("lcm", "mini_sudoku") for s, n in (("training", 12), ("evaluation", 6))}
    assert len({row["question"] for row in rows}) == len(rows)
    assert [g.name for g in task.groups] == ["lcm", "mini_sudoku"] and task.left_out == 0
    training = task.training({"all": 1.0}, 1000)
    assert len(task.evaluation()) == 12 and len(training) == 24
    assert {p.prompt for p in training}.isdisjoint(p.prompt for p in task.evaluation())
    assert {d.prompt for d in task.corpus("prior", 0, 200)} == {p.prompt for p in training}
    assert [p.group for p in task.training({"lcm": 0.25, "mini_sudoku": 0.75}, 16)].count("lcm") == 4
    assert len({p.id for p in [*training, *task.evaluation()]}) == 36


def test_d1_seeds_of_the_two_splits_cannot_meet():
    for seed in range(50):
        for name in ("lcm", "gcd"):
            train, held = (gym_worker.first_seed(seed, name, split) for split in ("training", "evaluation"))
            assert train + (1 << 30) <= gym_worker.HALF <= held < held + (1 << 30) <= 1 << 32
    assert len({gym_worker.first_seed(s, t, "training") for s in range(50) for t in ("lcm", "gcd")}) == 100


def test_d2_the_same_items_under_any_hash_seed(tmp_path, monkeypatch):
    about = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        path = tmp_path / f"{hash_seed}.jsonl"
        names = ["isomorphic_strings", "ransom_note", "word_ladder"]
        gym._freeze({"tasks": names, "training": 4, "evaluation": 4, "seed": 5, "out": str(path)})
        about.append(json.loads(pathlib.Path(f"{path}.json").read_text())["sha256"])
    assert about[0] == about[1]


def test_a_frozen_file_is_used_as_it_is_and_must_be_the_one_asked_for(small, tmp_path):
    task, path = small
    before = pathlib.Path(path).read_bytes()
    again = load(settings(tasks="mini_sudoku lcm"), {"path": path})
    assert {p.prompt for p in again.evaluation()} == {p.prompt for p in task.evaluation()}
    assert again.provenance == task.provenance and pathlib.Path(path).read_bytes() == before
    for key, value in (("seed", 1), ("training_per_task", 13), ("evaluation_per_task", 7), ("tasks", "lcm")):
        with pytest.raises(ConfigError, match=rf"was made with {key.split('_')[0]}=.*, config.task asks for .*another"):
            gym.make(settings(**{key: value}), {"path": path})
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(before.replace(b"evaluation", b"training__", 1))
    sidecar = pathlib.Path(path + ".json").read_text()
    for content, part in (("{", "missing or damaged"), ("[]", "missing or damaged"), (sidecar, "was changed since")):
        pathlib.Path(f"{changed}.json").write_text(content)
        with pytest.raises(ConfigError, match=f"{part}.*delete"):
            gym.make(settings(), {"path": str(changed)})
    assert not list(pathlib.Path(path).parent.glob("*.tmp"))


def test_c1_tasks_that_are_not_allowed_say_why(tmp_path):
    assert not gym_worker.ALLOWED & set(LISTED) and len(LISTED) == len(set(LISTED))
    for name, why in (("countdown", "evaluates the answer as code"), ("futoshiki", "items take"), ("codeio", "scipy"),
                      ("nope", "was not examined"), ("rearc", "survive JSON")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"'{name}' is not allowed: .*{why if name != 'nope' else 'examined'}"):
            gym.make(settings(tasks=f"lcm {name}"), {"path": str(tmp_path / "x.jsonl")})
        with pytest.raises(ValueError, match="is not allowed"):
            gym_worker.judge_item({"task": name, "entry": {}, "answer": "1"})
    for names in ("", "lcm lcm"):
        with pytest.raises(ConfigError, match="each once"):
            gym.make(settings(tasks=names), {"path": str(tmp_path / "x.jsonl")})
    with pytest.raises(ConfigError, match="config.data.path is empty"):
        gym.make(settings(), {"path": ""})
    assert list(tmp_path.iterdir()) == []


def test_every_task_of_the_version_we_examined_is_allowed_or_excluded():
    factory = pytest.importorskip("importlib.metadata").version("reasoning_gym")
    if factory != "0.1.25":
        pytest.skip("another version of reasoning-gym")
    code = "from reasoning_gym.factory import DATASETS; print(' '.join(DATASETS))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert set(names) == gym_worker.ALLOWED | set(LISTED)


def test_a_missing_extra_names_its_install(tmp_path, monkeypatch):
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "ceiling\[tasks\]"'):
        gym.make(settings(), {"path": str(tmp_path / "x.jsonl")})


def test_v5_tasks_that_are_guessed_are_refused_unless_asked_for(tmp_path):
    path = str(tmp_path / "coins.jsonl")
    coins = dict(tasks="ransom_note lcm", training_per_task=20, evaluation_per_task=12)
    with pytest.raises(ConfigError, match=r"ransom_note is guessed at a rate of 0\.\d\d, .*leave it out or raise"):
        gym.make(settings(**coins), {"path": path})
    task = gym.make(settings(**coins, guess_limit=1.0), {"path": path})
    about = json.loads(pathlib.Path(path + ".json").read_text())["tasks"]
    guess = about["ransom_note"]["guess"]
    assert task.guess_rates["ransom_note"] == guess["rate"] >= 0.5 > task.guess_rates["lcm"]
    assert guess["constant"]["True"] + guess["constant"]["False"] == 1.0 and 0.3 < guess["another_items_answer"] < 0.8
    assert "guessed at a rate of" in task.groups[0].description
    with pytest.raises(ConfigError, match="tower_of_hanoi has .* different training items in .* lower config.task.tr"):
        gym.make(settings(tasks="tower_of_hanoi", training_per_task=400), {"path": str(tmp_path / "more.jsonl")})


# ---- verdicts


def test_v7_own_answers_are_right_and_others_are_not(small, checkpoint):
    task, path = small
    problems = task.evaluation() + task.training({}, 99)
    assert all(v.right for v in task.verify_many([(p, task.demonstration(p, None)) for p in problems]))
    sudoku = next(p for p in problems if p.group == "mini_sudoku")
    lcm = next(p for p in problems if p.group == "lcm")
    assert "\n" in sudoku.answer, "an answer may have several lines"
    cases = {
        f"so\n#### {lcm.answer}{EOS}": Outcome.RIGHT, f"#### 0\n####{lcm.answer} {EOS}": Outcome.RIGHT,
        f"#### {lcm.answer}": Outcome.UNPARSED, f"{lcm.answer}{EOS}": Outcome.UNPARSED, f"####{EOS}": Outcome.UNPARSED,
        f"#### -1{EOS}": Outcome.WRONG, f"#### {lcm.answer} or 3{EOS}": Outcome.WRONG, "": Outcome.UNPARSED,
        f"<think>#### {lcm.answer}</think>{EOS}": Outcome.UNPARSED,
        f"<think>x</think>#### {lcm.answer}{EOS}": Outcome.RIGHT, f"#### \ud800{EOS}": Outcome.UNPARSED,
        f"#### \0{EOS}": Outcome.UNPARSED, f"#### {'1' * 9999}{EOS}": Outcome.UNPARSED,
    }  # fmt: skip
    verdicts = task.verify_many([(lcm, response) for response in cases])
    assert [v.outcome for v in verdicts] == list(cases.values())
    assert verdicts[0].answer == lcm.answer and verdicts[0].credit == 1.0 and task.verify_many([]) == []
    partial = task.verify(sudoku, f"#### {sudoku.answer[:-1]}{EOS}")
    assert partial.outcome is Outcome.WRONG and partial.credit < 1.0, "only the full score is right"
    assert task._pool.stats.keys() == {"judged"}
    file = gym.make(settings(), {"path": path}, load_tokenizer(checkpoint()))
    passage = file.passage(file.evaluation()[0])
    assert len(file.tokenizer.encode(passage.stop)) == 1
    assert (passage.stop + passage.bridge + passage.continuation).startswith("#### ")


HOSTILE = ["open('{0}', 'w').close()", "__import__('os').mkdir('{0}')", "(lambda: open('{0}', 'w').close())()",
           "[open('{0}', 'w').close()]", "{{'a': open('{0}', 'w').close()}}", "f\"{{open('{0}', 'w').close()}}\"",
           "9**9**9**9", "factorial(10**9)", "[" * 3000, "9" * 4000, "\u202e1", "٣", "nan", "1e999999999",
           "inf", "-inf", "nan nan", "None", "NaN+NaNj", "1/0", "[None]", "{{}}"]  # fmt: skip


def test_v1_v2_v7_every_allowed_scorer_takes_its_own_answer_and_no_hostile_one(everything, tmp_path):
    marker = tmp_path / "marker"
    entry = lambda row: {key: row[key] for key in ("question", "answer", "metadata")}  # noqa: E731
    held_out = [row for row in everything if row["split"] == "evaluation"]
    assert len({row["task"] for row in held_out}) == len(gym_worker.ALLOWED)
    own = [{"task": r["task"], "entry": entry(r), "answer": r["answer"].strip()} for r in held_out]
    first = list({row["task"]: row for row in held_out}.values())
    hostile = [{"task": r["task"], "entry": entry(r), "answer": h.format(marker) if "{0}" in h else h}
               for r in first for h in HOSTILE]  # fmt: skip
    with Pool("ceiling.tasks.gym_worker:judge_item", item_s=3.0, memory_mb=3072) as pool:
        assert all(verdict.right for verdict in pool.judge(own))
        verdicts = pool.judge(hostile)
    judged = list(zip(hostile, verdicts, strict=True))
    lost = [(item["task"], item["answer"][:20]) for item, verdict in judged if verdict.outcome is Outcome.ERROR]
    right = {item["task"] for item, verdict in judged if verdict.right}
    assert not marker.exists()
    assert not lost, "nothing hung, died or raised"
    assert not right
