"""One run in two processes: the same numbers as in one, and no process outlives another (H1, H2, H3, H4, R2)."""

import importlib.util
import json
import re
import signal
import time

import pytest

import ceiling
from ceiling import hosts, schema
from ceiling.logs import Progress
from ceiling.stages import Context
from ceiling.tasks.base import Outcome, Problem, Verdict, Verifier

pytestmark = [pytest.mark.slow, pytest.mark.hosts]
NOTICED_S = 30  # the heartbeat time-out of these runs
STAGES = ("prior", "grpo", "sft", "base.evaluate", "grpo.evaluate", "sft.evaluate", "base_redraw.evaluate")


def wait_for(runs, workdir, pattern, processes):
    """Until a file exists; no process may end before."""
    while not any(workdir.glob(pattern)):
        assert all(process.poll() is None for process in processes), runs.end(processes)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def together(runs, lab_config):
    """The same run in two processes of one device each: asked to stop, started again and killed, continued by one
    process of two devices which is asked to stop, and ended by two: (run directory, {what was done: what the processes
    then did})."""
    workdir, seen = lab_config.parent / "together", {}
    two = runs.start_two(lab_config, workdir)
    wait_for(runs, workdir, "stages/*/prior/*.tmp/unfinished/checkpoints/*/manifest.json", two)
    two[1].send_signal(signal.SIGTERM)
    seen["asked"] = runs.end(two)

    two = runs.start_two(lab_config, workdir)
    wait_for(runs, workdir, "stages/*/grpo/*.tmp/unfinished/checkpoints/*/manifest.json", two)
    two[1].kill()
    killed = time.monotonic()
    (code, _, errors), _ = runs.end(two)
    seen["killed"] = code, errors, time.monotonic() - killed

    one = [runs.start(lab_config, workdir, devices=2)]
    wait_for(runs, workdir, "stages/*/sft/*.tmp/unfinished/checkpoints/*/manifest.json", one)
    one[0].send_signal(signal.SIGTERM)
    seen["alone"] = runs.end(one)

    seen["finished"] = runs.end(runs.start_two(lab_config, workdir))
    return workdir, seen


def test_a_process_that_is_asked_to_stop_stops_all_and_everything_is_saved(together):
    for code, _, errors in together[1]["asked"]:
        assert code == 75 and "the same command continues" in errors, errors


def test_a_killed_process_ends_the_other_within_the_time_out_by_name(together):
    code, errors, seconds = together[1]["killed"]
    assert code == hosts.FAILED and "ceiling: process 1 of 2 is gone" in errors, errors
    assert seconds < NOTICED_S


def test_the_restarted_run_ends_and_only_the_leader_reports(together):
    (code, out, errors), (other_code, other_out, other_errors) = together[1]["finished"]
    assert (code, other_code) == (0, 0), errors + other_errors
    assert "report:" in out and "report:" not in other_out
    assert "continues from step" in (together[0] / "log.txt").read_text()


def test_R2_one_process_goes_on_with_what_two_have_saved(together):
    """In the middle of a stage; the numbers are compared below."""
    ((code, out, errors),) = together[1]["alone"]
    assert code == 75 and "the same command continues" in errors, errors
    assert re.search(r"seed1/grpo: continues from step [1-9]", out), out


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_give_the_numbers_of_one(name, alone, together, runs):
    """Bit by bit: parameters, curves, ledgers (but for seconds), every judged sample."""
    (one,), (two,) = ([*(home / "stages" / "seed1" / name).iterdir()] for home in (alone, together[0]))
    assert one.name == two.name, "stages are the same, so is their identity"
    found = runs.compare(one, two)
    assert found.keys() >= ({"ledger", "records"} if "evaluate" in name else {"ledger", "parameters", "metrics"})
    for what, (differing, count) in found.items():
        assert differing == 0 and count > 5, what


