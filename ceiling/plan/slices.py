"""Slices of TPUs that every program is compiled for without one (`make test-tpu`, scripts/scaling.py).

The compiler is libtpu's, which runs on any x86 machine; a topology is only described. Lengths and batches are those of
configs/real.py: prompts of 256 tokens, responses of 512, 64 prompts and 8 samples an update, float32 weights and
moments, bfloat16 products.
"""

import dataclasses
import os
import pathlib

import ceiling
from ceiling.config import plain
from ceiling.model.config import ModelConfig
from ceiling.model.families import PRESETS
from ceiling.model.sharding import mesh_over
from ceiling.plan import memory
from ceiling.plan.programs import Setting
from ceiling.regimes import base as regimes
from ceiling.train.loop import layout

PROGRAMS = ("sft", "distill", "grpo", "rlp", "prefill", "decode", "sampling", "score")
PROMPT, RESPONSE, BATCH = 256, 512, dict(prompts_per_step=64, samples_per_prompt=8)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A model on a described topology, and the mesh over its chips; rows: of a micro-batch on each part of the mesh;
    slots: decoded at once, over all chips."""

    model: str
    topology: str
    data: int
    fsdp: int
    tensor: int
    rows: int
    slots: int

    @property
    def device(self) -> str:
        """Its name in ceiling/devices.py."""
        return self.topology.split(":")[0]

    @property
    def chips(self) -> int:
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        return f"{self.model} on {self.topology}"

    def report(self, program: str) -> pathlib.Path:
        """Where `make test-tpu` leaves what the compiler said, and scripts/scaling.py looks for it."""
        return pathlib.Path("build/tpu") / f"{self.model}-{self.topology.replace(':', '-')}-{program}.json"


SLICES = (
    Slice("qwen3-1.7b", "v5e:2x4", data=1, fsdp=4, tensor=2, rows=2, slots=128),
    Slice("qwen3-1.7b", "v6e:2x4", data=2, fsdp=4, tensor=1, rows=2, slots=256),
    Slice("llama-3.1-8b", "v5e:8x8", data=1, fsdp=16, tensor=4, rows=1, slots=256),
)


def setting(at: Slice) -> Setting:
    """Every regime with all the models it can hold: a teacher's whole distribution, a reference, a slow copy."""
    model = ModelConfig(**PRESETS[at.model], compute_dtype="bfloat16", remat="block", head_chunk_tokens=2048)
    sequences = BATCH["prompts_per_step"] * BATCH["samples_per_prompt"]
    common = dict(BATCH, slots=at.slots, microbatches=sequences // (at.data * at.fsdp * at.rows))
    arms = {
        "sft": ceiling.arm("sft", **common),
        "distill": ceiling.arm("distill", loss="divergence", keep="all", **common),
        "grpo": ceiling.arm("grpo", kl="k3", kl_beta=0.01, **common),
        "rlp": ceiling.arm("rlp", max_thought_tokens=448, **common),
    }
    mesh = mesh_over(devices(at.topology), at.data, at.fsdp, at.tensor)
    return Setting(model, mesh, {name: plain(arm) for name, arm in arms.items()}, PROMPT, RESPONSE)


def planned(here: Setting, program: str) -> float | None:
    """Bytes on one chip by the plan's formulas: what is held, and what the program adds. None for parts of others."""
    model, mesh, cfg = here.model, dict(here.mesh.shape), next(iter(here.arms.values()))
    held = memory.weights(model, mesh)
    if program == "score":
        sequences = cfg["prompts_per_step"] * cfg["samples_per_prompt"]
        adds = memory.score(model, sequences=sequences, tokens=here.tokens, mesh=mesh)
    elif program == "sampling":
        adds = memory.sample(model, prompts=cfg["prompts_per_step"], n=cfg["samples_per_prompt"], mesh=mesh,
                             prompt_tokens=PROMPT, max_tokens=RESPONSE, slots=cfg["slots"], tpu=True)  # fmt: skip
    elif program in here.arms:
        cfg, regime = here.arms[program], regimes.load(here.arms[program]["regime"])
        frozen = regime.frozen(cfg)
        held += memory.optimiser(model, cfg, mesh) + memory.slow_state(regime, model, cfg, mesh) + len(frozen) * held
        rows = layout({**cfg, "max_tokens": RESPONSE}, here.tokens, mesh)
        adds = memory.update(model, rows, mesh, frozen=len(frozen), tpu=True)
    else:
        return None
    return held + sum(adds.values())


def devices(topology: str) -> list:
    """The chips of a described topology. Raises RuntimeError in one line where libtpu is not installed."""
    from jax.experimental import topologies

    # No metadata server is asked and no chip is locked: there is none.
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_ID": "0",
                        "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(f"{topology}: no TPU compiler ({reason}); `make test-tpu` installs one") from None
