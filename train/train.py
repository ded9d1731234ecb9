"""Trains the bundled checkpoint: one set of weights under every attention mode, one mode drawn per step.

    python train/train.py runs/attn-3m

Stop it whenever you like: the same command goes on from the last checkpoint (every --save steps). The folder ends
up with what export.py reads. log.csv has loss and the share of answer tokens predicted, by mode.

The mixture changes over the run:
- until ALONE dense alone, on sequences of a quarter of --length, and until REPEATS on random tokens over and over,
  which tunes the look-up that the model starts with (model.py);
- then all modes, until GROWN on half of --length. A step has --batch x --length tokens throughout. The mean loss of
  answers counts twice as much as that of the text around them, although there are fifty times fewer;
- after SKIP, half of the sequences of dense, MoBA and MoSA have positions that skip ahead (PoSE, arXiv
  2309.10400), so that long distances are seen without long sequences;
- after STREAM, a share of Infini's steps are streams [filler][needle][filler][question] in which the gradient
  flows through needle and question only. What filler adds to the memory is scaled by a random factor that grows
  as long as answers are right, so that a needle is still read under thousands of times its own length of filler.
"""

import argparse
import csv
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

import model as model_
import modes
import tasks as tasks_

MODES = {"dense": 15, "moba": 16, "mosa": 20, "landmark": 34, "infini": 15}
REPEATS, ALONE, GROWN, SKIP, STREAM = 0.015, 0.05, 0.15, 0.25, 0.35
STREAM_SHARE = 0.5
TEXT_WEIGHT = 0.5
MAX_SCALE = 8192  # of filler to needle in the memory: a million tokens to a segment of 128
STREAMS = 8


def skipping_positions(rng, length, n_ctx):
    """Positions 0..length-1 with two skips, up to n_ctx."""
    cuts = sorted(rng.sample(range(1, length), 2))
    room = int(n_ctx ** rng.uniform(math.log(length) / math.log(n_ctx), 1)) - length
    first = rng.randint(0, room)
    skips = torch.zeros(length, dtype=torch.long)
    skips[cuts[0]] += first
    skips[cuts[1]] += rng.randint(0, room - first)
    return torch.arange(length) + skips.cumsum(0)


