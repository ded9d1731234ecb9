"""The dense model on tiny random checkpoints, against the reference and `transformers`."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from conftest import (
    ids_text,
    log_softmax,
    logits,
    mean_kl,
    perplexity,
    random_ids,
    relative_error,
    run,
    stats,
)
from reference import hf, tiny

MODELS = {
    "llama": {},
    "llama-mha-tied": {"n_head_kv": 4, "tied": True},
    "llama-mqa": {"n_head_kv": 1},
    "llama-odd-heads": {"n_embd": 96, "n_head": 6, "n_head_kv": 3, "n_ff": 160},
    "llama-linear": {"rope_scaling": "linear"},
    "llama-yarn": {"rope_scaling": "yarn"},
    "llama-rope-factors": {"rope_scaling": "llama3"},
    "qwen2": {"arch": "qwen2"},
    "qwen2-tied-yarn": {"arch": "qwen2", "tied": True, "rope_scaling": "yarn"},
    "qwen3": {"arch": "qwen3", "head_dim": 32},
    "qwen3-wide-heads": {"arch": "qwen3", "head_dim": 128, "n_head": 2, "n_head_kv": 1},
}
QUANTISED = [
    Type.F16,
    Type.BF16,
    Type.Q8_0,
    Type.Q4_0,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q4_K,
    Type.Q5_K,
    Type.Q6_K,
]
N = 130


@pytest.fixture(params=MODELS)
def model(request, tiny_model):
    return tiny_model(**MODELS[request.param])


def test_reference_equals_transformers(model):
    path, reference = model
    if "rope_freqs.weight" in reference.w:
        pytest.skip("transformers takes no per-frequency factors")
    ids = random_ids(N)
    assert relative_error(hf.logits(hf.convert(reference), ids).numpy(), reference.logits(ids)) < 1e-4


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 7, 512])
def test_f32_logits(model, batch, threads):
    path, reference = model
    ids = random_ids(N)
    got = logits(path, ids, "--kv-type", "f32", "-b", batch, "-t", threads)
    assert relative_error(got, reference.logits(ids)) < 1e-3


@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("type_", QUANTISED, ids=lambda t: t.name)
def test_quantised_weights(tiny_model, type_, batch):
    shape = {"n_embd": 256, "n_ff": 512, "n_head": 8, "n_head_kv": 2}
    path, reference = tiny_model(type=type_, **shape)
    ids = random_ids(N)
    got = logits(path, ids, "--kv-type", "f32", "-b", batch)
    want = reference.logits(ids)
    if type_ in (Type.F16, Type.BF16):
        assert relative_error(got, want) < 1e-3
    else:  # activations may be rounded to 8 bits
        assert mean_kl(want, got) < 0.01


def test_embedding_and_output_of_different_types(tiny_model):
    path, reference = tiny_model(type=Type.Q4_1, embd_type=Type.Q8_0, tied=True)
    ids = random_ids(N)
    assert mean_kl(reference.logits(ids), logits(path, ids)) < 0.01


@pytest.mark.parametrize(
    "kind, bound", [("f32", 1e-3), ("f16", 2e-2), ("q8_0", 0.1), ("q8_0,f16", 0.1), ("q4_0", 2.0)]
)
def test_kv_types(tiny_model, kind, bound):
    path, reference = tiny_model(n_embd=128, n_ff=192)
    ids = random_ids(N)
    want = reference.logits(ids)
    got = logits(path, ids, "--kv-type", kind)
    assert relative_error(got, want) < bound
    assert mean_kl(want, got) < bound / 10


def test_a_prompt_takes_the_memory_of_its_tokens(tiny_model, tmp_path):
    """Whatever its batches are, and with room for what is generated: caches don't grow step by step."""
    path, _ = tiny_model(n_embd=128, n_ff=192, n_ctx=8192)
    bytes_per_token = 2 * (2 * 2 * 2 * 32 + 2 * 4)  # layers, KV heads: K and V in f16, positions
    ids = ids_text(random_ids(4000))
    for batch in (100, 512, 4000):
        figures, _ = stats(path, tmp_path, "--ids", ids, "-n", 90, "-b", batch)
        assert 4090 <= figures["cache_bytes"] / bytes_per_token < 1.13 * 4090  # whole huge pages


def test_kv_types_take_the_memory_they_say(tiny_model, tmp_path):
    path, _ = tiny_model(n_embd=128, n_ff=192, n_ctx=8192)
    size = {}
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        figures, _ = stats(path, tmp_path, "--ids", ids_text(random_ids(4000)), "-n", 0, "--kv-type", kind)
        size[kind] = figures["cache_bytes"]
    per_entry = {"f32": 4 * 32, "f16": 2 * 32, "q8_0": 34, "q4_0": 18}  # bytes of one head's key, d = 32
    for kind in size:
        least = 4000 * 2 * per_entry[kind] * 2 * 2  # K and V, G = 2, 2 layers
        assert least <= size[kind] < 1.6 * least, kind


