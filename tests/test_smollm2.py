"""SmolLM2-135M-Instruct (Q4_1) against `transformers` in float32 on the same dequantised weights.

The reference's logits are kept under build/reference/, so that only the first run pays for them.
"""

import hashlib
import os

import numpy as np
import pytest
import torch

from conftest import DATA, ROOT, SMOLLM2, ids_text, logits, mean_kl, perplexity, run, stats

pytestmark = pytest.mark.skipif(not SMOLLM2.exists(), reason=f"{SMOLLM2} is missing: `make model` brings it")

CACHE = ROOT / "build" / "reference"
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
ENGLISH = (
    "The lighthouse stood on the northern cliff, and the keeper climbed its stairs every evening to light "
    "the lamp before the ships came home.\n"
)
FRENCH = (
    "Le phare se dressait sur la falaise du nord, et le gardien montait chaque soir l'escalier pour allumer "
    "la lampe avant le retour des bateaux.\n"
)
# Prompts whose 24 next tokens the reference is sure of: its two best logits are at least 0.75 apart at each.
PROMPTS = {
    "plain": ENGLISH * 3 + "The lighthouse",
    "code": 'case 1: return "January";\ncase 2: return "February";\ncase 3: return "March";\ncase 4:',
    "chat": f"{SYSTEM}<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n",
    "list": "1. January\n2. February\n3. March\n4.",
    "foreign": FRENCH * 3 + "Le phare",
}
GENERATED = 24


@pytest.fixture(scope="module")
def reference():
    """ids -> float32 logits, from the cache or from transformers, which is loaded when first needed."""
    loaded = []

    def load():
        from reference import hf
        from reference.model import Model

        loaded.append(hf.convert(Model(SMOLLM2, dtype=torch.float32)))

    def compute(ids):
        key = hashlib.sha256(f"{SMOLLM2.stat().st_size} {ids_text(ids)}".encode()).hexdigest()[:16]
        file = CACHE / f"smollm2-{key}.npy"
        if not file.exists():
            from reference import hf

            if not loaded:
                load()
            CACHE.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.tmp")  # tests run in two processes
            with open(partial, "wb") as f:
                np.save(f, hf.logits(loaded[0], ids).numpy())
            partial.rename(file)
        return np.load(file, mmap_mode="r")

    return compute


def tokenize(*args):
    return [int(i) for i in run(SMOLLM2, *args, "--tokenize").stdout.split()]


def check_prose(reference, *args):
    ids = tokenize("-f", DATA / "prose.txt")
    assert len(ids) >= 623
    want, got = reference(ids), logits(SMOLLM2, ids, *args)
    assert mean_kl(want, got) < 0.01
    assert (want.argmax(-1) == got.argmax(-1)).mean() >= 0.97
    assert abs(perplexity(got, ids) / perplexity(want, ids) - 1) < 0.005


def test_prose(reference):
    check_prose(reference)


@pytest.mark.parametrize("name", ["code", "list", "foreign"])
def test_other_texts(reference, name):
    ids = tokenize("-f", DATA / f"{name}.txt")
    assert mean_kl(reference(ids), logits(SMOLLM2, ids)) < 0.01


@pytest.mark.parametrize("args", [["-b", 1, "-t", 1], ["-b", 7], ["-b", 512, "-t", 1]], ids=str)
def test_batches_and_threads(reference, args):
    check_prose(reference, *args)


def test_score_gives_the_reference_perplexity(reference):
    ids = tokenize("-f", DATA / "prose.txt")
    out = run(SMOLLM2, "--score", DATA / "prose.txt").stdout.decode()
    figures = dict(line.split(": ") for line in out.splitlines())
    assert int(figures["tokens"]) == len(ids)
    assert abs(float(figures["perplexity"]) / perplexity(reference(ids), ids) - 1) < 0.005


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("args", [["-b", 512, "-t", 2], ["-b", 1, "-t", 1], ["-b", 7, "-t", 2]], ids=str)
def test_greedy_continuations(reference, name, args):
    """The reference, given prompt and continuation, would have chosen each of the tokens itself."""
    prompt = tokenize("-p", PROMPTS[name])
    out = run(SMOLLM2, "-p", PROMPTS[name], "-n", GENERATED, "--temp", 0, "-q", *args).stdout.decode()
    ids = tokenize("-p", PROMPTS[name] + out)
    assert ids[: len(prompt)] == prompt and len(ids) - len(prompt) >= 20
    chosen = reference(ids).argmax(-1)[len(prompt) - 1 : -1]
    assert chosen.tolist() == ids[len(prompt) :]


@pytest.mark.parametrize("kind, bound", [("f32", 0.01), ("q8_0", 0.01), ("q8_0,f16", 0.01), ("q4_0", 0.2)])
def test_kv_types(reference, kind, bound):
    ids = tokenize("-f", DATA / "list.txt")
    assert mean_kl(reference(ids), logits(SMOLLM2, ids, "--kv-type", kind)) < bound


def test_plain_kernels_agree(reference):
    ids = tokenize("-f", DATA / "list.txt")[:100]
    assert (
        mean_kl(reference(tokenize("-f", DATA / "list.txt"))[:100], logits(SMOLLM2, ids, "--isa", "c")) < 0.01
    )


def test_peak_memory(tmp_path):
    figures, _ = stats(SMOLLM2, tmp_path, "-p", "The capital of France is", "-n", 20, "--temp", 0)
    assert figures["peak_rss_bytes"] < 1.3 * (SMOLLM2.stat().st_size + figures["cache_bytes"])


@pytest.mark.long
def test_long_context(reference):
    """The last rows of 6,000 tokens, long after the first tile, page and buffer have been left behind."""
    texts = [tokenize("-f", DATA / f"{name}.txt") for name in ("prose", "code", "foreign", "list")]
    ids = (sum(texts, []) * 4)[:6000]
    want, got = reference(ids)[-512:], logits(SMOLLM2, ids)[-512:]
    assert mean_kl(want, got) < 0.01
    assert (want.argmax(-1) == got.argmax(-1)).mean() >= 0.97
