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

# The page forbids itself to load anything: a stray address in a title stays text.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html(view: View) -> str:
    """The whole page as a string; the same view gives the same string."""
    name = escape(str(view.meta.get("name") or "experiment"))
    task = (view.meta.get("task") or {}).get("name")
    links = "".join(f'<a href="#{key}">{escape(short)}</a>' for key, short, _, _ in SECTIONS)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>'
        f"{build(view)}</section>"
        for key, _, title, build in SECTIONS
    )
    about = f"Experiment <b>{name}</b>" + (f" on task <b>{escape(str(task))}</b>" if task else "")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><title>{name}: ceiling report</title><style>{_css(view)}</style></head>\n<body>'
        '<a class="skip" href="#verdicts">Skip to the verdicts</a>'
        f"<header><p>{about}</p><h1>{escape(sections.QUESTION)}</h1></header>"
        f'<div class="bar"><nav aria-label="Sections">{links}</nav>{_legend(view)}</div>'
        f"<main>{body}</main></body></html>\n"
    )


def _legend(view: View) -> str:
    """Check boxes with the arms' lines: the one legend of the page."""
    boxes = "".join(
        f'<label class="pick pick-{look.index}"><input type="checkbox" checked id="show-{look.index}">'
        f"{chip(look)}</label>"
        for look in view.looks.values()
        if look.kind != "source"
    )
    return (
        f'<div class="legend" role="group" aria-label="Arms shown in the figures">{boxes}</div>'
        if boxes
        else ""
    )


def _css(view: View) -> str:
    """style.css, the arms' colours for light and dark, and the rules that let the legend hide and point."""
    light, dark, rules = [], [], []
    for look in view.looks.values():
        i = look.index
        if look.kind in ("arm", "source"):
            pair = ARM_COLOURS[i % len(ARM_COLOURS)]
            light.append(f"--arm-{i}:{pair[0]};")
            dark.append(f"--arm-{i}:{pair[1]};")
        rules.append(f"body:has(#show-{i}:not(:checked)) .series.arm-{i}{{display:none}}")
        rules.append(f"body:has(.pick-{i}:hover) .series:not(.arm-{i}){{opacity:.12}}")
    colours = f":root{{{''.join(light)}}}@media (prefers-color-scheme:dark){{:root{{{''.join(dark)}}}}}"
    return Path(__file__).with_name("style.css").read_text("utf-8") + colours + "".join(rules)
