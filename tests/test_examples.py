"""The worked examples of docs/own_regime.md and docs/own_task.md, named by their paths as a user names them: files of
less than 100 lines that nothing registers. They are trained, planned, refused, and done again when they change."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import ceiling
from ceiling import experiment, export, schema
from ceiling.model.config import ModelConfig, table, unflatten
from ceiling.model.policy import Policy
from ceiling.model.sharding import make_mesh, place
from ceiling.regimes import base as regimes
from ceiling.regimes.base import Material, Sample
from ceiling.tasks import base as tasks
from ceiling.tasks.base import Outcome, Verdict, Verifier
from ceiling.train.loop import Budget, Trainer

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RAFT, SUMS = (str(DOCS / "examples" / name) for name in ("raft.py", "sums.py"))
MIX = {"plain": 0.5, "carry": 0.5}
ARM = dict(prompts_per_step=8, samples_per_prompt=4, pool=16, lr=1e-2, mix=MIX)


@pytest.fixture(scope="module")
def task():
    return schema.load_task(schema.validate(ceiling.defaults(SUMS)))


def trainer(task, regime, steps, **overrides):
    """A trainer of a random model of one layer; weights from NumPy, which compiles nothing."""
    model = ModelConfig(vocab_size=task.tokenizer.vocab_size, width=16, ffn=32, layers=1, heads=2, kv_heads=1,
                        head_dim=8, tied=False, embed_std=1.0, scan_layers=False)  # fmt: skip
    rng, mesh = np.random.default_rng(0), make_mesh()
    draw = lambda row: np.ones(row.shape) if row.std is None else rng.normal(0, row.std, row.shape)  # noqa: E731
    params = unflatten({name: draw(row).astype(np.float32) for name, row in table(model).items()})
    return Trainer(regimes.load(regime), ceiling.arm(regime, **{**ARM, **overrides}).to_dict(),
                   Policy(place(params, model, mesh), model, ()), task, models={}, seed=1, budget=Budget(steps=steps),
                   mesh=mesh, corpus=lambda at, n: task.corpus("prior", at, n))  # fmt: skip


def config_of(regime=RAFT, task=SUMS):
    config = ceiling.defaults(task, arms={"raft": ceiling.arm(regime, **ARM), "sft": ceiling.arm("sft", **ARM)})
    config.train.mix = MIX
    return config


def blocks_of(page):
    return [block.split("```")[0] for block in (DOCS / page).read_text().split("```python\n")[1:]]


@pytest.mark.parametrize("path, page", [(RAFT, "own_regime.md"), (SUMS, "own_task.md")])
def test_the_examples_are_short_and_are_what_their_pages_show(path, page):
    text = pathlib.Path(path).read_text()
    assert len(text.splitlines()) < 100 and f"(examples/{pathlib.Path(path).name})" in (DOCS / page).read_text()
    quoted = [block for block in blocks_of(page) if block.lstrip().startswith(("def ", "CONFIG", "REGIME"))]
    assert len(quoted) >= 3 and all(block in text for block in quoted)


@pytest.mark.parametrize("page", ["own_regime.md", "own_task.md"])
def test_the_configs_of_the_pages_are_accepted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    (shown,) = [block for block in blocks_of(page) if "def get_config" in block]
    (tmp_path / "mine.py").write_text(shown)
    config = schema.validate(tasks.own_module(str(tmp_path / "mine.py"), "--config", ("get_config",)).get_config())
    schema.check_against_task(config, schema.load_task(config))
    assert experiment.plan(config)


# --- the regime -------------------------------------------------------------------------------------------


def test_raft_keeps_the_best_sample_of_every_problem(task):
    regime = regimes.load(RAFT)
    credits = [[0.0, 1 / 3, 2 / 3], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    sample = lambda i, j, c: Sample(np.array([1]), np.array([10 * i + j]), np.zeros(1, np.float32), True,  # noqa: E731
                                    Verdict(Outcome(int(c == 1.0)), "x", c))  # fmt: skip
    drawn = [[sample(i, j, c) for j, c in enumerate(row)] for i, row in enumerate(credits)]
    material = Material(task, task.training(MIX, 3), [drawn], {}, None, np.random.default_rng(0))

    def kept(**settings):
        return [int(e.tokens[-1]) for e in regime.examples(material, ceiling.arm(RAFT, **settings).to_dict())]

    assert kept() == [2, 10, 20] and kept(least=0.5) == [2, 10] and kept(reward="exact", least=1.0) == [10]
    assert regime.metrics(material, ceiling.arm(RAFT).to_dict()) == {"best reward": pytest.approx(5 / 9)}
    assert regime.reads(ceiling.arm(RAFT)) == ("prompt", "answer")
    assert regime.reads(ceiling.arm(RAFT, reward="format")) == ("prompt",)


def test_raft_trains_a_policy_on_the_sums(task):
    """One best sample of eight problems a step; their likelihood rises, and the curve has the regime's metric."""
    one = trainer(task, RAFT, 4)
    before = jax.tree.map(np.array, one.state.params)
    done = one.run(lambda row: None)
    assert len(done.curve) == 4 and all(np.isfinite(row["loss"]) for row in done.curve)
    assert all(0 <= row["best reward"] <= 1 for row in done.curve) and done.curve[-1]["skipped"] == 0
    assert done.ledger.counters["empty training slots"] == 4 * (32 - 8)
    moved = [np.abs(np.asarray(a) - b).max() for a, b in zip(*map(jax.tree.leaves, (done.params, before)), strict=True)]
    assert max(moved) > 1e-3


