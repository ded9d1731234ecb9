"""A Llama read from GGUF whose weights stay as they are, and the sidecar of parameters that are trained.

The sidecar holds low-rank updates of q, k, v and o of every layer (LoRA, arXiv 2106.09685) and what its
attention mode needs: routers, gates or a landmark's embedding. Rows of q and k are in transformers' order
(RoPE pairs half a head apart). Shapes: B sequences, T tokens, H query heads, G key/value heads, d head size.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import modes

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from reference.hf import half_split  # noqa: E402
from reference.model import Model  # noqa: E402

PROJECTIONS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}


@dataclass
class Settings:
    """How the attention modes are set up in a sidecar: for 2,048 tokens, and moba_topk for 4,096."""

    mode: str
    rank: int = 16
    updates: str = "qkvo"  # projections with low-rank updates
    moba_block: int = 64
    moba_topk: int = 13
    mosa_k: int = 512
    mosa_dense_heads: int = 6
    landmark_block: int = 64
    landmark_topk: int = 16
    landmark_start: int = 198  # the token whose embedding it starts from: a line's end, in SmolLM2
    infini_segment: int = 512

    def for_length(self, length, full=2048):
        """The same for texts of another length: what grows with the text is in proportion."""
        n = length / full
        return replace(
            self,
            moba_topk=max(2, round(self.moba_topk * n / 2)),
            landmark_topk=max(2, round(self.landmark_topk * n)),
            mosa_k=max(16, round(self.mosa_k * n)),
            infini_segment=max(32, round(self.infini_segment * min(n, 1))),
        )


class Sidecar(nn.Module):
    def __init__(self, frozen, settings: Settings):
        super().__init__()
        self.settings, self.n_layer = settings, frozen.n_layer
        n_layer, n_embd, H, G, d = frozen.n_layer, frozen.n_embd, frozen.n_head, frozen.n_head_kv, frozen.d
        shapes = {"q": (H * d, n_embd), "k": (G * d, n_embd), "v": (G * d, n_embd), "o": (n_embd, H * d)}
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for name in settings.updates:
            rows, columns = shapes[name]
            self.a[name] = nn.Parameter(torch.randn(n_layer, settings.rank, columns) * columns**-0.5)
            self.b[name] = nn.Parameter(torch.zeros(n_layer, rows, settings.rank))
        if settings.mode == "mosa":
            self.router = nn.Parameter(torch.zeros(n_layer, G, n_embd))
        elif settings.mode == "infini":
            self.gate = nn.Parameter(torch.full((n_layer, H), -3.0))
        elif settings.mode == "landmark":
            self.landmark = nn.Parameter(frozen.embedding[settings.landmark_start].clone())

    def updated(self, i, name, y, x):
        """y = W x, with what the low-rank update of projection `name` of layer i adds."""
        return y + x @ self.a[name][i].T @ self.b[name][i].T if name in self.settings.updates else y

    def save(self, path, n_vocab):
        """Writes what export.py makes an adapter of."""
        s, n_layer = self.settings, self.n_layer
        tensors, keys = {}, {"attention.modes": json.dumps([s.mode]), "adapter.lora.alpha": s.rank}
        for i in range(n_layer):
            for name in s.updates:
                tensors[f"blk.{i}.{PROJECTIONS[name]}.weight.lora_a"] = self.a[name][i]
                tensors[f"blk.{i}.{PROJECTIONS[name]}.weight.lora_b"] = self.b[name][i]
            if s.mode == "mosa":
                tensors[f"blk.{i}.attn_mosa_router.weight"] = self.router[i]
            elif s.mode == "infini":
                tensors[f"blk.{i}.attn_infini_gate.weight"] = self.gate[i]
        if s.mode == "landmark":
            tensors["landmark_embd.weight"] = self.landmark
        keys |= {
            "moba": {"attention.moba.block_size": s.moba_block, "attention.moba.top_k": s.moba_topk},
            "mosa": {
                "attention.mosa.k": s.mosa_k,
                "attention.mosa.dense_heads": s.mosa_dense_heads,
                "attention.mosa.include_first": "true",
            },
            "landmark": {
                "attention.landmark.block_size": s.landmark_block,
                "attention.landmark.top_k": s.landmark_topk,
                "attention.landmark.token_id": n_vocab,
            },
            "infini": {"attention.infini.segment_length": s.infini_segment},
        }[s.mode]
        tensors = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
        save_file(tensors, path, metadata={k: str(v) for k, v in keys.items()})

    def state(self):
        return {"settings": asdict(self.settings), "parameters": self.state_dict()}


class Frozen:
    """The weights of a GGUF file (architecture llama) in float32, without gradients."""

    def __init__(self, path):
        m = Model(path, dtype=torch.float32)
        if m.arch != "llama":
            sys.exit(f"{path}: architecture {m.arch}: adapters are trained for llama alone")
        self.n_layer, self.n_embd, self.n_head, self.n_head_kv = m.n_layer, m.n_embd, m.n_head, m.n_head_kv
        self.d, self.eps, self.n_vocab = m.head_dim, m.eps, m.n_vocab
        self.rope = modes.Rope(m.head_dim, m.key("rope.freq_base", 10000.0))
        self.w = m.w
        for i in range(m.n_layer):
            for name, n in (("attn_q", m.n_head), ("attn_k", m.n_head_kv)):
                weight = f"blk.{i}.{name}.weight"
                self.w[weight] = half_split(self.w[weight], n).contiguous()
        self.embedding = self.w["token_embd.weight"]
        self.output = self.w.get("output.weight", self.embedding)

    def norm(self, x, name):
        return F.rms_norm(x, (self.n_embd,), self.w[f"{name}.weight"], self.eps)

    def attention_input(self, i, x):
        return self.norm(x, f"blk.{i}.attn_norm")

    def project(self, i, name, x):
        return F.linear(x, self.w[f"blk.{i}.{PROJECTIONS[name]}.weight"])

    def heads(self, i, h, rows=None):
        """Of h [B, T, n_embd]: q [B, R, H * d] of the rows (default: all), k and v [B, T, G * d]."""
        return [self.project(i, name, x) for name, x in self.head_inputs(h, rows)]

    def updated_heads(self, i, heads, h, sidecar, rows=None):
        return [sidecar.updated(i, name, y, x) for y, (name, x) in zip(heads, self.head_inputs(h, rows))]

    def head_inputs(self, h, rows):
        return ("q", h if rows is None else h[:, rows]), ("k", h), ("v", h)

    def split(self, heads):
        """[B, T, H * d] -> [B, H, T, d], of each of q, k and v."""
        return [x.unflatten(2, (-1, self.d)).transpose(1, 2) for x in heads]

    def dense(self, i, heads, rows=None):
        """Output [B, T, n_embd] of layer i's dense attention."""
        q, k, v = self.split(heads)
        out = modes.dense(q, k, v, self.rope, torch.arange(k.shape[2]), rows)
        return self.project(i, "o", out.transpose(1, 2).flatten(2))

    def attend(self, i, h, heads, sidecar, settings, rows=None, **options):
        """The same under the sidecar's mode, of updated heads; h [B, T, n_embd] is for MoSA's routers."""
        q, k, v = self.split(heads)
        at, s = torch.arange(k.shape[2]), settings
        if s.mode == "moba":
            out = modes.moba(q, k, v, self.rope, at, s.moba_block, s.moba_topk, rows)
        elif s.mode == "mosa":
            router = h @ sidecar.router[i].T
            out = modes.mosa(q, k, v, self.rope, at, router, s.mosa_k, s.mosa_dense_heads, rows=rows)
        elif s.mode == "landmark":
            out = modes.landmark(q, k, v, self.rope, s.landmark_block, s.landmark_topk, rows=rows, **options)
        else:
            out = modes.infini(q, k, v, self.rope, sidecar.gate[i], s.infini_segment)
        out = out.transpose(1, 2).flatten(2)
        return sidecar.updated(i, "o", self.project(i, "o", out), out)

    def feed_forward(self, i, x):
        h = self.norm(x, f"blk.{i}.ffn_norm")
        gate, up = (F.linear(h, self.w[f"blk.{i}.ffn_{name}.weight"]) for name in ("gate", "up"))
        return x + F.linear(F.silu(gate) * up, self.w[f"blk.{i}.ffn_down.weight"])

    def logits(self, x):
        return F.linear(self.norm(x, "output_norm"), self.output)
