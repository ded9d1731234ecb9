"""Writes quants.bin: random blocks of every weight type and what they stand for.

The values come from the gguf package's dequantize(). For each type the file
holds three little-endian uint32 (type, elements, bytes), the blocks, and the
elements as float32; test_quants.c reads it.

    python tests/golden/make_quants.py
"""
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

ELEMENTS = 1024
# Offsets of the float16 scales in a block.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
# Largest, smallest subnormal, zero, negative and ordinary ones.
EXTREMES = [65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 0.0, -0.0, 1.0, 0.0123, -3.5]


def blocks(kind, rng):
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    n = ELEMENTS // size
    data = rng.integers(0, 256, (n, nbytes), dtype=np.uint8)
    for offset in SCALES.get(kind, []):
        scales = rng.normal(0, 0.1, n).astype(np.float16)
        extreme = rng.permutation(EXTREMES)[: n // 2]
        scales[: len(extreme)] = extreme
        data[:, offset:offset + 2] = scales.view(np.uint8).reshape(n, 2)
    data = data.reshape(-1)
    if kind == T.F16:  # exponent 31 is infinity and NaN
        halves = data.view(np.uint16)
        halves[halves & 0x7C00 == 0x7C00] ^= 0x4000
    if kind in (T.F32, T.BF16):
        top = data[3::4] if kind == T.F32 else data[1::2]
        top[top & 0x7F == 0x7F] ^= 0x40
    return data


def main():
    rng = np.random.default_rng(4)
    kinds = [T.F32, T.F16, T.BF16, *SCALES]
    with open(pathlib.Path(__file__).with_name("quants.bin"), "wb") as f:
        for kind in kinds:
            data = blocks(kind, rng)
            values = gguf.quants.dequantize(data, kind).astype("<f4").reshape(-1)
            assert values.size == ELEMENTS and np.isfinite(values).all()
            f.write(struct.pack("<III", kind, values.size, data.size))
            f.write(data.tobytes() + values.tobytes())


main()
