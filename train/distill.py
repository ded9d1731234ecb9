"""Steps that bring a model under another attention close to the dense one it was.

Shapes: T tokens of one sample, R rows that a loss looks at, H query heads, d head size, C = n_embd.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import modes

ANSWER_WEIGHT = 20  # of an answer's row, beside other rows


class Batch:
    """One sample: ids [1, T], the rows that the loss looks at, and weights of rows and of all tokens.

    Token 0 has no weight: it attends to itself alone, and its norm would drown the others'.
    """

    def __init__(self, sample, rng, n_rows):
        n = len(sample.ids)
        rows = set(rng.sample(range(1, n - 1), min(n_rows, n - 2))) | set(sample.answers)
        self.ids = torch.tensor([sample.ids])
        self.rows = torch.tensor(sorted(rows))
        self.weights = torch.ones(n)
        self.weights[sample.answers] = ANSWER_WEIGHT
        self.weights[0] = 0
        self.row_weights = self.weights[self.rows]
        self.is_answer = self.row_weights == ANSWER_WEIGHT


class Pool:
    """Samples with the inputs of the dense model's layers (float16), each of which serves for several steps.

    reuse: how many, on average.
    """

    def __init__(self, frozen, size, reuse):
        self.frozen, self.size, self.reuse, self.held = frozen, size, reuse, []

    def draw(self, rng, make_sample):
        """(sample, states): a new one if there are too few, else with probability 1/reuse."""
        if len(self.held) < 2 or rng.random() < 1 / self.reuse:
            sample = make_sample()
            states = teacher(self.frozen, torch.tensor([sample.ids]))[:-1]
            self.held = [*self.held[-self.size + 1 :], (sample, [h.half() for h in states])]
            return sample, states
        sample, states = rng.choice(self.held)
        return sample, [h.float() for h in states]


def difference(a, b, weights):
    """Weighted squared difference of a from b [B, T, C], relative to b's size."""
    return ((a - b).square().sum(-1) * weights).sum() / (b.square().sum(-1) * weights).sum()


def block_mass(heads, frozen, rows, block):
    """[H, R, blocks]: the probability that dense attention of the rows gives to each whole block."""
    q, k, _ = frozen.split(heads)
    at, n = torch.arange(k.shape[2]), k.shape[2] // block
    keys = frozen.rope(modes.per_query_head(k, frozen.n_head), at)[0]
    scores = frozen.rope(q, rows)[0] @ keys.mT * frozen.d**-0.5
    p = scores.masked_fill(at > rows[:, None], -torch.inf).softmax(-1)
    return p[..., : n * block].unflatten(-1, (n, block)).sum(-1)


