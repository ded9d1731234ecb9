"""Trained attention parameters: a safetensors file with routers, gates, a landmark and low-rank updates.

Tensors have their GGUF names: "blk.0.attn_mosa_router.weight" [G or H, n_embd], "landmark_embd.weight"
[n_embd], "blk.0.attn_infini_gate.weight" [H], "blk.0.attn_q.weight.lora_a" [rank, columns] and "...lora_b"
[rows, rank]. Rows of q and k updates are in transformers' order, like the weights of a checkpoint: they are
put into GGUF's order here. The file's metadata (string to string) holds the GGUF keys.
"""

import json
import re
from functools import partial
from typing import NamedTuple

import gguf

from convert.architecture import interleave
from convert.checkpoint import SafetensorsFile, dims
from convert.gguf_file import Tensor, Type
from convert.report import ExportError

MODES = ("dense", "topk", "moba", "mosa", "landmark", "infini")
TOKEN_ID, ALPHA, LANDMARK = "attention.landmark.token_id", "adapter.lora.alpha", "landmark_embd.weight"


def parse_count(text):
    value = int(text)
    if not 0 <= value < 1 << 32:
        raise ValueError
    return value


def parse_bool(text):
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def parse_modes(text):
    value = json.loads(text)
    if not isinstance(value, list) or not value or not set(value) <= set(MODES):
        raise ValueError
    return value


class Key(NamedTuple):
    parse: object
    add: object  # method of GGUFWriter
    form: str


COUNT = Key(parse_count, gguf.GGUFWriter.add_uint32, "a whole number")
FLAG = Key(parse_bool, gguf.GGUFWriter.add_bool, "true or false")
KEYS = {
    "attention.modes": Key(parse_modes, gguf.GGUFWriter.add_array, f"a JSON list out of {', '.join(MODES)}"),
    "attention.moba.block_size": COUNT,
    "attention.moba.top_k": COUNT,
    "attention.topk.k": COUNT,
    "attention.mosa.k": COUNT,
    "attention.mosa.dense_heads": COUNT,
    "attention.mosa.include_first": FLAG,
    "attention.landmark.block_size": COUNT,
    "attention.landmark.top_k": COUNT,
    TOKEN_ID: COUNT,
    "attention.infini.segment_length": COUNT,
    "attention.infini.delta_rule": FLAG,
    ALPHA: Key(float, gguf.GGUFWriter.add_float32, "a number"),
}


class LowRank(NamedTuple):
    """An update of a weight, W + scale * B A."""

    a: str  # names of the factors in the file
    b: str
    rank: int


