"""KV-cache eviction, simulated: after each forward batch every KV head keeps its `budget` best entries.

An evicted entry is one that later queries can't see. What the definitions leave open is settled thus:
- snapkv acts once, when the last prompt token is in the cache (generated tokens then stay, as in the
  paper). The mean attention is pooled over the positions before the window, zeros beyond the ends counting,
  as kvpress does.
- adakv and pyramid share out snapkv's scores; lagkv and expected are kvpress's presses after every batch,
  expected with its exponents computed when an entry comes and renewed as its `renew` option says.
- Policies made of attention probabilities see those of dense attention over the cache, whatever the mode.
- rerotate: before each batch the entries stand at positions 0, 1, ... in their order, and the batch follows.
"""

import math
from dataclasses import dataclass

import torch

from . import modes


def batches(n, n_prompt, size):
    """[(begin, end)]: the prompt in batches of `size`, then generated tokens one by one."""
    prompt = [(i, min(i + size, n_prompt)) for i in range(0, n_prompt, size)]
    return prompt + [(i, i + 1) for i in range(n_prompt, n)]


@dataclass
class Cache:
    """What the policies see of a layer after a batch. Of the T positions those `alive` are cached."""

    p: dict                     # the policy's options
    layer: object               # model.Layer
    index: tuple                # (which layer, of how many)
    alive: torch.Tensor         # [G, T]
    received: torch.Tensor      # [G, T] attention probability so far, mean over the group
    recent: torch.Tensor        # [H, <= window, T] attention probabilities of the prompt's newest queries
    exponent: torch.Tensor      # [H, T] of expected
    renewed_at: int = 0
    end: int = 0                # tokens so far
    rotated: torch.Tensor = None  # [G, T, d] keys
    probs: torch.Tensor = None  # [H, n, T] attention probabilities of the batch


@dataclass
class Trace:
    """Of each query of a layer, [H, T, T]."""

    probs: torch.Tensor     # dense attention over what is cached
    visible: torch.Tensor   # what is cached
    attended: torch.Tensor  # what the mode attends to


