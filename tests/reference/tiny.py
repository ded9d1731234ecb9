"""Small random GGUF models, the same for the same arguments.

Their vocabulary is a byte-level BPE (256 bytes, a few merges, ChatML's special tokens), so that text prompts
work.
Where the output matrix is not tied, only tokens of printable ASCII have logits other than zero.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

MERGES = [
    "t h",
    "h e",
    "th e",
    "Ġ the",
    "i n",
    "a n",
    "e r",
    "o n",
    "Ġ a",
    "r e",
    "an d",
    "Ġ and",
    "in g",
    "Ġ t",
    "e n",
    "o u",
    "Ġ o",
    "s t",
    "1 2",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "ã ģ",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def text_of(ids):
    """What a run prints for these tokens, if all are printable."""
    tokens = vocabulary()
    return "".join(tokens[i] for i in ids).replace("Ġ", " ")


def byte_characters():
    """The 256 printable stand-ins for bytes that GPT-2's vocabulary uses, in byte order."""
    keep = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in keep]
    return [chr(b) if b in keep else chr(256 + other.index(b)) for b in range(256)]


def vocabulary():
    return SPECIALS + byte_characters() + [m.replace(" ", "") for m in MERGES]


@dataclass
class Tiny:
    arch: str = "llama"
    n_layer: int = 2
    n_embd: int = 64
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int | None = None  # default n_embd / n_head
    tied: bool = False
    n_ctx: int = 512
    rope_base: float = 10000.0
    rope_scaling: str | None = None  # linear, yarn, llama3
    rope_factor: float = 4.0
    type: Type = Type.F32  # of the matrices
    embd_type: Type | None = None  # of token_embd, if different
    mosa: str | None = None  # router rows: "group" or "head"
    infini: bool = False
    landmark: str | None = None  # "vocab": a token of the vocabulary; "own": landmark_embd.weight
    meta: tuple = ()  # (("attention.moba.block_size", 8), ...)
    seed: int = 0
    weights: bool = True  # False: a vocabulary-only file


