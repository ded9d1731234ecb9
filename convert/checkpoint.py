"""Safetensors files, one or several shards, read a few rows at a time.

The files are read, not mapped, so that the memory in use is that of the rows asked for; and as numpy has no
bfloat16, the `safetensors` package can't hand such tensors to it.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.report import ExportError

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the format's own limit


def dims(shape):
    return " x ".join(map(str, shape)) or "a single number"


def read_json(path):
    """The object in a JSON file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing") from None
    except OSError as e:
        raise ExportError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ExportError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: not a JSON object")
    return value


class Entry(NamedTuple):
    dtype: str
    shape: tuple
    begin: int  # of its data in the file, in bytes


class SafetensorsFile:
    """One file: `metadata` (str to str), `entries` (tensor name to Entry)."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.file = open(path, "rb", buffering=0)
            size = self.path.stat().st_size
            length = int.from_bytes(self.file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ExportError(f"{path}: not a safetensors file, or cut short")
            header = json.loads(self.file.read(length))
        except OSError as e:
            raise ExportError(f"{path}: {e.strerror}") from None
        except (ValueError, RecursionError):
            raise ExportError(f"{path}: not a safetensors file: its header is not valid JSON") from None
        if not isinstance(header, dict):
            raise ExportError(f"{path}: not a safetensors file: its header is not a JSON object")
        self.metadata = header.pop("__metadata__", {})
        self.entries = {name: self._entry(name, e, 8 + length, size) for name, e in header.items()}

    def _entry(self, name, e, start, size):
        try:
            dtype, shape, (begin, end) = e["dtype"], e["shape"], e["data_offsets"]
            ints = [*shape, begin, end]
        except (KeyError, TypeError, ValueError):
            ints = [None]
        if not all(isinstance(i, int) and i >= 0 for i in ints):
            raise ExportError(f"{self.path}: the header's entry for tensor '{name}' is damaged")
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ExportError(f"{self.path}: tensor '{name}' is of {dtype}, not supported (known: {known})")
        if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise ExportError(f"{self.path}: tensor '{name}' of {dims(shape)} can't be {end - begin} bytes")
        if start + end > size:
            raise ExportError(f"{self.path}: tensor '{name}' lies beyond the end of the file: cut short?")
        return Entry(dtype, tuple(shape), start + begin)

    def rows(self, name, begin, end):
        """Rows [begin, end) of a tensor (of a vector: its elements), as float32; all must be finite."""
        entry = self.entries[name]
        width = math.prod(entry.shape[1:])
        dtype = np.dtype(DTYPES[entry.dtype]).newbyteorder("<")
        try:
            self.file.seek(entry.begin + begin * width * dtype.itemsize)
            x = np.fromfile(self.file, dtype, (end - begin) * width)
        except OSError as e:
            raise ExportError(f"{self.path}: {e.strerror}") from None
        if x.size != (end - begin) * width:
            raise ExportError(f"{self.path}: tensor '{name}': the file ends early")
        if entry.dtype == "BF16":
            x = (x.astype(np.uint32) << 16).view(np.float32)
        x = x.astype(np.float32, copy=False).reshape(end - begin, *entry.shape[1:])
        if not np.isfinite(x).all():
            raise ExportError(f"{self.path}: tensor '{name}' has values that are not finite")
        return x


class Checkpoint:
    """The tensors of a directory: model.safetensors, or the shards that its index names."""

    def __init__(self, folder):
        self.folder = Path(folder)
        index = self.folder / INDEX
        if index.exists():
            self.files = self._open_shards(index)
        else:
            file = SafetensorsFile(self.folder / "model.safetensors")
            self.files = {name: file for name in file.entries}

    def _open_shards(self, index):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(s, str) for s in weight_map.values()):
            raise ExportError(f"{index}: key 'weight_map' is missing or not a map of names")
        shards = {shard: SafetensorsFile(self.folder / shard) for shard in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in shards[shard].entries:
                raise ExportError(f"{self.folder / shard}: tensor '{name}' of {INDEX} is missing")
        return {name: shards[shard] for name, shard in weight_map.items()}

    def __iter__(self):
        return iter(self.files)

    def __contains__(self, name):
        return name in self.files

    def reader(self, name, shape):
        """rows(begin, end) of a tensor that must be there and of this shape."""
        if name not in self.files:
            raise ExportError(f"{self.folder}: tensor '{name}' is missing")
        file = self.files[name]
        found, wanted = file.entries[name].shape, tuple(shape)
        if found != wanted:
            raise ExportError(
                f"{file.path}: tensor '{name}' is {dims(found)}, but by config.json it is {dims(wanted)}"
            )
        return lambda begin, end: file.rows(name, begin, end)
