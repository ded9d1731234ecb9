"""Trains the bundled checkpoint: one set of weights under every attention mode, one mode drawn per step.

    python train/train.py runs/attn-3m

Stop it whenever you like: the same command goes on from the last checkpoint (every --save steps). The folder ends
up with what export.py reads. log.csv has loss and the share of answer tokens predicted, by mode.

The mixture changes over the run:
- until ALONE dense alone, on sequences of a quarter of --length, and until REPEATS on random tokens over and over,
  which tunes the look-up that the model starts with (model.py);
- then all modes, until GROWN on half of --length. A step has --batch x --length tokens throughout. The mean loss of
  answers counts as much as that of the text around them, although there are fifty times fewer;
- after SKIP, half of the sequences of dense, MoBA and MoSA have positions that skip ahead (PoSE, arXiv
  2309.10400), so that long distances are seen without long sequences, and MoBA and MoSA attend to fewer blocks or
  entries in those than the model is made for, as they will to fewer of more. Half of dense attention's steps are
  text alone;
- at MEMORY, late, for a high learning rate would undo it, Infini's memory gets its start (model.py). From then on
  STREAM_SHARE of all steps are streams [filler][needle][filler][question] in which the gradient flows through needle
  and question only. How much filler there may be grows as long as answers are right, from a segment to
  four million tokens; beyond two segments, what they add to the memory is multiplied instead.

With --above, what lies above the place where the memory is read learns at a higher rate from then on, as language
takes one, and what looks numbers up is left as it is.

Matrices are multiplied in bfloat16 where the CPU does that (sums and weights stay in float32).
"""

import argparse
import csv
import math
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

import model as model_
import modes
import tasks as tasks_

MODES = {"dense": 40, "moba": 23, "mosa": 23, "landmark": 30, "infini": 7}
STREAM_SHARE = 0.4
REPEATS, ALONE, GROWN, SKIP, MEMORY = 0.008, 0.027, 0.08, 0.133, 0.53
LEAST_KEPT, LEAST_BLOCKS = 24, 2
CROWD = 16
TEXT_WEIGHT = 1.0
PRECISION = "medium"  # of torch: bfloat16, where the CPU multiplies that
MIN_FILLER, MAX_FILLER = 256, 1 << 22  # tokens of filler in a stream
STREAMS = 6


def stretched(rng, length, n_ctx):
    """A sequence that stands for a longer one: positions [length] with two skips, up to n_ctx, and the bias [length,
    length] with which what came before a skip counts up to CROWD times. (In a longer text there is more of what is
    not looked for, and it adds up.)"""
    cuts = sorted(rng.sample(range(1, length), 2))
    room = int(n_ctx ** rng.uniform(math.log(length) / math.log(n_ctx), 1)) - length
    first = rng.randint(0, room)
    skips = torch.zeros(length, dtype=torch.long)
    skips[cuts[0]] += first
    skips[cuts[1]] += rng.randint(0, room - first)
    part = torch.zeros(length, dtype=torch.long)
    part[cuts] += 1
    part = part.cumsum(0)
    counts = torch.tensor([rng.uniform(0, math.log(CROWD)) for _ in range(2)] + [0.0])[part]
    return torch.arange(length) + skips.cumsum(0), counts * (part < part[:, None])


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