class AttnParams:
    """The parameters in a file, checked against the Dimensions of the model that they are for."""

    def __init__(self, path, model):
        self.file = SafetensorsFile(path)
        self.model = model
        self.keys = self._read_keys()
        self.extra = [name for name in self.file.entries if not re.search(r"\.lora_[ab]$", name)]
        for name in self.extra:
            self._check_extra(name)
        self._check_landmark()
        self.updates = self._find_updates()
        if self.updates and ALPHA not in self.keys:
            raise ExportError(f"{path}: metadata key '{ALPHA}' is missing, but there are low-rank updates")
        self.keys.setdefault("attention.modes", self._trained_modes())

    def _read_keys(self):
        keys, path = {}, self.file.path
        for key, text in self.file.metadata.items():
            if key not in KEYS:
                if key.startswith(("attention.", "adapter.")):
                    raise ExportError(f"{path}: metadata key '{key}' is unknown (known: {', '.join(KEYS)})")
                continue
            try:
                keys[key] = KEYS[key].parse(text)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ExportError(f"{path}: metadata key '{key}' is {text!r}, not {KEYS[key].form}") from None
        return keys

    def _expect(self, name, *shapes):
        shape, wanted = self.file.entries[name].shape, " or ".join(map(dims, shapes))
        if shape not in shapes:
            raise ExportError(f"{self.file.path}: tensor '{name}' is {dims(shape)}, expected {wanted}")

    def _check_extra(self, name):
        m = self.model
        path = self.file.path
        known = re.fullmatch(r"blk\.(\d+)\.(attn_mosa_router|attn_infini_gate)\.weight", name)
        if name == LANDMARK:
            self._expect(name, (m.n_embd,))
        elif not known:
            raise ExportError(f"{path}: tensor '{name}' is no router, gate, landmark or low-rank update")
        elif int(known[1]) >= m.n_layer:
            raise ExportError(f"{path}: tensor '{name}': the model has {m.n_layer} layers")
        elif known[2] == "attn_mosa_router":
            self._expect(name, (m.n_head_kv, m.n_embd), (m.n_head, m.n_embd))
        else:
            self._expect(name, (m.n_head,))

    def _check_landmark(self):
        """The landmark is a token of the vocabulary, or the one after it, with an embedding here."""
        own, n_vocab = LANDMARK in self.extra, self.model.n_vocab
        token = self.keys.get(TOKEN_ID)
        if own and token is None:
            self.keys[TOKEN_ID] = n_vocab
        elif token is not None and (token != n_vocab if own else token >= n_vocab):
            where = f"must be {n_vocab} where '{LANDMARK}' is given" if own else f"must be below {n_vocab}"
            raise ExportError(f"{self.file.path}: metadata key '{TOKEN_ID}' is {token}, but it {where}")

    def _find_updates(self):
        """Low-rank updates by the name of the weight."""
        entries, weights, updates = self.file.entries, self.model.matrices(), {}
        for a in entries:
            stem, dot, kind = a.rpartition(".lora_")
            if not dot:
                continue
            weight = stem if stem.endswith(".weight") else f"{stem}.weight"
            if weight not in weights:
                raise ExportError(f"{self.file.path}: tensor '{a}' updates no weight that can be updated")
            pair = [f"{stem}.lora_a", f"{stem}.lora_b"]
            for factor in pair:
                if factor not in entries:
                    raise ExportError(f"{self.file.path}: tensor '{factor}' is missing, but there is '{a}'")
            if kind == "a":
                rows, cols = weights[weight]
                rank = entries[a].shape[0] if entries[a].shape else 0
                self._expect(pair[0], (max(rank, 1), cols))
                self._expect(pair[1], (rows, rank))
                updates[weight] = LowRank(*pair, rank)
        return updates

    def _trained_modes(self):
        marks = {"mosa": "router", "infini": "gate", "landmark": "landmark"}
        modes = [mode for mode, mark in marks.items() if any(mark in name for name in self.extra)]
        return modes + (["landmark"] if TOKEN_ID in self.keys and "landmark" not in modes else [])

    def add_keys(self, writer, with_updates):
        for key, kind in KEYS.items():
            if self.keys.get(key, []) != [] and (with_updates or key != ALPHA):
                kind.add(writer, key, self.keys[key])

    def tensors(self):
        """Routers, gates and landmark, in float32."""
        return [
            Tensor(name, self.file.entries[name].shape, Type.F32, partial(self.file.rows, name))
            for name in self.extra
        ]

    def update_tensors(self, type_):
        """The factors of the low-rank updates, as llama.cpp names and orders them."""
        tensors = []
        for weight, update in self.updates.items():
            rows, cols = self.model.matrices()[weight]
            read_b, group = partial(self.file.rows, update.b), 1
            if self.model.is_rotated(weight):
                read_b, group = interleave(read_b, self.model.head_dim), self.model.head_dim
            read_a = partial(self.file.rows, update.a)
            tensors.append(Tensor(f"{weight}.lora_a", (update.rank, cols), type_, read_a))
            tensors.append(Tensor(f"{weight}.lora_b", (rows, update.rank), type_, read_b, group))
        return tensors

    def merge(self, weight, rows):
        """rows(begin, end) of a weight of the checkpoint, with its update, if any, added."""
        update = self.updates.get(weight)
        if not update:
            return rows
        scale = self.keys[ALPHA] / update.rank

        def merged(begin, end):
            a = self.file.rows(update.a, 0, update.rank)
            return rows(begin, end) + scale * (self.file.rows(update.b, begin, end) @ a)

        return merged
