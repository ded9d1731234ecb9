"""The attention modes for training: whole batches, differentiable, every mode as a mask over dense scores.

The same definitions as the binary's, T x T and without caches. Shapes: B sequences, T positions, H query
heads, G key/value heads, d head size. q [B, H, T, d] and k, v [B, G, T, d] come before RoPE; every function
returns the heads' outputs [B, H, T, d].

`rope` is a Rope; `at` the positions [T] it rotates to, which may skip ahead of 0..T-1 so that distances
longer than the training length are seen (PoSE, arXiv 2309.10400). With `rows` [R], q holds the queries of these
positions alone, in order. `bias` [T, T] is added to the scores of dense heads and MoBA: log n where a key stands for
n of its kind.
"""

import math

import torch
import torch.nn.functional as F


class Rope:
    """Rotary embedding with pairs (i, i + d/2), as transformers has it for Llama."""

    def __init__(self, d, base):
        self.inv_freq = base ** -(torch.arange(0, d, 2) / d)

    def __call__(self, x, at):
        """x [..., T, d] rotated to positions at [T]."""
        angle = at[:, None] * self.inv_freq
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def per_query_head(x, n_head):
    """[B, G, T, d] -> [B, H, T, d]: a group's query heads share its keys and values."""
    return x.repeat_interleave(n_head // x.shape[1], dim=1)


def best(scores, n):
    """Mask of the n largest finite scores along the last dimension; ties go to the lower index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., : max(n, 0)]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return chosen & scores.isfinite()


def causal_mask(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def biased(mask, bias):
    """What attn_mask is to be where mask [.., T, T] lets attend."""
    return mask if bias is None else torch.where(mask, bias, -math.inf)


def dense(q, k, v, rope, at, rows=None, bias=None):
    k, v = per_query_head(k, q.shape[1]), per_query_head(v, q.shape[1])
    if rows is None and bias is None:
        return F.scaled_dot_product_attention(rope(q, at), rope(k, at), v, is_causal=True)
    rows = torch.arange(k.shape[2]) if rows is None else rows
    mask = biased(torch.arange(k.shape[2]) <= rows[:, None], bias)
    return F.scaled_dot_product_attention(rope(q, at[rows]), rope(k, at), v, attn_mask=mask)


def moba(q, k, v, rope, at, block, topk, rows=None, bias=None):
    """Lu et al., MoBA (arXiv 2502.13189). The gate has no gradient: it only chooses."""
    H, T = q.shape[1], k.shape[2]
    rows = torch.arange(T) if rows is None else rows
    q, k, v = rope(q, at[rows]), per_query_head(rope(k, at), H), per_query_head(v, H)
    n = -(-T // block)
    own = (rows // block)[:, None]
    with torch.no_grad():
        padded = F.pad(k, (0, 0, 0, n * block - T))
        means = padded.unflatten(2, (n, block)).mean(3)  # the last block is never a past one
        gate = (q @ means.mT).masked_fill(torch.arange(n) >= own, -math.inf)
        chosen = best(gate, topk - 1) | (torch.arange(n) == own)
        mask = chosen.repeat_interleave(block, dim=-1)[..., :T] & (torch.arange(T) <= rows[:, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=biased(mask, bias))


def prefix_members(r, k, include_first):
    """[..., T, T] bool: is token i among the k best of 0..t. r [..., T] are the router's scores."""
    rank = r.detach().clone()
    if include_first:
        rank[..., 0] = 2  # above any sigmoid
    T = r.shape[-1]
    i = torch.arange(T)
    # beaten_by[i, j]: token j stands before token i in the order
    beaten_by = (rank[..., None, :] > rank[..., None]) | (
        (rank[..., None, :] == rank[..., None]) & (i < i[:, None])
    )
    n_better = beaten_by.cumsum(-1, dtype=torch.int16)  # [..., i, t]: of the tokens 0..t
    return (n_better < k).mT & causal_mask(T)


def prefix_members_of_rows(r, k, include_first, rows):
    """[..., R, T]: prefix_members for some rows, up to ties."""
    rank = r.detach().clone()
    if include_first:
        rank[..., 0] = 2
    i = torch.arange(r.shape[-1])
    rank = rank[..., None, :].masked_fill(i > rows[:, None], -1)
    last = rank.topk(min(k, r.shape[-1]), dim=-1, sorted=True).values[..., -1:]
    return (rank >= last) & (i <= rows[:, None])


def mosa(q, k, v, rope, at, router, n_kept, dense_heads=0, include_first=True, rows=None, bias=None):
    """Piekos et al., Mixture of Sparse Attention (arXiv 2505.00315), with prefix selection.

    router [B, T, R] are the scores before the sigmoid, R = G or H. A token's score multiplies its output as a
    query; so that being read by others trains the router too, values are multiplied by r / stop_gradient(r).
    """
    H, T, n_group = q.shape[1], k.shape[2], q.shape[1] // router.shape[-1]
    r = router.float().sigmoid().mT  # [B, R, T]
    if rows is None:
        rows = torch.arange(T)
        members = prefix_members(r, n_kept, include_first)
    else:
        members = prefix_members_of_rows(r, n_kept, include_first, rows)
    members, r = (x.repeat_interleave(n_group, dim=1)[:, dense_heads:] for x in (members, r))
    q, k, v = rope(q, at[rows]), per_query_head(rope(k, at), H), per_query_head(v, H)
    own = torch.arange(T) == rows[:, None]
    is_member = (members & own).any(-1)
    r = r[..., None].to(v.dtype)
    mask = members | own  # a row that is dropped below still needs an entry
    sparse = F.scaled_dot_product_attention(
        q[:, dense_heads:], k[:, dense_heads:], v[:, dense_heads:] * (r / r.detach()), attn_mask=mask
    )
    sparse = sparse * r[:, :, rows] * is_member[..., None]
    if not dense_heads:
        return sparse
    mask = biased(torch.arange(T) <= rows[:, None], bias)
    first = F.scaled_dot_product_attention(q[:, :dense_heads], k[:, :dense_heads], v[:, :dense_heads], attn_mask=mask)
    return torch.cat((first, sparse), dim=1)


def landmark(q, k, v, rope, block, topk, slot=0, retrieve=True, rows=None):
    """Mohtashami & Jaggi, Landmark Attention (arXiv 2305.16300): the last token of every block is its landmark.

    Blocks older than the newest n = min(topk, past blocks) all stand at place number `slot` in front of those,
    which the caller draws anew for every step: a retrieved block may stand at any of them. retrieve=False
    attends to all past blocks, as the paper trains. T must be a multiple of block.
    """
    H, T, d = q.shape[1], *k.shape[2:]
    n_blocks = T // block
    k, v = per_query_head(k, H), per_query_head(v, H)
    i = torch.arange(T)
    rows = i if rows is None else rows
    own, within = rows // block, rows % block
    blocks = torch.arange(n_blocks)
    near = rope(q, rows) @ rope(k, i).mT / math.sqrt(d)
    n = own.clamp(max=topk)
    far = rope(q, within + (topk + 1) * block) @ rope(k, i % block + slot * block).mT / math.sqrt(d)
    scores = torch.where(i // block < (own - n)[:, None], far, near)
    scores = scores.float().unflatten(-1, (n_blocks, block))  # [B, H, rows, blocks, block]
    marks = scores[..., -1].masked_fill(blocks >= own[:, None], -math.inf)
    if retrieve:
        marks = marks.masked_fill(~best(marks.detach(), topk), -math.inf)
    visible = torch.arange(block) <= within[:, None]
    visible[:, -1] = False  # landmarks carry no value, their own block's query included
    mine = scores[:, :, torch.arange(len(rows)), own].masked_fill(~visible, -math.inf)
    outer = torch.cat((marks, mine), dim=-1).softmax(-1)
    inner = scores[..., :-1].softmax(-1) * outer[..., :n_blocks, None]
    p = F.pad(inner, (0, 1)).flatten(-2)
    places = (own[:, None] * block + torch.arange(block)).expand(mine.shape)
    p = p.scatter_add(-1, places, outer[..., n_blocks:])
    return p.to(v.dtype) @ v


def feature(x):
    return F.elu(x) + 1


def memory_read(x, memory):
    M, z = memory
    f = feature(x.float())
    return (f @ M / (f @ z[..., None] + 1e-6)).to(x.dtype)


def memory_add(memory, k, v, delta=False):
    """The memory (M [B, G, d, d], z [B, G, d]) after a segment of un-rotated keys and values."""
    M, z = memory
    f = feature(k.float())
    value = v.float() - memory_read(k, memory).float() if delta else v.float()
    return M + f.mT @ value, z + f.sum(2)


def empty_memory(B, G, d):
    return torch.zeros(B, G, d, d), torch.zeros(B, G, d)


def infini_segment(q, k, v, rope, gate, memory):
    """One segment of Infini-attention: its own tokens, and the memory of the segments before. gate [H]."""
    H, T = q.shape[1:3]
    local = dense(q, k, v, rope, torch.arange(T))
    M, z = (m.repeat_interleave(H // k.shape[1], dim=1) for m in memory)
    beta = gate.sigmoid()[:, None, None].to(local.dtype)
    return beta * memory_read(q, (M, z)) + (1 - beta) * local


def infini(q, k, v, rope, gate, segment, delta=False, memory=None):
    """Munkhdalai et al., Leave No Context Behind (arXiv 2404.07143)."""
    B, H, T, d = q.shape
    memory = memory or empty_memory(B, k.shape[1], d)
    out = []
    for begin in range(0, T, segment):
        part = slice(begin, begin + segment)
        out.append(infini_segment(q[:, :, part], k[:, :, part], v[:, :, part], rope, gate, memory))
        if begin + segment <= T:
            memory = memory_add(memory, k[:, :, part], v[:, :, part], delta)
    return torch.cat(out, dim=2)
