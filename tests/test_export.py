"""export.py: checkpoints of `transformers`, and trained attention parameters, as files of ./run and llama.cpp."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import LlamaConfig

from checkpoints import (
    BASE,
    MODELS,
    byte_level_tokenizer,
    call,
    make_model,
    put,
    random_params,
    save,
    write_params,
    write_tokenizer,
)
from conftest import ROOT, logits, mean_kl, random_ids, relative_error, run
from reference import tiny
from reference.model import Model
from test_tokenizer import PRE_TOKENIZERS, train_bpe, train_spm
from tokenizer_corpus import corpus

sys.path.append(str(ROOT))
from convert import pretokenizer
from convert.gguf_file import TYPES
from convert.report import ExportError
from export import export_adapter, export_model

PEER = ROOT / ".venv-bench" / "bin" / "python"
N = 90
@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Makes (directory, transformers model) of a case in MODELS."""
    made, folder = {}, tmp_path_factory.mktemp("checkpoints")

    def make(name="llama"):
        if name not in made:
            config_class, values = MODELS[name]
            model = make_model(config_class, **values)
            made[name] = save(model, folder / name), model
        return made[name]

    return make


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a checkpoint's directory to spoil."""
    return shutil.copytree(checkpoint()[0], tmp_path / "model")


@torch.no_grad()
def expected(model, ids):
    return model(torch.tensor([ids])).logits[0].float().numpy()


def got(path, ids, *args):
    return logits(path, ids, "--kv-type", "f32", "-t", 1, *args)


def greedy(model, ids, n):
    """transformers' own choice of n tokens, which must not be a close one."""
    ids = list(ids)
    for _ in range(n):
        best = np.sort(row := expected(model, ids)[-1])[-2:]
        assert best[1] - best[0] > 5e-3, "choose another seed: the reference is undecided"
        ids.append(int(row.argmax()))
    return ids[-n:]


def tensors_of(path):
    """Dequantised tensors and their types."""
    reader = gguf.GGUFReader(path)
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}, {
        t.name: t.tensor_type for t in reader.tensors
    }


# ---- models ----


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(checkpoint, tmp_path, name):
    folder, model = checkpoint(name)
    export_model(folder, tmp_path / "m.gguf", "f32")
    ids = random_ids(N)
    assert relative_error(got(tmp_path / "m.gguf", ids), expected(model, ids)) < 1e-3


