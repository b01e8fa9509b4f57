"""The page: ten sections in one self-contained HTML file. Nothing is loaded from anywhere.

Light and dark follow the reader's setting. The bar of arm names at the top is the legend of every figure; its
check boxes hide an arm and pointing at a name brings it out, both by CSS alone.
"""

from html import escape
from pathlib import Path

from ceiling.report import costs, sections
from ceiling.report.svg import ARM_COLOURS
from ceiling.report.tables import chip
from ceiling.report.view import View

SECTIONS = (  # id, name in the navigation, heading, function
    ("verdicts", "Verdicts", "What training did", sections.headline),
    ("curves", "pass@k", "pass@k curves", sections.curves),
    ("difference", "Crossing", "The honest pair and the crossing", sections.pair),
    ("new", "New", "What is new", sections.new),
    ("diversity", "Diversity", "Diversity", sections.diversity),
    ("budget", "Budget", "What it cost", costs.budget),
    ("training", "Training", "Training curves", costs.training),
    ("gain", "Thought", "What a thought is worth", costs.gain),
    ("reading", "Reading", "Null arm, gates, and how to read this page", costs.reading),
    ("configuration", "Setup", "Configuration and environment", costs.configuration),
)

# A page forbids itself to load anything: a stray address in a title stays text.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html(view: View) -> str:
    """The whole page as a string; the same view gives the same string."""
    name = escape(str(view.meta.get("name") or "experiment"))
    task = (view.meta.get("task") or {}).get("name")
    body = [(key, short, title, build(view)) for key, short, title, build in SECTIONS]
    about = f"Experiment <b>{name}</b>" + (f" on task <b>{escape(str(task))}</b>" if task else "")
    return document(
        f"{name}: ceiling report",
        f"<p>{about}</p><h1>{escape(sections.QUESTION)}</h1>",
        body,
        legend(view.looks),
        style(view.looks),
    )


def document(title: str, header: str, body, legends: str, css: str) -> str:
    """A page of its own from escaped parts. body: (id, name in the navigation, heading, HTML) of every section."""
    links = "".join(f'<a href="#{key}">{escape(short)}</a>' for key, short, *_ in body)
    main = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(heading)}</h2>{content}</section>'
        for key, _, heading, content in body
    )
    first, short, *_ = body[0]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><title>{title}</title><style>{css}</style></head>\n<body>'
        f'<a class="skip" href="#{first}">Skip to {escape(short.lower())}</a><header>{header}</header>'
        f'<div class="bar"><nav aria-label="Sections">{links}</nav>{legends}</div><main>{main}</main></body></html>\n'
    )


def legend(looks) -> str:
    """Check boxes with the arms' lines: the one legend of the page."""
    shown = [look for look in looks.values() if look.kind != "source"]
    return boxes("Arms shown in the figures", [(f"show-{look.index}", chip(look)) for look in shown])


def boxes(label: str, items) -> str:
    """A row of check boxes, all on; items: (id, HTML). `style` says what off means."""
    body = "".join(
        f'<label class="pick {key}"><input type="checkbox" checked id="{key}">{content}</label>'
        for key, content in items
    )
    return f'<div class="legend" role="group" aria-label="{escape(label)}">{body}</div>' if body else ""


def style(looks, runs: int = 0) -> str:
    """style.css, the arms' colours for light and dark, and the rules that let the legends hide and point."""
    light, dark, rules = [], [], []
    for look in looks.values():
        i = look.index
        if look.kind in ("arm", "source"):
            pair = ARM_COLOURS[i % len(ARM_COLOURS)]
            light.append(f"--arm-{i}:{pair[0]};")
            dark.append(f"--arm-{i}:{pair[1]};")
        rules += _rules(f"show-{i}", f"arm-{i}")
    for i in range(runs):
        rules += _rules(f"only-{i}", f"run-{i}")
    colours = f":root{{{''.join(light)}}}@media (prefers-color-scheme:dark){{:root{{{''.join(dark)}}}}}"
    return Path(__file__).with_name("style.css").read_text("utf-8") + colours + "".join(rules)


def _rules(box: str, series: str) -> list[str]:
    return [
        f"body:has(#{box}:not(:checked)) .series.{series}{{display:none}}",
        f"body:has(.{box}:hover) .series:not(.{series}){{opacity:.12}}",
    ]
