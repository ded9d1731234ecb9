"""MoSA's claim at a small scale: dense and hybrid models of equal FLOPs per token, trained on the same text.

    python train/mosa_claim.py runs/mosa-claim --steps 1500

The paper (Piekos et al., arXiv 2505.00315) replaces dense heads by as many sparse heads as cost the same and
reports up to 27% lower perplexity; and, with fewer of them, the same perplexity from a far smaller KV cache.
Its FLOPs of a head over T tokens, h = n_embd and d the head size:

    dense   8 h d T + 4 d T^2
    MoSA    8 h d k + 4 d k^2 + 2 h T + d k

Sparse heads choose k tokens of the whole sequence, as the paper trains and evaluates; that choice sees tokens
to come. So held-out perplexity is given with that (sequence) and with the choice among earlier tokens alone
(prefix), which is what generating can do. Results go to FOLDER/mosa_claim.csv; a variant that was stopped
goes on from its checkpoint.
"""

import argparse
import csv
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import modes
import tasks as tasks_
from train import PRECISION, learning_rate

D, N_EMBD, N_LAYER, N_FF, LENGTH, ROPE_BASE = 32, 128, 4, 352, 512, 10000.0


@dataclass
class Heads:
    n_dense: int
    n_sparse: int = 0
    k: int = 0

    def flops(self):
        """Of one layer's attention for LENGTH tokens, after the paper."""
        dense = 8 * N_EMBD * D * LENGTH + 4 * D * LENGTH**2
        k = self.k
        sparse = 8 * N_EMBD * D * k + 4 * D * k**2 + 2 * N_EMBD * LENGTH + D * k
        return self.n_dense * dense + self.n_sparse * sparse

    def cached(self):
        """Entries of one layer's cache after LENGTH tokens."""
        return self.n_dense * LENGTH + self.n_sparse * self.k


def equal_flops(n_dense, k, budget):
    """n_dense dense heads and as many sparse ones as the budget's FLOPs allow."""
    left = budget.flops() - Heads(n_dense).flops()
    return Heads(n_dense, left // Heads(0, 1, k).flops(), k)


DENSE = Heads(4)
VARIANTS = {
    "dense": DENSE,
    "hybrid, equal FLOPs, k=64": equal_flops(2, 64, DENSE),
    "hybrid, equal FLOPs, k=32": equal_flops(2, 32, DENSE),
    "hybrid, small cache": Heads(1, 12, 32),
}


class SparseHeads(nn.Module):
    """MoSA heads with weights of their own; only the chosen tokens are projected."""

    def __init__(self, heads: Heads, rope):
        super().__init__()
        n, self.k, self.rope = heads.n_sparse, heads.k, rope
        self.router = nn.Linear(N_EMBD, n, bias=False)
        self.qkv = nn.Parameter(torch.randn(3, n, N_EMBD, D) * 0.02)
        self.out = nn.Parameter(torch.randn(n, D, N_EMBD) * 0.02 * (2 * N_LAYER) ** -0.5)

    def forward(self, x, prefix):
        return self.prefix(x) if prefix else self.sequence(x)

    def rotated(self, x, at):
        """x [B, n, T, D] at positions [B, n, T]."""
        angle = at[..., None] * self.rope.inv_freq
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)

    def sequence(self, x):
        B, T, C = x.shape
        r = self.router(x).sigmoid().mT  # [B, n, T]
        at = r.topk(self.k, dim=-1).indices.sort(dim=-1).values
        chosen = x[torch.arange(B)[:, None, None], at]  # [B, n, k, C]
        q, k, v = (torch.einsum("bnkc,ncd->bnkd", chosen, w) for w in self.qkv)
        out = F.scaled_dot_product_attention(self.rotated(q, at), self.rotated(k, at), v, is_causal=True)
        out = torch.einsum("bnkd,ndc->bnkc", out * r.gather(-1, at)[..., None], self.out)
        return torch.zeros_like(x).scatter_add(1, at.flatten(1)[..., None].expand(-1, -1, C), out.flatten(1, 2))

    def prefix(self, x):
        B, T, _ = x.shape
        r = self.router(x).sigmoid().mT
        q, k, v = (torch.einsum("btc,ncd->bntd", x, w) for w in self.qkv)
        at = torch.arange(T).expand(B, 1, T)
        members = modes.prefix_members(r, self.k, include_first=False)
        mask = members | torch.eye(T, dtype=torch.bool)
        out = F.scaled_dot_product_attention(self.rotated(q, at), self.rotated(k, at), v, attn_mask=mask)
        out = out * (r * members.diagonal(dim1=-2, dim2=-1))[..., None]
        return torch.einsum("bntd,ndc->btc", out, self.out)