@pytest.mark.parametrize("name", ["llama", "llama-3", "qwen2"])
def test_config_files_of_before_transformers_5(checkpoint, tmp_path, name):
    folder, model = checkpoint(name)
    folder = shutil.copytree(folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = None if scaling["type"] == "default" else scaling
    config["head_dim"] = None
    (folder / "config.json").write_text(json.dumps(config))
    export_model(folder, tmp_path / "m.gguf", "f32")
    ids = random_ids(N)
    assert relative_error(got(tmp_path / "m.gguf", ids), expected(model, ids)) < 1e-3


def test_shards_give_the_same_file(checkpoint, tmp_path):
    folder, model = checkpoint()
    sharded = save(model, tmp_path / folder.name, max_shard_size="60KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    for source, out in ((folder, "a.gguf"), (sharded, "b.gguf")):
        export_model(source, tmp_path / out)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_checkpoints_keep_their_values(tmp_path, dtype):
    model = make_model(LlamaConfig).to(dtype)
    folder = save(model, tmp_path / "model")
    exact = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    for type_ in ("f32", exact):
        export_model(folder, tmp_path / f"{type_}.gguf", type_)
    wide, narrow = (tensors_of(tmp_path / f"{type_}.gguf")[0] for type_ in ("f32", exact))
    assert all(np.array_equal(wide[name], narrow[name]) for name in wide)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = random_ids(N)
    assert relative_error(got(tmp_path / f"{exact}.gguf", ids), expected(model, ids)) < 1e-3


@pytest.mark.parametrize("type_", TYPES)
def test_types(checkpoint, tmp_path, type_):
    folder, _ = checkpoint("qwen3")
    path = tmp_path / "m.gguf"
    export_model(folder, tmp_path / "f32.gguf", "f32")
    export_model(folder, path, type_)
    values, types = tensors_of(path)
    exact, _ = tensors_of(tmp_path / "f32.gguf")
    for name, w in exact.items():
        wanted = TYPES["f32" if w.ndim == 1 else type_]
        assert types[name] == wanted
        rounded = gguf.quants.dequantize(gguf.quants.quantize(w, wanted), wanted)
        assert np.array_equal(values[name], rounded.reshape(w.shape)), name
    ids = random_ids(N)
    assert mean_kl(Model(path).logits(ids), got(path, ids)) < 0.01


def test_rows_that_are_no_whole_blocks_stay_f16(tmp_path, capsys):
    folder = save(make_model(LlamaConfig, intermediate_size=80), tmp_path / "model")
    export_model(folder, tmp_path / "m.gguf", "q4_0")
    types, notes = tensors_of(tmp_path / "m.gguf")[1], capsys.readouterr().err
    odd = {f"blk.{i}.ffn_down.weight" for i in range(2)}
    assert {name for name, t in types.items() if t == TYPES["f16"]} == odd
    assert all(f"note: tensor '{name}' becomes F16: rows of 80 " in notes for name in odd)
    ids = random_ids(N)
    assert mean_kl(Model(tmp_path / "m.gguf").logits(ids), got(tmp_path / "m.gguf", ids)) < 0.01


PEER_SCRIPT = """
import json, sys
import llama_cpp
for path, ids, n, options in json.load(sys.stdin):
    model = llama_cpp.Llama(path, n_ctx=128, n_threads=1, verbose=False, type_k=0, type_v=0, **options)
    tokens = model.generate(ids, temp=0)
    print(json.dumps([next(tokens) for _ in range(n)]))
"""
# llama.cpp doesn't take these from the file
PEER_OPTIONS = {"llama-yarn-betas": dict(yarn_beta_fast=8.0, yarn_beta_slow=2.0)}


@pytest.mark.skipif(not PEER.exists(), reason="llama-cpp-python is not there: make peers")
def test_llama_cpp_chooses_the_same_tokens(checkpoint, tmp_path):
    ids, n, jobs, want = random_ids(30, seed=4), 8, [], []
    for name in MODELS:
        folder, model = checkpoint(name)
        export_model(folder, tmp_path / f"{name}.gguf", "f32")
        jobs.append((str(tmp_path / f"{name}.gguf"), ids, n, PEER_OPTIONS.get(name, {})))
        want.append(greedy(model, ids, n))
    done = subprocess.run([PEER, "-c", PEER_SCRIPT], input=json.dumps(jobs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(zip(MODELS, map(json.loads, done.stdout.splitlines()))) == dict(zip(MODELS, want))


# ---- tokenizers ----


def our_ids(model, tmp_path, text, *args):
    (tmp_path / "text").write_bytes(text.encode())
    return [int(i) for i in run(model, "-f", tmp_path / "text", "--tokenize", *args).stdout.split()]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint with room for any tokenizer of these tests."""
    return save(make_model(LlamaConfig, vocab_size=2100), tmp_path_factory.mktemp("weights") / "model")


def text_to_encode():
    return " ".join(s for s in corpus(700, seed=12) if "\0" not in s and "<" not in s and "\u2581" not in s)


def test_byte_level_bpe(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "model")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_bpe("smollm"), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    export_model(folder, tmp_path / "m.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = text_to_encode() + "</s><tool_call> <|user|>x  x"
    assert our_ids(tmp_path / "m.gguf", tmp_path, text) == tokenizer(text).input_ids
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    kinds = dict(zip(tokens, types))
    assert (kinds["<s>"], kinds["<tool_call>"], kinds["a"], kinds["[PAD2099]"]) == (3, 4, 1, 5)


def spm_as_json(processor):
    """What transformers keeps of a SentencePiece model."""
    n = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(n)}
    merges = []
    for piece, i in vocab.items():
        splits = [(piece[:j], piece[j:]) for j in range(1, len(piece))]
        merges += [(-processor.get_score(i), left, right) for left, right in splits if {left, right} <= set(vocab)]
    merges = [(left, right) for _, left, right in sorted(merges, key=lambda m: m[0])]
    t = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    return t


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
def test_sentencepiece(weights, tmp_path, form):
    folder = shutil.copytree(weights, tmp_path / "model")
    processor, _ = train_spm("llama")
    write_tokenizer(folder, spm_as_json(processor), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if form == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
        (folder / form).write_bytes(processor.serialized_model_proto())
        (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": 2000}))
    export_model(folder, tmp_path / "m.gguf")
    text = text_to_encode()
    assert our_ids(tmp_path / "m.gguf", tmp_path, text) == [1, *processor.encode(text)]
    kinds = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:4] == [2, 3, 3, 6] and kinds[2000] == (4 if form == "tokenizer.model" else 5)


@pytest.mark.parametrize("add_bos, template", [(None, False), (None, True), (False, True), (True, False)])
def test_bos(folder, tmp_path, add_bos, template):
    tokenizer = byte_level_tokenizer()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    write_tokenizer(folder, tokenizer, add_bos_token=add_bos)
    export_model(folder, tmp_path / "m.gguf")
    ids = our_ids(tmp_path / "m.gguf", tmp_path, "the")
    assert (ids[0] == 1) == (template if add_bos is None else add_bos) and len(ids) in (1, 2)


def test_chat_template_and_end_of_turn(folder, tmp_path):
    """generation_config.json may have ends that the tokenizer doesn't name."""
    write_tokenizer(folder, bos_token=None, eos_token={"content": "<|endoftext|>"}, chat_template=None)
    (folder / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [0, 2]}))
    export_model(folder, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    keys = ["ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id", "chat_template"]
    assert [fields[f"tokenizer.{key}"].contents() for key in keys] == [1, 0, 2, tiny.CHAT_TEMPLATE]
    run(tmp_path / "m.gguf", "--chat", "-p", "the rain", "-n", 2, "-t", 1)


SAME_RULES = {"mpt": "gpt-2", "starcoder": "smollm", "refact": "smollm"}


@pytest.mark.parametrize("case", PRE_TOKENIZERS)
def test_name_of_the_pre_tokenizer(case):
    name, pre_tokenizer = PRE_TOKENIZERS[case]
    t = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    t.pre_tokenizer = pre_tokenizer
    if name in ("falcon", "default", None):  # no checkpoint of these architectures has them
        with pytest.raises(ExportError, match="'pre_tokenizer' is not known"):
            pretokenizer.find_name("tokenizer.json", json.loads(t.to_str()))
    else:
        assert pretokenizer.find_name("tokenizer.json", json.loads(t.to_str())) == SAME_RULES.get(name, name)


# ---- trained attention parameters ----

MODES = ["mosa", "landmark", "infini"]
def updated(model, params):
    """The transformers model with the low-rank updates added to its weights."""
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_output": "self_attn.o_proj"}
    state = {name: w.clone() for name, w in model.state_dict().items()}
    for name, a in params.items():
        if name.endswith(".lora_a"):
            _, i, what, *_ = name.split(".")
            b = params[name.replace(".lora_a", ".lora_b")]
            weight = f"model.layers.{i}.{names.get(what, 'mlp.down_proj')}.weight"
            state[weight] += torch.tensor(2 * b @ a)  # alpha / rank
    other = make_model(type(model.config), **{k: getattr(model.config, k) for k in BASE})
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("where", ["model", "adapter"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_attention_parameters(checkpoint, tmp_path, name, where):
    folder, model = checkpoint(name)
    params = write_params(tmp_path / "params.safetensors")
    merged, path = tmp_path / "merged.gguf", tmp_path / "base.gguf"
    export_model(folder, merged, "f32", attn_params=params)
    args = []
    if where == "adapter":
        export_model(folder, path, "f32")
        export_adapter(params, path, tmp_path / "adapter.gguf", "f32")
        args = ["--adapter", tmp_path / "adapter.gguf"]
    else:
        path = merged
    ids = random_ids(N)
    want = expected(updated(model, random_params()), ids)
    assert relative_error(want, expected(model, ids)) > 0.1
    assert relative_error(got(path, ids, *args), want) < 1e-3
    reference = Model(merged)
    for name, data in random_params().items():
        if ".lora_" not in name:
            assert np.array_equal(reference.w[name].numpy().astype(np.float32).squeeze(), data.squeeze())
    for mode in MODES:
        want = reference.logits(ids, attn=mode)  # its options from the file
        assert relative_error(got(path, ids, "--attn", mode, *args), want) < 1e-3


def test_a_directory_brings_its_attention_parameters(folder, tmp_path):
    params = write_params(tmp_path / "params.safetensors")
    export_model(folder, tmp_path / "a.gguf", attn_params=params)
    write_params(folder / "attn_params.safetensors")
    export_model(folder, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_command_line(checkpoint, tmp_path):
    folder, _ = checkpoint()
    params = write_params(tmp_path / "params.safetensors")
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    assert call(folder, "-o", base, "--type", "q8_0").returncode == 0
    assert call("--attn-params", params, "--base", base, "-o", adapter).returncode == 0
    assert tensors_of(adapter)[1]["blk.0.attn_q.weight.lora_b"] == TYPES["f16"]
    run(base, "--adapter", adapter, "--attn", "landmark", "-p", "the rain", "-n", 2, "-t", 1)
    usage = [[folder], ["-o", base], [folder, "-o", base, "--type", "q9"], ["-o", base, "--base", base]]
    for args in (*usage, ["-o", base, "--base", base, "--attn-params", params, "--type", "q8_0"]):
        assert call(*args).returncode == 2


# ---- memory ----

MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
from export import export_model
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
export_model(sys.argv[1], sys.argv[3], "f16")
before = peak()
export_model(sys.argv[2], sys.argv[3], "f16")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_memory_stays_near_one_tensor(folder, tmp_path):
    """A checkpoint of zeros, most of them not even on the disk."""
    large = shutil.copytree(folder, tmp_path / "large")
    sizes = dict(hidden_size=1024, intermediate_size=2048, num_hidden_layers=12, head_dim=256)
    put("config.json", **sizes)(large)
    shapes, at = {}, 0
    with torch.device("meta"):
        state = make_model(LlamaConfig, **sizes).state_dict()
    for name, w in state.items():
        shapes[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": [at, at + 4 * w.numel()]}
        at += 4 * w.numel()
    header = json.dumps(shapes).encode()
    with open(large / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    largest = 4 * 1024 * 2048
    assert at > 50 * largest
    script = [sys.executable, "-c", MEMORY_SCRIPT, folder, large, tmp_path / "m.gguf"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * largest
