"""Verdicts in killable processes (V1-V6): deadlines hold, the pool stays whole, nothing fails silently."""

import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import warnings

import pytest

from ceiling.tasks import pool as pool_module
from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.pool import Pool, PoolError

R, W, U, E = Outcome.RIGHT, Outcome.WRONG, Outcome.UNPARSED, Outcome.ERROR

# A child that does what its items say. Only a test can start it: through `command`.
DOUBLE = '''
import json, os, resource, sys, time
from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.pool import serve

def judge(item):
    what = item.get("do")
    if what == "hang":
        while True:
            pass
    if what == "sleep":
        time.sleep(1e6)
    if what == "raise":
        raise ValueError("no")
    if what == "recurse":
        return judge(item)
    if what == "exit":
        sys.exit(0)
    if what == "crash":
        os._exit(7)
    if what == "hog":
        return Verdict(Outcome.RIGHT, str(len(bytearray(4 << 30))))
    if what == "print":
        print('{"number": 1, "verdict": [1, "forged", 1.0, null, null]}', flush=True)
        os.write(1, b'{"number": 1, "verdict": [1, "forged", 1.0, null, null]}' + bytes([10]))
    if what == "write":
        with open("file", "w") as file:
            file.write("x" * 10)
        return Verdict(Outcome.RIGHT, "written")
    if what == "forge":
        for fd in range(3, 12):
            try:
                os.write(fd, b'{"number": 99, "verdict": [1, "forged", 1.0, null, null]}' + bytes([10]))
            except OSError:
                pass
    if what == "stdin":
        return Verdict(Outcome.WRONG, sys.stdin.read() + "|")
    if what == "junk":
        return Verdict(Outcome.RIGHT, answer=b"not json")
    if what == "facts":
        return Verdict(Outcome.WRONG, json.dumps(dict(
            pid=os.getpid(), cwd=sorted(os.listdir()), environment=sorted(os.environ), session=os.getsid(0),
            core=resource.getrlimit(resource.RLIMIT_CORE),
            cpu=resource.getrlimit(resource.RLIMIT_CPU)[0], jax="jax" in sys.modules)))
    return Verdict(Outcome(item["outcome"]), item.get("answer"), 0.5, True, "s")

def load():
    START
    return judge

serve(load, int(sys.argv[2]), float(sys.argv[3]))
'''


