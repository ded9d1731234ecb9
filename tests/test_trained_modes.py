"""Trained attention parameters end to end: adapters, landmarks in a session, saved sessions, costs.

That the modes compute what they should is in test_modes.py and in the C tests of the modes.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from conftest import ids_text, logits, mean_kl, random_ids, relative_error, run, stats
from reference.model import Model
from test_cli import assert_fails

N = 90
TRAINED = {"mosa": "group", "infini": True, "landmark": "own", "n_ctx": 4096}
PROJECTIONS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
SPECS = [
    "mosa:k=12",
    "mosa:k=12,dense_heads=1",
    "landmark:block=8,topk=2",
    "landmark:block=8,topk=2,key=mean",
    "infini:segment=16",
    "infini:segment=16,delta=1",
    "mosa:k=9@0;landmark:block=8,topk=2@1",
]


# ---- adapters ----


def write_adapter(path: Path, tensors, alpha=None, general_type="adapter", arch="llama", meta=()):
    out = gguf.GGUFWriter(path, arch)
    out.add_type(general_type)
    out.add_string("adapter.type", "lora")
    if alpha is not None:
        out.add_float32("adapter.lora.alpha", alpha)
    for key, value in meta:
        out.add_uint32(key, value)
    for name, data in tensors.items():
        out.add_tensor(name, data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def low_rank(reference, weights, rank, dtype=np.float32, seed=1):
    """Random factors, as tensors of an adapter, for the weights named."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in weights:
        rows, cols = reference.w[name].shape
        tensors[f"{name}.lora_a"] = (rng.normal(0, 1, (rank, cols)) / np.sqrt(cols)).astype(dtype)
        tensors[f"{name}.lora_b"] = (rng.normal(0, 1, (rows, rank)) / np.sqrt(rank)).astype(dtype)
    return tensors


def merged(path, tensors, scale):
    """The reference with scale * B A added to its weights, and the other tensors of the adapter in place."""
    reference = Model(path)
    for name, data in tensors.items():
        data = torch.tensor(np.asarray(data, dtype=np.float64))
        if name.endswith(".lora_a"):
            stem = name.removesuffix(".lora_a")
            b = torch.tensor(np.asarray(tensors[f"{stem}.lora_b"], dtype=np.float64))
            weight = stem if stem.endswith(".weight") else f"{stem}.weight"
            reference.w[weight] = reference.w[weight] + scale * b @ data
        elif not name.endswith(".lora_b"):
            reference.w[name] = data
    return reference


def all_projections(n_layer=2):
    return [f"blk.{i}.{p}.weight" for i in range(n_layer) for p in PROJECTIONS]


@pytest.mark.parametrize("batch", [1, 16, 512])
@pytest.mark.parametrize(
    "rank, alpha, dtype",
    [(4, 8, np.float32), (1, None, np.float32), (7, 3, np.float16), (33, 33, np.float16)],
)
def test_low_rank_updates(tiny_model, tmp_path, rank, alpha, dtype, batch):
    path, reference = tiny_model(**TRAINED)
    tensors = low_rank(reference, [*all_projections(), "output.weight"], rank, dtype)
    adapter = write_adapter(tmp_path / "adapter.gguf", tensors, alpha)
    ids = random_ids(N)
    want = merged(path, tensors, 1 if alpha is None else alpha / rank).logits(ids)
    assert relative_error(reference.logits(ids).numpy(), want) > 0.1
    got = logits(path, ids, "--adapter", adapter, "--kv-type", "f32", "-b", batch)
    assert relative_error(got, want) < 1e-3


def test_an_update_of_one_weight_under_its_short_name(tiny_model, tmp_path):
    path, reference = tiny_model(**TRAINED)
    tensors = low_rank(reference, ["blk.1.attn_k.weight"], 4)
    tensors = {name.replace(".weight", ""): data for name, data in tensors.items()}
    adapter = write_adapter(tmp_path / "adapter.gguf", tensors, alpha=2)
    ids = random_ids(N)
    got = logits(path, ids, "--adapter", adapter, "--kv-type", "f32")
    assert relative_error(got, merged(path, tensors, 0.5).logits(ids)) < 1e-3


