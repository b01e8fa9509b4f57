"""From a matplotlib figure to an inline SVG that belongs to the page it stands in.

A figure is drawn in *sentinel* colours: hex values that stand for a role (ink, grid, the third arm)
and are replaced by `currentColor` or a CSS variable on the way out. So the page, not the figure,
decides light or dark, and an arm has one colour in every figure. Sizes are CSS pixels at 72 dpi.

    fig, ax = canvas(300, 210)
    ax.plot([0, 1], [0, 1], color=arm_colour(0), gid="arm-0")
    svg = render(fig, "demo", title="A line", description="It rises from 0 to 1.")
"""

import hashlib
import io
import re
from html import escape

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# role: (sentinel, CSS value). The variables are set in style.css; what follows the comma in var() is
# for a figure that is taken out of its page. Expanded and gained share a colour, so do lost and contracted.
ROLES = {
    "ink": ("#010203", "currentColor"),
    "muted": ("#010204", "var(--muted, #5b6470)"),
    "grid": ("#010205", "var(--grid, #d9dde3)"),
    "gain": ("#010206", "var(--gain, #2563c9)"),
    "loss": ("#010207", "var(--loss, #c8500a)"),
    "same": ("#010208", "var(--same, #b9c0ca)"),
    "paper": ("#010209", "var(--paper, #ffffff)"),
    "phase-0": ("#01020a", "var(--phase-0, #274b7a)"),
    "phase-1": ("#01020b", "var(--phase-1, #6f97c9)"),
    "phase-2": ("#01020c", "var(--phase-2, #b4cbe6)"),
    "phase-3": ("#01020d", "var(--phase-3, #8a7fb5)"),
    "phase-4": ("#01020e", "var(--phase-4, #c9bfe0)"),
}

# (light, dark) pairs after Okabe and Ito. Text is set in them: each has a contrast of 4.5 or more on its paper.
ARM_COLOURS = (
    ("#0b62b5", "#5aa9f0"),
    ("#c24a08", "#ff8f52"),
    ("#00805f", "#2fc79b"),
    ("#a8428f", "#e88fce"),
    ("#946200", "#f0b93a"),
    ("#1d7a9c", "#74d4f2"),
    ("#7a3b2e", "#cf9c8d"),
    ("#5d7012", "#cfcb4b"),
)

_RC = {
    "svg.fonttype": "none",  # text stays text: searchable, selectable, in the page's own font
    "svg.image_inline": True,
    "text.parse_math": False,  # a `$` in somebody's arm name is a dollar sign
    "font.size": 11,
    "hatch.linewidth": 0.8,
    "path.simplify": True,
}


def role(name: str) -> str:
    """The sentinel to draw with for a role."""
    return ROLES[name][0]


def arm_colour(index: int) -> str:
    """The sentinel of arm `index`; beyond the palette the colours repeat (dash and marker then differ)."""
    return f"#a1{index:04x}"


def canvas(width: float, height: float, *, left=38, right=10, top=26, bottom=32):
    """(figure, axes) of width x height CSS pixels with fixed margins, transparent, in sentinel ink.

    Margins are given, not computed: constrained layout costs more than the drawing.
    """
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(role("muted"))
        spine.set_linewidth(0.8)
    axes.tick_params(colors=role("muted"), labelcolor=role("muted"), labelsize=11, length=0, pad=4)
    axes.grid(axis="y", color=role("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def heading(figure, text: str) -> None:
    """The visible title, at the left edge; cut where the figure ends (the full one is in <title>)."""
    width, height = (72 * size for size in figure.get_size_inches())
    limit = int(width / 7.4)
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    figure.text(
        2 / width,
        1 - 4 / height,
        shown,
        ha="left",
        va="top",
        size=12,
        weight="bold",
        color=role("ink"),
    )


def room(labels) -> float:
    """Pixels that the longest of these labels may take at the size of tick labels, in a wide font."""
    return 6.6 * max([len(label) for label in labels], default=0)


def render(figure, name: str, *, title: str, description: str) -> str:
    """The figure as an accessible inline <svg>: same input, same bytes; ids unique to `name`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"
    if re.search(r"[^\w -]", name, re.ASCII):  # names that differ in nothing else are two figures
        slug += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    buffer = io.StringIO()
    none = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=none)
    return _inline(buffer.getvalue(), slug, title, description)


def _inline(text: str, slug: str, title: str, description: str) -> str:
    """Cut the XML file down to what stands inside HTML, with roles and arms in the page's colours."""
    body = text[text.index("<svg") :]
    viewbox = re.search(r'viewBox="([^"]+)"', body).group(1)
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'<g id="arm-(\d+)(?:-(run-\d+))?">', _series, body)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)  # figure_1, axes_1, ...: the same in every figure
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{slug}-", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", r"font: \1\2px var(--figure-font, sans-serif)", body)
    # Inside tags only: a tick label 0.125 is text and stays as it is.
    body = re.sub(r"<[^>]+>", lambda tag: _slim(_colours(tag.group(0))), body)
    body = re.sub(r">\s*\n\s*<", "><", body)
    head = (
        f'<svg class="figure" viewBox="{viewbox}" role="img" '
        f'aria-labelledby="{slug}-title {slug}-desc" preserveAspectRatio="xMinYMin meet">'
        f'<title id="{slug}-title">{escape(title)}</title><desc id="{slug}-desc">{escape(description)}</desc>'
    )
    return head + body + "</svg>"


def _series(match) -> str:
    """Marks of an arm as classes, by which the page hides them and brings them out; of one run of several, also its."""
    arm, run = match.groups()
    return f'<g class="series arm-{arm}{f" {run}" if run else ""}">'


def _colours(body: str) -> str:
    for sentinel, value in ROLES.values():
        body = body.replace(sentinel, value)

    def arm(match):
        index = int(match.group(1), 16)
        return f"var(--arm-{index}, {ARM_COLOURS[index % len(ARM_COLOURS)][0]})"

    return re.sub(r"#a1([0-9a-f]{4})", arm, body)


def _slim(body: str) -> str:
    """Two decimals are a hundredth of a pixel; the rest is weight."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(\d+\.\d{2})\d+", r"\1", body))
