"""Commands ask for large pages of memory, by starting themselves again."""

import os
import subprocess
import sys

import pytest

from ceiling import pages

SHOW = """
import os, sys
from ceiling import pages
pages.SETTING = __import__("pathlib").Path(sys.argv[1])
pages.use()
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), *sys.argv[2:])
"""


@pytest.fixture
def madvise(tmp_path, monkeypatch):
    """A system that hands out large pages to those who ask."""
    monkeypatch.setattr(pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(pages, "SETTING", tmp_path / "enabled")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    pages.SETTING.write_text("always [madvise] never\n")
    return pages.SETTING


def test_a_process_is_to_be_started_with_glibcs_tunable(madvise):
    assert pages.environment() == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("case", ["all have them", "none has", "no such setting", "another libc", "set by the user"])
def test_nothing_is_asked_for_where_it_would_change_nothing(case, madvise, monkeypatch):
    if case == "all have them":
        madvise.write_text("[always] madvise never\n")
    elif case == "none has":
        madvise.write_text("always madvise [never]\n")
    elif case == "no such setting":
        madvise.unlink()
    elif case == "another libc":
        monkeypatch.setattr(pages.platform, "libc_ver", lambda: ("", ""))
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert pages.environment() == {}
    monkeypatch.setattr(pages.os, "execve", lambda *a: pytest.fail("started again"))
    pages.use()


@pytest.mark.skipif(pages.platform.libc_ver()[0] != "glibc", reason="there is no glibc here to be told")
def test_a_command_starts_itself_again_with_its_own_arguments(madvise):
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW, str(madvise), "--a=b c", ""], env=inherited, stdout=subprocess.PIPE, text=True
    )
    said = process.communicate()[0]
    assert said == f"glibc.malloc.hugetlb=1 {process.pid} --a=b c \n", "the same process, with what it was given"
