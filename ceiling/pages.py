"""Memory in large pages: a command that starts itself again with glibc told to ask for them.

On a CPU a training step fills hundreds of megabytes that the system gives it anew each time. In pages of 4 KiB the
faults and the misses of the processor's table of pages cost an eighth of the step. Linux hands out pages of 2 MiB to
those who ask ("madvise"), and glibc asks if its environment said so before the process began.
"""

import os
import pathlib
import platform
import sys

SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment() -> dict[str, str]:
    """What a process must be started with; {} where there is nothing to ask for, or the user has set the variable."""
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return {}
    try:
        asked_for = "[madvise]" in SETTING.read_text()
    except OSError:
        return {}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if asked_for else {}


def use() -> None:
    """Start this process again, which must be the user's command, with the same arguments, unless it was started so.
    Nothing may have been done yet. GLIBC_TUNABLES= (empty) leaves it as it is."""
    if (variable := environment()) and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variable})
