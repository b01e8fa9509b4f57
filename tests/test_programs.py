"""Where compiled programs are kept."""

import os
import subprocess
import sys

SHOW = """
import os
from ceiling import programs
programs.keep()
import jax
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""


def shown(code=SHOW, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    out = subprocess.run([sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_programs_are_kept_in_the_users_cache_of_this_kind_of_machine(tmp_path):
    folder, most = shown(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(f"{tmp_path}/ceiling/programs-") and int(most) == 2 << 30
    assert shown(XDG_CACHE_HOME=str(tmp_path)) == [folder, most]


def test_what_the_user_set_stays(tmp_path):
    assert shown(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[0] == str(tmp_path)


def test_a_command_that_has_imported_jax_keeps_them_too(tmp_path):
    assert shown("import jax\n" + SHOW, XDG_CACHE_HOME=str(tmp_path)) == shown(XDG_CACHE_HOME=str(tmp_path))