# --- the task ---------------------------------------------------------------------------------------------


def test_sums_are_judged(task):
    problem = next(p for p in task.evaluation() if p.group == "carry" and p.answer < "100")
    right, other = problem.answer, f"{(int(problem.answer) + 1) % 1000:03d}"
    verify = Verifier(task)
    for response, outcome, process in [
        (f"1#{right}$", Outcome.RIGHT, True), (f"#{right}$", Outcome.RIGHT, None),
        (f"0#{right}$", Outcome.RIGHT, False), (f"1#{other}$", Outcome.WRONG, True),
        (f"1#{right}", Outcome.UNPARSED, None), ("", Outcome.UNPARSED, None),
        (f"11#{right}$", Outcome.UNPARSED, None), (f"1#{right}$$", Outcome.UNPARSED, None),
        (f"1#{int(right)}$", Outcome.UNPARSED, None), ("1#٣٤٥$", Outcome.UNPARSED, None),
    ]:  # fmt: skip
        verdict = verify(problem, response)
        assert (verdict.outcome, verdict.process) == (outcome, process), response
    for p in task.evaluation():
        assert verify(p, task.demonstration(p, np.random.default_rng(0))).right
        a, b = map(int, p.prompt[:-1].split("+"))
        assert int(p.answer) == a + b and (p.group == "carry") == (a % 10 + b % 10 > 9)


def test_what_is_evaluated_is_never_trained_on_or_shown(task):
    held_out = {p.prompt for p in task.evaluation()}
    assert len(held_out) == len(task.evaluation()) == 64 and len({p.id for p in task.evaluation()}) == 64
    training = task.training(MIX, 10**6)  # all there are of the scarcer group, and as many of the other
    assert [sum(p.group == group for p in training) for group in MIX] == [4500 - 32] * 2
    documents = {kind: task.corpus(kind, 3, 4000) for kind in ("prior", "teacher")}
    assert not held_out & ({p.prompt for p in training} | {d.prompt for group in documents.values() for d in group})
    assert documents["prior"] == task.corpus("prior", 3, 4000) != task.corpus("prior", 4, 4000)
    for kind, low, high in (("prior", 0.02, 0.09), ("teacher", 1.0, 1.0)):
        carried = []
        for d in documents[kind]:
            a, b = map(int, d.prompt[:-1].split("+"))
            said = int(d.response[-4:-1])
            assert said in (a + b, a + b - 10) and len(task.tokenizer.encode(d.response)) <= task.max_response_tokens
            if a % 10 + b % 10 > 9:
                carried.append(said == a + b)
            else:
                assert said == a + b
        assert low <= np.mean(carried) <= high
    with pytest.raises(ValueError, match="group 'X'; known groups: carry plain"):
        task.training({"X": 1.0}, 4)
    with pytest.raises(ceiling.ConfigError, match="trains from scratch"):
        tasks.load({**task.config, "name": SUMS}, {"path": ""}, task.tokenizer)