def attend(layer, select, opts, policy, batch, index=(0, 1), trace=None):
    """A cached mode's output [T, H, d] under a policy (None: nothing is ever evicted).

    A Trace is appended to `trace`, if that is a list.
    """
    T, H, d = layer.q.shape
    G = layer.k.shape[1]
    t_all = torch.arange(T)
    k, v = layer.k.transpose(0, 1), layer.v.transpose(0, 1)  # [G, T, d]
    zeros = torch.zeros(H, T, dtype=k.dtype)
    nobody, nothing = torch.zeros(G, T, dtype=torch.bool), torch.zeros(H, 0, T, dtype=k.dtype)
    c = Cache(policy and policy[1], layer, index, nobody, zeros[:G].clone(), nothing, zeros)
    out, seen = torch.zeros_like(layer.q), Trace(*torch.zeros(3, H, T, T, dtype=k.dtype))
    steps = batches(T, layer.n_prompt, batch) if policy else [(0, T)]
    for begin, end in steps:
        t = t_all[begin:end]
        c.alive[:, begin:end] = True
        c.end = end
        place = c.alive.cumsum(1) - 1 if policy and policy[1]["rerotate"] else t_all.expand(G, T)
        c.rotated = layer.rope.rotate(k, place)
        q = layer.rope.rotate(layer.q[t].transpose(0, 1), place.repeat_interleave(H // G, 0)[:, begin:end])
        scores = q @ c.rotated.repeat_interleave(H // G, 0).mT / math.sqrt(d)
        visible = c.alive.repeat_interleave(H // G, 0)[:, None, :] & (t_all <= t[:, None])
        attention = select(scores, t, visible, t < layer.n_prompt, **opts)
        out[t] = (attention @ v.repeat_interleave(H // G, 0)).transpose(0, 1)
        c.probs = modes.masked_softmax(scores, visible)
        seen.probs[:, t] = c.probs
        seen.visible[:, t], seen.attended[:, t] = visible.to(k.dtype), (attention > 0).to(k.dtype)
        if policy is None:
            continue
        c.received += c.probs.sum(1).view(G, H // G, T).mean(1)
        c.recent = torch.cat((c.recent, c.probs), dim=1)[:, -c.p["window"] :]
        prompt_only = policy[0] in ("snapkv", "adakv", "pyramid")
        if int(c.alive.sum(1).max()) > c.p["budget"] and (end == layer.n_prompt or not prompt_only):
            evict(c, policy[0])
    if trace is not None:
        trace.append(seen)
    return out


def evict(c, name):
    """Each head keeps its best, in blocks if the policy says so: first those that always stay."""
    over = int(c.alive.sum(1).max()) - c.p["budget"]
    block = c.p["block"] or over
    for left in range(over - block, -block, -block):  # entries that are not looked at yet
        newest = c.alive.flip(1).cumsum(1).flip(1)  # 1 for the newest entry, 2 for the one before
        later = c.alive & (newest <= left)
        c.alive &= ~later
        if c.p["rerotate"]:
            k = c.layer.k.transpose(0, 1)
            c.rotated = c.layer.rope.rotate(k, c.alive.cumsum(1) - 1)
        pos, newest = torch.arange(c.alive.shape[1]), newest - max(left, 0)
        forced = (pos < c.p["sink"]) | (newest <= c.p["recent"])
        rank = SCORES[name](c).masked_fill(forced, math.inf).masked_fill(~c.alive, -math.inf)
        order = rank.argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(order).scatter_(1, order, pos.expand(order.shape))
        c.alive = c.alive & (place < BUDGETS.get(name, lambda c, rank: c.p["budget"])(c, rank)) | later


# ---- scores [G, T] of the entries


def window(c):
    return torch.arange(c.alive.shape[1], dtype=c.rotated.dtype).expand(c.alive.shape)


def keydiff(c):
    unit = torch.nn.functional.normalize(c.rotated, dim=-1) * c.alive[..., None]
    anchor = unit.sum(1, keepdim=True) / c.alive.sum(1)[:, None, None]
    return -torch.nn.functional.cosine_similarity(c.rotated, anchor, dim=-1)


def knorm(c):
    return -c.rotated.norm(dim=-1)


def h2o(c):
    return c.received


def tova(c):
    return c.probs[:, -1].mean(0).expand(c.alive.shape)


def snapkv(c):
    G, T = c.alive.shape
    before = c.end - c.recent.shape[1]
    mean = c.recent[:, :, :before].mean(1, keepdim=True)  # [H, 1, before]
    # the window: more than any mean of probabilities, and the newest first where the budget is less
    score = 2 + torch.arange(T, dtype=c.rotated.dtype).repeat(G, 1)
    if before > 0:
        pooled = torch.nn.functional.avg_pool1d(mean, c.p["kernel"], stride=1, padding=c.p["kernel"] // 2)
        score[:, :before] = pooled[:, 0, :before].view(G, -1, before).mean(1)
    return score


def lagkv(c):
    """Relative to the next partition's range; ranks within the partition; sink and last partition highest."""
    score = torch.zeros(c.alive.shape, dtype=c.rotated.dtype)
    lag = c.p["lag"]
    for g, alive in enumerate(c.alive):
        entries = alive.nonzero()[:, 0]
        after = entries[entries >= c.p["sink"]]
        n = len(after) // lag
        if n < 2:
            score[g, entries] = torch.arange(len(entries), dtype=score.dtype)
            continue
        score[g, entries] = 1
        spread = 0
        for x in (c.rotated[g], c.layer.v[:, g]):
            x = x[after[: n * lag]].view(n, lag, -1)
            low, high = x[1:].amin(1, keepdim=True), x[1:].amax(1, keepdim=True)
            spread = spread + ((x[:-1] - low) / (high - low)).std(dim=-1).softmax(dim=-1) / 2
        if not c.p["cross"]:
            spread = spread.argsort(-1).argsort(-1).to(score.dtype) / lag
        score[g, after[: (n - 1) * lag]] = spread.flatten()
    return score


def expected(c):
    """exp(k.mu / sqrt(d) + k.C.k / 2d), mu and C of the queries so far, under RoPE averaged over what comes.

    Softmax, mean over the group, times the value's norm.
    """
    H, (G, T), d = c.layer.q.shape[1], c.alive.shape, c.rotated.shape[-1]
    q = c.layer.q[c.p["sink"] : c.end]
    next_place = int(c.alive[0].sum()) if c.p["rerotate"] else c.end
    future = torch.arange(next_place, next_place + c.p["future"])
    turn = c.layer.rope.rotate(torch.eye(d, dtype=q.dtype)[:, None, :], future).mean(1)  # [d, d]
    q = q @ turn
    mu = q.mean(0)
    cov = torch.einsum("thi,thj->hij", q - mu, q - mu) / len(q)
    keys = c.rotated.repeat_interleave(H // G, 0)  # [H, T, d]
    exponent = torch.einsum("hd,htd->ht", mu, keys) / math.sqrt(d)
    if c.p["covariance"]:
        exponent = exponent + torch.einsum("hti,hij,htj->ht", keys, cov, keys) / (2 * d)
    fresh = torch.arange(T) >= c.end - c.probs.shape[1]
    if c.end == c.layer.n_prompt or not c.renewed_at or c.end - c.renewed_at >= c.p["renew"]:
        fresh[:] = True
        c.renewed_at = c.end
    c.exponent = torch.where(fresh, exponent, c.exponent)
    counted = c.alive & (torch.arange(T) >= c.p["sink"])
    share = modes.masked_softmax(c.exponent, counted.repeat_interleave(H // G, 0)).view(G, H // G, T).mean(1)
    return (share + c.p["epsilon"]) * c.layer.v.transpose(0, 1).norm(dim=-1)


SCORES = {f.__name__: f for f in (window, keydiff, knorm, h2o, tova, snapkv, lagkv, expected)}
SCORES.update(streaming=window, adakv=snapkv, pyramid=snapkv)


# ---- how many entries each head keeps, where that isn't the budget: (cache, rank [G, T]) -> an int or [G, 1]


def adakv(c, rank):
    G, T = rank.shape
    safe = rank.argsort(dim=1, descending=True, stable=True)[:, : int(c.p["budget"] * c.p["safeguard"])]
    order = rank.scatter(1, safe, math.inf).flatten().argsort(descending=True, stable=True)
    return torch.bincount(order[: G * c.p["budget"]] // T, minlength=G)[:, None]


def pyramid(c, rank):
    budget, (layer, n_layer) = c.p["budget"], c.index
    last = budget / c.p["beta"]
    first = 2 * budget - last
    if first >= c.end - c.p["window"]:
        first = c.end - c.p["window"]
        last = 2 * budget - first
    if not c.end >= first >= last >= c.p["sink"] + max(c.p["window"], c.p["recent"]):
        return budget
    return round(first - layer * (first - last) / (n_layer - 1))


BUDGETS = {"adakv": adakv, "pyramid": pyramid}
