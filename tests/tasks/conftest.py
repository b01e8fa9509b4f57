"""The tokenizer files of tests/data, for tasks that are given a checkpoint's tokenizer."""

import importlib.util
import pathlib

_FILE = pathlib.Path(__file__).parents[1] / "data" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tokenizer_files", _FILE)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
checkpoint = _module.checkpoint