# --- both, as a user has them -----------------------------------------------------------------------------


def test_an_experiment_of_both_is_planned(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    config = schema.validate(config_of("docs/examples/raft.py", "docs/examples/sums.py"))
    assert config["task"]["name"] == "docs/examples/sums.py" and config["arms"]["raft"]["least"] == 0.0
    schema.check_against_task(config, schema.load_task(config))
    assert {s.name for s in experiment.plan(config)} >= {"seed1/raft", "seed1/sft.evaluate"}
    assert "best sample of every problem" in regimes.summary_line("docs/examples/raft.py")
    config["arms"]["raft"]["rewrad"] = "exact"
    with pytest.raises(ceiling.ConfigError, match=r"config\.arms\.raft\.rewrad: unknown key \(did you mean 'reward'"):
        schema.validate(config)


def test_a_file_that_changes_is_run_again_and_only_what_it_decides_is_done_again(tmp_path):
    raft, sums = (shutil.copy(path, tmp_path) for path in (RAFT, SUMS))
    keys = lambda: {s.name: s.key for s in experiment.plan(schema.validate(config_of(raft, sums)))}  # noqa: E731
    first = keys()
    assert keys() == first and regimes.load(raft) is regimes.load(raft)
    text = pathlib.Path(raft).read_text()
    pathlib.Path(raft).write_text(text.replace('name="raft"', 'name="soft"'))  # as long, in the same second
    changed = {name for name, key in keys().items() if key != first[name]}
    assert changed and all(name.split("/")[1].startswith("raft") for name in changed)
    assert regimes.load(raft).name == "soft"
    pathlib.Path(sums).write_text(pathlib.Path(sums).read_text() + "\n# changed\n")
    assert all(key != first[name] for name, key in keys().items())


@pytest.mark.parametrize("content, message", [
    (None, "no such file; paths are relative"), ("1 +", "does not run: SyntaxError"),
    ("raise OSError('x\\ny')", "does not run: OSError: x y .mine.py, line 1."), ("'no regime'", "does not define"),
])  # fmt: skip
def test_a_file_that_is_no_regime_or_task_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    for key, asked in (("regime", regimes.load), ("config.task.name", tasks.module)):
        with pytest.raises(ceiling.ConfigError, match=message) as refusal:
            asked(str(path))
        assert str(refusal.value).startswith(f"{key}={str(path)!r}") and "\n" not in str(refusal.value)
    with pytest.raises(ceiling.ConfigError, match="path of a .py file"):
        regimes.load(str(tmp_path / "mine"))


def test_a_stage_that_names_a_file_does_not_have_it_run(tmp_path):
    """C3: what a user names on the command line or in a config is code, what lies in a run directory is data."""
    (tmp_path / "stage" / "params").mkdir(parents=True)
    (tmp_path / "task.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = {"task": {"name": str(tmp_path / "task.py")}, "data": {"path": ""}, "model": {"path": "", "preset": ""}}
    (tmp_path / "stage" / "stage.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(ceiling.ConfigError, match="code is not run because a stage names it"):
        export.export(tmp_path / "stage", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