def test_updates_of_quantised_weights(tiny_model, tmp_path):
    path, reference = tiny_model(**TRAINED, type=gguf.GGMLQuantizationType.Q8_0, n_ff=128)
    tensors = low_rank(reference, all_projections(), 4)
    adapter = write_adapter(tmp_path / "adapter.gguf", tensors, alpha=4)
    ids = random_ids(N)
    want = merged(path, tensors, 1).logits(ids)
    assert mean_kl(want, logits(path, ids, "--adapter", adapter)) < 0.01
    assert mean_kl(want, logits(path, ids)) > 0.02


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_from_an_adapter(tiny_model, tmp_path, spec):
    """A model without trained parameters, and a sidecar that has them all, and updates too."""
    path, reference = tiny_model(n_ctx=4096)
    rng = np.random.default_rng(5)
    tensors = low_rank(reference, all_projections(), 2)
    tensors["landmark_embd.weight"] = rng.normal(0, 1, 64).astype(np.float32)
    for i in range(2):
        tensors[f"blk.{i}.attn_mosa_router.weight"] = rng.normal(0, 0.3, (4, 64)).astype(np.float32)
        tensors[f"blk.{i}.attn_infini_gate.weight"] = rng.normal(0, 1, 4).astype(np.float32)
    n_vocab = reference.n_vocab
    meta = [("attention.landmark.token_id", n_vocab)]
    adapter = write_adapter(tmp_path / "adapter.gguf", tensors, 2, meta=meta)
    want = merged(path, tensors, 1)
    want.meta["attention.landmark.token_id"] = n_vocab
    ids = random_ids(N)
    got = logits(path, ids, "--adapter", adapter, "--attn", spec, "--kv-type", "f32", "-b", 32)
    assert relative_error(got, want.logits(ids, attn=spec)) < 1e-3


def test_an_adapter_sets_defaults(tiny_model, tmp_path):
    path, reference = tiny_model(**TRAINED, meta=(("attention.landmark.block_size", 16),))
    adapter = write_adapter(tmp_path / "adapter.gguf", {}, meta=[("attention.landmark.block_size", 8)])
    ids = random_ids(N)
    want = reference.logits(ids, attn="landmark:block=8,topk=2")
    got = logits(path, ids, "--adapter", adapter, "--attn", "landmark:topk=2", "--kv-type", "f32")
    assert relative_error(got, want) < 1e-3


def zeros(*shape):
    return np.zeros(shape, np.float32)


A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"  # [2, 64], [64, 2]


@pytest.mark.parametrize(
    "tensors, options, mention",
    [
        ({A: zeros(2, 64)}, {}, B),
        ({B: zeros(64, 2)}, {}, A),
        ({A: zeros(3, 64), B: zeros(64, 2)}, {}, B),
        ({A: zeros(2, 32), B: zeros(64, 2)}, {}, A),
        ({A: zeros(2, 64), B: zeros(32, 2)}, {}, B),
        ({A: zeros(2, 64).astype(np.int32), B: zeros(64, 2)}, {}, A),
        ({"blk.9.attn_q.weight.lora_a": zeros(2, 64)}, {}, "blk.9.attn_q"),
        ({"token_embd.weight.lora_a": zeros(2, 64)}, {}, "token_embd"),
        ({A: zeros(2, 64), B: zeros(64, 2)}, {"general_type": "model"}, "not an adapter"),
        ({A: zeros(2, 64), B: zeros(64, 2)}, {"arch": "qwen2"}, "qwen2"),
    ],
)
def test_adapters_that_do_not_fit(tiny_model, tmp_path, tensors, options, mention):
    path, _ = tiny_model(**TRAINED)
    adapter = write_adapter(tmp_path / "adapter.gguf", tensors, **options)
    assert_fails(run(path, "-p", "x", "-n", 1, "--adapter", adapter, ok=False), 1, "adapter.gguf", mention)


# ---- landmarks in a session ----


def test_layers_must_agree_on_landmarks(tiny_model):
    path, _ = tiny_model(**TRAINED)
    spec = "landmark:block=8@0;landmark:block=16@1"
    assert_fails(run(path, "-p", "x", "-n", 1, "--attn", spec, ok=False), 2, "8", "16")


def test_a_landmark_token_outside_the_vocabulary(tiny_model, tmp_path):
    path, _ = tiny_model(**TRAINED)
    adapter = write_adapter(tmp_path / "adapter.gguf", {}, meta=[("attention.landmark.token_id", 100000)])
    result = run(path, "-p", "x", "-n", 1, "--adapter", adapter, "--attn", "landmark", ok=False)
    assert_fails(result, 1, "attention.landmark.token_id", "100000")


@pytest.mark.parametrize("n_ctx, fits", [(64, 56), (63, 56), (62, 55)])
def test_landmarks_count_as_positions(tiny_model, n_ctx, fits):
    """56 tokens and 8 landmarks are 64 positions; a landmark that would come last is not missed."""
    path, _ = tiny_model(**TRAINED)
    args = ("--attn", "landmark:block=8,topk=2", "-c", n_ctx, "-b", 10, "-n", 0)
    run(path, "--ids", ids_text(random_ids(fits)), *args)
    assert_fails(run(path, "--ids", ids_text(random_ids(fits + 1)), *args, ok=False), 1, "-c")