def loss_of(logits, ids, answers):
    """The mean loss of answers plus TEXT_WEIGHT times that of the rest; and the share of answer tokens predicted."""
    logits, ids, answers = logits[:, :-1].float(), ids[:, 1:], answers[:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(answers)
    loss = TEXT_WEIGHT * each[~answers].mean()
    if not answers.any():
        return loss, math.nan  # no answer in the batch: left out of the log's mean
    right = (logits.argmax(-1) == ids)[answers].float().mean().item()
    return loss + each[answers].mean(), right


def landmark_loss(model, ids, answers, **options):
    """As loss_of; a landmark predicts the token after it, as the token before it does."""
    block = model.c.landmark_block
    logits = model(ids, "landmark", **options).unflatten(1, (-1, block))
    loss, right = loss_of(logits[:, :, :-1].flatten(1, 2), ids, answers)
    marks = logits[:, :-1, -1].float()
    after = ids[:, block - 1 :: block]
    return loss + 0.02 * F.cross_entropy(marks.flatten(0, 1), after.flatten()), right


def stream_loss(model, tasks, rng, max_scale):
    """The loss of the question's segments of STREAMS streams (see the head of this file)."""
    c = model.c
    segment, d = c.infini_segment, c.n_embd // c.n_head
    most = 1 if max_scale == 1 else 3
    n_before, n_between = rng.randint(0, most), rng.randint(1, most)
    parts = list(zip(*(tasks.stream(rng, segment, n_before, n_between) for _ in range(STREAMS))))
    before, needle, between, question, answers = (torch.tensor(p) for p in parts)
    memories = [modes.empty_memory(STREAMS, c.n_head_kv, d) for _ in model.layers]

    def add(memories, added, scale=1.0):
        return [(M + scale * dM, z + scale * dz) for (M, z), (dM, dz) in zip(memories, added)]

    def pass_over(ids, memories):
        if not ids.numel():
            return memories
        scale = math.exp(rng.uniform(0, math.log(max_scale)))
        with torch.no_grad():
            start = memories
            for part in ids.split(segment, dim=1):
                memories = add(memories, model.segment(part, memories)[1])
            more = [(M - M0, z - z0) for (M, z), (M0, z0) in zip(memories, start)]
        return add(start, more, scale)

    memories = pass_over(before, memories)
    for part in needle.split(segment, dim=1):
        memories = add(memories, model.segment(part, memories)[1])
    memories = pass_over(between, memories)
    logits = []
    for part in question.split(segment, dim=1):
        out, added = model.segment(part, memories)
        memories = add(memories, added)
        logits.append(out)
    return loss_of(torch.cat(logits, dim=1), question, answers)


def next_scale(scale, right):
    """How much filler the streams of later steps get, after a step with this share of right answers."""
    return min(scale * 1.1, MAX_SCALE) if right > 0.9 else max(scale / 1.05, 1)


def step_loss(model, tasks, rng, mode, progress, batch, length, max_scale=1):
    shorter = 4 if progress < ALONE else 2 if progress < GROWN else 1
    batch, length = batch * shorter, length // shorter
    if progress < REPEATS:
        ids, answers = tasks.repeats(rng, batch, length)
        return loss_of(model(ids), ids, answers)
    if mode == "stream":
        return stream_loss(model, tasks, rng, max_scale)
    if mode == "landmark":
        block, topk = model.c.landmark_block, model.c.landmark_topk
        ids, answers = tasks.batch(rng, batch, length // block * (block - 1))
        return landmark_loss(model, ids, answers, slot=rng.randrange(topk), retrieve=rng.random() < 0.5)
    ids, answers = tasks.batch(rng, batch, length)
    at = None
    if mode != "infini" and progress > SKIP and rng.random() < 0.5:
        at = skipping_positions(rng, length, model.c.n_ctx)
    return loss_of(model(ids, mode, at), ids, answers)


def pick_mode(rng, only, progress):
    if only:
        return rng.choice(only)
    if progress < ALONE:
        return "dense"
    mode = rng.choices(list(MODES), MODES.values())[0]
    return "stream" if mode == "infini" and progress > STREAM and rng.random() < STREAM_SHARE else mode


def learning_rate(step, steps, peak):
    """Linear warm-up over 100 steps, then a cosine down to a twentieth."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def optimizer_for(model):
    vectors = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def save(folder, model, optimizer, step, max_scale):
    state = {
        "config": asdict(model.c),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "max_scale": max_scale,
    }
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")
    model_.save_checkpoint(model, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})


def resume(folder, model, optimizer):
    path = folder / "state.pt"
    if not path.exists():
        return 0, 1
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["max_scale"]


def train(args):
    torch.manual_seed(args.seed)
    tasks = tasks_.load(args.folder)
    model = model_.Model(model_.Config(n_vocab=tasks.tokenizer.get_vocab_size()))
    optimizer = optimizer_for(model)
    first, max_scale = resume(args.folder, model, optimizer)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {first}")
    with open(args.folder / "log.csv", "a", newline="") as file:
        log = csv.writer(file)
        sums, start = {}, time.time()
        for step in range(first, args.steps):
            rng = random.Random(f"{args.seed} {step}")  # the same step whether or not the run was stopped
            progress = step / args.steps
            mode = pick_mode(rng, args.modes, progress)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            loss, right = step_loss(
                model, tasks, rng, mode, progress, args.batch, args.length, max_scale
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if mode == "stream":
                max_scale = next_scale(max_scale, right)
            sums.setdefault(mode, []).append((loss.item(), right))
            if (step + 1) % 50 == 0:
                means = {m: torch.tensor(v).nanmean(0).tolist() for m, v in sorted(sums.items())}
                log.writerows([step + 1, m, f"{a:.4f}", f"{b:.4f}"] for m, (a, b) in means.items())
                file.flush()
                shown = "  ".join(f"{m} {a:.3f} {b:.0%}" for m, (a, b) in means.items())
                print(f"{step + 1:6d} {time.time() - start:6.0f}s  {shown}  scale {max_scale:.0f}", flush=True)
                sums = {}
            if (step + 1) % args.save == 0 or step + 1 == args.steps:
                save(args.folder, model, optimizer, step + 1, max_scale)


def main():
    parser = argparse.ArgumentParser(description="trains the bundled checkpoint under every attention mode")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=int, default=200)
    parser.add_argument("--modes", nargs="+", choices=[*MODES, "stream"], help="train these alone")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
