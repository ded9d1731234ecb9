"""GGUF files, written a few rows at a time, and put in place only when complete."""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from convert.report import ExportError, note

FLOATS = (Type.F32, Type.F16, Type.BF16)
TYPES = {t.name.lower(): t for t in (*FLOATS, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)}
CHUNK = 1 << 20  # elements that are in memory at a time


@dataclass
class Tensor:
    """A tensor to be written. GGUFWriter takes it for an array: it wants `nbytes` and `tofile`."""

    name: str
    shape: tuple  # rows and columns, or the length of a vector
    type: Type
    rows: Callable[[int, int], np.ndarray]  # (begin, end) -> float32
    group: int = 1  # rows that belong together: begin and end are multiples of it

    def __post_init__(self):
        block = gguf.GGML_QUANT_SIZES[self.type][0]
        if len(self.shape) == 1:
            self.type = Type.F32
        elif self.shape[1] % block:
            note(f"tensor '{self.name}' becomes F16: rows of {self.shape[1]} are no whole blocks of {block}")
            self.type = Type.F16

    @property
    def nbytes(self):
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size

    def tofile(self, file):
        width = math.prod(self.shape[1:])
        step = max(1, CHUNK // (width * self.group)) * self.group
        for begin in range(0, self.shape[0], step):
            x = np.ascontiguousarray(self.rows(begin, min(begin + step, self.shape[0])))
            if self.type == Type.F16 and np.abs(x).max(initial=0) > np.finfo(np.float16).max:
                raise ExportError(f"tensor '{self.name}' has values too large for F16: try --type bf16")
            file.write(gguf.quants.quantize(x, self.type).data)


def write(path, arch, add_keys, tensors):
    """Writes keys (added by add_keys(writer)) and tensors to a new file, which replaces `path` at the end."""
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"{path}: is a directory")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(part, arch)
    add_keys(writer)
    for t in tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, raw_dtype=t.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            writer.write_tensor_data(t)
        writer.close()
        os.replace(part, path)
    except OSError as e:
        raise ExportError(f"{path}: {e.strerror or e}") from None
    finally:
        for file in writer.fout or []:
            with contextlib.suppress(OSError):  # a full disk fails again here
                file.close()
        part.unlink(missing_ok=True)
