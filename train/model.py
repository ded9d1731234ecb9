"""The small Llama that the bundled checkpoint is: one set of weights, with the parameters of every mode beside.

forward() takes the attention mode as an argument; what each mode computes is in modes.py. Names of modules are
those of transformers' Llama, so that the state dict is a checkpoint that export.py reads.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import modes

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from reference.hf import NAMES, half_split  # noqa: E402
from reference.model import Model as Exported  # noqa: E402

EMBEDDING_STD = 0.02

# start_memory()
MEMORY_LAYER = 2
LOGIT = 4  # what the memory's answer is worth: less is found slowly, more is unlearned first
MATCH, UNUSED = 8, 6  # queries and keys are MATCH where a place matches, -MATCH elsewhere, -UNUSED without a place
SHARPNESS = 12  # of the queries and keys that look back, before RoPE


@dataclass
class Config:
    n_vocab: int = 1024
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_head_kv: int = 4
    n_ff: int = 704
    rope_base: float = 10000.0
    n_ctx: int = 8192  # the longest distance trained, by positions that skip ahead
    moba_block: int = 32
    moba_topk: int = 4
    topk_k: int = 64
    mosa_k: int = 96
    mosa_dense_heads: int = 1
    landmark_block: int = 32
    landmark_topk: int = 4
    infini_segment: int = 256


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        d = c.n_embd // c.n_head
        self.c, self.d, self.rope = c, d, modes.Rope(d, c.rope_base)
        self.q_proj = nn.Linear(c.n_embd, c.n_head * d, bias=False)
        self.k_proj = nn.Linear(c.n_embd, c.n_head_kv * d, bias=False)
        self.v_proj = nn.Linear(c.n_embd, c.n_head_kv * d, bias=False)
        self.o_proj = nn.Linear(c.n_head * d, c.n_embd, bias=False)
        self.mosa_router = nn.Linear(c.n_embd, c.n_head_kv, bias=False)
        # gates set apart: heads that read the memory and heads that read the segment, from the start
        self.infini_gate = nn.Parameter(torch.tensor([-3.0, 3.0]).repeat(c.n_head)[: c.n_head])

    def heads(self, x):
        B, T, _ = x.shape
        return [p(x).view(B, T, -1, self.d).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]

    def merge(self, out):
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def forward(self, x, mode, at, **options):
        c = self.c
        q, k, v = self.heads(x)
        if mode == "dense":
            out = modes.dense(q, k, v, self.rope, at, **options)
        elif mode == "moba":
            out = modes.moba(q, k, v, self.rope, at, c.moba_block, **{"topk": c.moba_topk, **options})
        elif mode == "mosa":
            settings = {"n_kept": c.mosa_k, "dense_heads": c.mosa_dense_heads, **options}
            out = modes.mosa(q, k, v, self.rope, at, self.mosa_router(x), **settings)
        elif mode == "landmark":
            out = modes.landmark(q, k, v, self.rope, c.landmark_block, c.landmark_topk, **options)
        else:
            out = modes.infini(q, k, v, self.rope, self.infini_gate, c.infini_segment)
        return self.merge(out)

    def segment(self, x, memory):
        """One segment of a stream under Infini-attention: (output, what the segment adds to the memory)."""
        q, k, v = self.heads(x)
        out = modes.infini_segment(q, k, v, self.rope, self.infini_gate, memory)
        return self.merge(out), modes.memory_add(modes.empty_memory(*k.shape[:2], self.d), k, v)


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.n_embd, eps=1e-5)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.n_embd, eps=1e-5)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.n_embd, c.n_ff, bias=False),
                "up_proj": nn.Linear(c.n_embd, c.n_ff, bias=False),
                "down_proj": nn.Linear(c.n_ff, c.n_embd, bias=False),
            }
        )

    def feed_forward(self, x):
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Model(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.n_vocab, c.n_embd)
        self.landmark_embd = nn.Parameter(torch.randn(c.n_embd) * EMBEDDING_STD)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = nn.RMSNorm(c.n_embd, eps=1e-5)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = (2 * c.n_layer) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(p, std=EMBEDDING_STD if "embed" in name else scale * 0.32 * c.n_embd**-0.5)

        self.start_with_lookup()

    @torch.no_grad()
    def start_with_lookup(self):
        """Starts with a circuit that finds what followed the current token last time (an induction head, Olsson et
        al., arXiv 2209.11895). Left to itself it takes thousands of steps to form, and no task is learned before.

        Layer 0, head 0 looks at the token before and writes the token that it sees into directions of their own. In
        layer 1, heads 0 and 1 compare the current token with those directions, in pairs that RoPE hardly turns, and
        copy the token that they find.
        """
        d, n_embd = self.c.n_embd // self.c.n_head, self.c.n_embd
        n_pairs, n_group = d // 2, self.c.n_head // self.c.n_head_kv
        if n_group > 1 or 3 * d >= n_embd:
            return  # the directions below need room, and key heads of their own
        self.embed_tokens.weight[:, 0] = self.landmark_embd[0] = 8 * EMBEDDING_STD
        first, second = (layer.self_attn for layer in self.layers[:2])
        directions = random_directions(n_embd)
        seen, before = directions[:d], directions[d : 2 * d]
        look_back(first, 0, 1, 0.88, seen, 0.065 * before)
        slow = torch.arange(5 * n_pairs // 8, n_pairs)
        for head in range(2):
            rows = d * head + torch.cat((slow, slow + n_pairs))
            part = slice(len(rows) * head, len(rows) * (head + 1))
            second.q_proj.weight[rows] = 2 * seen[part]
            second.k_proj.weight[rows] = 2 * before[part]
            copied = directions[-d * (head + 1) : n_embd - 1 - d * head]
            second.v_proj.weight[d * head : d * (head + 1)] = copied
            second.o_proj.weight[:, d * head : d * (head + 1)] = 0.1 * copied.T

    @torch.no_grad()
    def start_memory(self, ids, mark, layer=MEMORY_LAYER, head=1, n_places=5):
        """Starts a head that reads Infini's memory as a table: the token that came j after a `mark`, up to n_places, is
        stored in place j and asked for j - 1 after a mark. (In these texts a space of its own stands before numbers
        and nowhere else.) Memory weighs with positive features, elu(x) + 1, which are far below 1 for places that
        don't match, so that a number outweighs thousands of other tokens.

        How far back a mark is, and what a token is, is fitted by least squares to ids [B, T].
        """
        if self.c.n_head != self.c.n_head_kv or layer >= self.c.n_layer:
            return  # as start_with_lookup()
        self.look_further_back(ids)
        h = self.input_of(layer, ids, "infini").flatten(0, 1)
        constant, tells = h[:, 0].mean(), teller(h)
        attention, d = self.layers[layer].self_attn, self.c.n_embd // self.c.n_head
        rows = slice(d * head, d * (head + 1))
        after_mark = [F.pad(ids == mark, (j, 0))[:, : ids.shape[1]] for j in range(n_places + 1)]
        for weight, asked in ((attention.q_proj.weight, 0), (attention.k_proj.weight, 1)):
            weight[rows] = 0
            weight[rows, 0] = -UNUSED / constant
            for place in range(n_places):
                row = d * head + d // 2 - 1 - place  # RoPE hardly turns these, for the modes that have it
                weight[row] = 2 * MATCH * tells(after_mark[place + asked])
                weight[row, 0] -= MATCH / constant

        kept = ids[torch.stack(after_mark[1:]).any(0)].unique()[:d]
        size = rms(self.through(self.layers, self.embed_tokens(ids), "infini"))
        attention.v_proj.weight[rows] = attention.o_proj.weight[:, rows] = 0
        for i, token in enumerate(kept):
            out = self.embed_tokens.weight[token] - self.embed_tokens.weight[kept].mean(0)
            attention.v_proj.weight[d * head + i] = tells(ids == token)
            attention.o_proj.weight[:, d * head + i] = LOGIT * size * out / (self.norm.weight * out**2).sum()

    def look_further_back(self, ids):
        """Head 2 of layer 0 looks two tokens back, head 2 of layer 1 three: it finds there what layer 0 has brought, so
        that the last five tokens are known from layer 2 on. Strengths are those that fit the model on ids [B, T]."""
        d, strength = self.c.n_embd // self.c.n_head, 8
        directions, others = (random_directions(self.c.n_embd) for _ in range(2))
        seen, two_back, earlier = directions[:d], directions[d : 2 * d], others[d : 2 * d]
        first, second = (layer.self_attn for layer in self.layers[:2])
        size, constant = rms(self.embed_tokens(ids)), self.input_of(0, ids, "infini")[..., 0].mean()
        look_back(first, 2, 2, SHARPNESS / constant, seen, strength * size * two_back)
        size = rms(self.through(self.layers[:1], self.embed_tokens(ids), "infini"))
        constant = self.input_of(1, ids, "infini")[..., 0].mean()
        before = F.normalize(first.o_proj.weight[:, : d // 3].T)
        found = torch.cat((seen[: d // 3], before, two_back[: d - d // 3 * 2]))
        look_back(second, 2, 3, SHARPNESS / constant, found, strength * size * earlier)

    def above_memory(self):
        """The parameters that what start_memory()'s head finds goes through."""
        upper = self.layers[MEMORY_LAYER + 1 :]
        lowest = [layer.mlp for layer in self.layers[MEMORY_LAYER : MEMORY_LAYER + 1]]
        return [p for part in (*lowest, *upper) for p in part.parameters()]

    def through(self, layers, x, mode, at=None, **options):
        """The residual stream x [B, T, n_embd] after these layers."""
        at = torch.arange(x.shape[1]) if at is None else at
        for layer in layers:
            x = x + layer.self_attn(layer.input_layernorm(x), mode, at, **options)
            x = layer.feed_forward(x)
        return x

    def input_of(self, layer, ids, mode):
        """What a layer's attention gets, [B, T, n_embd]."""
        x = self.through(self.layers[:layer], self.embed_tokens(ids), mode)
        return self.layers[layer].input_layernorm(x)

    def output(self, x):
        return self.norm(x) @ self.embed_tokens.weight.T

    def forward(self, ids, mode="dense", at=None, **options):
        """Logits [B, T, n_vocab]. In mode "landmark", ids have none: they are put in here, and their logits come too."""
        x = self.embed_tokens(ids)
        if mode == "landmark":
            x = self.with_landmarks(x)
        return self.output(self.through(self.layers, x, mode, at, **options))

    def with_landmarks(self, x):
        """[B, n * (block-1), C] -> [B, n * block, C]: a landmark ends every block."""
        B, T, C = x.shape
        parts = x.unflatten(1, (-1, self.c.landmark_block - 1))
        mark = self.landmark_embd.expand(B, parts.shape[1], 1, C)
        return torch.cat((parts, mark.to(x.dtype)), dim=2).flatten(1, 2)

    def segment(self, ids, memories):
        """(logits, each layer's addition to its memory) of one segment of a stream under Infini-attention."""
        x, added = self.embed_tokens(ids), []
        for layer, memory in zip(self.layers, memories):
            out, more = layer.self_attn.segment(layer.input_layernorm(x), memory)
            x = layer.feed_forward(x + out)
            added.append(more)
        return self.output(x), added


