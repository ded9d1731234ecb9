"""The attention modes, one function each.

Modes over a plain key/value cache (dense, moba, topk) are selections: they turn rotated queries and keys into
attention probabilities, given which entries a query can see. That way eviction, which only takes entries out
of sight, composes with each of them (evict.py). The others (mosa, landmark, infini) own what they keep and
take a whole layer.

Shapes: H query heads, n queries, T positions, d head size.
"""

import math

import torch


def masked_softmax(scores, mask):
    """Softmax over the last dimension where mask is set; a row with nothing set is zero."""
    scores = scores.masked_fill(~mask, -math.inf)
    peak = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    e = (scores - peak).exp()
    return e / e.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def best(scores, n):
    """Mask of the n largest finite scores along the last dimension; ties go to the lower index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., : max(n, 0)]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return chosen & scores.isfinite()


def per_query_head(x, n_head):
    """[T, G, d] -> [H, T, d]: a group's query heads share its keys or values."""
    return x.repeat_interleave(n_head // x.shape[1], dim=1).transpose(0, 1)


# ---- selections: scores [H, n, T] = q.k/sqrt(d), rotated; t [n] positions; visible [H, n, T]; prompt [n].


def dense(scores, t, visible, prompt):
    return masked_softmax(scores, visible)


def moba(scores, t, visible, prompt, block, topk, decode):
    """Lu et al., MoBA (arXiv 2502.13189), after moba_naive.py.

    The gate of a block is q . mean(k), which is the mean of the scores over the block's (visible) entries.
    """
    n_blocks = -(-scores.shape[-1] // block)
    member = torch.arange(scores.shape[-1])[:, None] // block == torch.arange(n_blocks)  # [T, blocks]
    member = member.to(scores.dtype)
    count = visible.to(scores.dtype) @ member
    gate = (scores.masked_fill(~visible, 0) @ member) / count.clamp(min=1)
    own = t[:, None] // block == torch.arange(n_blocks)
    past = t[:, None] // block > torch.arange(n_blocks)
    chosen = best(gate.masked_fill(~past | (count == 0), -math.inf), topk - 1) | own
    mask = (chosen.to(scores.dtype) @ member.T > 0) & visible
    if decode == "dense":
        mask = torch.where(prompt[:, None], mask, visible)
    return masked_softmax(scores, mask)


def topk(scores, t, visible, prompt, k, recent, sink, prefill, index):
    """Synk et al., Exploiting Sparsity for Long Context Inference (arXiv 2502.06766), with an exact index."""
    i = torch.arange(scores.shape[-1])
    always = visible & ((i > t[:, None] - max(recent, 1)) | (i < sink))
    mask = always | best(scores.masked_fill(~visible | always, -math.inf), k)
    if prefill == "dense":
        mask = torch.where(prompt[:, None], visible, mask)
    return masked_softmax(scores, mask)


CACHED = {"dense": dense, "moba": moba, "topk": topk}


# ---- modes that own their state: layer -> [T, H, d]


def mosa(layer, k, dense_heads, include_first, select, router):
    """Piekos et al., Mixture of Sparse Attention (arXiv 2505.00315), expert choice per head.

    The public code's include_first spends one of the k places on token 0, and so does this.
    """
    T, H, d = layer.q.shape
    G = layer.k.shape[1]
    if router == "knorm":
        r = knorm_router(layer.k)
    else:
        r = torch.sigmoid(layer.x @ layer.tensors["attn_mosa_router"].T)  # [T, G or H]
    r = r.repeat_interleave(H // r.shape[1], dim=1).T  # [H, T]
    t = torch.arange(T)
    causal = t <= t[:, None]
    rank = r.clone()
    if include_first:
        rank[:, 0] = 2.0  # above any sigmoid
    if select == "sequence":
        members = best(rank, k)[:, None, :].expand(H, T, T)
    else:
        members = best(rank[:, None, :].expand(H, T, T).masked_fill(~causal, -math.inf), k)
    mask = members & causal
    routed = torch.arange(H) >= dense_heads
    mask = torch.where(routed[:, None, None], mask, causal)
    q = layer.rope.rotate(layer.q.transpose(0, 1), t)
    key = layer.rope.rotate(per_query_head(layer.k, H), t)
    out = masked_softmax(q @ key.mT / math.sqrt(d), mask) @ per_query_head(layer.v, H)
    is_member = members[:, t, t]
    weight = torch.where(routed[:, None], r * is_member, torch.ones_like(r))
    return (out * weight[..., None]).transpose(0, 1)


def knorm_router(k):
    """The stand-in for a trained router: a smaller key norm gets a higher score."""
    return torch.sigmoid(-k.norm(dim=-1) / math.sqrt(k.shape[-1]))


def insert_landmarks(ids, block, token_id, n_prompt):
    """(ids with a landmark after every block-1 tokens, [T] bool: landmarks, prompt length with landmarks).

    A landmark that completes a block right after the last prompt token belongs to the prompt.
    """
    out, landmarks, prompt = [], [], 0
    for i, token in enumerate(ids):
        out.append(token)
        landmarks.append(False)
        if len(out) % block == block - 1:
            out.append(token_id)
            landmarks.append(True)
        if i + 1 == n_prompt:
            prompt = len(out)
    return out, torch.tensor(landmarks), prompt


def landmark(layer, block, topk, key):
    """Mohtashami & Jaggi, Landmark Attention (arXiv 2305.16300), after llama_legacy/llama_mem.py.

    A retrieved block's landmark enters the softmax with the RoPE of the place where the block is put. The
    j-th retrieved block, if among the newest n, stands at P + (j+1)*block as in the public code; where blocks
    newer than it were passed over this is later than its true place, and no two blocks ever share a place.

    key=mean: no landmark tokens; the mean of a block's un-rotated keys takes the landmark key's part
    (standing where it would, last in the block), and all tokens of a block are ordinary.
    """
    T, H, d = layer.q.shape
    k, v = per_query_head(layer.k, H), per_query_head(layer.v, H)  # [H, T, d]
    out = torch.zeros_like(layer.q)
    n_ordinary = block if key == "mean" else block - 1
    for b in range(-(-T // block)):
        t = torch.arange(b * block, min((b + 1) * block, T))
        q = layer.rope.rotate(layer.q[t].transpose(0, 1), t)  # [H, n, d]
        own = q @ layer.rope.rotate(k[:, t], t).mT / math.sqrt(d)
        visible = (t <= t[:, None]) & (
            torch.ones_like(t, dtype=torch.bool) if key == "mean" else ~layer.landmarks[t]
        )
        own = own.masked_fill(~visible, -math.inf)
        n = min(topk, b)
        if n == 0:
            out[t] = (masked_softmax(own, own.isfinite()) @ v[:, t]).transpose(0, 1)
            continue
        start = (b - n - 1) * block
        blocks = torch.arange(b)
        past_k = k[:, : b * block].view(H, b, block, d)
        past_v = v[:, : b * block].view(H, b, block, d)
        marks = past_k.mean(2) if key == "mean" else past_k[:, :, -1]
        place = torch.where(blocks >= b - n, blocks * block, start) + block - 1
        # Landmarks are one token, so that in the first layer old blocks tie. A matrix product may round equal
        # columns differently, as the CPU has it; this doesn't.
        retrieval = (q[:, :, None] * layer.rope.rotate(marks, place)[:, None]).sum(-1)  # [H, n, b]
        chosen = best(retrieval, n).nonzero()[:, 2].view(H, len(t), n)  # in index order
        slot = torch.arange(n)
        place = torch.where(
            chosen >= b - n, start + (slot + 1) * block, start + slot * block
        )  # [H, n, slots]
        heads = torch.arange(H)[:, None, None]
        keys = layer.rope.rotate(
            past_k[heads, chosen], place[..., None] + torch.arange(block)
        )  # [H, n, slots, block, d]
        mark_keys = layer.rope.rotate(marks[heads, chosen], place + block - 1)
        inner = torch.einsum("hnd,hnsbd->hnsb", q, keys[..., :n_ordinary, :]) / math.sqrt(d)
        mark = torch.einsum("hnd,hnsd->hns", q, mark_keys) / math.sqrt(d)
        outer = torch.cat((mark, own), dim=-1)
        p = masked_softmax(outer, outer.isfinite())
        remote = torch.einsum(
            "hnsb,hnsbd->hnsd", inner.softmax(-1), past_v[heads, chosen][..., :n_ordinary, :]
        )
        out[t] = (torch.einsum("hns,hnsd->hnd", p[..., :n], remote) + p[..., n:] @ v[:, t]).transpose(0, 1)
    return out


def infini(layer, segment, delta, gate):
    """Munkhdalai et al., Leave No Context Behind (arXiv 2404.07143)."""
    T, H, d = layer.q.shape
    G = layer.k.shape[1]
    beta = (
        torch.full((H,), gate, dtype=layer.q.dtype)
        if gate is not None
        else torch.sigmoid(layer.tensors["attn_infini_gate"].reshape(H))
    )
    k, v = per_query_head(layer.k, H), per_query_head(layer.v, H)
    feature = lambda x: torch.nn.functional.elu(x) + 1
    M = torch.zeros(H, d, d, dtype=k.dtype)
    z = torch.zeros(H, d, dtype=k.dtype)
    out = torch.zeros_like(layer.q)
    for begin in range(0, T, segment):
        t = torch.arange(begin, min(begin + segment, T))
        q = layer.q[t].transpose(0, 1)
        scores = layer.rope.rotate(q, t) @ layer.rope.rotate(k[:, t], t).mT / math.sqrt(d)
        local = masked_softmax(scores, (t <= t[:, None]).expand_as(scores)) @ v[:, t]
        read = lambda x: feature(x) @ M / (feature(x) @ z[..., None] + 1e-6)
        mixed = beta[:, None, None] * read(q) + (1 - beta[:, None, None]) * local
        out[t] = mixed.transpose(0, 1)
        if len(t) == segment:
            value = v[:, t] - read(k[:, t]) if delta else v[:, t]
            M = M + feature(k[:, t]).mT @ value
            z = z + feature(k[:, t]).sum(1)
    return out


WHOLE = {"mosa": mosa, "landmark": landmark, "infini": infini}
