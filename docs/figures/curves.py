"""The figure of concepts.md: pass@k of a prior and of what three ways of training make of it, computed and drawn.

    python docs/figures/curves.py        # writes docs/figures/curves.svg

One hundred invented problems. The prior solves sixty with rates spread evenly over the orders of magnitude from 0.4 to
0.002, and forty never. pass@k is exact, 1 - (1 - p)^k averaged over problems: no noise, no estimate.
"""

import pathlib

import numpy as np

K = np.geomspace(1, 1024, 81)
PRIOR = np.concatenate([0.4 * 0.005 ** np.linspace(0, 1, 60), np.zeros(40)])
SOLVED = PRIOR > 0
# name: success rates, label and where it stands (k, pass@k), class of the style sheet
CURVES = {
    "prior": (PRIOR, "prior", (5, 0.09), "prior"),
    "kept": (np.where(SOLVED, 0.95, 0), "re-weighted: the same problems, at once", (1.15, 0.66), "kept"),
    "lost": (np.where(PRIOR > 0.02, 0.95, 0), "contracted: rare ones lost", (125, 0.285), "lost"),
    "grown": (np.where(np.arange(100) < 80, np.where(SOLVED, 0.5, 0.01), 0), "expanded", (105, 0.80), "grown"),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 380, 52, 16, 16, 44
STYLE = """
  .paper { fill: #ffffff } text { font: 13px system-ui, sans-serif; fill: #24292f }
  .axis, .tick { stroke: #57606a; stroke-width: 1; fill: none } .small { font-size: 12px; fill: #57606a }
  .curve { fill: none; stroke-width: 2.5 } .ceiling { stroke: #57606a; stroke-dasharray: 6 4 } .dot { stroke: none }
  .prior { stroke: #24292f } .kept { stroke: #0b62b5 } .lost { stroke: #b54708 } .grown { stroke: #00694e }
  text.kept { fill: #0b62b5; stroke: none } text.lost { fill: #b54708; stroke: none }
  text.grown { fill: #00694e; stroke: none } text.prior { stroke: none }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #14181d } text, text.prior, .dot { fill: #e6e9ee } .small { fill: #a8b1bd }
    .axis, .tick, .ceiling { stroke: #a8b1bd } .prior { stroke: #e6e9ee } .kept { stroke: #5aa9f0 }
    .lost { stroke: #ff8f52 } .grown { stroke: #2fc79b } text.kept { fill: #5aa9f0 } text.lost { fill: #ff8f52 }
    text.grown { fill: #2fc79b }
  }"""
DESCRIPTION = (
    "pass@k against k from 1 to 1024 for four models. The prior rises from 0.05 towards 0.60, its ceiling, a dashed "
    "line. A re-weighted model lies at the ceiling from k = 2 on. A contracted one starts at 0.32 and stays at 0.34; "
    "the prior crosses it. An expanded one ends at 0.80, above the ceiling."
)


def pass_at_k(rate_P):
    """pass@k at every K of problems with these success rates."""
    return np.mean(1 - (1 - rate_P[:, None]) ** K, axis=0)


def crossing(above_K, below_K) -> tuple[float, float]:
    """(k, pass@k) where the first curve falls below the second, between two of the K on a logarithmic axis."""
    gap_K = above_K - below_K
    i = int(np.argmax(gap_K < 0))
    part = gap_K[i - 1] / (gap_K[i - 1] - gap_K[i])
    return float(K[i - 1] * (K[i] / K[i - 1]) ** part), float(above_K[i - 1] + part * (above_K[i] - above_K[i - 1]))


def x(k) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * np.log2(k) / 10


def y(value) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value


def line(x1, y1, x2, y2, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def words(px, py, said: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{said}</text>'


def draw() -> str:
    """The text of the SVG file."""
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    for k in 2 ** np.arange(0, 11, 2):
        parts += [line(x(k), y(0), x(k), y(0) + 5, "tick"), words(x(k), y(0) + 19, str(k), "small", "middle")]
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts += [line(x(1) - 5, y(value), x(1), y(value), "tick")]
        parts += [words(x(1) - 9, y(value) + 4, f"{value:g}", "small", "end")]
    parts += [f'<path class="axis" d="M{x(1):.1f} {y(1):.1f}V{y(0):.1f}H{x(1024):.1f}"/>']
    parts += [words(x(32), HEIGHT - 8, "k, samples of a problem", "small", "middle")]
    parts += [words(x(1) + 8, y(1) + 10, "pass@k, problems solved by one of k samples", "small")]
    reach = float(SOLVED.mean())
    parts += [line(x(1), y(reach), x(1024), y(reach), "ceiling")]
    parts += [words(x(9), y(reach) + 17, "the ceiling of this prior", "small")]
    for rate_P, label, (k, value), kind in CURVES.values():
        points = " ".join(f"{x(at):.1f},{y(v):.1f}" for at, v in zip(K, pass_at_k(rate_P), strict=True))
        parts += [f'<polyline class="curve {kind}" points="{points}"/>', words(x(k), y(value), label, kind)]
    k, value = crossing(*(pass_at_k(CURVES[name][0]) for name in ("lost", "prior")))
    parts += [f'<circle class="dot" cx="{x(k):.1f}" cy="{y(value):.1f}" r="5"/>']
    parts += [words(x(k) + 4, y(value) + 22, f"crossing, k = {k:.0f}")]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
    title = f"<title>Four pass@k curves and a ceiling</title><desc>{DESCRIPTION}</desc><style>{STYLE}</style>"
    return "\n".join([head, title, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    pathlib.Path(__file__).with_suffix(".svg").write_text(draw())