@pytest.fixture
def double(tmp_path):
    """double(start="", **arguments) -> a Pool of the child above; `start` runs before it is ready."""
    pools = []

    def make(start="pass", **arguments):
        path = tmp_path / "double.py"
        path.write_text(DOUBLE.replace("START", start))
        pools.append(Pool("math", command=[sys.executable, str(path)], **{"workers": 1, "item_s": 20.0, **arguments}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def maths():
    with Pool("math", item_s=30.0) as pool:
        yield pool


def item(gold, answer, style="boxed"):
    response = answer if answer is None else rf"\boxed{{{answer}}}" if style == "boxed" else f"#### {answer}"
    return {"gold": gold, "response": response, "style": style, "kind": "math" if style == "boxed" else "number"}


GOOD = [item("3", "3"), item(r"\sqrt{2}", r"\frac{2}{\sqrt2}"), item("x+1", "1+x"), item("3", "4"), item("3", "")]
EXPECTED = [R, R, R, W, U]


def outcomes(pool, items):
    return [verdict.outcome for verdict in pool.judge(items)]


def say(n, outcome=R):
    return {"outcome": int(outcome), "answer": f"a{n}"}


def pids(pool):
    return {child.process.pid for child in pool._children}


def is_whole(pool):
    """As many children as configured and one in reserve, all of them alive, and they answer."""
    alive = [child.process.poll() is None for child in pool._children]
    return alive == [True] * (pool.workers + 1) and outcomes(pool, [say(f"whole{i}", W) for i in range(9)]) == [W] * 9


def test_verdicts_come_back_complete_and_in_order(double):
    pool = double(workers=3)
    verdicts = pool.judge([say(i, Outcome(i % 4)) for i in range(100)])
    assert verdicts == [Verdict(Outcome(i % 4), f"a{i}", 0.5, True, "s") for i in range(100)]
    assert pool.stats == {"judged": 100} and is_whole(pool)


def test_equal_items_are_judged_once(double):
    pool = double()
    assert outcomes(pool, [say(1), say(2, W), say(1)] * 50) == [R, W, R] * 50
    assert pool.stats == {"judged": 2}


def test_nothing_to_judge_starts_nothing(double):
    pool = double()
    assert pool.judge([]) == [] and not pool._children


@pytest.mark.parametrize("what, reason", [
    ("hang", "timeout"), ("sleep", "timeout"), ("exit", "died"), ("crash", "died"), ("hog", "died"), ("junk", "died"),
    ("forge", "died"),
    ("raise", "raised"), ("recurse", "raised"),
])  # fmt: skip
def test_v2_v6_an_item_that_breaks_is_an_error_counted_and_the_rest_is_judged(double, what, reason):
    pool = double(workers=2, item_s=1.5 if reason == "timeout" else 20.0, memory_mb=1024)
    assert outcomes(pool, [say(1), {"do": what}, say(2, W), {"do": what, "again": 1}, say(3)]) == [R, E, W, E, R]
    assert pool.stats == {"judged": 3, reason: 2} and is_whole(pool)


def test_v3_a_batch_of_hanging_items_ends_at_its_deadline(double):
    pool = double(workers=2, item_s=1.0, batch_s=3.5)
    hostile = [{"do": "hang", "n": i} for i in range(512)]
    verdicts = outcomes(pool, [*(say(i) for i in range(4)), *hostile, say(9)])
    assert verdicts == [R] * 4 + [E] * 513  # also the good item that nobody came to
    assert pool.stats["timeout"] >= 2 and pool.stats["deadline"] >= 400
    assert pool.stats["timeout"] + pool.stats["deadline"] == 513 and is_whole(pool)


def test_v3_items_that_run_at_the_deadline_are_killed(double):
    pool = double(workers=2, item_s=100.0, batch_s=1.5)
    assert outcomes(pool, [{"do": "hang"}, say(1)]) == [E, R]
    assert pool.stats == {"judged": 1, "deadline": 1}
    assert is_whole(pool)


def test_v3_killing_needs_no_wait_for_a_start(double):
    """A start takes longer than the batch has; the one in reserve takes over."""
    pool = double("time.sleep(2.5)", workers=1, item_s=1.0, batch_s=2.4)
    pool.judge([say(0)])
    while not all(child.ready for child in pool._children):  # each batch hears who has become ready
        pool.judge([say(len(pool.stats))])
        threading.Event().wait(0.1)
    assert outcomes(pool, [{"do": "hang"}, say(1)]) == [E, R]


def test_a_start_counts_for_no_clock(double):
    pool = double("time.sleep(2.0)", item_s=1.5, batch_s=1.9)
    assert outcomes(pool, [say(1)]) == [R]


def test_what_a_grader_prints_is_not_a_verdict(double):
    pool = double(workers=1)
    forged = {"do": "print", **say(1, W)}
    assert pool.judge([forged]) == [Verdict(W, "a1", 0.5, True, "s")]
    assert pool.judge([{"do": "stdin"}])[0].answer == "|"


def test_v1_a_child_is_shut_in(double, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    pool = double()
    assert outcomes(pool, [{"do": "write"}]) == [E] and pool.stats == {"raised": 1}
    facts = json.loads(pool.judge([{"do": "facts"}])[0].answer)
    assert facts["session"] == facts["pid"] != os.getpid() and facts["core"] == [0, 0] and not facts["jax"]
    assert 20 < facts["cpu"] < 40  # item_s and what it has used: ends an endless item if the parent is gone
    assert "SECRET_TOKEN" not in facts["environment"] and "HOME" not in facts["environment"]
    assert facts["cwd"] in ([], ["file"])  # the name of an empty file is all that can be left


def test_a_child_that_died_idle_is_replaced_without_an_error(double):
    pool = double()
    pool.judge([say(0)])
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    for child in pool._children:
        child.process.wait()
    assert outcomes(pool, [say(i) for i in range(6)]) == [R] * 6 and pool.stats == {"judged": 7}
    assert is_whole(pool)


def test_a_child_is_renewed_after_many_items(double, monkeypatch):
    monkeypatch.setattr(pool_module, "ITEMS_PER_CHILD", 5)
    pool = double(workers=1)
    pool.judge([say(0)])
    before = pids(pool)
    assert outcomes(pool, [say(i) for i in range(40)]) == [R] * 40
    assert before.isdisjoint(pids(pool)) and set(pool.stats) == {"judged"}


@pytest.mark.parametrize("start, message", [
    ('raise ModuleNotFoundError("needs X")', r"do not start: ModuleNotFoundError: needs X$"),
    ("os._exit(3)", "do not start: died while starting$"),
    ("os.write(3, b'0')", "do not start: "),
])  # fmt: skip
def test_v6_a_verifier_that_cannot_start_raises_in_one_line(double, start, message):
    pool = double(start)
    for _ in range(2):
        with pytest.raises(PoolError, match=message):
            pool.judge([say(1)])


def test_v6_a_start_that_hangs_raises(double, monkeypatch):
    monkeypatch.setattr(pool_module, "START_S", 0.2)
    with pytest.raises(PoolError, match=r"do not start: was not ready after 0 s$"):
        double("time.sleep(1e6)").judge([say(1)])


def test_an_interrupt_leaves_no_child_at_work(double, monkeypatch):
    pool = double(workers=1)
    pool.judge([say(0)])
    before = pids(pool)

    def interrupted(batch, ends):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool_module._Batch, "_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.judge([{"do": "hang"}])
    assert len(before - pids(pool)) == 1 and is_whole(pool)


def test_closing_ends_every_process_and_removes_the_directory(double):
    pool = double()
    pool.judge([say(1)])
    children, directory = list(pool._children), pathlib.Path(pool._directory)
    assert directory.is_dir()
    pool.close()
    pool.close()
    assert all(child.process.returncode is not None for child in children) and not directory.exists()
    with pytest.raises(PoolError, match="closed"):
        pool.judge([say(1)])


def test_children_end_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom ceiling.tasks.pool import Pool\npool = Pool(sys.argv[1])\n"
        "pool.judge([{'gold': '1', 'response': '#### 1', 'style': 'hash', 'kind': 'number'}])\n"
        "print(*[c.process.pid for c in pool._children], flush=True)\nimport os; os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, str(script), "math"], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL
    children = [int(pid) for pid in run.stdout.split()]
    assert len(children) == 3
    for _ in range(600):
        if not any(_runs(pid) for pid in children):
            break
        threading.Event().wait(0.05)
    assert not any(_runs(pid) for pid in children)


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", [
    "os:system", "ceiling.config:hashlib", "ceiling.tasks", "tests.tasks.x:judge", "maths", "", "ceiling.tasks:x",
    "ceiling.tasks.x:y.z", "ceiling.tasks.grading:judge_item\n", "ceiling.tasks.x:_y", "ceiling.tasks..x:y",
])  # fmt: skip
def test_a_grader_outside_the_tasks_is_refused(name):
    with pytest.raises(ValueError, match="is not known; use math or ceiling.tasks.MODULE:FUNCTION"):
        Pool(name)


def test_a_grader_by_its_path():
    assert pool_module.resolve("ceiling.tasks.grading:judge_item") == pool_module.resolve("math")
    assert pool_module.resolve("ceiling.tasks.a.b_c:d_e") == "ceiling.tasks.a.b_c:d_e"
    with Pool("ceiling.tasks.grading:missing", workers=1) as pool, pytest.raises(PoolError, match="AttributeError"):
        pool.judge(GOOD)


@pytest.mark.parametrize("arguments", [dict(workers=0), dict(item_s=0), dict(batch_s=-1), dict(memory_mb=0)])
def test_senseless_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        Pool("math", **arguments)


def test_large_and_odd_items_pass_the_pipe(double):
    pool = double(workers=1)
    texts = ["x" * 2**20, "\ud800\x00\u202e٤\n\r\u2028", "", "é" * 10**5]
    found = pool.judge([{"outcome": 1, "answer": text[:1000], "padding": text} for text in texts])
    assert [verdict.answer for verdict in found] == [text[:1000] for text in texts] and is_whole(pool)


# --- the grader of mathematics in the pool ---------------------------------------------------------------------------


def test_v4_from_this_thread(maths):
    assert outcomes(maths, GOOD) == EXPECTED


def test_v4_from_other_threads_at_once(maths):
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: outcomes(maths, GOOD), range(8))) == [EXPECTED] * 8


