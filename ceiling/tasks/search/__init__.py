"""Search: an agent asks a search engine, hop by hop, until it can answer.

Without data of your own the world is generated (`generated.py`); with documents in config.data.path the questions and
the documents are yours (`own.py`). Both are asked through one class (`environment.py`).
"""

from ceiling.config import ConfigError, Section, number, text
from ceiling.tasks.search import generated, own

CONFIG = Section(
    name=text("search"),
    seed=number(2026, whole=True, low=0, doc="draws the world and its problems, or splits your questions"),
) | generated.CONFIG | own.CONFIG  # fmt: skip


def make(config, data, tokenizer=None) -> generated.GeneratedSearch | own.OwnSearch:
    """The generated world has an alphabet of its own: a checkpoint's tokenizer is refused."""
    if data["path"]:
        return own.OwnSearch(config, data["path"], tokenizer)
    for key in ("questions_path", "evaluation_path"):
        if config[key]:
            raise ConfigError(f"config.task.{key} is set, and config.data.path names no documents to search; set it")
    if tokenizer is not None:
        raise ConfigError("config.model.path: the generated world of search has an alphabet of its own and trains from "
                          "scratch; leave it out, or name documents of your own in config.data.path")  # fmt: skip
    return generated.GeneratedSearch(config)
