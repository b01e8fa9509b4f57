"""A checkpoint's chat template, run where it can do no harm.

A chat template is a program that came with the weights. It runs in Jinja's immutable sandbox: no attribute that leads
to Python's internals, no change of what it was given, no padding to a width, no counting loop, sum, product or output
beyond the limits below. Jinja cannot bound everything (`replace` and `join` of long texts, loops over texts), so load
checkpoints whose origin you trust.
"""

import datetime
import functools
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from ceiling.config import ConfigError

MAX_TEMPLATE = 100_000  # characters of a chat template
MAX_LOOPS = 100_000  # numbers that all range() calls of one rendering may give
MAX_TEXT = 1_000_000  # characters of a rendered prompt, and of any sum or product on the way to it
TODAY = datetime.datetime(2024, 7, 26)  # what templates that write the date are told: a prompt must not age


class _Limit(Exception):
    pass


def render(source: str, messages: list[dict], named: dict[str, str]) -> str:
    """The template's text for `messages` with the model's turn opened; named: the tokenizer's tokens by name. Raises
    ConfigError for a template that fails or asks for more than the limits."""
    budget = [MAX_LOOPS]

    def bounded_range(*bounds):
        numbers = range(*bounds)
        budget[0] -= len(numbers)
        if budget[0] < 0:
            raise _Limit(f"loops over more than {MAX_LOOPS} numbers")
        return numbers

    out, size = [], 0
    try:
        for part in _compiled(source).generate(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, range=bounded_range, **named
        ):
            out.append(part)
            size += len(part)
            if size > MAX_TEXT:
                raise _Limit(f"writes more than {MAX_TEXT} characters")
    except (jinja2.TemplateError, _Limit) as error:
        raise ConfigError(_refusal(error)) from None
    except Exception as error:  # noqa: BLE001 - a template may provoke any Python error
        raise ConfigError(_refusal(f"{type(error).__name__}: {error}")) from None
    return "".join(out)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > MAX_TEMPLATE:
        raise ConfigError(_refusal(f"is longer than {MAX_TEMPLATE} characters"))
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    for name in ("center", "format", "indent", "batch", "slice"):  # any size from a few characters
        del environment.filters[name]
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ConfigError(_refusal(error)) from None


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also stops the operators and methods with which two short words make a text of any size."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, *args):
        return _ConcatenationAsSum().visit(super()._parse(*args))

    def is_safe_attribute(self, obj, attr, value):
        return attr not in _PADDING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value):
        return None  # Jinja's own safe str.format knows no widths: left to `is_safe_attribute`, which refuses it

    def call_binop(self, context, operator, left, right):
        if operator == "+" and all(hasattr(x, "__len__") for x in (left, right)) and len(left) + len(right) > MAX_TEXT:
            raise _Limit(f"makes more than {MAX_TEXT} characters")
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise _Limit(f"uses {operator!r}, which chat templates have no need of")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(times, int) and len(many) * times > MAX_TEXT:
                    raise _Limit(f"makes more than {MAX_TEXT} characters")
            if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**63:
                raise _Limit("multiplies numbers beyond 64 bits")
        return super().call_binop(context, operator, left, right)


_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"}


class _ConcatenationAsSum(jinja2.visitor.NodeTransformer):
    """a ~ b as a sum of texts, which the sandbox sees."""

    def visit_Concat(self, node):
        text = lambda part: jinja2.nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno)  # noqa: E731
        parts = [text(part) for part in self.generic_visit(node).nodes]
        return functools.reduce(lambda left, right: jinja2.nodes.Add(left, right, lineno=node.lineno), parts)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Without the HTML escapes of Jinja's own: the text is for a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message):
    raise jinja2.TemplateError(str(message))


def _refusal(error) -> str:
    said = " ".join(str(error).split())[:200]
    return f"the checkpoint's chat template cannot be used ({said}); set config.task.chat=False, or repair the template"