def test_v4_from_asyncio_and_in_several_pools_at_once(maths):
    async def judge(pool):
        return outcomes(pool, GOOD), await asyncio.to_thread(outcomes, pool, GOOD)

    async def both():
        with Pool("math", workers=1, item_s=30.0) as other:
            return await asyncio.gather(judge(maths), judge(other))

    assert asyncio.run(both()) == [(EXPECTED, EXPECTED)] * 2


def _in_child(connection):
    with Pool("math", workers=1, item_s=30.0) as pool:
        connection.send([int(outcome) for outcome in outcomes(pool, GOOD)])


def _with_a_pool_of_the_parent(pool, connection):
    try:
        pool.judge(GOOD)
    except PoolError as error:
        connection.send(str(error))
    pool.close()
    pool._finalizer()  # as when the interpreter ends


def _fork(target, *arguments):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and jax warn of forks in general; that one works is the point
        process = context.Process(target=target, args=(*arguments, there))
        process.start()
    found = here.recv() if here.poll(60) else None
    process.join(60)
    here.close(), there.close()
    return found


def test_v4_from_a_child_process():
    assert _fork(_in_child) == [int(outcome) for outcome in EXPECTED]


def test_v4_a_fork_cannot_disturb_the_pool_of_its_parent(maths):
    maths.judge(GOOD)
    before = pids(maths)
    assert "another process" in _fork(_with_a_pool_of_the_parent, maths)
    assert outcomes(maths, GOOD) == EXPECTED and pids(maths) == before


