"""Rows from files and from the hub (D2, D3, C4): what is read, and what is refused in one line."""

import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import types

import pyarrow as pa
import pytest
from pyarrow import parquet

from ceiling.config import ConfigError
from ceiling.data.sources import PLACE, digest, files, read

ROOT = pathlib.Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"question": "a?", "answer": 1.5, "level": "x"}, {"question": "b\u2028?", "answer": "2", "level": "y"}]


def bare(rows):
    return [{key: value for key, value in row.items() if key != PLACE} for row in rows]


def refused(source, fields=("question", "answer"), **kwargs):
    with pytest.raises(ConfigError) as error:
        read(str(source), fields=fields, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([{**r, "answer": str(r["answer"])} for r in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    else:
        path.write_text("\n\r\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d", "d.data"])
def test_d2_every_format_gives_the_same_rows(tmp_path, name):
    rows = read(str(write(tmp_path / name)), fields=("level", "question"))
    assert bare(rows) == [{"level": r["level"], "question": r["question"]} for r in ROWS]
    same = read(str(write(tmp_path / "other.jsonl")), fields=("level", "question"))
    assert digest(rows) == digest(bare(rows)) == digest(same)
    assert rows[0][PLACE].startswith(f"{tmp_path / name}:")


def test_places_are_line_numbers(tmp_path):
    rows = read(str(write(tmp_path / "d.jsonl")), fields=("question",))
    assert [r[PLACE] for r in rows] == [f"{tmp_path}/d.jsonl:1", f"{tmp_path}/d.jsonl:3"]


def test_jsonl_under_the_name_json_and_a_byte_order_mark(tmp_path):
    (tmp_path / "d.json").write_text("\ufeff" + "\n".join(map(json.dumps, ROWS)), "utf-8")
    assert len(read(str(tmp_path / "d.json"), fields=("question",))) == 2


def test_text_is_a_row_per_paragraph(tmp_path):
    (tmp_path / "d.txt").write_bytes("One\ntwo.\n\n  \nThrée.\r\n\r\n\n\nFour".encode())
    rows = read(str(tmp_path / "d.txt"), fields=("text",))
    assert [r["text"] for r in rows] == ["One\ntwo.", "Thrée.", "Four"]
    assert [r[PLACE].rpartition(":")[2] for r in rows] == ["1", "5", "9"]
    assert "no field `answer`" in refused(tmp_path / "d.txt", ("answer",))


def test_several_files_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.parquet"):
        write(tmp_path / name)
    rows = read(str(tmp_path / "*.jsonl"), fields=("question",))
    assert [pathlib.Path(r[PLACE]).name for r in rows] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1", "b.jsonl:3"]
    assert len(files(str(tmp_path / "[ac].*"))) == 2
    (tmp_path / "odd[1].jsonl").write_text('{"question": "named like a pattern"}')
    assert len(read(str(tmp_path / "odd[1].jsonl"), fields=("question",))) == 1
    assert "No such file" in refused(tmp_path / "*.csv")


def test_d2_the_digest_is_of_content_and_order(tmp_path):
    rows = read(str(write(tmp_path / "d.jsonl")), fields=("question", "answer"))
    assert len(digest(rows)) == 64 and digest(rows) != digest(rows[::-1]) and digest(rows) != digest(rows[:1])
    changed = [dict(rows[0], answer=1.50001), rows[1]]
    assert digest(changed) != digest(rows) == digest([dict(rows[0], **{PLACE: "elsewhere"}), rows[1]])
    assert digest([{"when": datetime.date(2024, 1, 2)}])  # Parquet has types that JSON has not


def test_local_jsonl_needs_no_heavy_import(tmp_path):
    code = (
        "import sys; from ceiling.data import sources; rows = sources.read(sys.argv[1], fields=('question',));"
        "print(len(rows), [m for m in ('datasets', 'pyarrow', 'jax', 'pandas') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, write(tmp_path / "d.jsonl")]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.split("\n")[0] == "2 []", out.stderr


# ---- refusals


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("question: q", "not JSON"), ('{"question": "q"', "not JSON"), ("[" * 100_000, "not JSON"),
        ('["q", 1]', "not a JSON object with the fields `question`, `answer`"), ("3", "not a JSON object"),
        ("null", "not a JSON object"), ('{"question": "q"}', "no field `answer`, it has `question`"),
        ('{"question": null, "answer": 1}', "no field `question`, it has `answer`"), ("{}", "it has none"),
        ('{"question": "\\ud800", "answer": 1}', "`question` has a lone surrogate"),
        ('{"question": "q", "answer": ' + "1" * 5000 + "}", "not JSON"),
    ],
)  # fmt: skip
def test_d3_a_bad_row_names_file_line_field_and_remedy(tmp_path, line, part):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: ") and part in message
    assert "fix" in message


def test_d3_files_that_cannot_be_used(tmp_path):
    assert "config.data.path is empty" in refused("")
    assert "config.task.evaluation_path is empty" in refused("", name="config.task.evaluation_path")
    assert "No such file" in refused(tmp_path / "missing.jsonl") and "config.data.path" in refused(tmp_path / "missing")
    assert "is a directory" in refused(tmp_path) and "*.jsonl" in refused(tmp_path)
    for name in ("empty.jsonl", "empty.json", "empty.txt"):
        (tmp_path / name).write_text(" \n \n")
        assert "has no rows" in refused(tmp_path / name, ("text",))
    (tmp_path / "list.json").write_text("[]")
    assert "has no rows" in refused(tmp_path / "list.json")
    (tmp_path / "latin").write_bytes(b'{"question": "caf\xe9"}')
    assert "not UTF-8 text (byte 17)" in refused(tmp_path / "latin")


def test_d3_parquet_that_cannot_be_used(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet here, but long enough")
    assert "not a Parquet file" in refused(tmp_path / "text.parquet")
    good = write(tmp_path / "good.parquet")
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-20])
    assert "Parquet" in refused(tmp_path / "cut.parquet")
    assert "no field `solution`, it has `question`, `answer`, `level`" in refused(good, ("question", "solution"))
    parquet.write_table(pa.table({"question": ["q", None], "answer": ["1", "2"]}), tmp_path / "null.parquet")
    assert "null.parquet:row 2: no field `question`" in refused(tmp_path / "null.parquet")


