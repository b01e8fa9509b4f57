"""The documentation as a site, which reads without a network: `make docs`, then docs/_build/html/index.html.

Pages are plain Markdown, as a code host shows it. What the site adds to that is here:

    navigation   the lists of pages in index.md and api.md are its tables of contents
    notebooks    a page of notebooks/ is followed by what it is about, a py:percent file of colabs/
    links        a name of the package in code type leads to its entry in the reference
    docstrings   are plain text: what reStructuredText takes for mark-up is escaped, indented blocks stand as they are
    formulas     are MathML, which browsers set by themselves
"""

import pathlib
import re
import sys

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ceiling.version import __version__  # noqa: E402

project, version, release = "ceiling", __version__, __version__
copyright = "the ceiling authors, Apache-2.0"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
smartquotes = False  # docstrings have code in them
python_maximum_signature_line_length = 100
html_theme = "furo"
html_title = f"ceiling {__version__}"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
nitpicky = True
# Types of other packages, whose inventories are on the network, and those that no page describes.
nitpick_ignore_regex = [
    ("py:.*", r"ceiling\.report\..*"),
    ("py:.*", r"(jax|jaxlib|np|numpy|pa|pyarrow|pandas|optax|flax|ml_collections|pathlib|collections|typing)\..*"),
]

LISTS = ("index", "api", "claims")  # pages whose lists (or tables) of pages are tables of contents
_log = logging.getLogger(__name__)


def read(app, docname: str, source: list[str]) -> None:
    """What a page is besides its text."""
    if docname in LISTS:
        source[0] += "\n".join(contents(source[0]))
    if docname.startswith("notebooks/"):
        script = ROOT / "colabs" / f"{docname.removeprefix('notebooks/')}.py"
        app.env.note_dependency(str(script))
        source[0] += "\n" + notebook(script.read_text())


def contents(page: str) -> list[str]:
    """A hidden table of contents for every section of a page that lists pages."""
    out = []
    for number, part in enumerate(re.split(r"^## ", page, flags=re.M)):
        caption = [f":caption: {part.partition(chr(10))[0]}"] if number else []
        if pages := re.findall(r"^(?:- |\| )\[[^]]+\]\(([\w/]+)\.md\)", part, re.M):
            out += ["", "```{toctree}", ":hidden:", *caption, "", *pages, "```"]
    return out


def notebook(script: str) -> str:
    """Markdown of a py:percent file without its title, which the page has, and without the cells that install; links,
    which start from colabs/, start from docs/notebooks/."""
    out = []
    for number, cell in enumerate(re.split(r"^# %%", script, flags=re.M)[1:]):
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", body, flags=re.M).strip().replace("](../docs/", "](../")
            body = text if number else text.partition("\n")[2]
        else:
            body = f"```python\n{body.strip()}\n```"
        if "start" not in kind:
            out.append(body)
    return "\n\n".join(out)


def escaped(app, what, name, obj, options, lines: list[str]) -> None:
    """A plain-text docstring as reStructuredText, in place."""
    out, literal = [], False
    for line in lines:
        indented = line.startswith("    ") or line.startswith(">>> ")
        if indented and not literal:
            out += ["", "::", ""]
        elif literal and line and not indented:
            out.append("")
        literal = indented or literal and not line
        if indented or not line:
            out.append(f"    {line}".rstrip())
            continue
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|\\@]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        out.append("``".join(parts))
    lines[:] = out


def plain(app, what, name, obj, options, signature, returns):
    """Defaults that have no text of their own as dots: a signature that Python cannot read has no links."""
    return re.sub(r"<[^<>]*(<[^<>]*>)?[^<>]*>", "...", signature or "") or None, returns


class Names(SphinxPostTransform):
    """`ceiling.x.y` in code type becomes a link, where the reference has an entry of that name."""

    default_priority = 5

    def run(self, **kwargs) -> None:
        domain = self.env.domains.python_domain
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removesuffix("()")
            if name in domain.objects and not isinstance(literal.parent, nodes.reference):
                entry = domain.objects[name]
                to = self.app.builder.get_relative_uri(self.env.docname, entry.docname)
                link = nodes.reference("", "", internal=True, refuri=f"{to}#{entry.node_id}")
                literal.replace_self(link)
                link += literal


def mathml(translator, node, *, block: bool) -> None:
    """Writes a formula as MathML."""
    tex = re.sub(r"\\[bB]igg?[lr]?(?![a-zA-Z])", "", node.astext())  # sizes of delimiters are a browser's matter
    try:
        formula = latex2mathml.tex2mathml(tex, as_block=block)
    except MathError as error:
        _log.warning("formula not understood (%s): %s", error, node.astext(), location=node)
        formula = ""
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", escaped)
    app.connect("autodoc-process-signature", plain)
    app.add_post_transform(Names)
    app.add_html_math_renderer(
        "mathml", (lambda self, node: mathml(self, node, block=False), None),
        (lambda self, node: mathml(self, node, block=True), None),
    )  # fmt: skip
