"""Averages a training run with the file it started from, weight by weight (Wortsman et al., arXiv 2203.05482).

    python train/average.py runs/more start.gguf runs/mean
    python export.py runs/mean -o mean.gguf --type q8_0

What a run on harder tasks gains is mostly kept, and what it loses elsewhere is mostly not lost.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

import model as model_
import train


def mean(run, start):
    """The model whose weights are the mean of those of a training folder and of a GGUF file made by export.py."""
    state = torch.load(run / "state.pt", weights_only=True)
    model = model_.Model(model_.Config(**state["config"]))
    train.load_start(model, start)
    model.load_state_dict({name: (w + state["model"][name]) / 2 for name, w in model.state_dict().items()})
    return model


def main():
    parser = argparse.ArgumentParser(description="averages a training run with the file it started from")
    parser.add_argument("run", type=Path, help="folder of train.py")
    parser.add_argument("start", type=Path, help="GGUF file of the same model")
    parser.add_argument("out", type=Path, help="folder for export.py")
    args = parser.parse_args()
    try:
        model = mean(args.run, args.start)
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.run / "tokenizer.json", args.out)
        train.save_checkpoint(model, args.out)
    except OSError as e:
        sys.exit(f"train: {e.filename}: {e.strerror}")


if __name__ == "__main__":
    main()