# ---- the hub


@pytest.mark.parametrize(
    "source", ["hub:", "hub:owner/name", "hub:owner/name/test", "hub:owner/name@main/test", "hub:owner/name@v1.0/test",
               f"hub:name@{COMMIT}/test", f"hub:owner/name@{COMMIT}", f"hub:owner/name@{COMMIT[:12]}/test",
               f"hub:../name@{COMMIT}/../x", f"hub:owner/name@{COMMIT}:a/b/c"],
)  # fmt: skip
def test_c4_a_hub_data_set_needs_a_commit_and_a_split(source):
    message = refused(source)
    assert "pin a revision" in message and "hub:owner/name@COMMIT/split" in message


class FakeHub(types.ModuleType):
    """`datasets` with one data set, or with one error."""

    def __init__(self, answer):
        super().__init__("datasets")
        self.answer, self.asked = answer, []

    def load_dataset(self, path, config, *, split, revision):
        self.asked.append((path, config, split, revision))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


SECRET = "hf_" + "a1B2c3" * 5
ERRORS = {
    "gated": (RuntimeError(f"Dataset 'o/n' is a gated dataset on the Hub.\nYou must be authenticated. {SECRET}"),
              "ask for access at huggingface.co/datasets/owner/name and set HF_TOKEN"),
    "offline": (ConnectionError(f"Couldn't reach the Hub\nAuthorization: Bearer {SECRET}"), "connect once"),
    "config": (ValueError("Config name is missing. Please pick one"), "@COMMIT:config/split"),
    "script": (RuntimeError("Dataset scripts are no longer supported, but found n.py"), "give a local file"),
    "unknown": (KeyError("x" * 5000), "check the name"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "advice"), ERRORS.values(), ids=ERRORS)
def test_c4_a_hub_failure_is_one_line_of_advice_without_a_token(monkeypatch, error, advice):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(error))
    message = refused(f"hub:owner/name@{COMMIT}/test")
    assert advice in message and SECRET not in message and "Bearer" not in message and len(message) < 600


# Runs in a process of its own, offline, on a cache that holds one revision of one data set.
OFFLINE = """
import sys, pathlib, datasets
from ceiling.config import ConfigError
from ceiling.data.sources import PLACE, digest, read
cache, here, other = sys.argv[1:]
place = pathlib.Path(cache) / "owner___name" / "default" / "0.0.0" / here
data = datasets.Dataset.from_dict({"question": ["a?", "b?"], "answer": ["1", "2"]})
place.mkdir(parents=True)
writer = datasets.arrow_writer.ArrowWriter(path=str(place / "name-test.arrow"), features=data.features)
writer.write_table(data.data.table); writer.finalize()
info = datasets.DatasetInfo(features=data.features, config_name="default", dataset_name="name", builder_name="json",
    version="0.0.0", splits={"test": {"name": "test", "num_bytes": 1, "num_examples": 2, "dataset_name": "name"}})
info.write_to_directory(str(place))
rows = read(f"hub:owner/name@{here}/test", fields=("question",))
print([(r["question"], r[PLACE]) for r in rows])
for source in (f"hub:owner/name@{other}/test", f"hub:owner/else@{here}/test", f"hub:owner/name@{here}/train"):
    try:
        read(source, fields=("question",))
    except ConfigError as error:
        print(error)
try:
    read(f"hub:owner/name@{here}/test", fields=("solution",))
except ConfigError as error:
    print(error)
"""


def test_d3_c4_offline_a_warm_cache_works_and_another_revision_of_it_is_not_taken_for_the_pinned_one(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path),
                   "HF_TOKEN": SECRET}  # fmt: skip
    other = COMMIT[::-1]
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path), COMMIT, other], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows, revision, unknown, split, field = done.stdout.strip().split("\n")
    assert rows == str([("a?", f"hub:owner/name@{COMMIT}/test row 0"), ("b?", f"hub:owner/name@{COMMIT}/test row 1")])
    assert other in revision and "holds another revision" in revision
    assert "connect once to fill the cache" in unknown and "check the configuration and the split" in split
    assert "no field `solution`, it has `question`, `answer`" in field
    assert SECRET not in done.stdout + done.stderr


def test_a_digest_is_plain_sha256():
    assert digest([]) == hashlib.sha256().hexdigest()
