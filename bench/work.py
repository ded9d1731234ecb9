"""The memory and arithmetic that a model's tokens take at least, and their share of a machine's limits."""

from dataclasses import dataclass

import gguf

KV_BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}  # of one number


@dataclass
class Work:
    weight_bytes: int  # read for a token: all but the embedding's other rows
    weight_macs: int  # of a prompt's token: without the output head, which a batch needs once
    kv_numbers: int  # keys and values of one position in all layers
    attention_macs: int  # of a token with one position

    @classmethod
    def of(cls, path):
        reader = gguf.GGUFReader(path)
        arch = reader.fields["general.architecture"].contents()

        def field(name, default=None):
            found = reader.fields.get(f"{arch}.{name}")
            return found.contents() if found else default

        tensors = {t.name: t for t in reader.tensors}
        head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
        blocks = [t for name, t in tensors.items() if name.startswith("blk.")]
        layers, heads = field("block_count"), field("attention.head_count")
        kv_heads = field("attention.head_count_kv", heads)
        head_dim = field("attention.key_length", field("embedding_length") // heads)
        return cls(
            weight_bytes=int(sum(t.n_bytes for t in [*blocks, tensors[head]])),
            weight_macs=int(sum(t.n_elements for t in blocks if len(t.shape) > 1)),
            kv_numbers=2 * layers * kv_heads * head_dim,
            attention_macs=2 * layers * heads * head_dim,
        )

    def decode_share(self, tps, depth, kv_type, limits):
        """Of the memory bandwidth: weights and cache are read once a token."""
        moved = self.weight_bytes + self.kv_numbers * KV_BYTES[kv_type] * depth
        return moved * tps / (limits["read_gbs"] * 1e9)

    def prompt_share(self, tps, length, limits):
        """Of the 8-bit arithmetic: the mean token attends to half the prompt."""
        macs = self.weight_macs + self.attention_macs * length / 2
        return 2 * macs * tps / (limits["int8_gops"] * 1e9)
