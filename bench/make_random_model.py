"""A llama model of about 1.1 billion random weights (TinyLlama's shape): make_random_model.py TYPE OUT.gguf

For speed only. TYPE is Q4_0 or Q8_0; the vocabulary is taken from models/smollm2.gguf.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

N_LAYER, N_EMBD, N_FF, N_HEAD, N_HEAD_KV = 22, 2048, 5632, 32, 4
VOCABULARY = Path(__file__).resolve().parent.parent / "models" / "smollm2.gguf"


def random_rows(rng, type_, rows, cols):
    """Random quants under one scale, which gives the weights a spread of about 1/sqrt(cols)."""
    elements, size = gguf.GGML_QUANT_SIZES[type_]
    blocks = rng.integers(0, 256, (rows, cols // elements, size), dtype=np.uint8)
    quant_spread = {"Q4_0": 4.6, "Q8_0": 74}[type_.name]
    blocks[..., :2] = np.array([1 / quant_spread / cols**0.5], dtype=np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def main():
    type_, path = gguf.GGMLQuantizationType[sys.argv[1]], sys.argv[2]
    rng = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "llama")
    vocabulary = gguf.GGUFReader(VOCABULARY)
    for name, field in vocabulary.fields.items():
        if name.startswith("tokenizer."):
            element = field.types[-1] if len(field.types) > 1 else None
            out.add_key_value(name, field.contents(), field.types[0], element)
    n_vocab = len(vocabulary.fields["tokenizer.ggml.tokens"].data)
    out.add_context_length(32768)
    out.add_embedding_length(N_EMBD)
    out.add_block_count(N_LAYER)
    out.add_feed_forward_length(N_FF)
    out.add_head_count(N_HEAD)
    out.add_head_count_kv(N_HEAD_KV)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(N_EMBD // N_HEAD)

    def add(name, rows, cols):
        out.add_tensor(name, random_rows(rng, type_, rows, cols), raw_dtype=type_)

    def add_norm(name):
        out.add_tensor(name, np.ones(N_EMBD, dtype=np.float32))

    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    add("token_embd.weight", n_vocab, N_EMBD)
    add("output.weight", n_vocab, N_EMBD)
    add_norm("output_norm.weight")
    for i in range(N_LAYER):
        add_norm(f"blk.{i}.attn_norm.weight")
        add_norm(f"blk.{i}.ffn_norm.weight")
        add(f"blk.{i}.attn_q.weight", N_EMBD, N_EMBD)
        add(f"blk.{i}.attn_k.weight", n_kv, N_EMBD)
        add(f"blk.{i}.attn_v.weight", n_kv, N_EMBD)
        add(f"blk.{i}.attn_output.weight", N_EMBD, N_EMBD)
        add(f"blk.{i}.ffn_gate.weight", N_FF, N_EMBD)
        add(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        add(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
