"""The comparison with the peers, without the peers: the work, the table's arithmetic, and sides that fail."""

import json
import pathlib
import re
import statistics
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import goals, run, table, work  # noqa: E402
from benchmarks.peers.side import Stepper  # noqa: E402


def test_uneven_lengths_are_the_same_everywhere_and_as_described():
    lengths = work.lengths(128, uneven=True)
    assert lengths[:8] == [28, 33, 56, 30, 96, 9, 40, 12]  # every side and every machine draws these
    assert work.lengths(32, uneven=True) == lengths[:32]
    assert 25 <= statistics.median(lengths) <= 39 and max(lengths) == work.NEW_TOKENS and min(lengths) >= 1
    assert work.lengths(3, uneven=False) == [96, 96, 96]


@pytest.mark.parametrize("size", work.SIZES)
def test_sequences_are_a_prompt_and_a_completion_of_words_that_end_nothing(size):
    rows = work.sequences(size, uneven=True)
    assert [len(row) - work.PROMPT_TOKENS for row in rows] == work.lengths(work.ROWS[size]["sft"], uneven=True)
    tokens = {token for row in rows + work.prompts(size) for token in row}
    assert min(tokens) > max(work.PAD, work.EOS) and max(tokens) < work.SIZES[size]["vocab_size"]
    assert len(set(map(tuple, work.prompts(size)))) == work.ROWS[size]["prompts"]
    assert work.text(rows[0][:2]) == f"{rows[0][0]} {rows[0][1]}"


WORK = {"flops": 30e9, "bytes": 1e9, "matrix_rate": 100e9, "memory_rate": 10e9}  # .3 s of products, .1 s of reading


def row_of(**sides) -> dict:
    row = {"size": "tiny", "work": "sft", "matrix_rates": [], "memory_rates": [], "sides": {}}
    for name, seconds in sides.items():
        answer = {"seconds": seconds, "versions": {name: "1.0"}, **WORK}
        table.add(row, name, answer)
    return row


def test_ratio_and_share_are_of_medians_over_all_rounds():
    row = row_of(ceiling=[0.5, 9.0], trl=[1.8, 1.2, 7.0])
    table.add(row, "ceiling", {"seconds": [0.6], "versions": {}, **WORK, "matrix_rate": 50e9})
    assert table.median(row["sides"]["ceiling"]) == 0.6
    assert table.ratio(row, "trl") == pytest.approx(3.0)  # 1.8 / 0.6
    assert table.share(row) == pytest.approx(2 / 3)  # 30 / 0.6 of the median of 100 and 50
    assert table.share(row | {"bytes": 5e9}) == pytest.approx(5 / 6)  # .5 s of reading binds
    lines = table.markdown([row], {"trl": "TRL", "tunix": "Tunix"}).splitlines()
    assert lines[0] == "| work | ceiling | share of the limit | TRL | Tunix |"
    assert lines[2] == "| SFT step, tiny | 0.6 s | 67% | 1.8 s (3.00x) |  |"
    assert lines[4] == "Matrix product: 50 to 100 GFLOP/s, memory: 10 to 10 GB/s. ceiling 1.0; trl 1.0."


def test_a_start_shows_its_warm_seconds_and_no_share_of_arithmetic():
    row = row_of(trl=[8.0]) | {"work": "start_grpo"}
    answer = {"seconds": [10.0], "warm_seconds": [4.0], "versions": {}, **WORK}
    table.add(row, "ceiling", answer)
    table.add(row, "ceiling", answer | {"warm_seconds": [5.0]})
    line = "| start to first GRPO step, tiny | 10 s (warm 4.5 s) |  | 8 s (0.80x) |"
    assert line in table.markdown([row], {"trl": "TRL"})


def test_an_error_takes_the_place_of_earlier_seconds_and_no_ratio_is_left():
    row = row_of(ceiling=[0.5], trl=[1.0])
    table.add(row, "trl", {"error": "died | here\nand there"})
    assert table.ratio(row, "trl") is None
    assert "| failed: died / here and there |" in table.markdown([row], {"trl": "TRL"})
    table.add(row, "ceiling", {"error": "lost"})
    assert table.share(row) is None and table.ratio(row, "trl") is None


def test_a_trainer_is_held_between_steps_and_its_error_comes_out():
    happened = []

    def train(gate):
        while True:
            happened.append("step")
            if len(happened) == 3:
                raise ValueError("diverged")
            if not gate():
                return

    step = Stepper(train)
    step()
    assert happened == ["step"]  # no further until the next is asked for
    step()
    assert happened == ["step", "step"]
    with pytest.raises(ValueError, match="diverged"):
        step()


class FakeOurs:
    def __init__(self, log, timeout):
        pass

    def measure(self, job):
        return {"seconds": [0.5] * job["repeats"], "versions": {}, **WORK}

    def close(self):
        pass


@pytest.fixture
def envs(tmp_path, monkeypatch):
    """Environments whose Python is a fake side on the real protocol, where TRL's process dies over GRPO steps."""
    side = tmp_path / "side.py"
    side.write_text(
        textwrap.dedent("""
            import os, sys
            from benchmarks.peers.side import Stepper, serve

            def trl(kind, size, uneven):
                if kind == "grpo":
                    print("boom", file=sys.stderr, flush=True)
                    os._exit(3)
                def train(gate):
                    while gate():
                        pass
                return Stepper(train)

            def plain(kind, size, uneven):
                print("noise that is no measurement")
                if uneven:
                    raise ValueError("uneven rows are beyond me")
                return lambda: None

            serve({"torch": plain, "trl": trl}, ["pytest"])
        """)
    )
    python = tmp_path / "envs/torch/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {side}\n")
    python.chmod(0o755)
    monkeypatch.setattr(run, "Ours", FakeOurs)
    monkeypatch.setattr(run.os, "sched_setaffinity", lambda pid, cores: None)  # these tests share their process
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "envs"