def _configuration(path):
    spec = importlib.util.spec_from_file_location("lab_of_hosts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("deeds, line", [
    (("wait", "SIGKILL"), "process 1 of 2 is gone"),
    (("wait", "SIGSTOP"), "process 1 of 2 was not heard of for 3 s"),
    (("wait", "raise"), "process 1 of 2 failed: the disk is on fire"),
    (("raise", "wait"), "process 0 of 2 failed: the disk is on fire"),
    (("SIGSTOP", "wait"), "process 0 of 2 was not heard of for 3 s"),
])  # fmt: skip
def test_the_end_of_one_process_is_the_end_of_the_other_and_its_name(deeds, line, runs):
    two = runs.talk(dict(enumerate(deeds)), heartbeat_s=3)
    survivor = two[deeds.index("wait")]
    try:
        code, (_, errors) = survivor.wait(60), survivor.communicate()
    finally:
        for process in two:
            process.kill()
        runs.end(two)
    assert code == hosts.FAILED and f"ceiling: {line}" in errors, errors


def test_a_killed_leader_ends_the_other_at_once(runs):
    """jax's runtime notices too, and may end the process before our line is out."""
    two = runs.talk({0: "SIGKILL", 1: "wait"})
    _, (code, _, errors) = runs.end(two, timeout=60)
    assert code != 0 and ("process 0 of 2 is gone" in errors or "leader task" in errors), (code, errors)


def test_what_one_process_is_asked_all_hear_in_the_same_place(runs):
    first, second = runs.end(runs.talk({0: "hear", 1: "ask"}))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    heard = [json.loads(out.splitlines()[-1].lower()) for _, out, _ in (first, second)]
    assert heard[0][1:] == [True, True] and heard[1] == [*heard[0][:2], False]


def test_another_configuration_on_one_host_is_refused_with_both_values(runs, lab_config, tmp_path):
    two = runs.start_two(lab_config, tmp_path, own=((), ("--config.arms.sft.lr=0.5",)))
    for code, _, errors in runs.end(two):
        assert code == 2
        assert "process 1 of 2 differs from process 0: config.arms.sft.lr is 0.5 there, 0.01 at process 0" in errors
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("present, line", [
    (0, "process 1 of 2 did not come within 1 s (here: 0)"),
    (1, "process 1 of 2 did not reach process 0 at localhost:"),
])  # fmt: skip
def test_a_process_that_does_not_come_is_named(present, line, runs):
    ((code, _, errors),) = runs.end(runs.talk({present: "wait"}, start_s=1))
    assert code == 2 and f"ceiling: {line}" in errors, errors


@pytest.mark.parametrize("settings, line", [
    (dict(processes=2, process=2, coordinator="h:9"), "config.hosts.process=2 must be below config.hosts.processes=2"),
    (dict(processes=2, process=0, coordinator="h"), "config.hosts.coordinator='h' must be HOST:PORT"),
    (dict(processes=2, process=0), "config.hosts.coordinator is not set"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, line, lab_config, tmp_path):
    config = _configuration(lab_config)
    config.hosts.update(settings)
    with pytest.raises(ValueError, match=line.replace("(", r"\(")):
        ceiling.run(config, tmp_path)


class FakeGroup:
    """What a follower is told: the leader's verdict on one response."""

    rank = 1

    def tell(self, value):
        assert value is None, "a follower has nothing to say"
        return [[int(Outcome.RIGHT), "42", 0.5, True, "told"]]


def test_a_follower_does_not_verify_what_the_leader_has(monkeypatch):
    class Task:
        def verify(self, problem, response):
            raise AssertionError("verified again")

    monkeypatch.setattr(hosts, "_group", FakeGroup())
    problem = Problem(1, "g", "6 * 7 =", "42")
    told = Verifier(Task()).many([(problem, "42"), (problem, "42")])
    assert told == [Verdict(Outcome.RIGHT, "42", 0.5, True, "told")] * 2


def test_a_follower_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "_group", FakeGroup())
    Context({}, {}, "", {}, tmp_path, print, print).write_json("a.json", 1)
    with Progress(1, tmp_path, silent=True) as progress:
        progress.log("a line")
    assert not any(tmp_path.iterdir())


def test_one_stage_at_a_time_on_several_hosts(lab_config):
    config = _configuration(lab_config)
    config.hosts.processes, config.workers = 2, 2
    with pytest.raises(ceiling.ConfigError, match="config.workers=2 with config.hosts.processes=2"):
        schema.validate(config)


def test_the_code_of_two_hosts_is_told_apart_by_a_changed_byte(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(hosts, "__file__", str(tmp_path / "hosts" / "__init__.py"))
    before = hosts.code_version()
    assert before == hosts.code_version()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert hosts.code_version() != before
