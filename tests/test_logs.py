"""Progress: plain lines where there is no terminal, a table where there is one, everything kept in log.txt (O2)."""

import io
import re

import pytest

from ceiling import logs, stages, workers
from ceiling.logs import Progress

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")  # everything but the newline


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(progress):
    with progress:
        progress.skip("seed1/prior")
        progress.start("seed1/grpo")
        for step in range(5):
            progress.update(
                "seed1/grpo", {"progress": step / 4, "step": step, "loss": 0.5, "tokens_per_s": 1e4, "flops": 1e9}
            )
        progress.log("report: [red]/tmp/[x]/report.html")
        progress.start("seed1/base.evaluate")
        progress.update("seed1/base.evaluate", {"progress": 0.5, "tokens": 10})
        progress.finish("seed1/grpo")
        progress.finish("seed1/base.evaluate")


def test_o2_no_control_characters_without_a_terminal(tmp_path):
    stream = io.StringIO()
    play(Progress(4, tmp_path, stream))
    text = stream.getvalue()
    assert not CONTROL.search(text)
    for part in (
        "start   seed1/grpo",
        "done    seed1/grpo",
        "[1/4]",
        "[3/4]",
        "step 4",
        "report: [red]/tmp/[x]/report.html",
    ):
        assert part in text
    assert (tmp_path / "log.txt").read_text() == text


def test_on_a_terminal_the_log_file_stays_plain_and_lines_are_literal(tmp_path):
    stream = Terminal()
    play(Progress(4, tmp_path, stream))
    log = (tmp_path / "log.txt").read_text()
    assert not CONTROL.search(log) and "[red]/tmp/[x]/report.html" in log
    assert "\x1b[" in stream.getvalue()  # the live table
    assert "[red]" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_o2_plain_progress_is_thinned(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(logs.time, "time", lambda: clock[0])
    stream = io.StringIO()
    with Progress(2, tmp_path, stream) as progress:
        progress.start("a")
        for _ in range(600):
            clock[0] += 1.0
            progress.update("a", {"progress": 0.5})
        progress.finish("a")
    lines = stream.getvalue().splitlines()
    assert 2 + 600 / logs.QUIET_S - 2 <= len(lines) <= 2 + 600 / logs.QUIET_S
    assert "done    a  600 s" in lines[-1]


def test_no_time_left_is_told_of_before_a_tenth_is_done(tmp_path):
    """The first stages are priors, which take far longer than the rest: their pace says nothing of it."""
    with Progress(40, tmp_path, io.StringIO()) as progress:
        for name in "abcd":
            progress.start(name)
            progress.update(name, {"progress": 0.9})
        assert progress._left() is None
        for name in "abcd":
            progress.finish(name)
        assert progress._left() is not None


def test_done_says_where_a_stage_ended_though_events_are_thinned(tmp_path, monkeypatch):
    def counting(context):
        for step in range(10):
            context.report({"progress": step / 10, "step": step})

    monkeypatch.setitem(stages.STAGES, "counting", counting)
    job = {"name": "a", "kind": "counting", "settings": {}, "how": {"tracking": {"sinks": "", "project": ""}},
           "workdir": str(tmp_path), "out": str(tmp_path / "out"), "needs": {}}  # fmt: skip
    with Progress(1, tmp_path, io.StringIO()) as progress:
        progress.start("a")
        workers.perform(job, lambda event: progress.update("a", event), progress.log)
        progress.finish("a")
    assert "step 9" in (tmp_path / "log.txt").read_text().splitlines()[-1] and (tmp_path / "out").is_dir()


def test_time_left_follows_the_pace_of_this_call_only(tmp_path, monkeypatch):
    """Stages that an earlier call finished took no time in this one."""
    clock = [0.0]
    monkeypatch.setattr(logs.time, "time", lambda: clock[0])
    with Progress(10, tmp_path, io.StringIO()) as progress:
        for i in range(6):
            progress.skip(str(i))
        assert progress._left() is None
        progress.start("a")
        clock[0] = 100.0
        progress.finish("a")
        assert progress._left() == pytest.approx(300.0)  # one of four took 100 s
        progress.start("b")
        progress.update("b", {"progress": 0.5})
        clock[0] = 150.0
        assert progress._left() == pytest.approx(250.0)
        clock[0] = 200.0
        progress.finish("b")
        for name in "cd":
            progress.start(name)
            progress.finish(name)
        assert progress._left() == pytest.approx(0.0)
    assert progress.done == 10


def test_the_file_is_closed_after_an_error_and_appended_by_the_next_call(tmp_path):
    with pytest.raises(ValueError):
        with Progress(1, tmp_path, io.StringIO()) as progress:
            progress.log("one")
            raise ValueError
    assert progress.file.closed
    with Progress(1, tmp_path, io.StringIO()) as progress:
        progress.log("two")
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two"]
