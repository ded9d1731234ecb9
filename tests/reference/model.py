"""The decoder-only transformer of a GGUF file (llama, qwen2, qwen3), from its definition.

Everything is computed in one dtype (float64 unless told otherwise) from the dequantised weights, for the
whole sequence at once: layer by layer, with attention as a (T x T) problem. T tokens, H query heads, G KV
heads, d head size.
"""

import math
from dataclasses import dataclass, field

import gguf
import torch

from . import evict, modes, spec


@dataclass
class Rope:
    inv_freq: torch.Tensor  # [n_pairs] radians per position, scaling applied
    magnitude: float  # multiplies cos and sin (YaRN's attention factor)
    interleaved: bool  # pairs are (2i, 2i+1), else (i, i + n_pairs)

    def rotate(self, x, pos):
        """x [..., d] rotated at pos, which broadcasts against x's leading dimensions."""
        n = len(self.inv_freq)
        angle = torch.as_tensor(pos).to(x.dtype)[..., None] * self.inv_freq
        cos, sin = self.magnitude * angle.cos(), self.magnitude * angle.sin()
        head, rest = x[..., : 2 * n], x[..., 2 * n :]
        if self.interleaved:
            a, b = head[..., 0::2], head[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = head[..., :n], head[..., n:]
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return torch.cat((turned, rest.expand(*turned.shape[:-1], rest.shape[-1])), dim=-1)


@dataclass
class Layer:
    """What one layer's attention sees. q, k and v are not rotated yet."""

    x: torch.Tensor  # [T, n_embd]
    q: torch.Tensor  # [T, H, d]
    k: torch.Tensor  # [T, G, d]
    v: torch.Tensor  # [T, G, d]
    rope: Rope
    n_prompt: int  # tokens before this one are prompt, the others were generated
    tensors: dict = field(default_factory=dict)  # the layer's trained attention parameters
    landmarks: torch.Tensor | None = None  # [T] bool: landmark tokens


class Model:
    def __init__(
        self, path, dtype=torch.float64, adapter=None, rope_scaling=None, rope_scale=None, rope_base=None
    ):
        reader = gguf.GGUFReader(path)
        self.dtype = dtype
        self.meta = {name: f.contents() for name, f in reader.fields.items()}
        self.w = {}
        for r in [reader] + ([gguf.GGUFReader(adapter)] if adapter else []):
            for t in r.tensors:
                data = gguf.quants.dequantize(t.data, t.tensor_type)
                self.w[t.name] = torch.tensor(data, dtype=dtype).reshape(*reversed(t.shape.tolist()))
            added = {n: f.contents() for n, f in r.fields.items() if n.startswith(("attention.", "adapter."))}
            self.meta.update(added)
        self.add_low_rank_updates()
        self.arch = self.meta["general.architecture"]
        self.n_layer = self.key("block_count")
        self.n_embd = self.key("embedding_length")
        self.n_head = self.key("attention.head_count")
        self.n_head_kv = self.key("attention.head_count_kv", self.n_head)
        self.head_dim = self.key("attention.key_length", self.n_embd // self.n_head)
        self.eps = self.key("attention.layer_norm_rms_epsilon")
        self.n_vocab = self.w["token_embd.weight"].shape[0]
        self.rope = self.make_rope(rope_scaling, rope_scale, rope_base)

    def key(self, name, default=None):
        return self.meta.get(f"{self.arch}.{name}", default)

    def add_low_rank_updates(self):
        """W + alpha / rank * B A (LoRA, arXiv 2106.09685) for every pair of factors that an adapter has."""
        for name in [n.removesuffix(".lora_a") for n in self.w if n.endswith(".lora_a")]:
            a, b = self.w.pop(f"{name}.lora_a"), self.w.pop(f"{name}.lora_b")
            scale = self.meta.get("adapter.lora.alpha", len(a)) / len(a)
            self.w[name] = self.w[name] + scale * b @ a

    def make_rope(self, scaling, scale, base):
        """RoPE frequencies as the file says, or as the --rope-* options say instead.

        linear: all frequencies divided by the factor. yarn (arXiv 2309.00071): frequencies that turn less
        than beta_slow = 1 times in the original context are divided, those that turn more than beta_fast = 32
        times are kept, a linear ramp between; the ramp's ends are rounded outwards as transformers and
        llama.cpp do; cos and sin are multiplied by 0.1 ln(factor) + 1. llama3: the file's rope_freqs tensor
        divides the frequencies.
        """
        n_rot = self.key("rope.dimension_count", self.head_dim)
        base = base or self.key("rope.freq_base", 10000.0)
        freq = base ** -(torch.arange(0, n_rot, 2, dtype=torch.float64) / n_rot)
        factor = scale or self.key("rope.scaling.factor", 1.0)
        kind = scaling or self.key("rope.scaling.type", "none")
        magnitude = 1.0
        if kind == "linear":
            freq = freq / factor
        elif kind == "yarn":
            n_ctx = self.key("rope.scaling.original_context_length", self.key("context_length"))

            def pair_that_turns(times):
                return n_rot * math.log(n_ctx / (times * 2 * math.pi)) / (2 * math.log(base))

            low = max(math.floor(pair_that_turns(32)), 0)
            high = min(math.ceil(pair_that_turns(1)), n_rot - 1)
            ramp = ((torch.arange(n_rot // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
            freq = freq * (1 - ramp) + freq / factor * ramp
            magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        if scaling is None and "rope_freqs.weight" in self.w:
            freq = freq / self.w["rope_freqs.weight"].double()
        return Rope(freq.to(self.dtype), magnitude, interleaved=self.arch == "llama")

    def linear(self, x, name):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.w[f"{name}.weight"]

    def embed(self, ids):
        table = self.w["token_embd.weight"]
        if "landmark_embd.weight" in self.w:
            table = torch.cat((table, self.w["landmark_embd.weight"].reshape(1, -1)))
        return table[torch.tensor(ids)]

    def layer_inputs(self, i, x, n_prompt, landmarks):
        b, n = f"blk.{i}", len(x)
        h = self.norm(x, f"{b}.attn_norm")
        q = self.linear(h, f"{b}.attn_q").view(n, self.n_head, self.head_dim)
        k = self.linear(h, f"{b}.attn_k").view(n, self.n_head_kv, self.head_dim)
        v = self.linear(h, f"{b}.attn_v").view(n, self.n_head_kv, self.head_dim)
        if f"{b}.attn_q_norm.weight" in self.w:
            q, k = self.norm(q, f"{b}.attn_q_norm"), self.norm(k, f"{b}.attn_k_norm")
        tensors = {name.split(".")[2]: t for name, t in self.w.items() if name.startswith(f"{b}.attn_")}
        return Layer(h, q, k, v, self.rope, n_prompt, tensors, landmarks)

    @torch.no_grad()
    def logits(self, ids, attn="dense", kv_evict=None, batch=512, n_prompt=None, trace=None):
        """Logits [T, n_vocab] of the caller's own tokens, the first n_prompt (default: all) being the prompt.

        `batch` is the engine's -b; it matters for eviction only, which happens after every batch.
        A list `trace` gets an evict.Trace of each layer that keeps a cache.
        """
        layers = [spec.for_layer(attn, i, self.n_layer) for i in range(self.n_layer)]
        layers = [(name, spec.options(name, given, self.meta)) for name, given in layers]
        policy = spec.eviction(kv_evict)
        n_prompt = len(ids) if n_prompt is None else n_prompt
        landmarks = None
        for name, opts in layers:
            if name == "landmark" and opts["key"] == "token":
                token_id = self.meta["attention.landmark.token_id"]
                ids, landmarks, n_prompt = modes.insert_landmarks(ids, opts["block"], token_id, n_prompt)
                break
        x = self.embed(ids)
        for i, (name, opts) in enumerate(layers):
            layer = self.layer_inputs(i, x, n_prompt, landmarks)
            if name in modes.CACHED:
                out = evict.attend(layer, modes.CACHED[name], opts, policy, batch, (i, self.n_layer), trace)
            else:
                out = modes.WHOLE[name](layer, **opts)
            x = x + self.linear(out.reshape(len(x), -1), f"blk.{i}.attn_output")
            h = self.norm(x, f"blk.{i}.ffn_norm")
            gate, up = self.linear(h, f"blk.{i}.ffn_gate"), self.linear(h, f"blk.{i}.ffn_up")
            x = x + self.linear(torch.nn.functional.silu(gate) * up, f"blk.{i}.ffn_down")
        if landmarks is not None:
            x = x[~landmarks]
        output = "output" if "output.weight" in self.w else "token_embd"
        return self.linear(self.norm(x, "output_norm"), output)

    def greedy(self, ids, n, **options):
        """The n tokens that greedy decoding appends, and the smallest top-1 margin met on the way."""
        ids, n_prompt, margin = list(ids), len(ids), math.inf
        for _ in range(n):
            top = self.logits(ids, n_prompt=n_prompt, **options)[-1].topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            ids.append(top.indices[0].item())
        return ids[n_prompt:], margin
