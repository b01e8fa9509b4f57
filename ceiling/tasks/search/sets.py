"""Question sets and documents as users have them: HotpotQA, MuSiQue, Natural Questions (open); title and text.

    format     answers                     groups           paragraphs
    hotpotqa   answer                      type             context
    musique    answer, answer_aliases      hops, from id    paragraphs
    nq         answer, one or several      -                -

Read from wherever `ceiling.data.sources` reads. The paragraphs of a set may serve as the documents. Whatever is wrong
is refused in one line that names the file, the line and the remedy.
"""

import dataclasses
import re

from ceiling.config import ConfigError
from ceiling.data import sources
from ceiling.tasks.search.answers import normalised


@dataclasses.dataclass(frozen=True)
class Format:
    """Names of the fields; "" where the format has none."""

    answers: tuple[str, ...]
    group: str
    paragraphs: str


FORMATS = {
    "hotpotqa": Format(("answer",), "type", "context"),
    "musique": Format(("answer", "answer_aliases"), "id", "paragraphs"),
    "nq": Format(("answer",), "", ""),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """answers: the gold first, then its aliases. place: where it stands, for messages."""

    text: str
    answers: tuple[str, ...]
    group: str
    place: str


def questions(path: str, config, name: str) -> tuple[list[Question], str]:
    """(questions, SHA-256 of their rows). name: the configuration key that the path came from."""
    form = FORMATS[config["questions_format"]]
    answers = (config["answer_field"],) if config["answer_field"] else form.answers
    group = config["group_field"] or form.group
    fields = dict.fromkeys((config["question_field"], *answers, *([group] if group else [])))
    rows = sources.read(path, fields=list(fields), name=name)
    out = [_question(row, config["question_field"], answers, group, by_hops=group == "id") for row in rows]
    return out, sources.digest(rows)


def _question(row: dict, field: str, answers: tuple[str, ...], group: str, by_hops: bool) -> Question:
    place, text = row[sources.PLACE], row[field]
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place}: `{field}` is not text, or empty; fix or drop it")
    golds: list[str] = []
    for name in answers:
        values = [row[name]] if isinstance(row[name], str) else row[name]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{place}: `{name}` is neither text nor a list of texts; fix or drop it")
        golds += values
    golds = [gold.strip() for gold in golds if normalised(gold)]  # any response would match an empty one
    if not golds:
        raise ConfigError(f"{place}: no answer in `{answers[0]}` but articles and punctuation; fix or drop it")
    return Question(text.strip(), tuple(golds), _group(row, group, by_hops) if group else "all", place)


def _group(row: dict, field: str, by_hops: bool) -> str:
    value = row[field]
    if by_hops:  # 2hop__482757_12019, 3hop1__..., 4hop3__...
        match = re.match(r"[0-9]+hop", str(value))
        if match is None:
            raise ConfigError(
                f"{row[sources.PLACE]}: `id` {value!r} does not begin with its hops (2hop__...); fix it, or set "
                "config.task.group_field"
            )
        return match[0]
    return re.sub(r"\s+", "_", value.strip() if isinstance(value, str) else f"{field} {value}") or "none"


def documents(path: str, config) -> tuple[list[str], str]:
    """(documents as they are shown, title first, without repetitions; SHA-256 of their rows)."""
    name, form = "config.data.path", FORMATS.get(config["documents_format"])
    if form is None:
        title, text = config["title_field"], config["text_field"]
        rows = sources.read(path, fields=[text, *([title] if title else [])], name=name)
        found = [_document(row[sources.PLACE], row[title] if title else "", row[text]) for row in rows]
    else:
        rows = sources.read(path, fields=[form.paragraphs], name=name)
        found = [
            _document(row[sources.PLACE], *pair)
            for row in rows for pair in _paragraphs(row[sources.PLACE], form.paragraphs, row[form.paragraphs])
        ]  # fmt: skip
    return list(dict.fromkeys(found)), sources.digest(rows)


def _document(place: str, title, text) -> str:
    if not isinstance(title, str) or not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place}: a document's title or text is not text, or its text is empty; fix or drop it")
    return f"({title.strip()}) {text.strip()}" if title.strip() else text.strip()


def _paragraphs(place: str, field: str, value):
    """(title, text) pairs: HotpotQA's [title, sentences] pairs or columns of them, or MuSiQue's records."""
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["title"], value["sentences"], strict=True))
        elif value and isinstance(value[0], dict):
            pairs = [(paragraph["title"], paragraph["paragraph_text"]) for paragraph in value]
        else:
            pairs = [(title, sentences) for title, sentences in value]
        return [(title, text if isinstance(text, str) else "".join(text)) for title, text in pairs]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{place}: `{field}` is not paragraphs: [title, sentences] pairs, or records with a title and a "
            "paragraph_text; fix it or check config.task.documents_format"
        ) from None