def random_blocks(rng, type_, shape):
    """Rows of a K-quant type, which the gguf package reads but can't make: random bits under small scales."""
    elements, size = gguf.GGML_QUANT_SIZES[type_]
    blocks = rng.integers(0, 256, (np.prod(shape) // elements, size), dtype=np.uint8)
    scale = np.abs(rng.normal(1, 0.2, (len(blocks), 2))).astype(np.float16)
    # bytes of the float16 fields: d (and dmin) first in Q4_K and Q5_K, d last in Q6_K
    if type_ == Type.Q6_K:
        blocks[:, -2:] = (scale[:, :1] * np.float16(3e-5)).view(np.uint8)
    else:
        steps = {Type.Q4_K: 6e-4, Type.Q5_K: 3e-4}[type_]
        blocks[:, :2] = (scale[:, :1] * np.float16(steps)).view(np.uint8)
        blocks[:, 2:4] = (scale[:, 1:] * np.float16(4.5e-3)).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def quantized(rng, w, type_):
    if type_ in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return random_blocks(rng, type_, w.shape)
    return gguf.quants.quantize(w, type_)


def is_printable(token):
    """Whether the token's text is plain ASCII, so that what a greedy run prints shows what it chose."""
    return token not in SPECIALS and all("!" <= c <= "~" or c == "Ġ" for c in token)


def write(path: Path, t: Tiny):
    """Writes the model and returns its path."""
    rng = np.random.default_rng(t.seed)
    d = t.head_dim or t.n_embd // t.n_head
    tokens = vocabulary() + (["<|landmark|>"] if t.landmark == "vocab" else [])
    n_vocab = len(tokens)
    out = gguf.GGUFWriter(path, t.arch)
    out.add_name("tiny")
    out.add_context_length(t.n_ctx)
    out.add_embedding_length(t.n_embd)
    out.add_block_count(t.n_layer)
    out.add_feed_forward_length(t.n_ff)
    out.add_head_count(t.n_head)
    out.add_head_count_kv(t.n_head_kv)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(t.rope_base)
    if t.arch == "llama":
        out.add_rope_dimension_count(d)
    if t.head_dim:
        out.add_key_length(d)
        out.add_value_length(d)
    if t.rope_scaling in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(t.rope_scaling))
        out.add_rope_scaling_factor(t.rope_factor)
        out.add_rope_scaling_orig_ctx_len(t.n_ctx // 4)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm" if t.arch == "llama" else "qwen2")
    out.add_token_list(tokens)
    n_special = len(SPECIALS)
    out.add_token_types(
        [3] * n_special + [1] * (len(vocabulary()) - n_special) + [3] * (n_vocab - len(vocabulary()))
    )
    out.add_token_merges(MERGES)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    out.add_chat_template(CHAT_TEMPLATE)
    for key, value in t.meta:
        {bool: out.add_bool, int: out.add_uint32, float: out.add_float32, str: out.add_string}[type(value)](key, value)
    if t.landmark:
        out.add_uint32("attention.landmark.token_id", n_vocab - 1 if t.landmark == "vocab" else n_vocab)

    def add(name, *shape, gain=1.0, type_=t.type, zero_rows=()):
        w = rng.normal(0, gain / np.sqrt(shape[-1]), shape).astype(np.float32)
        data = quantized(rng, w, type_)
        data[list(zero_rows)] = 0  # all-zero blocks are zeros in every type
        out.add_tensor(name, data, raw_dtype=type_)

    def add_vector(name, n, mean=0.0, spread=0.1):
        out.add_tensor(name, rng.normal(mean, spread, n).astype(np.float32))

    if t.weights:
        add("token_embd.weight", n_vocab, t.n_embd, gain=np.sqrt(t.n_embd), type_=t.embd_type or t.type)
        add_vector("output_norm.weight", t.n_embd, 1)
        if not t.tied:
            add(
                "output.weight",
                n_vocab,
                t.n_embd,
                zero_rows=[i for i, s in enumerate(tokens) if not is_printable(s)],
            )
        if t.rope_scaling == "llama3":
            out.add_tensor("rope_freqs.weight", np.geomspace(1, t.rope_factor, d // 2).astype(np.float32))
        if t.landmark == "own":
            add_vector("landmark_embd.weight", t.n_embd, spread=1)
        for i in range(t.n_layer):
            b = f"blk.{i}"
            add_vector(f"{b}.attn_norm.weight", t.n_embd, 1)
            for name, rows, gain in (("q", t.n_head, 1.6), ("k", t.n_head_kv, 1.6), ("v", t.n_head_kv, 1)):
                add(f"{b}.attn_{name}.weight", rows * d, t.n_embd, gain=gain)
                if t.arch == "qwen2":
                    add_vector(f"{b}.attn_{name}.bias", rows * d, spread=0.3)
            if t.arch == "qwen3":
                add_vector(f"{b}.attn_q_norm.weight", d, 1.5)
                add_vector(f"{b}.attn_k_norm.weight", d, 1.2)
            add(f"{b}.attn_output.weight", t.n_embd, t.n_head * d)
            add_vector(f"{b}.ffn_norm.weight", t.n_embd, 1)
            add(f"{b}.ffn_gate.weight", t.n_ff, t.n_embd)
            add(f"{b}.ffn_up.weight", t.n_ff, t.n_embd)
            add(f"{b}.ffn_down.weight", t.n_embd, t.n_ff)
            if t.mosa:
                rows = {"group": t.n_head_kv, "head": t.n_head}[t.mosa]
                add(f"{b}.attn_mosa_router.weight", rows, t.n_embd, gain=2, type_=Type.F32)
            if t.infini:
                add_vector(f"{b}.attn_infini_gate.weight", t.n_head, spread=1)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


if __name__ == "__main__":
    write(Path(sys.argv[1]), Tiny())
