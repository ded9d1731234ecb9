"""Writes evict.bin: which cache entries the presses of kvpress keep, for tests/unit/test_evict.c.

    pip install kvpress && python tests/golden/make_evict.py

One attention layer of a random llama model of `transformers` gets random hidden states; each press compresses its
keys and values. Little-endian: int32 n, H, G, d, n_layer, cases; float32 rope base; float32 q[n,H,d], k[n,G,d] before
RoPE, v[n,G,d]. Then per case: char spec[96] in the words of --kv-evict; int32 layer; int32 rerotated; per KV head
int32 count and int32 indices[count], ascending; with rerotated the keys float32 [count,d] after each head's indices.
"""

import struct
from pathlib import Path

import numpy as np
import torch
import transformers
from kvpress import (AdaKVPress, BlockPress, ExpectedAttentionPress, KeyDiffPress, KeyRerotationPress, KnormPress,
                     LagKVPress, PyramidKVPress, SnapKVPress, StreamingLLMPress, TOVAPress)
from kvpress.utils import get_prerope_key_states, get_prerope_query_states
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

N, H, G, D, LAYERS, BASE = 160, 4, 2, 16, 4, 10000.0
SNAPKV = dict(window_size=8, kernel_size=5)
SNAPKV_SPEC = "window=8,kernel=5"


def model():
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=H * D, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=H,
        num_key_value_heads=G, head_dim=D, rope_parameters={"rope_type": "default", "rope_theta": BASE},
        attn_implementation="sdpa")
    m = transformers.LlamaForCausalLM(config)
    attention = m.model.layers[0].self_attn
    attention.rotary_emb = m.model.rotary_emb
    for w in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.nn.init.normal_(w.weight, std=0.2)
    return m, attention


def cases():
    """(press, share of entries that go, spec without its budget, layer)"""
    yield KnormPress, {}, 0.5, "knorm:sink=0", 0
    yield KeyDiffPress, {}, 0.5, "keydiff:sink=0", 0
    yield lambda compression_ratio: BlockPress(KeyDiffPress(compression_ratio), block_size=32), {}, 0.6, \
        "keydiff:sink=0,block=32", 0
    yield TOVAPress, {}, 0.5, "tova:sink=0,recent=1", 0
    yield SnapKVPress, SNAPKV, 0.5, f"snapkv:sink=0,{SNAPKV_SPEC}", 0
    for layer in range(LAYERS):
        yield PyramidKVPress, dict(beta=4, **SNAPKV), 0.5, f"pyramid:sink=0,beta=4,{SNAPKV_SPEC}", layer
    yield PyramidKVPress, SNAPKV, 0.5, f"pyramid:sink=0,{SNAPKV_SPEC}", 0  # falls back to snapkv
    yield lambda compression_ratio: AdaKVPress(SnapKVPress(compression_ratio, **SNAPKV)), {}, 0.5, \
        f"adakv:sink=0,{SNAPKV_SPEC}", 0
    yield lambda compression_ratio: AdaKVPress(SnapKVPress(compression_ratio, **SNAPKV), 0.9), {}, 0.5, \
        f"adakv:sink=0,safeguard=0.9,{SNAPKV_SPEC}", 0
    yield LagKVPress, dict(n_sink=4, lag_size=16), 0.5, "lagkv:sink=4,lag=16", 0  # 80 = 4 + 28 + 6 of each of 8 partitions
    yield LagKVPress, dict(n_sink=4, lag_size=16, cross_scoring=True), 0.5, "lagkv:sink=4,lag=16,cross=1", 0
    yield LagKVPress, dict(n_sink=4, lag_size=128), 0.5, "lagkv:sink=4,lag=128", 0  # too short: the newest
    yield ExpectedAttentionPress, dict(n_sink=4), 0.5, "expected:sink=4", 0
    yield ExpectedAttentionPress, dict(n_sink=4, n_future_positions=64, use_covariance=False, epsilon=0.01), 0.5, \
        "expected:sink=4,future=64,covariance=0,epsilon=0.01", 0
    yield StreamingLLMPress, dict(n_sink=4), 0.5, "window:sink=4", 0
    yield lambda compression_ratio: KeyRerotationPress(StreamingLLMPress(compression_ratio, n_sink=4)), {}, 0.5, \
        "streaming:sink=4", 0
    yield lambda compression_ratio: KeyRerotationPress(KeyDiffPress(compression_ratio)), {}, 0.5, \
        "keydiff:sink=0,rerotate=1", 0


@torch.no_grad()
def main():
    m, attention = model()
    hidden = torch.randn(1, N, H * D)
    hidden = hidden + 0.5 * hidden.roll(1, dims=1) + 0.3 * torch.randn(1, 1, H * D)  # neighbours have something in common
    q, k = get_prerope_query_states(attention, hidden), get_prerope_key_states(attention, hidden)
    v = attention.v_proj(hidden).view(1, N, G, D).transpose(1, 2)
    cos, sin = m.model.rotary_emb(hidden, torch.arange(N)[None])
    _, keys = apply_rotary_pos_emb(q, k, cos, sin)
    kwargs = {"position_embeddings": (cos, sin)}

    def array(x):
        return x[0].transpose(0, 1).contiguous().numpy().astype("<f4").tobytes()

    records = []
    for press_class, options, ratio, spec, layer in cases():
        press = press_class(compression_ratio=ratio, **options)
        attention.layer_idx, attention.masked_key_indices = layer, None
        new_keys, new_values = press.compress(attention, hidden, keys, v, None, kwargs)
        rerotated = isinstance(press, KeyRerotationPress)
        budget = round(N * (1 - ratio)) if isinstance(press, PyramidKVPress) else int(N * (1 - ratio))
        record = struct.pack("<96sii", f"{spec},budget={budget}".encode(), layer, rerotated)
        for g in range(G):
            if attention.masked_key_indices is not None:
                _, heads, positions = attention.masked_key_indices
                kept = np.setdiff1d(np.arange(N), positions[heads == g].numpy())
            else:  # whose value is it?
                kept = torch.cdist(new_values[0, g], v[0, g]).argmin(1).sort().values.numpy()
            assert len(set(kept)) == len(kept)
            record += struct.pack("<i", len(kept)) + kept.astype("<i4").tobytes()
            if rerotated:
                record += new_keys[0, g].numpy().astype("<f4").tobytes()
        records.append(record)
    head = struct.pack("<6if", N, H, G, D, LAYERS, len(records), BASE)
    out = Path(__file__).with_name("evict.bin")
    out.write_bytes(head + array(q) + array(k) + array(v) + b"".join(records))
    print(f"{out}: {len(records)} cases, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
