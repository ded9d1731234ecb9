"""The checkpoint in models/: every mode on it computes the definition, finds pass keys, and costs what it should."""

import random
import re
import sys

import numpy as np
import pytest

from conftest import BUNDLED, DATA, ROOT, RUN, logits, mean_kl, run, stats
from reference.model import Model

sys.path += [str(ROOT / "eval"), str(ROOT / "train")]
import harness
import passkey
import tales

MODES = ["dense", "moba", "topk:prefill=sparse", "mosa", "landmark", "infini"]


@pytest.fixture(scope="module")
def reference():
    return Model(BUNDLED)


@pytest.fixture(scope="module")
def prompts():
    engine = harness.Engine(RUN, BUNDLED)
    return list(passkey.prompts(engine, [500], 6, None, 7))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_its_definition(mode, reference, prompts):
    ids = [int(i) for i in run(BUNDLED, "-p", prompts[0].text, "--tokenize").stdout.split()][:330]
    want = reference.logits(ids, attn=mode)
    got = logits(BUNDLED, ids, "--attn", mode, "-b", 100)
    assert mean_kl(want, got) < 1e-3
    assert (np.asarray(want).argmax(-1) == got.argmax(-1)).mean() > 0.98


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_pass_keys_at_the_training_length(mode, prompts):
    answers = [run(BUNDLED, "-p", p.text, "-n", 8, "--temp", 0, "--attn", mode).stdout.decode() for p in prompts]
    assert sum(passkey.found(a, p.expected) for a, p in zip(answers, prompts)) >= len(prompts) - 1


@pytest.mark.parametrize("mode", ["landmark", "infini"])
def test_pass_keys_are_found_far_beyond_it(mode):
    far = list(passkey.prompts(harness.Engine(RUN, BUNDLED), [8000], 6, None, 7))
    options = ("-n", 8, "--temp", 0, "-c", 9000, "--attn", mode)
    answers = [run(BUNDLED, "-p", p.text, *options).stdout.decode() for p in far]
    assert sum(passkey.found(a, p.expected) for a, p in zip(answers, far)) >= len(far) - 1


def test_it_tells_tales_in_english():
    """In words that there are, about the two whom a tale starts with."""
    known = {w for i in range(3000) for w in re.findall(r"[A-Za-z]+", tales.tale(random.Random(i)))}
    names = {n for group in tales.NAMES.values() for n in group}
    words, of_tale, named = [], 0, 0
    for seed in range(20):
        options = ("-p", "Once upon a time there was a", "-n", 150, "--seed", seed, "--temp", 0.3, "-q")
        told = re.findall(r"[A-Za-z]+", run(BUNDLED, *options).stdout.decode())[:-1]  # the last may be cut
        cast = [w for w in told if w in names]
        of_tale += sum(w in cast[:2] for w in cast)
        named += len(cast)
        words += told
    assert sum(w in known for w in words) / len(words) > 0.98
    assert of_tale / named > 0.9


def test_run_alone_takes_this_model(tmp_path):
    result = run("-n", 5, "--temp", 0, "-q", "--stats", tmp_path / "s", input=b"In the beginning", cwd=ROOT)
    assert result.stdout == run(BUNDLED, "-p", "In the beginning", "-n", 5, "--temp", 0, "-q").stdout


def test_infini_memory_does_not_grow(tmp_path):
    def cache_bytes(repeats):
        file = tmp_path / "text"
        file.write_text((DATA / "prose.txt").read_text() * repeats)
        return stats(BUNDLED, tmp_path, "-f", file, "-n", 1, "-c", 200000, "--attn", "infini", "-q")[0]

    short, long = cache_bytes(1), cache_bytes(20)
    assert long["prompt_tokens"] > 15 * short["prompt_tokens"] > 15000
    assert long["cache_bytes"] == short["cache_bytes"]


def test_mosa_keeps_k_entries_a_head(tmp_path):
    file = tmp_path / "text"
    file.write_text((DATA / "prose.txt").read_text())
    figures = stats(BUNDLED, tmp_path, "-f", file, "-n", 1, "--attn", "mosa", "-q")[0]
    dense_heads, k = 1, 96
    n = figures["prompt_tokens"]
    assert figures["entries_cached"] == pytest.approx((dense_heads * n + 3 * k) / 4, abs=2)