def moba_gate_loss(heads, mass, frozen, rows, block):
    """[H, R]: how far MoBA's gates are from ranking past blocks by `mass` [H, R, blocks].

    Cross entropies over all past blocks, and over those but the first, which most heads use as a sink.
    """
    q, k, _ = frozen.split(heads)
    n = k.shape[2] // block
    keys = frozen.rope(modes.per_query_head(k, frozen.n_head), torch.arange(k.shape[2]))
    means = keys[0, :, : n * block].unflatten(1, (n, block)).mean(2)
    gates = frozen.rope(q, rows)[0] @ means.mT * frozen.d**-0.5
    past = torch.arange(n) < (rows // block)[:, None]
    loss = 0
    for first in (0, 1):
        seen = past & (torch.arange(n) >= first)
        log_gates = gates.masked_fill(~seen, -1e4).log_softmax(-1)
        loss = loss - (mass.masked_fill(~seen, 0) * log_gates).sum(-1)
    return loss


def landmark_mass_loss(heads, mass, frozen, places, block):
    """[H, R]: KL divergence of the landmarks' shares of a row's attention from `mass` [H, R, blocks].

    Over all blocks up to the row's own. k has landmarks; places [R] are the rows' among them.
    """
    q, k, _ = frozen.split(heads)
    at, n = torch.arange(k.shape[2]), k.shape[2] // block
    own = places // block
    keys = frozen.rope(modes.per_query_head(k, frozen.n_head), at)[0]
    scores = frozen.rope(q, places)[0] @ keys.mT * frozen.d**-0.5  # [H, R, T]
    marks = scores[..., block - 1 :: block]
    hidden = (at // block != own[:, None]) | (at > places[:, None]) | (at % block == block - 1)
    mine = scores.masked_fill(hidden, -torch.inf).logsumexp(-1, keepdim=True)
    is_own = torch.arange(n) == own[:, None]
    share = torch.where(is_own, mine, marks).masked_fill(torch.arange(n) > own[:, None], -1e4).log_softmax(-1)
    return (mass * (mass.clamp(min=1e-9).log() - share)).sum(-1)


def local_step(frozen, sidecar, settings, states, batch, gate_weight, options):
    """Layer by layer on the dense model's inputs; leaves gradients, returns the mean loss of a layer.

    Landmarks, which the dense model doesn't have, go through all layers, and so do their gradients.
    """
    rows, weights, total, marks = batch.rows, batch.row_weights, 0, None
    block = settings.landmark_block
    if settings.mode == "landmark":
        marks = sidecar.landmark.expand(1, states[0].shape[1] // (block - 1), -1)
    for i, h in enumerate(states):
        with torch.no_grad():
            old = frozen.heads(i, h, rows)
            dense = frozen.dense(i, old, rows)
        heads, choice = frozen.updated_heads(i, old, h, sidecar, rows), None
        if marks is None:
            out = frozen.attend(i, h, heads, sidecar, settings, rows, **options)
        else:
            both, places = with_landmarks(frozen, sidecar, i, heads, marks, rows, block)
            out = frozen.attend(i, None, both, sidecar, settings, places, **options)
            marks = frozen.feed_forward(i, marks + out[:, len(rows) :])
            out, both, places = out[:, : len(rows)], (both[0][:, : len(rows)], *both[1:]), places[: len(rows)]
            choice = landmark_mass_loss(both, block_mass(old, frozen, rows, block - 1), frozen, places, block)
        if settings.mode == "moba":
            mass = block_mass(old, frozen, rows, settings.moba_block)
            choice = moba_gate_loss(heads, mass, frozen, rows, settings.moba_block)
        loss = difference(out, dense, weights)
        if choice is not None:
            loss = loss + gate_weight * (choice.mean(0) * weights).sum() / weights.sum()
        total = total + loss / frozen.n_layer
    total.backward()
    return total.item()


def with_landmarks(frozen, sidecar, i, heads, marks, rows, block):
    """Heads of a text's rows and then of its landmarks (q), and of the text with landmarks (k and v); and the
    places of the former. marks [1, n, C] are the landmarks' states."""
    n = marks.shape[1]
    h = frozen.attention_input(i, marks)
    q, k, v = frozen.updated_heads(i, frozen.heads(i, h), h, sidecar)

    def put_in(x, mark):
        return torch.cat((x.unflatten(1, (n, block - 1)), mark[:, :, None]), dim=2).flatten(1, 2)

    places = torch.cat((rows + rows // (block - 1), torch.arange(block - 1, n * block, block)))
    return (torch.cat((heads[0], q), dim=1), put_in(heads[1], k), put_in(heads[2], v)), places


def put_in_landmarks(x, landmark, block):
    """(x [1, T, C] with a landmark after every block-1 tokens, in whole blocks; where x's tokens are)"""
    _, T, C = x.shape
    n = -(-T // (block - 1))
    x = F.pad(x, (0, 0, 0, n * (block - 1) - T)).unflatten(1, (n, block - 1))
    x = torch.cat((x, landmark.expand(1, n, 1, C)), dim=2).flatten(1, 2)
    i = torch.arange(T)
    return x, i + i // (block - 1)


def student(frozen, sidecar, settings, ids, **options):
    """Yields each layer's input, and at last the final hidden state, of the caller's own tokens [1, T, C]."""
    x = frozen.embedding[ids]
    own = torch.arange(x.shape[1])
    if settings.mode == "landmark":
        x, own = put_in_landmarks(x, sidecar.landmark, settings.landmark_block)
    for i in range(frozen.n_layer):
        h = frozen.attention_input(i, x)
        yield h[:, own]
        heads = frozen.updated_heads(i, frozen.heads(i, h), h, sidecar)
        if torch.is_grad_enabled():
            out = checkpoint(frozen.attend, i, h, heads, sidecar, settings, use_reentrant=False, **options)
        else:
            out = frozen.attend(i, h, heads, sidecar, settings, **options)
        x = frozen.feed_forward(i, x + out)
    yield x[:, own]


@torch.no_grad()
def teacher(frozen, ids):
    """The same of the dense model."""
    x, states = frozen.embedding[ids], []
    for i in range(frozen.n_layer):
        h = frozen.attention_input(i, x)
        states.append(h)
        x = frozen.feed_forward(i, x + frozen.dense(i, frozen.heads(i, h)))
    return [*states, x]


def landmark_options(settings, length, rng):
    if settings.mode != "landmark":
        return {}
    return {"slot": rng.randrange(settings.landmark_topk + 1)}


def divergence(frozen, state, target):
    """KL divergence of each row of logits from the dense model's."""
    with torch.no_grad():
        p = frozen.logits(target).log_softmax(-1)
    return F.kl_div(frozen.logits(state).log_softmax(-1), p, log_target=True, reduction="none").sum(-1)


def full_step(frozen, sidecar, settings, batch, state_weight, options):
    """End to end; leaves gradients, returns (loss, KL of ordinary rows, KL of answers)."""
    targets = teacher(frozen, batch.ids)
    states = list(student(frozen, sidecar, settings, batch.ids, **options))
    rows = batch.rows
    kl = divergence(frozen, states[-1][0, rows], targets[-1][0, rows])
    loss = (kl * batch.row_weights).sum() / batch.row_weights.sum()
    near = sum(difference(a, b, batch.weights) for a, b in zip(states[1:-1], targets[1:-1]))
    (loss + state_weight * near / (frozen.n_layer - 1)).backward()
    kl = kl.detach()
    return loss.item(), kl[~batch.is_answer].mean().item(), kl[batch.is_answer].mean().item()


@torch.no_grad()
def evaluate(frozen, sidecar, settings, texts):
    """{name: (perplexity, that of the dense model, KL)} of texts {name: ids}."""
    result = {}
    for name, ids in texts.items():
        ids = torch.tensor([ids])
        target, state = teacher(frozen, ids)[-1][0], list(student(frozen, sidecar, settings, ids))[-1][0]
        sums = torch.zeros(3)
        for part in torch.arange(ids.shape[1] - 1).split(256):
            p, q = (frozen.logits(x[part]).log_softmax(-1) for x in (target, state))
            next_ids = ids[0, part + 1]
            nll = [-x.gather(1, next_ids[:, None]).sum() for x in (q, p)]
            sums += torch.stack([*nll, (p.exp() * (p - q)).sum()])
        sums /= ids.shape[1] - 1
        result[name] = (sums[0].exp().item(), sums[1].exp().item(), sums[2].item())
    return result


@torch.no_grad()
def start_router(frozen, sidecar, ids):
    """Starts the routers at what a linear map can tell of the attention that a token gets from later ones."""
    T, n_group = len(ids), frozen.n_head // frozen.n_head_kv
    n_later = torch.arange(T, 0, -1)
    for i, h in enumerate(teacher(frozen, torch.tensor([ids]))[:-1]):
        mass = sum(block_mass(frozen.heads(i, h, r), frozen, r, 1).sum(1) for r in torch.arange(T).split(256))
        gets = (mass / n_later).clamp(min=1e-6).log().unflatten(0, (-1, n_group)).mean(1)[:, 1:]  # [G, T-1]
        gets = (gets - gets.mean(1, keepdim=True)) / gets.std(1, keepdim=True) + 2
        X = h[0, 1:]
        ridge = X.mT @ X + 0.03 * X.square().sum() / X.shape[1] * torch.eye(X.shape[1])
        sidecar.router[i] = torch.linalg.solve(ridge, X.mT @ gets.mT).mT
