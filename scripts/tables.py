"""Tables that a script measures and writes into a page, between two comments that name the script."""

import pathlib

RELIABILITY = pathlib.Path(__file__).parents[1] / "docs" / "reliability.md"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def write(page: pathlib.Path, script: str, text: str) -> None:
    """Replace what stands between the comments of `script` (its path in the repository). Raises ValueError in one line
    where the page has no place for it."""
    begin, end = f"<!-- {script} -->", f"<!-- end of {script} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page}: no place for the table; write {begin} and {end} where it belongs")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
