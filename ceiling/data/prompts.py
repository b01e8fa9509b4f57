r"""From a question to the text a model sees: a plain template, or the checkpoint's own chat template.

A plain template is text with "{question}" in it once; other braces stand for themselves ("\boxed{}"). With chat=True
the filled template is the user's turn of the checkpoint's Jinja chat template, and the model's turn is opened.
What a family's documents must start with (BOS) is part of the text, once, so that `encode(prompt)` is all there is.
The template is part of an experiment's identity (invariant X-7): see `identity`.

User text that contains one of the tokenizer's control tokens is refused: it would open a turn or end the text.

Example:
    render(tokenizer, "2 + 2?", template="Q: {question}\nA: ", system="", chat=False)     # "Q: 2 + 2?\nA: "
"""

import hashlib
import json

from ceiling.config import ConfigError

SLOT = "{question}"


def render(tokenizer, question: str, *, template: str, system: str, chat: bool) -> str:
    """The prompt for a question. Raises ConfigError for a template that cannot be used, ValueError for a question
    that contains a control token."""
    check(tokenizer, template=template, system=system, chat=chat)
    if (token := control_token(tokenizer, question)) is not None:
        raise ValueError(f"contains {token!r}, a control token of the tokenizer; remove it")
    text = template.replace(SLOT, question)
    if not chat:
        return tokenizer.decode(tokenizer.bos_ids) + text
    from ceiling.data import chat_template  # Jinja takes a tenth of a second to import, and most tasks have no template

    turns = [{"role": "system", "content": system}] if system else []
    return chat_template.render(tokenizer.chat_template, turns + [{"role": "user", "content": text}], tokenizer.named)


def check(tokenizer, *, template: str, system: str, chat: bool) -> None:
    """Refuse what no question could be rendered with."""
    if template.count(SLOT) != 1:
        raise ConfigError(
            f"config.task.template={template!r} has {SLOT} {template.count(SLOT)} times; it must have it exactly once"
        )
    if chat and getattr(tokenizer, "chat_template", None) is None:
        source = getattr(tokenizer, "source", type(tokenizer).__name__)
        raise ConfigError(f"config.task.chat=True, but {source} has no chat template; set config.task.chat=False")
    if system and not chat:
        raise ConfigError("config.task.system is set and config.task.chat is False; write it into config.task.template")


def control_token(tokenizer, text: str) -> str | None:
    """The first control token of the tokenizer that stands in `text`, or None."""
    return next((token for token in tokenizer.special if token in text), None)


def identity(tokenizer, *, template: str, system: str, chat: bool) -> str:
    """SHA-256 of everything that turns a question into a prompt."""
    kind = ["chat", tokenizer.chat_template] if chat else ["plain", tokenizer.decode(tokenizer.bos_ids)]
    return hashlib.sha256(json.dumps([*kind, template, system]).encode()).hexdigest()
