"""Tiny random checkpoints as transformers writes them, and files of trained attention parameters for them."""

import json
import os
import subprocess
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from conftest import ROOT
from reference import tiny
from test_tokenizer import PRE_TOKENIZERS

BASE = dict(
    vocab_size=300,  # more than the tokenizer has
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    tie_word_embeddings=False,
)


def rope(kind, **values):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, factor=4.0, **values))


YARN = dict(original_max_position_embeddings=64)
LLAMA3 = dict(original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0)
MODELS = {
    "llama": (LlamaConfig, {}),
    "llama-tied-mha": (LlamaConfig, dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "llama-linear": (LlamaConfig, rope("linear")),
    "llama-yarn": (LlamaConfig, rope("yarn", **YARN)),
    "llama-yarn-betas": (LlamaConfig, rope("yarn", **YARN, beta_fast=8.0, beta_slow=2.0, attention_factor=1.5)),
    "llama-yarn-mscale": (LlamaConfig, rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.2)),
    "llama-3": (LlamaConfig, rope("llama3", **LLAMA3)),
    "mistral-wide-heads": (MistralConfig, dict(head_dim=32, sliding_window=None)),
    "qwen2": (Qwen2Config, {}),
    "qwen2-tied-yarn": (Qwen2Config, dict(tie_word_embeddings=True, **rope("yarn", **YARN))),
    "qwen3": (Qwen3Config, dict(head_dim=32)),
}


def byte_level_tokenizer():
    vocab = {t: i for i, t in enumerate(tiny.vocabulary())}
    t = Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in tiny.MERGES]))
    t.pre_tokenizer = PRE_TOKENIZERS["smollm"][1]
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(tiny.SPECIALS)
    return t


def write_tokenizer(folder, tokenizer=None, **config):
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    config = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=tiny.CHAT_TEMPLATE) | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_model(config_class, seed=0, **values):
    """A random model, biases and norms included."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**(BASE | values)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p += 0.2 * torch.randn_like(p)
    return model.eval()


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


KEYS = {
    "adapter.lora.alpha": "6",
    "attention.modes": '["mosa", "landmark", "infini"]',
    "attention.mosa.k": "12",
    "attention.mosa.include_first": "true",
    "attention.landmark.block_size": "8",
    "attention.landmark.top_k": "2",
    "attention.infini.segment_length": "16",
    "format": "pt",
}
UPDATED = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_output": (64, 64), "ffn_down": (64, 96)}


def random_params():
    rng = np.random.default_rng(7)
    shapes = {"landmark_embd.weight": (64,)}
    for i in range(2):
        shapes[f"blk.{i}.attn_mosa_router.weight"] = (2, 64)
        shapes[f"blk.{i}.attn_infini_gate.weight"] = (4,)
        for name, (rows, cols) in UPDATED.items():
            shapes[f"blk.{i}.{name}.weight.lora_a"] = (3, cols)
            shapes[f"blk.{i}.{name}.weight.lora_b"] = (rows, 3)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_params(path, tensors=None, keys=KEYS):
    save_file(random_params() if tensors is None else tensors, path, metadata=keys)
    return path


def edit(name, change):
    """A change of the object in a JSON file; what it returns, if anything, replaces it."""

    def spoil(folder):
        value = json.loads((folder / name).read_text())
        value = change(value) or value
        (folder / name).write_text(json.dumps(value))

    return spoil


def put(name, **values):
    return edit(name, lambda old: old | values)


def call(*args, **options):
    return subprocess.run([sys.executable, ROOT / "export.py", *map(str, args)], capture_output=True, text=True, **options)
