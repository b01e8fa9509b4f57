"""The report: one self-contained HTML page, results.json, and every table as CSV.

    path = write(results, "runs/quickstart")   # -> runs/quickstart/report.html

Call it after every stage: parts that are not there yet say so, and readers never see half a file.
"""

import csv
import io
import json
import os
from pathlib import Path

from ceiling.report import page
from ceiling.report.view import TABLES, View, build

__all__ = ["TABLES", "write"]


def write(results: dict, directory) -> Path:
    """Write report.html, results.json and csv/<table>.csv into `directory`; returns the page's path."""
    directory = Path(directory)
    (directory / "csv").mkdir(parents=True, exist_ok=True)
    view = build(results)
    for name in TABLES:
        _replace(directory / "csv" / f"{name}.csv", _csv(view, name))
    _replace(directory / "results.json", json.dumps(view.results, indent=1, allow_nan=False) + "\n")
    # The page comes last: whatever it links to is already there.
    report = directory / "report.html"
    _replace(report, page.html(view))
    return report


def _csv(view: View, name: str) -> str:
    """A table's rows as they are, columns in order of appearance; the bare header where there is no row."""
    rows = view.rows(name)
    columns = list(dict.fromkeys(key for row in rows for key in row)) or TABLES[name].split()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