def start_memory(model, tasks, rng):
    """Gives Infini's memory a start (model.py), fitted to streams without filler."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    streams = [tasks.stream(rng, model.c.infini_segment // 2, 0, 0, 2) for _ in range(100)]
    ids = torch.tensor([needle + question for _, needle, _, question, _ in streams])
    torch.manual_seed(rng.randrange(1 << 31))
    model.start_memory(ids, tasks.tokenizer.token_to_id("Ġ"))
    torch.set_float32_matmul_precision(precision)


def filler_of(rng, most, segment):
    """Filler for a stream, up to `most` tokens: (segments of it to read, how often what they add is added)."""
    n_tokens = math.exp(rng.uniform(0, math.log(most)))
    n = min(math.ceil(n_tokens / segment), 2)
    return n, max(n_tokens / (n * segment), 1)


def stream_loss(model, tasks, rng, most):
    """The loss of the question's segments of STREAMS streams with up to `most` tokens of filler on either side of the
    needle (see the head of this file)."""
    c = model.c
    segment, d = c.infini_segment, c.n_embd // c.n_head
    (n_before, before_scale), (n_between, between_scale) = (filler_of(rng, most, segment) for _ in range(2))
    n_question = rng.randint(1, 2)
    parts = list(zip(*(tasks.stream(rng, segment, n_before, n_between, n_question) for _ in range(STREAMS))))
    before, needle, between, question, answers = (torch.tensor(p) for p in parts)
    memories = [modes.empty_memory(STREAMS, c.n_head_kv, d) for _ in model.layers]

    def add(memories, added, scale=1.0):
        return [(M + scale * dM, z + scale * dz) for (M, z), (dM, dz) in zip(memories, added)]

    def read(ids, memories):
        logits = []
        for part in ids.split(segment, dim=1):
            out, added = model.segment(part, memories)
            memories = add(memories, added)
            logits.append(out)
        return torch.cat(logits, dim=1), memories

    @torch.no_grad()
    def pass_over(ids, memories, scale):
        after = read(ids, memories)[1]
        more = [(M - M0, z - z0) for (M, z), (M0, z0) in zip(after, memories)]
        return add(memories, more, scale)

    memories = pass_over(before, memories, before_scale)
    memories = read(needle, memories)[1]
    memories = pass_over(between, memories, between_scale)
    return loss_of(read(question, memories)[0], question, answers)


def next_filler(most, right):
    """How much filler the streams of later steps get, after a step with this share of right answers."""
    return min(most * 1.1, MAX_FILLER) if right > 0.7 else max(most / 1.05, MIN_FILLER)


def fewer(rng, mode, c):
    """Options that let a mode attend to less than it is made for."""
    if mode == "mosa":
        return {"n_kept": int(math.exp(rng.uniform(math.log(LEAST_KEPT), math.log(c.mosa_k))))}
    return {"topk": rng.randint(LEAST_BLOCKS, c.moba_topk)} if mode == "moba" else {}


def step_loss(model, tasks, rng, mode, progress, batch, length, most_filler=MIN_FILLER):
    shorter = 4 if progress < ALONE else 2 if progress < GROWN else 1
    batch, length = batch * shorter, length // shorter
    if progress < REPEATS:
        ids, answers = tasks.repeats(rng, batch, length)
        return loss_of(model(ids), ids, answers)
    if mode == "stream":
        return stream_loss(model, tasks, rng, most_filler)
    if mode == "landmark":
        block, topk = model.c.landmark_block, model.c.landmark_topk
        ids, answers = tasks.batch(rng, batch, length // block * (block - 1))
        return landmark_loss(model, ids, answers, slot=rng.randrange(topk), retrieve=rng.random() < 0.5)
    if mode == "dense" and progress > SKIP and rng.random() < 0.5:
        ids, answers = tasks.texts_batch(rng, batch, length)
    else:
        ids, answers = tasks.batch(rng, batch, length)
    at, options = None, {}
    if mode != "infini" and progress > SKIP and rng.random() < 0.5:
        at, bias = stretched(rng, length, model.c.n_ctx)
        options = {"bias": bias, **fewer(rng, mode, model.c)}
    return loss_of(model(ids, mode, at, **options), ids, answers)


def pick_mode(rng, only, progress):
    if only:
        return rng.choice(only)
    if progress < ALONE:
        return "dense"
    if progress >= MEMORY and rng.random() < STREAM_SHARE:
        return "stream"
    return rng.choices(list(MODES), MODES.values())[0]


def learning_rate(step, steps, peak):
    """Linear warm-up over 100 steps, then a cosine down to a twentieth."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def late_learning_rate(progress, peak):
    """After MEMORY: from a seventh down, so that what start_memory() has put in is kept."""
    return peak * 0.15 * (1 - 0.8 * (progress - MEMORY) / (1 - MEMORY))