@pytest.mark.parametrize("n_ctx, n_gen", [(40, 16), (39, 16), (38, 15)])
def test_generation_stops_where_the_context_is_full(tiny_model, tmp_path, n_ctx, n_gen):
    """35 tokens and 5 landmarks; one more token is printed than goes in."""
    path, _ = tiny_model(**TRAINED)
    args = ("--attn", "landmark:block=8,topk=2", "-c", n_ctx, "-n", 100, "--temp", 0)
    figures, result = stats(path, tmp_path, "--ids", ids_text(random_ids(20)), *args)
    assert figures["gen_tokens"] == n_gen
    assert "is full" in result.stderr.decode()


# ---- what must not matter ----


@pytest.mark.parametrize("spec", SPECS + ["mosa:k=12,select=sequence"])
def test_threads_do_not_change_a_bit(tiny_model, spec):
    path, _ = tiny_model(**TRAINED)
    ids = random_ids(N)
    rows = [logits(path, ids, "--attn", spec, "-t", t, "-b", 32).tobytes() for t in (1, 2, 3)]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("kv_type, bound", [("f16", 1e-4), ("q8_0", 5e-3), ("q4_0,q8_0", 0.2)])
@pytest.mark.parametrize("spec", ["mosa:k=12", "landmark:block=8,topk=99", "infini:segment=16,delta=1"])
def test_kv_types(tiny_model, spec, kv_type, bound):
    path, reference = tiny_model(**TRAINED)
    ids = random_ids(N)
    got = logits(path, ids, "--attn", spec, "--kv-type", kv_type)
    assert mean_kl(reference.logits(ids, attn=spec), got) < bound


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_session_goes_on_where_it_was(tiny_model, tmp_path, spec):
    path, _ = tiny_model(**TRAINED)
    ids, file = random_ids(N), tmp_path / "session"
    args = ("--attn", spec, "-n", 12, "--temp", 0, "-b", 16)
    whole = run(path, "--ids", ids_text(ids), *args).stdout
    run(path, "--ids", ids_text(ids[:53]), "--session", file, "--attn", spec, "-n", 0, "-b", 16)
    result = run(path, "--ids", ids_text(ids), "--session", file, *args)
    assert result.stdout == whole


def test_a_session_belongs_to_its_adapter(tiny_model, tmp_path):
    path, reference = tiny_model(**TRAINED)
    adapter = write_adapter(tmp_path / "adapter.gguf", low_rank(reference, all_projections(), 2))
    args = ("--ids", ids_text(random_ids(N)), "--session", tmp_path / "session", "-n", 8, "--temp", 0)
    run(path, *args)
    assert run(path, *args, "--adapter", adapter).stdout == run(path, *args[:2], *args[4:], "--adapter", adapter).stdout


# ---- costs ----


@pytest.mark.parametrize("spec", ["infini:segment=64", "infini:segment=64,delta=1", "mosa:k=50"])
def test_memory_is_the_same_at_any_length(tiny_model, tmp_path, spec):
    path, _ = tiny_model(mosa="head", infini=True, n_ctx=1 << 20)
    sizes = set()
    for n in (1000, 30000):
        ids = tmp_path / "ids"
        ids.write_text(ids_text(random_ids(n)))
        sizes.add(stats(path, tmp_path, "--ids", f"@{ids}", "-n", 4, "--attn", spec)[0]["cache_bytes"])
    assert len(sizes) == 1


def test_landmark_reads_landmarks_and_retrieved_blocks(tiny_model, tmp_path):
    path, _ = tiny_model(**TRAINED)
    figures, _ = stats(
        path,
        tmp_path,
        "--ids",
        ids_text(random_ids(3000)),
        "-n",
        8,
        "--temp",
        0,
        "--attn",
        "landmark:block=16,topk=4",
    )
    blocks = 3000 // 15
    assert blocks <= figures["entries_attended"] * 8 / 9 <= blocks + 1 + 5 * 16
    assert figures["entries_cached"] >= 3000 + blocks


def test_stand_ins_warn(tiny_model):
    """-q as well, which is about speeds."""
    path, _ = tiny_model()
    args = ("-p", "the rain", "-n", 2, "--attn", "mosa:router=knorm@0;infini:gate=0.5@1")
    for quiet in [], ["-q"]:
        assert run(path, *args, *quiet).stderr.decode().count("warning:") == 2