def rms(x):
    return x.pow(2).mean().sqrt()


def random_directions(n_embd):
    """Orthogonal directions [n_embd - 1, n_embd], all without the first dimension."""
    return F.pad(torch.linalg.qr(torch.randn(n_embd - 1, n_embd - 1))[0], (1, 0))


def teller(h):
    """A function of `there` [B, T]: the direction in which h [B * T, n_embd] is 1 on average where `there` holds, and
    0 elsewhere, by least squares."""
    factor = torch.linalg.cholesky(h.T @ h + 1e-3 * len(h) * torch.eye(h.shape[1]))

    def tells(there):
        there = there.flatten()
        direction = torch.cholesky_solve((h.T @ there.float())[:, None], factor)[:, 0]
        low, high = (h @ direction)[~there].mean(), (h @ direction)[there].mean()
        direction /= high - low
        direction[0] -= low / (high - low) / h[:, 0].mean()
        return direction

    return tells


def look_back(attention, head, distance, sharpness, seen, written):
    """Lets a head attend to the token `distance` before: its query and key are constants, read from a dimension of
    the embedding that is the same for all tokens, and differ by a rotation of that many positions. Writes what it
    sees in the directions `seen` [d, n_embd] into the directions `written`."""
    d, first = attention.d, attention.d * head
    turns = distance * attention.rope.inv_freq[: d // 16]
    pairs = first + torch.arange(len(turns))
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[first : first + d] = 0
    attention.q_proj.weight[pairs, 0] = sharpness
    attention.k_proj.weight[pairs, 0] = sharpness * turns.cos()
    attention.k_proj.weight[pairs + d // 2, 0] = sharpness * turns.sin()
    attention.v_proj.weight[first : first + d] = seen
    attention.o_proj.weight[:, first : first + d] = written.T


def load_exported(model, path):
    """Sets the weights to those of a GGUF file that export.py made of such a model."""
    names = {
        **{name: f"{module}.weight" for name, module in NAMES.items()},
        "attn_mosa_router": "self_attn.mosa_router.weight",
        "attn_infini_gate": "self_attn.infini_gate",
    }
    others = {
        "token_embd.weight": "embed_tokens.weight",
        "output_norm.weight": "norm.weight",
        "landmark_embd.weight": "landmark_embd",
    }
    state = {}
    for name, w in Exported(path, dtype=torch.float32).w.items():
        if name.startswith("blk."):
            _, layer, what, _ = name.split(".")
            if what in ("attn_q", "attn_k"):
                w = half_split(w, model.c.n_head if what == "attn_q" else model.c.n_head_kv)
            state[f"layers.{layer}.{names[what]}"] = w
        else:
            state[others[name]] = w
    model.load_state_dict(state)


def save_checkpoint(model, folder: Path, tokenizer_config):
    """Writes what export.py reads: config.json, model.safetensors, attn_params.safetensors, tokenizer_config.json."""
    c = model.c
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.n_vocab,
        "hidden_size": c.n_embd,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_head_kv,
        "intermediate_size": c.n_ff,
        "max_position_embeddings": c.n_ctx,
        "rope_theta": c.rope_base,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    weights, params = {}, {"landmark_embd.weight": model.landmark_embd.detach().clone()}
    for name, p in model.state_dict().items():
        layer = name.split(".")[1] if name.startswith("layers.") else None
        if name.endswith("mosa_router.weight"):
            params[f"blk.{layer}.attn_mosa_router.weight"] = p.clone()
        elif name.endswith("infini_gate"):
            params[f"blk.{layer}.attn_infini_gate.weight"] = p.clone()
        elif name != "landmark_embd":
            weights[f"model.{name}"] = p.clone()
    keys = {
        "attention.modes": json.dumps(["dense", "moba", "topk", "mosa", "landmark", "infini"]),
        "attention.moba.block_size": c.moba_block,
        "attention.moba.top_k": c.moba_topk,
        "attention.topk.k": c.topk_k,
        "attention.mosa.k": c.mosa_k,
        "attention.mosa.dense_heads": c.mosa_dense_heads,
        "attention.mosa.include_first": "true",
        "attention.landmark.block_size": c.landmark_block,
        "attention.landmark.top_k": c.landmark_topk,
        "attention.landmark.token_id": c.n_vocab,
        "attention.infini.segment_length": c.infini_segment,
        "attention.infini.delta_rule": "false",
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(params, folder / "attn_params.safetensors", metadata={k: str(v) for k, v in keys.items()})