@pytest.mark.parametrize(
    "args",
    [
        ["--rope-scaling", "linear", "--rope-scale", "4"],
        ["--rope-scaling", "yarn", "--rope-scale", "8"],
        ["--rope-scaling", "none"],
        ["--rope-base", "500000"],
    ],
    ids=" ".join,
)
def test_rope_options_replace_what_the_file_says(tiny_model, args):
    from reference.model import Model

    path, _ = tiny_model(rope_scaling="linear")
    given = dict(zip(args[::2], args[1::2]))
    reference = Model(
        path,
        rope_scaling=given.get("--rope-scaling"),
        rope_scale=float(given["--rope-scale"]) if "--rope-scale" in given else None,
        rope_base=float(given["--rope-base"]) if "--rope-base" in given else None,
    )
    ids = random_ids(N)
    assert relative_error(logits(path, ids, "--kv-type", "f32", *args), reference.logits(ids)) < 1e-3


def test_rope_scale_stretches_what_a_tensor_of_factors_stretches(tiny_model):
    """Whether or not the file names the scaling that the tensor stands for."""
    named = (("llama.rope.scaling.type", "llama3"), ("llama.rope.scaling.factor", 8.0))
    ids, rows = random_ids(N), {}
    for meta in (), named:
        path, reference = tiny_model(rope_scaling="llama3", meta=meta)
        assert relative_error(logits(path, ids, "--kv-type", "f32"), reference.logits(ids)) < 1e-3
        rows[meta] = logits(path, ids, "--rope-scale", 4)
        assert relative_error(rows[meta], reference.logits(ids)) > 0.01
    assert np.array_equal(rows[()], rows[named])


def test_threads_do_not_change_a_bit(tiny_model):
    for kwargs in ({}, {"type": Type.Q4_1, "n_embd": 128, "n_ff": 256}):
        path, _ = tiny_model(**kwargs)
        ids = random_ids(300)
        rows = [logits(path, ids, "-t", t) for t in (1, 2, 3, 5)]
        assert all(np.array_equal(rows[0], r) for r in rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_greedy(tiny_model, name, batch, threads):
    path, reference = tiny_model(**MODELS[name])
    ids = random_ids(40, seed=1)
    want, margin = reference.greedy(ids, 24)
    assert margin > 2e-3, "choose another seed: the reference is undecided"
    result = run(
        path, "--ids", ids_text(ids), "-n", 24, "--temp", 0, "--kv-type", "f32", "-b", batch, "-t", threads
    )
    assert result.stdout.decode() == tiny.text_of(want)


def test_all_ways_to_give_a_prompt(tiny_model, tmp_path):
    path, _ = tiny_model()
    text = "the other thing and 12 then"
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    greedy = ("-n", 10, "--temp", 0)
    ids = run(path, "-p", text, "--tokenize").stdout.decode()
    id_file = tmp_path / "ids"
    id_file.write_text(ids)
    outputs = [
        run(path, "-p", text, *greedy),
        run("-m", path, f"-p{''}", text, *greedy),
        run(path, "-f", file, *greedy),
        run(path, *greedy, input=text.encode()),
        run(path, "--ids", ids, *greedy),
        run(path, "--ids", f"@{id_file}", *greedy),
        run(path, "-n=10", "--temp=0", f"-p={text}"),
    ]
    assert len({o.stdout for o in outputs}) == 1 and outputs[0].stdout


@pytest.mark.parametrize("attn", ["dense", "dense@0"])
def test_score(tiny_model, tmp_path, attn):
    path, reference = tiny_model()
    text = tmp_path / "text"
    text.write_text("the rain on the roof and then another hour of it, in the end 12 and 12")
    ids = [int(i) for i in run(path, "-f", text, "--tokenize").stdout.split()]
    want = perplexity(reference.logits(ids), ids)
    lines = run(path, "--score", text, "--attn", attn, "--kv-type", "f32").stdout.decode().splitlines()
    figures = dict(line.split(": ") for line in lines)
    assert int(figures["tokens"]) == len(ids)
    assert abs(float(figures["perplexity"]) / want - 1) < 1e-3


def test_score_is_the_same_in_batches_and_at_any_length(tiny_model, tmp_path):
    path, reference = tiny_model(n_ctx=2048)
    text = tmp_path / "text"
    text.write_text("and then the other one, " * 60)
    ids = [int(i) for i in run(path, "-f", text, "--tokenize").stdout.split()]
    want = perplexity(reference.logits(ids), ids)
    for batch in (1, 33, 512):
        out = run(path, "--score", text, "-b", batch).stdout.decode()
        assert abs(float(out.split("perplexity: ")[1].split()[0]) / want - 1) < 5e-3


def test_sampling_follows_the_probabilities(tiny_model):
    """The first sampled token over many seeds, against softmax at that temperature."""
    path, reference = tiny_model()
    ids = random_ids(20)
    row = reference.logits(ids)[-1].numpy()
    # a temperature at which the best token is neither certain nor one of many
    temp, p = next((t, p) for t in (0.25, 0.5, 1, 2) if (p := np.exp(log_softmax(row / t))).max() < 0.7)
    best = tiny.text_of([int(p.argmax())])
    hits = 0
    for seed in range(150):
        out = run(
            path,
            "--ids",
            ids_text(ids),
            "-n",
            1,
            "--temp",
            temp,
            "--top-k",
            0,
            "--top-p",
            1,
            "--min-p",
            0,
            "--seed",
            seed,
        ).stdout.decode()
        hits += out == best
    sigma = np.sqrt(150 * p.max() * (1 - p.max()))
    assert p.max() > 0.1
    assert abs(hits - 150 * p.max()) < 4 * sigma + 1
