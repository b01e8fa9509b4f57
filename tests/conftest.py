"""Eight CPU devices and one compilation cache for every test, set before jax is imported; tiny models shared by the
suites. `make test` compiles most tests with XLA's CPU optimisations off, which is three times as fast, and those
marked `exact` as a user's programs are compiled."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

_DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    assert "jax" not in sys.modules, "jax was imported before tests/conftest.py could ask for eight devices"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # test processes side by side and commands under test inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ceiling-xla-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")

import functools  # noqa: E402

import pytest  # noqa: E402

TINY = dict(vocab_size=13, width=16, ffn=24, layers=2, heads=4, kv_heads=2, head_dim=8, embed_std=0.5)
# Every field that shapes the mathematics away from its default.
ODD = dict(TINY, heads=6, kv_heads=2, head_dim=4, rope_base=50.0, norm_eps=1e-2, tied=False, qk_norm="head",
           qkv_bias=True, qk_bias_std=0.5)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Whole runs first: the last file of a test process is then a short one."""
    here = pathlib.Path(__file__).parent
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.parent != here))


@functools.cache
def _model(seed: int, items: tuple):
    """Weights drawn with NumPy from the table: nothing is compiled."""
    import jax.numpy as jnp
    import numpy as np

    from ceiling.model.config import ModelConfig, table, unflatten

    config, rng = ModelConfig(**dict(items)), np.random.default_rng(seed)

    def draw(spec):
        base = np.ones(spec.shape) if spec.std is None else spec.std * rng.normal(size=spec.shape)
        return jnp.asarray((base + 0.3 * rng.normal(size=spec.shape)).astype(np.float32), spec.dtype)

    return config, unflatten({path: draw(spec) for path, spec in table(config).items()})


@pytest.fixture(scope="session")
def make_model():
    """make_model(seed=0, odd=False, **fields) -> (config, params). Noise is added to every weight, so
    that no norm scale is one and no bias is zero: a weight that is left out shows in the logits."""

    def make(seed: int = 0, odd: bool = False, **fields):
        return _model(seed, tuple(sorted({**(ODD if odd else TINY), **fields}.items())))

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model):
    return make_model()
