"""Adapters: what train/adapt.py trains is what the reference and the binary run."""

import random
import sys

import pytest
import torch

from conftest import ROOT, SMOLLM2, logits, mean_kl, random_ids, relative_error, run
from reference import tiny
from reference.model import Model

sys.path.append(str(ROOT / "train"))
import adapt  # noqa: E402
import distill  # noqa: E402
import frozen  # noqa: E402
import modes  # noqa: E402
from adapt_text import Sample  # noqa: E402

# every past block is retrieved, so that landmark's training variant has no blocks at a random place
SETTINGS = {
    "moba": {"moba_block": 8, "moba_topk": 3},
    "mosa": {"mosa_k": 12, "mosa_dense_heads": 1},
    "landmark": {"landmark_block": 8, "landmark_topk": 20, "landmark_start": 5},
    "infini": {"infini_segment": 16},
}
ADAPTERS = {
    "moba": "moba:block=8,topk=4",
    "mosa": "mosa:k=24",
    "landmark": "landmark:block=16,topk=3",
    "infini": "infini:segment=24",
}


@pytest.fixture(scope="module")
def dense_file(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("adapt") / "dense.gguf", tiny.Tiny(tied=True))


@pytest.fixture(scope="module")
def dense(dense_file):
    return frozen.Frozen(dense_file)


def sidecar(dense, mode, **options):
    """One whose every parameter does something."""
    torch.manual_seed(1)
    s = frozen.Sidecar(dense, frozen.Settings(mode, rank=4, **SETTINGS[mode], **options))
    with torch.no_grad():
        for p in s.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return s


@torch.no_grad()
def student_logits(dense, s, ids):
    return dense.logits(list(distill.student(dense, s, s.settings, torch.tensor([ids])))[-1][0])


@pytest.mark.parametrize("mode", SETTINGS)
def test_a_trained_sidecar_is_what_the_binary_runs(dense_file, dense, mode, tmp_path):
    s = sidecar(dense, mode)
    s.save(tmp_path / "attn_params.safetensors", dense.n_vocab)
    adapter = tmp_path / "adapter.gguf"
    adapt.export_adapter(tmp_path / "attn_params.safetensors", dense_file, adapter, "f32")
    ids = random_ids(70)
    want = student_logits(dense, s, ids)
    got = logits(dense_file, ids, "--attn", mode, "--adapter", adapter, "--kv-type", "f32")
    assert relative_error(got, want.numpy()) < 1e-3
    reference = Model(dense_file, adapter=adapter).logits(ids, attn=mode)
    assert relative_error(reference.numpy(), want.numpy()) < 1e-3


@pytest.mark.parametrize("mode", SETTINGS)
def test_an_untrained_update_changes_nothing(dense, mode):
    s = frozen.Sidecar(dense, frozen.Settings(mode, rank=4, **SETTINGS[mode]))
    x = torch.randn(1, 24, dense.n_embd)
    heads = dense.heads(0, x)
    for a, b in zip(dense.updated_heads(0, heads, x, s), heads):
        assert torch.equal(a, b)


def test_some_rows_attend_as_all_do():
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 6, 48, 16), torch.randn(1, 3, 48, 16), torch.randn(1, 3, 48, 16)
    at, rows, rope = torch.arange(48), torch.tensor([3, 17, 40, 47]), modes.Rope(16, 1e4)
    some, r = q[:, :, rows], torch.randn(1, 48, 3)
    for whole, part in (
        (modes.dense(q, k, v, rope, at), modes.dense(some, k, v, rope, at, rows)),
        (modes.moba(q, k, v, rope, at, 8, 3), modes.moba(some, k, v, rope, at, 8, 3, rows)),
        (modes.mosa(q, k, v, rope, at, r, 9, 2), modes.mosa(some, k, v, rope, at, r, 9, 2, rows=rows)),
        (modes.landmark(q, k, v, rope, 8, 3), modes.landmark(some, k, v, rope, 8, 3, rows=rows)),
    ):
        assert torch.allclose(whole[:, :, rows], part, atol=1e-5)


@pytest.mark.parametrize("mode", ["moba", "mosa", "landmark"])
def test_layer_by_layer_steps_bring_a_mode_closer_to_dense(dense, mode):
    s = frozen.Sidecar(dense, frozen.Settings(mode, rank=4, **(SETTINGS[mode] | {"landmark_topk": 2})))
    optimizer = torch.optim.Adam(s.parameters(), lr=2e-3)
    sample = Sample(random_ids(70), [60, 61])
    if mode == "mosa":
        distill.start_router(dense, s, sample.ids)
    states = distill.teacher(dense, torch.tensor([sample.ids]))[:-1]
    losses = []
    for _ in range(20):
        batch = distill.Batch(sample, random.Random(1), 30)
        losses.append(distill.local_step(dense, s, s.settings, states, batch, 0.2, {}))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.long
@pytest.mark.parametrize("mode", ADAPTERS)
def test_adapters_of_smollm2_run_as_the_reference_says(mode):
    adapter = ROOT / "models" / f"smollm2-{mode}.gguf"
    if not SMOLLM2.exists() or not adapter.exists():
        pytest.skip("the checkpoint or its adapter is missing")
    text = (ROOT / "eval" / "haystack.txt").read_text()[:500]
    ids = [int(i) for i in run(SMOLLM2, "-p", text, "--tokenize").stdout.split()]
    want = Model(SMOLLM2, torch.float32, adapter=adapter).logits(ids, attn=ADAPTERS[mode])
    got = logits(SMOLLM2, ids, "--attn", ADAPTERS[mode], "--adapter", adapter, "--kv-type", "f32")
    # the binary rounds activations, so that here and there another of two nearly equal blocks is chosen
    assert mean_kl(want, got) < 0.05