def test_a_side_that_dies_gives_a_row_that_says_so_and_the_others_go_on(envs, tmp_path, capsys):
    works = "grpo_even,sft,sft_packed,start_sft"
    run.main([f"--envs={envs}", "--sizes=tiny", f"--works={works}", "--peers=torch,trl", "--repeats=3",
              f"--out={tmp_path}"])  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    rows = {row["work"]: row["sides"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows["grpo_even"]["trl"] == {"error": "died with exit code 3; boom"}
    assert "failed: died with exit code 3; boom" in text
    assert "torch" not in rows["grpo_even"]  # it has no such work
    assert rows["sft_packed"]["torch"] == {"error": "ValueError: uneven rows are beyond me"}
    assert len(rows["sft"]["torch"]["seconds"]) == len(rows["sft"]["trl"]["seconds"]) == 2 * 3  # rounds x repeats
    assert len(rows["start_sft"]["trl"]["seconds"]) == 2 and min(rows["start_sft"]["trl"]["seconds"]) > 0.01
    assert len(rows["sft"]["ceiling"]["seconds"]) == 6
    assert re.search(r"\| SFT step, tiny \| 0.5 s \| 60% \|", text)


def test_calls_into_one_folder_fill_one_table_and_other_settings_are_refused(envs, tmp_path):
    call = ["--peers=torch", f"--envs={envs}", "--sizes=tiny", "--rounds=1", f"--out={tmp_path}"]
    for works, repeats in (("sft,rollout_even", 2), ("rollout_even", 2)):
        run.main([*call, f"--works={works}", f"--repeats={repeats}"])
        rows = json.loads((tmp_path / "results.json").read_text())["rows"]
        assert [row["work"] for row in rows] == ["sft", "rollout_even"], "in the order of the works, each once"
    with pytest.raises(SystemExit, match="run.py: --out .* has rows of other settings .*give another folder"):
        run.main([*call, "--works=sft", "--repeats=3"])
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows, "nothing is lost"
    for damaged in ('{"about": "', "[]", '{"rows": []}'):
        (tmp_path / "results.json").write_text(damaged)
        with pytest.raises(SystemExit, match="results.json has no rows .*give another folder"):
            run.main([*call, "--works=sft", "--repeats=3"])
        assert (tmp_path / "results.json").read_text() == damaged, "nor written over"


def test_goals_are_said_to_be_reached_or_not_by_the_numbers(tmp_path, capsys):
    def row(name, size, ours, more=None, **peers):
        sides = {table.OURS: {"seconds": [ours], **(more or {})}, **{p: {"seconds": [s]} for p, s in peers.items()}}
        return {"size": size, "work": name, "sides": sides}

    rows = [
        row("grpo_even", "tiny", 2.0, trl=3.99, tunix=6.0), row("grpo_even", "small", 2.0, trl=2.8),
        row("start_sft", "tiny", 6.0, {"warm_seconds": [4.1]}),
    ]  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"about": "x86_64, 1 of 2 cores; and more", "rows": rows}))
    goals.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| work | goal | x86_64, 1 of 2 cores |"
    assert "| GRPO step, even | 2 and 1.4 x TRL | **2.00**, 1.40 |" in lines, "1.995 is not 2"
    assert "| GRPO step, even | 3 and 1.75 x Tunix | 3.00, ? |" in lines
    assert "| SFT step | 1.3 and 1.1 x TRL | ?, ? |" in lines
    assert "| start to first SFT step, tiny | 6 s (compiled 4 s) | 6.0 (**4.1**) |" in lines
    assert "| start to first GRPO step, tiny | 9 s (compiled 5 s) | ? |" in lines
    assert len(lines) == 2 + len(goals.RATIOS) + len(goals.STARTS)
    with pytest.raises(SystemExit, match="goals.py: name the results.json"):
        goals.main([])


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--sizes=huge"], "--sizes: 'huge' is not known; use some of tiny, small"),
        (["--works=sft,dance"], "--works: 'dance' is not known"),
        (["--peers=verl"], "--peers: 'verl' is not known"),
        (["--peers=trl"], "--envs DIR says where"),
        (["--peers=tunix", "--envs=ENVS"], "no environment at ENVS/tunix; make it with --install"),
        (["--threads=4096"], "--threads 4096: "),
        (["--rounds=0"], "count from 1"),
    ],
)
def test_bad_input_is_one_line(envs, flags, says):
    with pytest.raises(SystemExit) as stop:
        run.main([flag.replace("ENVS", str(envs)) for flag in flags])
    message = stop.value.code
    assert message.startswith("run.py: ") and "\n" not in message
    assert says.replace("ENVS", str(envs)) in message


def test_what_devices_share_divides_over_them():
    for threads in (1, 2, 3, 8):
        assert run.how_shared("sft", "small", threads) == (1, "data")
        assert run.how_shared("sft", "tiny", threads) == (threads, "data")
        devices, axis = run.how_shared("grpo_even", "small", threads)
        assert axis == "tensor" and devices <= threads and work.SIZES["small"]["kv_heads"] % devices == 0


def test_a_missing_python_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="^run.py: tunix needs python3.12, which is not on the PATH$"):
        run.install(tmp_path, {"tunix"})


@pytest.mark.parametrize("env", run.ENVS)
def test_environments_are_pinned_by_name_and_version_only(env):
    lines = (ROOT / f"benchmarks/requirements-{env}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