def progress_at(step, args):
    """How far a run is, 0 to 1; one that starts from a file begins after MEMORY."""
    return MEMORY + (1 - MEMORY) * step / args.steps if args.start else step / args.steps


def learning_rate_at(step, args):
    """The rate of a step; a run that starts from a file has a warm-up."""
    progress = progress_at(step, args)
    if progress < MEMORY:
        return learning_rate(step, MEMORY * args.steps, args.lr)
    warm_up = min(1, (step + 1) / 100) if args.start else 1
    return warm_up * late_learning_rate(progress, args.lr)


def optimizer_for(model):
    """AdamW; groups say whether they are above the place where Infini's memory is read."""
    above = {id(p) for p in model.above_memory()}
    groups = []
    for is_above in (False, True):
        own = [p for p in model.parameters() if (id(p) in above) == is_above]
        groups += [
            {"params": [p for p in own if p.dim() >= 2], "weight_decay": 0.05, "above": is_above},
            {"params": [p for p in own if p.dim() < 2], "weight_decay": 0.0, "above": is_above},
        ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))


def save_checkpoint(model, folder):
    """Writes what export.py reads, beside the tokenizer."""
    model_.save_checkpoint(model, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})


def save(folder, model, optimizer, step, most_filler):
    state = {
        "config": asdict(model.c),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "most_filler": most_filler,
    }
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")
    save_checkpoint(model, folder)


def resume(folder, model, optimizer):
    path = folder / "state.pt"
    if not path.exists():
        return 0, MIN_FILLER
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["most_filler"]


def load_start(model, path):
    """Sets the weights to those of a GGUF file; ends the program where it isn't one of such a model."""
    try:
        model_.load_exported(model, path)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "not an export of such a model"
        sys.exit(f"train: {path}: {reason}")


def train(args):
    torch.manual_seed(args.seed)
    tasks = tasks_.load(args.folder)
    model = model_.Model(model_.Config(n_vocab=tasks.tokenizer.get_vocab_size()))
    if args.start:
        load_start(model, args.start)
    optimizer = optimizer_for(model)
    first, most_filler = resume(args.folder, model, optimizer)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {first}")
    with open(args.folder / "log.csv", "a", newline="") as file:
        log = csv.writer(file)
        sums, start = {}, time.time()
        for step in range(first, args.steps):
            rng = random.Random(f"{args.seed} {step}")  # the same step whether or not the run was stopped
            progress = progress_at(step, args)
            mode = pick_mode(rng, args.modes, progress)
            if step == math.ceil(MEMORY * args.steps) and not args.start:
                start_memory(model, tasks, rng)
            for group in optimizer.param_groups:
                times = args.above if group["above"] and progress >= MEMORY else 1
                group["lr"] = times * learning_rate_at(step, args)
            loss, right = step_loss(
                model, tasks, rng, mode, progress, args.batch, args.length, most_filler
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if mode == "stream":
                most_filler = next_filler(most_filler, right)
            sums.setdefault(mode, []).append((loss.item(), right))
            if (step + 1) % 50 == 0:
                means = {m: torch.tensor(v).nanmean(0).tolist() for m, v in sorted(sums.items())}
                log.writerows([step + 1, m, f"{a:.4f}", f"{b:.4f}"] for m, (a, b) in means.items())
                file.flush()
                shown = "  ".join(f"{m} {a:.3f} {b:.0%}" for m, (a, b) in means.items())
                print(f"{step + 1:6d} {time.time() - start:6.0f}s  {shown}  filler {most_filler:.0f}", flush=True)
                sums = {}
            if (step + 1) % args.save == 0 or step + 1 == args.steps:
                save(args.folder, model, optimizer, step + 1, most_filler)


def main():
    parser = argparse.ArgumentParser(description="trains the bundled checkpoint under every attention mode")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, help="go on from the weights of this GGUF file, as after MEMORY")
    parser.add_argument("--steps", type=int, default=4700)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--above", type=float, default=1, help="late rate of the upper layers, in times that of others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=int, default=200)
    parser.add_argument("--modes", nargs="+", choices=[*MODES, "stream"], help="train these alone")
    torch.set_float32_matmul_precision(PRECISION)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
