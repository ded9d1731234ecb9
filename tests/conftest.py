"""What all end-to-end tests share: the binary, tiny models, and ways to call the one on the other."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import tiny
from reference.model import Model

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("RUN", ROOT / "run")).resolve()
SMOLLM2 = ROOT / "models" / "smollm2.gguf"
BUNDLED = ROOT / "models" / "attn-3m.gguf"
DATA = Path(__file__).resolve().parent / "data"

torch.set_num_threads(1)  # small matrices; and other processes may be busy


def run(*args, **options):
    """Runs the binary; output as bytes. `ok=True` (default) asserts exit status 0."""
    ok = options.pop("ok", True)
    options.setdefault("timeout", 120)
    options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
    if options["stdin"] is None:
        del options["stdin"]
    result = subprocess.run([RUN, *map(str, args)], capture_output=True, **options)
    if ok:
        assert result.returncode == 0, f"{args}: exit {result.returncode}: {result.stderr.decode()}"
    return result


def ids_text(ids):
    return " ".join(map(str, ids))


def logits(model, ids, *args):
    """float32 [len(ids), n_vocab] as --logits writes them."""
    with tempfile.NamedTemporaryFile(suffix=".logits") as out:
        run(model, "--ids", ids_text(ids), "--logits", out.name, *args)
        return np.fromfile(out.name, dtype="<f4").reshape(len(ids), -1)


def stats(model, tmp_path, *args):
    """(the --stats object, what was printed)"""
    file = tmp_path / "stats.json"
    result = run(model, "--stats", file, *args)
    return json.loads(file.read_text()), result


def relative_error(got, want):
    """Largest difference, as a share of the spread of the expected logits."""
    want = np.asarray(want, dtype=np.float64)
    return np.abs(got - want).max() / want.std()


def log_softmax(x):
    x = np.asarray(x, dtype=np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean_kl(want, got):
    p, q = log_softmax(want), log_softmax(got)
    return (np.exp(p) * (p - q)).sum(-1).mean()


def perplexity(rows, ids):
    """Of tokens 1.. of ids, each predicted from the row before it."""
    lp = log_softmax(rows)
    return np.exp(-np.mean([lp[i, ids[i + 1]] for i in range(len(ids) - 1)]))


def random_ids(n, seed=0):
    """Token ids without repeats as far as the vocabulary reaches: equal tokens have equal keys in the first
    layer, and which of two equal scores wins would be left to rounding."""
    rng, vocabulary = np.random.default_rng(seed), np.arange(3, len(tiny.vocabulary()))
    return np.concatenate([rng.permutation(vocabulary) for _ in range(-(-n // len(vocabulary)))])[:n].tolist()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Makes (path, reference) of a tiny model; the same arguments give the same one."""
    made = {}
    folder = tmp_path_factory.mktemp("tiny")

    def make(**kwargs):
        key = repr(sorted(kwargs.items()))
        if key not in made:
            path = tiny.write(folder / f"{len(made)}.gguf", tiny.Tiny(**kwargs))
            made[key] = path, Model(path) if kwargs.get("weights", True) else None
        return made[key]

    return make


def pytest_sessionstart(session):
    if not RUN.exists():
        pytest.exit(f"{RUN} is missing: run make first, or set RUN", returncode=3)