class Layer(nn.Module):
    def __init__(self, heads: Heads):
        super().__init__()
        self.n_dense, self.rope = heads.n_dense, modes.Rope(D, ROPE_BASE)
        self.norm1, self.norm2 = nn.RMSNorm(N_EMBD), nn.RMSNorm(N_EMBD)
        self.qkv = nn.Linear(N_EMBD, 3 * self.n_dense * D, bias=False)
        self.o = nn.Linear(self.n_dense * D, N_EMBD, bias=False)
        self.sparse = SparseHeads(heads, self.rope) if heads.n_sparse else None
        self.up, self.down = nn.Linear(N_EMBD, 2 * N_FF, bias=False), nn.Linear(N_FF, N_EMBD, bias=False)

    def forward(self, x, prefix):
        h = self.norm1(x)
        B, T, _ = h.shape
        q, k, v = self.qkv(h).view(B, T, 3, self.n_dense, D).permute(2, 0, 3, 1, 4)
        out = self.o(modes.dense(q, k, v, self.rope, torch.arange(T)).transpose(1, 2).flatten(2))
        x = x + out + (self.sparse(h, prefix) if self.sparse else 0)
        gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, heads: Heads, n_vocab):
        super().__init__()
        self.embed = nn.Embedding(n_vocab, N_EMBD)
        self.layers = nn.ModuleList(Layer(heads) for _ in range(N_LAYER))
        self.norm = nn.RMSNorm(N_EMBD)
        nn.init.normal_(self.embed.weight, std=0.02)
        for name, p in self.named_parameters():
            if name.endswith((".o.weight", "down.weight")):
                nn.init.normal_(p, std=0.02 * (2 * N_LAYER) ** -0.5)
            elif name.endswith((".qkv.weight", "up.weight", "router.weight")):
                nn.init.normal_(p, std=0.02)

    def loss(self, ids, prefix=False):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, prefix)
        logits = self.norm(x)[:, :-1] @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def corpus(tasks):
    """(training ids, held-out ids): every tenth stretch of 64 verses is held out."""
    verses = tasks.held_out + tasks.verses
    parts = ["\n".join(verses[i : i + 64]) + "\n" for i in range(0, len(verses), 64)]
    ids = [torch.tensor(tasks.encode(part)) for part in parts]
    return torch.cat([x for i, x in enumerate(ids) if i % 10]), torch.cat(ids[::10])


@torch.no_grad()
def perplexity(model, ids, prefix):
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[:64]
    return math.exp(sum(model.loss(part, prefix).item() * len(part) for part in rows.split(2)) / len(rows))


def train_variant(name, heads, args, ids):
    torch.manual_seed(args.seed)
    model = Model(heads, args.n_vocab)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    path = args.folder / (name.replace(", ", "-").replace(" ", "-") + ".pt")
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, args.steps):
        rng = random.Random(f"{args.seed} {step}")
        starts = [rng.randrange(len(ids) - LENGTH) for _ in range(args.batch)]
        batch = torch.stack([ids[s : s + LENGTH] for s in starts])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"{name}: step {step + 1}, loss {loss.item():.3f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return model


def main():
    parser = argparse.ArgumentParser(description="dense and MoSA hybrids of equal FLOPs, on the same text")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_float32_matmul_precision(PRECISION)
    tasks = tasks_.load(args.folder)
    args.n_vocab = tasks.tokenizer.get_vocab_size()
    ids, held_out = corpus(tasks)
    rows = []
    for name, heads in VARIANTS.items():
        model = train_variant(name, heads, args, ids)
        rows.append(
            {
                "model": name,
                "dense_heads": heads.n_dense,
                "sparse_heads": heads.n_sparse,
                "k": heads.k,
                "attention_mflops_per_token": round(heads.flops() / LENGTH / 1e6, 3),
                "parameters": sum(p.numel() for p in model.parameters()),
                "cached_entries_per_layer": heads.cached(),
                "perplexity_sequence": round(perplexity(model, held_out, False), 3),
                "perplexity_prefix": round(perplexity(model, held_out, True), 3),
            }
        )
        with open(args.folder / "mosa_claim.csv", "w", newline="") as file:
            out = csv.DictWriter(file, rows[0])
            out.writeheader()
            out.writerows(rows)


if __name__ == "__main__":
    main()
