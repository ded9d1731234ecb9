"""Trains a small sidecar that lets a dense checkpoint attend in one of the trained modes.

    python train/adapt.py models/smollm2.gguf --mode infini --minutes 20 --out models/smollm2-infini.gguf

The checkpoint's weights are frozen. Trained are low-rank updates of q, k, v and o, and the mode's own
parameters, until the model under the new attention says what it says under dense attention. Two kinds of
steps:

- layer by layer (the first --local part of the time): every layer gets the input that it has in the dense
  model, and its attention's output is to be that of dense attention. No gradient passes between layers, which
  makes these steps cheap, and gives each layer a signal of its own.
- end to end: the logits' KL divergence from the dense model's, plus how far each layer's input is off.

Started again with the same --folder, it goes on from its last checkpoint.
"""

import argparse
import csv
import random
import sys
import time
from pathlib import Path

import torch

import adapt_text
import distill
from frozen import Frozen, Settings, Sidecar
from train import PRECISION

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
from export import export_adapter  # noqa: E402

COLUMNS = ["step", "minutes", "tokens", "kind", "loss", "kl", "answers"]


def optimizer(sidecar, lr):
    own = {"gate": 40 * lr, "router": lr, "landmark": lr}
    groups = [{"params": [*sidecar.a.parameters(), *sidecar.b.parameters()], "peak": lr}]
    groups += [{"params": [p], "peak": own[name]} for name, p in sidecar.named_parameters() if name in own]
    return torch.optim.Adam(groups, betas=(0.9, 0.95))


class Run:
    """The state of a training, which survives a stop."""

    def __init__(self, args):
        self.args = args
        self.folder = args.folder or Path("runs") / f"adapt-{args.mode}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.frozen = Frozen(args.model)
        settings = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
        self.settings = Settings(**settings)
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        self.sidecar = Sidecar(self.frozen, self.settings)
        tokenizer = adapt_text.Tokenizer(args.model, args.run)
        self.texts = adapt_text.Texts(tokenizer, self.folder, args.tasks, args.own_text)
        self.optimizer = optimizer(self.sidecar, args.lr)
        self.pool = distill.Pool(self.frozen, args.pool, args.reuse)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        if (self.folder / "state.pt").exists():
            self.load()
        elif args.mode == "mosa":
            text = self.texts.text
            ids = [x for name in sorted(text) for x in map(int, text[name][0][: 3000 // len(text)])]
            distill.start_router(self.frozen, self.sidecar, ids)
        torch.set_float32_matmul_precision(PRECISION)

    def load(self):
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.sidecar.load_state_dict(state["sidecar"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.tokens = state["progress"]

    def save(self):
        state = {
            "sidecar": self.sidecar.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": (self.step, self.seconds, self.tokens),
        }
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")
        self.sidecar.save(self.folder / "attn_params.safetensors", self.frozen.n_vocab)
        export_adapter(self.folder / "attn_params.safetensors", self.args.model, self.args.out)

    def set_rates(self):
        """A short warm-up, then down to a twentieth in a straight line over the time there is."""
        left = 1 - self.seconds / (60 * self.args.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * max(0.05, left) * min(1, (self.step + 1) / 10)

    def train_step(self):
        args, rng = self.args, random.Random(f"{self.args.seed} {self.step}")
        parts = self.frozen, self.sidecar
        local = self.seconds < args.local * 60 * args.minutes
        length = rng.choice(args.lengths)
        settings = self.settings.for_length(length)
        options = distill.landmark_options(settings, length, rng)
        self.set_rates()
        if local:
            sample, states = self.pool.draw(rng, lambda: self.texts.sample(rng, length))
            settings = self.settings.for_length(len(sample.ids))
            batch = distill.Batch(sample, rng, args.rows)
            loss = distill.local_step(*parts, settings, states, batch, args.gate_weight, options)
            figures = loss, "", ""
        else:
            batch = distill.Batch(self.texts.sample(rng, length), rng, args.rows)
            figures = distill.full_step(*parts, settings, batch, args.state_weight, options)
        torch.nn.utils.clip_grad_norm_(self.sidecar.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += batch.ids.shape[1]
        return "local" if local else "full", figures

    def log(self, kind, figures):
        file = self.folder / "log.csv"
        with open(file, "a", newline="") as f:
            writer = csv.writer(f)
            if not file.stat().st_size:
                writer.writerow(COLUMNS)
            numbers = [x if isinstance(x, str) else f"{x:.4f}" for x in figures]
            writer.writerow([self.step, f"{self.seconds / 60:.2f}", self.tokens, kind, *numbers])

    def report(self):
        texts = self.texts.held_out(self.args.eval_length)
        results = distill.evaluate(self.frozen, self.sidecar, self.settings, texts)
        figures = [f"{name} {a:.2f} of {b:.2f} ({100 * (a / b - 1):+.1f}%) KL {kl:.3f}"
                   for name, (a, b, kl) in results.items()]
        progress = f"step {self.step}, {self.seconds / 60:.1f} minutes, {self.tokens} tokens"
        print(f"{progress}: {'; '.join(figures)}", flush=True)

    def train(self):
        while self.seconds < 60 * self.args.minutes:
            begin = time.process_time()
            kind, figures = self.train_step()
            self.seconds += time.process_time() - begin
            self.log(kind, figures)
            if self.step % self.args.save_every == 0:
                self.save()
        self.save()
        self.report()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="GGUF file of the dense checkpoint")
    p.add_argument("--mode", required=True, choices=["moba", "mosa", "landmark", "infini"])
    p.add_argument("--out", required=True, help="the adapter, a GGUF file")
    p.add_argument("--minutes", type=float, default=20, help="processor time, of all threads; default 20")
    p.add_argument("--local", type=float, default=0.5, help="share of layer by layer steps; default 0.5")
    p.add_argument("--lengths", type=int, nargs="+", default=[1024], help="tokens of a sample, one of these")
    p.add_argument("--rows", type=int, default=256, help="rows of a sample whose logits are compared")
    p.add_argument("--tasks", type=float, default=0.1, help="share of samples with pass keys; default 0.1")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--state-weight", type=float, default=1.0, help="of the layers' inputs, beside the logits")
    p.add_argument("--gate-weight", type=float, default=0.2, help="of MoBA's gates in layer by layer steps")
    p.add_argument("--pool", type=int, default=24, help="samples kept, 35 KB a token; default 24")
    p.add_argument("--reuse", type=float, default=4, help="layer by layer steps with a sample, on average")
    p.add_argument("--eval-length", type=int, default=2048, help="of the held-out texts in the report at the end")
    p.add_argument("--save-every", type=int, default=20, metavar="STEPS", help="default 20")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--folder", type=Path, help="checkpoints, log, texts; default runs/adapt-MODE")
    p.add_argument("--own-text", help="text that the model has written")
    p.add_argument("--run", default=ROOT / "run", help="the binary, which makes tokens of texts")
    p.add_argument("--updates", default="qkvo", help="projections with low-rank updates; default qkvo")
    defaults = Settings("")
    for name in Settings.__dataclass_fields__:
        if isinstance(getattr(defaults, name), int):
            p.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    args = p.parse_args()
    if not Path(args.model).is_file():
        p.error(f"{args.model}: no such file: make model brings models/smollm2.gguf")
    return args


if __name__ == "__main__":
    Run(arguments()).train()
