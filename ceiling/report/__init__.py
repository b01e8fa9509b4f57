"""The report: one self-contained HTML page, results.json, and every table as CSV.

    path = write(results, "runs/quickstart")   # -> runs/quickstart/report.html

Call it after every stage: parts that are not there yet say so, and readers never see half a file.
"""

import csv
import io
import json
import os
from pathlib import Path

from ceiling.report.view import TABLES, View, build

__all__ = ["TABLES", "write"]


def write(results: dict, directory, *, html: bool = True) -> Path:
    """Write csv/<table>.csv, results.json and, unless it is not wanted, report.html into `directory`; returns the path
    of the last one."""
    directory = Path(directory)
    (directory / "csv").mkdir(parents=True, exist_ok=True)
    view = build(results)
    for name in TABLES:
        replace(directory / "csv" / f"{name}.csv", _csv(view, name))
    path = directory / "results.json"
    replace(path, json.dumps(view.results, indent=1, allow_nan=False) + "\n")
    if html:  # last: whatever the page links to is already there
        from ceiling.report import page  # Matplotlib takes longer to import than a configuration to be refused

        path = directory / "report.html"
        replace(path, page.html(view))
    return path


def _csv(view: View, name: str) -> str:
    """A table's rows as they are, columns in order of appearance; the bare header where there is no row."""
    rows = view.rows(name)
    columns = list(dict.fromkeys(key for row in rows for key in row)) or TABLES[name].split()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def replace(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
