"""What a compiler says of a program: bytes on one device by kind, FLOPs, and the collectives in its text.

`unexpected` is the judgement: an all-gather may make whole one layer's weight, the embedding or the head (what fully
sharded weights need), and small arrays; never weights or caches stacked over layers, never logits.
"""

import dataclasses
import json
import math
import pathlib
import re

import jax
from jax.sharding import Mesh

from ceiling.model.config import ModelConfig, table

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SMALL = 1 << 20
# The least effort: seconds instead of minutes a program, and more temporary memory, so what fits here fits.
QUICK = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective: its kind, dtype and shape of its (largest) result on one device, the number of devices that take
    part, and how often it runs in one call (loops of unknown length count once)."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    group: int
    times: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}{list(self.shape)} over {self.group} devices"


@dataclasses.dataclass(frozen=True)
class Report:
    """Bytes on one device by kind, its FLOPs as the compiler counts them (the body of a loop once), collectives.

    temporaries: what is live beside arguments and outputs when most is. The compiler places them with a few percent of
    gaps, and refuses a program by that sum. jax's `temp_size_in_bytes` is another figure: programs are accepted for
    TPUs whose arguments and temp_size are more than the chip has."""

    arguments: int
    outputs: int  # those that are not written over arguments
    temporaries: int
    code: int
    flops: float
    collectives: tuple[Collective, ...]

    @property
    def peak(self) -> int:
        """What a plan predicts: everything but the program itself."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def total(self) -> int:
        return self.peak + self.code

    def save(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: pathlib.Path) -> "Report":
        fields = json.loads(path.read_text())
        found = (Collective(**{**c, "shape": tuple(c["shape"])}) for c in fields.pop("collectives"))
        return cls(**fields, collectives=tuple(found))


def report(lowered: jax.stages.Lowered, options: dict | None = None) -> Report:
    """Compiles. On a CPU machine and a described topology this allocates nothing on any device."""
    compiled = lowered.compile(options)
    m = compiled.memory_analysis()
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    return Report(
        m.argument_size_in_bytes, outputs, m.peak_memory_in_bytes - m.argument_size_in_bytes - outputs,
        m.generated_code_size_in_bytes, (compiled.cost_analysis() or {}).get("flops", 0.0),
        collectives(compiled.as_text()),
    )  # fmt: skip


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives in a compiled module's text, each once: asynchronous ones are written as several operations."""
    bodies, found = _computations(text), {}
    times = _times(bodies)
    for name, lines in bodies.items():
        for line in lines:
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
            if match is None:
                continue
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            shapes = [(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in arrays]
            dtype, shape = max(shapes, key=lambda a: math.prod(a[1]) * BYTES[a[0]])
            channel = re.search(r"channel_id=(\d+)", line)
            one = Collective(match[2], dtype, shape, _group(line), times[name])
            key = channel[1] if channel else line
            found[key] = max(found.get(key, one), one, key=lambda c: c.times)
    return tuple(found.values())


def unexpected(found, config: ModelConfig, mesh: Mesh) -> list[str]:
    """All-gathers that a program should not have, in words; empty where there is none."""
    weights = set()
    for spec in table(config).values():
        shape = zip(spec.shape, spec.axes, strict=True)
        own = [n // (mesh.shape["tensor"] if a in ("vocab", "heads", "kv_heads", "mlp") else 1)
               for n, a in shape if a != "layers"]  # fmt: skip
        weights.add(_essential(own))
    out = []
    for c in found:
        essential = _essential(c.shape)
        if c.kind != "all-gather" or c.bytes < SMALL or essential in weights:
            continue
        if config.vocab_size in essential:
            out.append(f"logits: {c}")
        elif next(n for n in c.shape if n > 1) == config.layers:
            out.append(f"stacked over layers: {c}")
        elif c.dtype != "s32" and math.prod(essential) > max(map(math.prod, weights)):
            out.append(f"larger than any weight: {c}")
    return out


def _essential(shape) -> tuple[int, ...]:
    """Dimensions above 1 in order of size: layouts and unit axes aside."""
    return tuple(sorted(n for n in shape if n > 1))


def _computations(text: str) -> dict[str, list[str]]:
    """{name: lines} of a module's computations; the entry is "ENTRY"."""
    out, lines = {}, []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = out["ENTRY" if header[1] else header[2]] = []
        elif line.startswith("  "):
            lines.append(line)
    return out


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one call of the entry."""
    out = dict.fromkeys(bodies, 0)

    def run(name: str, times: int) -> None:
        out[name] += times
        for line in bodies[name]:
            called = re.findall(r"(body|condition|calls|to_apply|branch_computations)=\{?([^}\s]*)", line)
            stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            trips = int(stated[1]) if stated else next((_trips(bodies, n) for k, n in called if k == "condition"), 1)
            for key, names in called:
                for target in re.findall(r"%([\w.\-]+)", names):
                    if target in bodies:
                        run(target, times * (trips if key == "body" else 1))

    run("ENTRY", 1)
    return out


def _trips(bodies: dict[str, list[str]], condition: str) -> int:
    """How often a loop runs whose condition compares a counter with a constant; 1 for any other."""
    lines = bodies.get(condition.strip("%,"), [])
    constants = dict(re.findall(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(lines)))
    root = next((line for line in lines if "ROOT" in line and "direction=LT" in line), "")
    return next((int(n) for name, n in constants.items() if f"%{name})" in root), 1)


def _group(line: str) -> int:
    """Devices that one collective joins."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 2
