"""export.py says what is wrong with its input in one line, and leaves nothing half-written."""

import json
import resource
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig

from checkpoints import KEYS, call, edit, make_model, put, random_params, save, write_params
from conftest import ROOT

sys.path.append(str(ROOT))
from convert.report import ExportError
from export import export_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint's directory."""
    return save(make_model(LlamaConfig), tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def drop(name, key):
    return edit(name, lambda old: {k: v for k, v in old.items() if k != key})


def tensors(change):
    def spoil(folder):
        path = folder / "model.safetensors"
        data = load_file(path)
        change(data)
        save_file(data, path)

    return spoil


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def shard_of_nowhere(folder):
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


Q = "model.layers.1.self_attn.q_proj.weight"
SPOILS = [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (write("config.json", b"{"), "config.json: not valid JSON"),
    (write("config.json", b"[]"), "config.json: not a JSON object"),
    (drop("config.json", "architectures"), "'architectures'"),
    (put("config.json", architectures=["GPT2LMHeadModel"]), "'GPT2LMHeadModel' is not supported"),
    *[
        (drop("config.json", key), f"config.json: key '{key}' is missing")
        for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
        + ("rms_norm_eps", "max_position_embeddings")
    ],
    (put("config.json", hidden_size="64"), "'hidden_size' is '64'"),
    (put("config.json", num_hidden_layers=0), "'num_hidden_layers' is 0"),
    (put("config.json", num_key_value_heads=3), "'num_key_value_heads' 3"),
    (put("config.json", head_dim=15), "'head_dim' is 15"),
    (put("config.json", hidden_act="gelu"), "'hidden_act' is 'gelu'"),
    (put("config.json", quantization_config={"bits": 4}), "'quantization_config'"),
    (put("config.json", rope_parameters={"rope_type": "longrope"}), "'longrope' is not supported"),
    (put("config.json", rope_parameters={"rope_type": "linear"}), "key 'factor' is missing"),
    (put("config.json", rope_parameters=3), "'rope_parameters'"),
    (put("config.json", partial_rotary_factor=0.5), "'partial_rotary_factor' is 0.5"),
    (put("config.json", num_hidden_layers=3), "'model.layers.2.input_layernorm.weight' is missing"),
    (put("config.json", vocab_size=290), "'model.embed_tokens.weight' is 300 x 64, but by config.json it is 290 x 64"),
    (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: No such file"),
    (tensors(lambda t: t.pop(Q)), f"tensor '{Q}' is missing"),
    (tensors(lambda t: t.pop("lm_head.weight")), "tensor 'lm_head.weight' is missing"),
    (tensors(lambda t: t.update({Q: t[Q][:32]})), f"tensor '{Q}' is 32 x 64"),
    (tensors(lambda t: t.update({Q: t[Q].astype(np.int32)})), f"tensor '{Q}' is of I32"),
    (tensors(lambda t: t.update({Q: t[Q] * np.nan})), f"tensor '{Q}' has values that are not finite"),
    (tensors(lambda t: t.update({Q: t[Q] * 1e6})), "'blk.1.attn_q.weight' has values too large for F16"),
    (
        tensors(lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.zeros(64, np.float32)})),
        "tensor 'model.layers.0.self_attn.o_proj.bias' has no place",
    ),
    (cut, "lies beyond the end of the file"),
    (write("model.safetensors", b""), "not a safetensors file"),
    (write("model.safetensors", b"\xff" * 400), "not a safetensors file"),
    (write("model.safetensors", (9).to_bytes(8, "little") + b"not JSON!"), "header is not valid JSON"),
    (write("model.safetensors", (11).to_bytes(8, "little") + b'{"a": null}'), "entry for tensor 'a' is damaged"),
    (shard_of_nowhere, "model-1.safetensors: No such file"),
    (write("model.safetensors.index.json", b"{}"), "'weight_map'"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    (drop("tokenizer.json", "model"), "key 'model' is missing"),
    (edit("tokenizer.json", lambda t: t["model"].update(type="Unigram")), "'Unigram'"),
    (edit("tokenizer.json", lambda t: t["model"].update(merges=[["a"]])), "'merges', entry 0"),
    (edit("tokenizer.json", lambda t: t["model"]["vocab"].update(new=300)), "token 'new' has the id 300"),
    (edit("tokenizer.json", lambda t: t["added_tokens"].append({"id": 290})), "id 290 has no text"),
    (put("tokenizer.json", normalizer={"type": "Lowercase"}), "Lowercase is not supported"),
    (put("tokenizer.json", pre_tokenizer=None), "neither byte-level BPE nor SentencePiece's"),
    (
        put("tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]}),
        "'pre_tokenizer' is not known (x+)",
    ),
    (put("tokenizer_config.json", eos_token="<end>"), "'eos_token' is '<end>', which is not in the vocabulary"),
    (put("generation_config.json", eos_token_id=[2, 4000]), "'eos_token_id' is 4000"),
    (write("tokenizer.model", b"\x0a\x99") , None),
]


@pytest.mark.parametrize("spoil, mention", SPOILS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_wrong_with_a_checkpoint(folder, tmp_path, spoil, mention):
    spoil(folder)
    out = tmp_path / "m.gguf"
    if mention is None:  # a file that isn't needed
        export_model(folder, out)
        return
    with pytest.raises(ExportError) as e:
        export_model(folder, out)
    assert mention in str(e.value) and "\n" not in str(e.value)
    assert str(folder) in str(e.value) or "F16" in mention
    assert list(tmp_path.glob("*.gguf*")) == [] and list(tmp_path.glob(".*")) == []


def changed(tensors=None, **keys):
    """(tensors, metadata) of a parameter file with some replaced, or taken out where None."""
    new = random_params() | (tensors or {})
    keys = KEYS | {k.replace("__", "."): v for k, v in keys.items()}
    return {k: v for k, v in new.items() if v is not None}, {k: v for k, v in keys.items() if v is not None}


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "params, mention",
    [
        (changed({"blk.0.attn_mosa_router.weight": zeros(3, 64)}), "is 3 x 64, expected 2 x 64 or 4 x 64"),
        (changed({"blk.0.attn_infini_gate.weight": zeros(3)}), "'blk.0.attn_infini_gate.weight' is 3, expected 4"),
        (changed({"landmark_embd.weight": zeros(1, 64)}), "'landmark_embd.weight' is 1 x 64"),
        (changed({"blk.2.attn_infini_gate.weight": zeros(4)}), "the model has 2 layers"),
        (changed({"blk.0.attn_gate.weight": zeros(4)}), "'blk.0.attn_gate.weight' is no router"),
        (changed({"blk.0.attn_q.weight.lora_a": None}), "'blk.0.attn_q.weight.lora_a' is missing"),
        (changed({"blk.0.attn_q.weight.lora_b": None}), "'blk.0.attn_q.weight.lora_b' is missing"),
        (changed({"blk.0.attn_q.weight.lora_b": zeros(64, 2)}), "is 64 x 2, expected 64 x 3"),
        (changed({"blk.0.attn_q.weight.lora_a": zeros(3, 32)}), "is 3 x 32, expected 3 x 64"),
        (changed({"blk.9.attn_q.weight.lora_a": zeros(3, 64)}), "updates no weight"),
        (changed(adapter__lora__alpha=None), "'adapter.lora.alpha' is missing"),
        (changed(adapter__lora__alpha="x"), "'adapter.lora.alpha' is 'x', not a number"),
        (changed(attention__mosa__k="-1"), "'attention.mosa.k' is '-1'"),
        (changed(attention__mosa__include_first="maybe"), "not true or false"),
        (changed(attention__modes="mosa"), "'attention.modes' is 'mosa'"),
        (changed(attention__modes='["new"]'), "'attention.modes'"),
        (changed(attention__mosa__topk="3"), "'attention.mosa.topk' is unknown"),
        (changed(attention__landmark__token_id="5"), "must be 300"),
        (changed({"landmark_embd.weight": None}, attention__landmark__token_id="300"), "must be below 300"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_wrong_with_attention_parameters(checkpoint, tmp_path, params, mention):
    path = write_params(tmp_path / "params.safetensors", *params)
    with pytest.raises(ExportError) as e:
        export_model(checkpoint, tmp_path / "m.gguf", attn_params=path)
    assert mention in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "m.gguf").exists()


def assert_one_line(done, *mentions):
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("export.py: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(m in done.stderr for m in mentions), done.stderr


def test_files_that_are_not_there(checkpoint, tmp_path):
    params = write_params(tmp_path / "params.safetensors")
    out = tmp_path / "m.gguf"
    assert_one_line(call(tmp_path / "none", "-o", out), "none/config.json is missing")
    assert_one_line(call(checkpoint, "-o", out, "--attn-params", tmp_path / "none"), "none: No such file")
    assert_one_line(call("--base", tmp_path / "none", "-o", out, "--attn-params", params), "none: No such file")
    assert_one_line(call("--base", params, "-o", out, "--attn-params", params), str(params), "not a GGUF file")
    assert_one_line(call(checkpoint, "-o", tmp_path / "none" / "m.gguf"), "none/m.gguf: No such file")
    assert_one_line(call(checkpoint, "-o", tmp_path), "is a directory")


def test_a_full_disk_leaves_nothing_behind(checkpoint, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"older")

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = call(checkpoint, "-o", tmp_path / "m.gguf", preexec_fn=small_files_only)
    assert_one_line(done, "m.gguf: File too large")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"older"
