"""Data order as a pure function: (seed, position) -> index. Its whole state is one integer.

Each epoch is its own keyed permutation of range(size), so every item is seen once per epoch, and a
resume on another number of devices or hosts sees the same order.
"""

import hashlib

import numpy as np


def indices(seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Items at stream positions start .. start+count-1, int64[count], each in [0, size)."""
    if size < 1:
        raise ValueError("data order: the data set is empty; check the task's source and filters")
    if size == 1:  # one item in every order; each of its epochs would cost a hash and a walk
        return np.zeros(count, np.int64)
    position = np.arange(start, start + count)
    epoch = position // size
    out = np.empty(count, np.int64)
    for e in np.unique(epoch):
        here = epoch == e
        out[here] = permute(position[here] % size, size, f"{seed}/{e}")
    return out


def permute(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """Image of `index` under a pseudo-random permutation of range(size) chosen by `key`.

    A 6-round Feistel network on the smallest even number of bits that covers `size`, walked until
    the image falls inside the range (Black & Rogaway, 2002): O(1) memory for any size."""
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    digest = hashlib.sha256(key.encode()).digest() + hashlib.sha256(key.encode() + b"+").digest()
    round_keys = np.frombuffer(digest, np.uint64)[:6]

    def feistel(x):
        left, right = x >> shift, x & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    out = feistel(np.asarray(index, np.uint64))
    while (outside := out >= size).any():
        out[outside] = feistel(out[outside])
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
