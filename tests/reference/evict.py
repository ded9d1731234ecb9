"""KV-cache eviction, simulated: after each forward batch every KV head keeps its `budget` best entries.

An evicted entry is one that later queries can't see. What the definitions leave open is settled thus:
- snapkv acts once, when the last prompt token is in the cache (generated tokens then stay, as in the
  paper). The mean attention is pooled over the positions before the window, zeros beyond the ends counting,
  as kvpress does.
- Policies made of attention probabilities see those of dense attention over the cache, whatever the mode.
- rerotate: before each batch the entries stand at positions 0, 1, ... in their order, and the batch follows.
"""

import math

import torch

from . import modes


def batches(n, n_prompt, size):
    """[(begin, end)]: the prompt in batches of `size`, then generated tokens one by one."""
    prompt = [(i, min(i + size, n_prompt)) for i in range(0, n_prompt, size)]
    return prompt + [(i, i + 1) for i in range(n_prompt, n)]


def attend(layer, select, opts, policy, batch):
    """A cached mode's output [T, H, d] under a policy (None: nothing is ever evicted)."""
    T, H, d = layer.q.shape
    G = layer.k.shape[1]
    t_all = torch.arange(T)
    k, v = layer.k.transpose(0, 1), layer.v.transpose(0, 1)  # [G, T, d]
    alive = torch.zeros(G, T, dtype=torch.bool)
    received = torch.zeros(G, T, dtype=k.dtype)  # attention probability so far, mean over the group
    recent_probs = torch.zeros(H, 0, T, dtype=k.dtype)
    out = torch.zeros_like(layer.q)
    steps = batches(T, layer.n_prompt, batch) if policy else [(0, T)]
    for begin, end in steps:
        t = t_all[begin:end]
        alive[:, begin:end] = True
        place = alive.cumsum(1) - 1 if policy and policy[1]["rerotate"] else t_all.expand(G, T)
        rotated = layer.rope.rotate(k, place)
        q = layer.rope.rotate(layer.q[t].transpose(0, 1), place.repeat_interleave(H // G, 0)[:, begin:end])
        scores = q @ rotated.repeat_interleave(H // G, 0).mT / math.sqrt(d)
        visible = alive.repeat_interleave(H // G, 0)[:, None, :] & (t_all <= t[:, None])
        attention = select(scores, t, visible, t < layer.n_prompt, **opts)
        out[t] = (attention @ v.repeat_interleave(H // G, 0)).transpose(0, 1)
        if policy is None:
            continue
        name, p = policy
        probs = modes.masked_softmax(scores, visible)
        received += probs.sum(1).view(G, H // G, T).mean(1)
        recent_probs = torch.cat((recent_probs, probs), dim=1)[:, -p["window"] :]
        if name == "snapkv" and end != layer.n_prompt:
            continue
        score = SCORES[name](rotated, alive, received, probs, recent_probs, p)
        alive = keep(alive, score, end, name, p)
    return out


def keep(alive, score, end, name, p):
    """The entries that stay: forced ones first, then the best by score, `budget` in all."""
    pos = torch.arange(alive.shape[1])
    newest = alive.flip(1).cumsum(1).flip(1)  # 1 for the newest entry, 2 for the one before
    forced = alive & ((pos < p["sink"]) | (newest <= p["recent"]))
    if name == "snapkv":
        forced |= alive & (pos >= end - p["window"])
    rank = score.masked_fill(forced, math.inf).masked_fill(~alive, -math.inf)
    order = rank.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(alive).scatter_(1, order[:, : p["budget"]], True) & alive
    return torch.where((alive.sum(1) > p["budget"])[:, None], chosen, alive)


# ---- scores [G, T] of the entries: rotated keys [G, T, d], alive [G, T], received [G, T], probs [H, n, T] of
# this batch, recent_probs [H, <= window, T] of the newest queries


def window(rotated, alive, received, probs, recent_probs, p):
    return torch.arange(alive.shape[1], dtype=rotated.dtype).expand(alive.shape)


def keydiff(rotated, alive, received, probs, recent_probs, p):
    unit = torch.nn.functional.normalize(rotated, dim=-1) * alive[..., None]
    anchor = unit.sum(1, keepdim=True) / alive.sum(1)[:, None, None]
    return -torch.nn.functional.cosine_similarity(rotated, anchor, dim=-1)


def knorm(rotated, alive, received, probs, recent_probs, p):
    return -rotated.norm(dim=-1)


def h2o(rotated, alive, received, probs, recent_probs, p):
    return received


def tova(rotated, alive, received, probs, recent_probs, p):
    return probs[:, -1].mean(0).expand(alive.shape)


def snapkv(rotated, alive, received, probs, recent_probs, p):
    G, T = alive.shape
    n = int(alive.any(0).nonzero().max()) + 1
    before = n - recent_probs.shape[1]
    mean = recent_probs[:, :, :before].mean(1, keepdim=True)  # [H, 1, before]
    score = torch.zeros(G, T, dtype=rotated.dtype)
    if before > 0:
        pooled = torch.nn.functional.avg_pool1d(mean, p["kernel"], stride=1, padding=p["kernel"] // 2)
        score[:, :before] = pooled[:, 0, :before].view(G, -1, before).mean(1)
    return score


SCORES = {f.__name__: f for f in (window, keydiff, knorm, h2o, tova, snapkv)}