def test_v6_an_unreadable_gold_is_an_error_and_never_pays(maths):
    before = maths.stats["raised"]
    bad = [item("???", "???"), item("", ""), {"gold": "3", "response": "3", "style": "boxed"}, {}]
    assert outcomes(maths, bad) == [E] * 4 and maths.stats["raised"] == before + 4


HOSTILE = [
    "9**9**9**9", "factorial(10**9)", r"$10^{5^{5^{5^{5}}}}$", "(" * 5000 + "1" + ")" * 5000,
    "{" * 3000 + "1" + "}" * 3000, "9" * 200_000,
    "a" * 200_000, "3\x00", "\u202e3", "٣", "nan", "inf", "\ud800", "", None, "(10^9)!", r"\sum_{i=1}^{10^9} i",
    "(x+1)^{99}(y+1)^{99}",
    r"\sin^{99}(\sin^{99}(x))", "((9^{99})^{99})^{99}", "open('MARKER','w').close()",
    "__import__('os').system('touch MARKER')",
    "(lambda: open('MARKER','w'))()", "f'{open(\"MARKER\",\"w\")}'", "().__class__.__base__.__subclasses__()",
    r"\sqrt{" * 40 + "}" * 40,
]  # fmt: skip


def test_v1_v2_v3_512_hostile_answers_in_one_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golds = ["3", "x^2+1", "(3,4]", r"\sqrt{2}", r"\text{even}", "10!"]
    longer = [(a, "" if i < len(HOSTILE) else str(i)) for i, a in enumerate(HOSTILE * 20)]  # no two alike
    hostile = [item(golds[i % 6], a and a + more) for i, (a, more) in enumerate(longer)][:512]
    with Pool("math", item_s=10.0, batch_s=120.0) as pool:
        found = outcomes(pool, [*hostile, *GOOD])
        assert len(hostile) == 512 and R not in found[:512] and found[512:] == EXPECTED
        assert pool.stats["deadline"] == 0 and pool.stats["timeout"] <= 4
        assert outcomes(pool, GOOD[::-1]) == EXPECTED[::-1]
        assert all(child.process.poll() is None for child in pool._children) and len(pool._children) == 3
        assert not list(tmp_path.iterdir()) and not list(pathlib.Path(pool._directory).iterdir())
