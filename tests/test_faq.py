"""Every line that docs/faq.md quotes is one that the code says: a changed message changes its page."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
QUOTED = re.findall(r"^\| `(.+?)` \| .+ \|$", (ROOT / "docs" / "faq.md").read_text(), re.M)
VALUE = "…"


def said():
    """Every text of the code, as one line per text, with VALUE for what it fills in."""
    for path in (ROOT / "ceiling").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(v.value if isinstance(v, ast.Constant) else VALUE for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture(scope="module")
def messages():
    return "\n".join(said())


def test_the_page_has_its_rows():
    rows = [line for line in (ROOT / "docs" / "faq.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(QUOTED) == len(set(QUOTED)) > 40


@pytest.mark.parametrize("line", QUOTED)
def test_what_the_page_quotes_is_said(line, messages):
    assert line.strip(VALUE + " ") in messages, "no text of the code has these words, with … for its values"
