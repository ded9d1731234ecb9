"""Writes evict.bin: which cache entries the presses of kvpress keep, for tests/unit/test_evict.c.

    pip install kvpress && python tests/golden/make_evict.py

One attention layer of a random llama model of `transformers` gets random hidden states; each press compresses
its keys and values. Little-endian: int32 n, H, G, d, n_layer, cases; float32 rope base; float32 q[n,H,d],
k[n,G,d] before RoPE, v[n,G,d]. Then per case: char spec[96] in the words of --kv-evict; int32 layer; int32
rerotated; per KV head int32 count and int32 indices[count], ascending; with rerotated the keys float32
[count,d] after each head's indices.
"""

import struct
from pathlib import Path

import numpy as np
import torch
import transformers
from kvpress import (AdaKVPress, BlockPress, ExpectedAttentionPress, KeyDiffPress, KeyRerotationPress,
                     KnormPress, LagKVPress, PyramidKVPress, SnapKVPress, StreamingLLMPress, TOVAPress)
from kvpress.utils import get_prerope_key_states, get_prerope_query_states
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

N, H, G, D, LAYERS, BASE = 160, 4, 2, 16, 4, 10000.0


def model():
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=H * D, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=H, num_key_value_heads=G, head_dim=D,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        attn_implementation="sdpa")
    m = transformers.LlamaForCausalLM(config)
    attention = m.model.layers[0].self_attn
    attention.rotary_emb = m.model.rotary_emb
    for w in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.nn.init.normal_(w.weight, std=0.2)
    return m, attention


def cases():
    """(makes a press of the share of entries that go, spec without its budget, layer)"""
    snapkv = lambda ratio: SnapKVPress(ratio, window_size=8, kernel_size=5)
    pyramid = lambda ratio: PyramidKVPress(ratio, window_size=8, kernel_size=5, beta=4)
    streaming = lambda ratio: StreamingLLMPress(ratio, n_sink=4)
    voters = "sink=0,window=8,kernel=5"
    yield KnormPress, "knorm:sink=0", 0
    yield KeyDiffPress, "keydiff:sink=0", 0
    yield lambda r: BlockPress(KeyDiffPress(r), block_size=32), "keydiff:sink=0,block=32", 0
    yield TOVAPress, "tova:sink=0,recent=1", 0
    yield snapkv, f"snapkv:{voters}", 0
    for layer in range(LAYERS):
        yield pyramid, f"pyramid:beta=4,{voters}", layer
    yield lambda r: PyramidKVPress(r, window_size=8, kernel_size=5), f"pyramid:{voters}", 0  # too steep: even
    yield lambda r: AdaKVPress(snapkv(r)), f"adakv:{voters}", 0
    yield lambda r: AdaKVPress(snapkv(r), 0.9), f"adakv:safeguard=0.9,{voters}", 0
    yield lambda r: LagKVPress(r, lag_size=16), "lagkv:lag=16", 0  # 80 = 4 + 28 + 6 of each of 8 partitions
    yield lambda r: LagKVPress(r, lag_size=16, cross_scoring=True), "lagkv:lag=16,cross=1", 0
    yield lambda r: LagKVPress(r, lag_size=128), "lagkv:lag=128", 0  # too short: the newest
    yield ExpectedAttentionPress, "expected", 0
    yield (lambda r: ExpectedAttentionPress(r, n_future_positions=64, use_covariance=False, epsilon=0.01),
           "expected:future=64,covariance=0,epsilon=0.01", 0)
    yield streaming, "window", 0
    yield lambda r: KeyRerotationPress(streaming(r)), "streaming", 0
    yield lambda r: KeyRerotationPress(KeyDiffPress(r)), "keydiff:sink=0,rerotate=1", 0


@torch.no_grad()
def main():
    m, attention = model()
    hidden = torch.randn(1, N, H * D)
    hidden = hidden + 0.5 * hidden.roll(1, dims=1) + 0.3 * torch.randn(1, 1, H * D)  # neighbours are alike
    q, k = get_prerope_query_states(attention, hidden), get_prerope_key_states(attention, hidden)
    v = attention.v_proj(hidden).view(1, N, G, D).transpose(1, 2)
    cos, sin = m.model.rotary_emb(hidden, torch.arange(N)[None])
    _, keys = apply_rotary_pos_emb(q, k, cos, sin)
    kwargs = {"position_embeddings": (cos, sin)}

    def array(x):
        return x[0].transpose(0, 1).contiguous().numpy().astype("<f4").tobytes()

    records = []
    for make_press, spec, layer in cases():
        press = make_press(0.5)
        attention.layer_idx, attention.masked_key_indices = layer, None
        new_keys, new_values = press.compress(attention, hidden, keys, v, None, kwargs)
        rerotated = isinstance(press, KeyRerotationPress)
        spec += ("," if ":" in spec else ":") + f"budget={N // 2}"
        record = struct.pack("<96sii", spec.encode(), layer, rerotated)
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
