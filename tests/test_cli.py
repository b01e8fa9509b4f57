"""What is wrong with a command line or a config file is one line that says what, where and what to do, and code 2."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from ceiling import cli

# ml_collections loads a config file that way where Python still has it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
LAB = "--config=configs/lab.py"
RAISING = "import ceiling\n\ndef get_config(arg=''):\n    {}\n"
OF_THE_FILE = {  # a config file -> what is said of it
    "def get_config(:": "SyntaxError: invalid syntax",
    "x = 1": "the file does not define get_config",
    "import nothing_here": "ModuleNotFoundError: No module named 'nothing_here' (mine.py, line 1)",
    RAISING.format("pass"): "get_config() returned None; return a configuration",
    RAISING.format("return 3"): "get_config() returned int; return a configuration",
    RAISING.format("return ceiling.arm('grpo', lrr=1)"): "unknown key 'lrr' (did you mean 'lr'?) (mine.py, line 4)",
    RAISING.format("return open('/no/such/file')"): "FileNotFoundError: [Errno 2] No such file or directory: "
    "'/no/such/file' (mine.py, line 4)",
    RAISING.format("return {}['a']"): "KeyError: 'a' (mine.py, line 4)",
    RAISING.format("raise ValueError('two\\nlines')"): "two lines (mine.py, line 4)",
    RAISING.format("return ceiling.arm('/r.py')"): "regime='/r.py': no such file; paths are relative to "
    "where the command is started (mine.py, line 4)",
}


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as a command with --config and --plan does."""

    def parse(*argv: str) -> list[str]:
        own = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "Experiment", lock_config=True, flag_values=own)
        flags.DEFINE_bool("plan", False, "", flag_values=own)
        flags.mark_flags_as_required(["config"], flag_values=own)
        monkeypatch.setattr(flags, "FLAGS", own)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # else an earlier file lives on in it
        monkeypatch.setattr(sys, "argv", ["ceiling", *argv])
        return cli.parse(sys.argv)

    return parse


@pytest.fixture
def refused(parse, capsys):
    """What is said as the process ends over a command line."""

    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit) as end:
            parse(*argv)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("ceiling: ")

    return refused


@pytest.mark.parametrize(("argv", "line"), [
    ([], "--config is missing: Experiment"),
    ([LAB, "--config.arms.grpo.lrr=1"], "config.arms.grpo.lrr: unknown key (did you mean 'lr'?)"),
    ([LAB, "--config.workers=2", "--config.evals.n=4"], "config.evals: unknown key (did you mean 'eval'?)"),
    ([LAB, "--config.eval.n.x=4"], "config.eval.n.x: unknown key"),
    ([LAB, "--config.arms.grpo.lr=fast"], "--config.arms.grpo.lr=fast must be a number"),
    ([LAB, "--config.workers=1.5"], "--config.workers=1.5 must be a whole number"),
    ([LAB, "--config.arms=3"], "--config.arms=3: Failed to parse '3' as a ConfigDict: `3` is not a dict."),
    ([LAB, "--arms.grpo.lr=1"], "Unknown command line flag 'arms.grpo.lr'; values of the configuration are given as "
     "--config.key=value"),
    (["--config.workers=1", LAB], "Found --config.workers=1 in argv before a value for --config was specified"),
    (["--config"], "Missing value for flag --config"),
    (["--config=configs/no.py"], "--config='configs/no.py': no such file; paths are relative to where the command is "
     "started"),
    (["--config=configs/no.py", "--config.workers=1"], "--config='configs/no.py': no such file; paths are relative to "
     "where the command is started"),
    (["--config", "configs/lab.py:tiy"], "--config='configs/lab.py': configs/lab.py:tiy is not a variant; use "
     "configs/lab.py or configs/lab.py:tiny (lab.py, line 36)"),
])  # fmt: skip
def test_a_command_line_that_is_refused(refused, argv, line):
    assert refused(*argv) == line


@pytest.mark.parametrize(("content", "line"), OF_THE_FILE.items())
def test_a_config_file_that_is_refused(refused, tmp_path, content, line):
    file = tmp_path / "mine.py"
    file.write_text(content)
    assert refused(f"--config={file}").startswith(f"--config='{file}': {line}")


def test_a_command_line_that_is_right(parse):
    assert parse(LAB, "--config.arms.grpo.lr=1e-3", "--plan", "word") == ["ceiling", "word"]
    assert flags.FLAGS.config.arms.grpo.lr == 1e-3 and flags.FLAGS.plan
