"""Every program compiles for described slices of TPUs, fits their memory, and talks only as it should.

Nothing is allocated and no TPU is needed: `make test-tpu` runs this in an environment of its own with libtpu. The
compiler refuses what exceeds a chip's memory, and works at its least effort here. The plan's peak agrees with its own
within 10 % for every program (docs/scaling.md has the ratios).
"""

import dataclasses
import importlib.util

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not in this environment: `make test-tpu` runs these", allow_module_level=True)

from ceiling.devices import DEVICES
from ceiling.model.sharding import mesh_over
from ceiling.plan import compiled
from ceiling.plan.programs import programs, train_step
from ceiling.plan.slices import PROGRAMS, SLICES, devices, planned, setting

pytestmark = pytest.mark.tpu


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("at", SLICES, ids=str)
def test_it_fits_and_gathers_no_more_than_it_should(at, name):
    here = setting(at)
    made = programs(here)
    assert set(made) == set(PROGRAMS)
    found = compiled.report(made[name]().lower(), compiled.QUICK)
    found.save(at.report(name))
    print(f"{name}: {found.total / 1e9:.2f} GB of {DEVICES[at.device].memory / 1e9:.0f} GB")
    assert found.total <= DEVICES[at.device].memory
    assert compiled.unexpected(found.collectives, here.model, here.mesh) == []
    if plan := planned(here, name):
        ratio = plan / found.peak
        print(f"{name}: plan / compiler = {ratio:.3f}")
        assert 0.9 < ratio < 1.1
    gathers = [c for c in found.collectives if c.kind == "all-gather" and c.times >= here.model.layers]
    assert gathers, "weights are fully sharded: a layer's are gathered in every pass over it"


def test_rows_of_several_responses_compile_and_need_no_more_than_planned():
    """Their head and cells are attended apart inside a scanned layer."""
    here = setting(SLICES[0])
    cfg = here.arms["grpo"]
    cfg.update(responses_per_row=4, microbatches=cfg["microbatches"] // 4)
    found = compiled.report(train_step(here, cfg).lower(), compiled.QUICK)
    assert 0.75 * planned(here, "grpo") < found.peak < planned(here, "grpo")


def test_devices_that_share_the_batch_alone_exchange_gradients_once_a_step():
    here = setting(SLICES[0])
    model = dataclasses.replace(here.model, width=1024, layers=4, vocab_size=32_000)  # held whole by every chip
    here = dataclasses.replace(here, model=model, mesh=mesh_over(devices(SLICES[0].topology), 8, 1, 1))
    cfg = here.arms["grpo"]
    cfg.update(microbatches=cfg["microbatches"] // 2)
    found = compiled.report(train_step(here, cfg).lower(), compiled.QUICK)
    assert {(c.kind, c.times) for c in found.collectives} == {("all-reduce", 1)}
    assert 0.9 < planned(here, "grpo") / found.peak < 1.25
