"""What one accelerator has, as its vendor states it: for plans and shares of peak, never for results.

memory: bytes; flops: peak FLOP/s of dense bfloat16 products (float16 on a T4); bandwidth: bytes per second between
the memory and the cores. "cpu" stands for two cores of a laptop.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    memory: float
    flops: float
    bandwidth: float
    tpu: bool = False


DEVICES = {
    "h100": Device(80e9, 989e12, 3.35e12),
    "h200": Device(141e9, 989e12, 4.8e12),
    "a100-40g": Device(40e9, 312e12, 1.555e12),
    "a100-80g": Device(80e9, 312e12, 2.0e12),
    "l4": Device(24e9, 121e12, 0.30e12),
    "t4": Device(15e9, 65e12, 0.32e12),
    "v4": Device(32e9, 275e12, 1.2e12, tpu=True),
    "v5e": Device(16e9, 197e12, 0.82e12, tpu=True),
    "v5p": Device(95e9, 459e12, 2.77e12, tpu=True),
    "v6e": Device(32e9, 918e12, 1.64e12, tpu=True),
    "cpu": Device(8e9, 1e11, 2e10),
}
