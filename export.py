#!/usr/bin/env python3
"""Makes GGUF files that ./run and llama.cpp load.

    export.py HF_DIR -o model.gguf [--type q8_0] [--attn-params FILE]
    export.py --attn-params FILE --base model.gguf -o adapter.gguf

The first form converts a Hugging Face checkpoint (llama, mistral, qwen2, qwen3), with trained attention
parameters if there are any; the second makes these alone a sidecar for `./run --adapter`. See docs/export.md.
"""

import argparse
import sys
from pathlib import Path

import gguf

from convert import tokenizer
from convert.architecture import ARCHITECTURES, LAYER_NAMES, Dimensions, interleave
from convert.attn_params import AttnParams
from convert.checkpoint import Checkpoint
from convert.config import Config
from convert.gguf_file import FLOATS, TYPES, Tensor, Type, write
from convert.report import ExportError

FILE_TYPES = {t: gguf.LlamaFileType[f"MOSTLY_{t.name}"] for t in TYPES.values() if t != Type.F32}
FILE_TYPES[Type.F32] = gguf.LlamaFileType.ALL_F32
ATTN_PARAMS = "attn_params.safetensors"  # taken along where a checkpoint's directory has it


def tensor_names(model, checkpoint):
    """(GGUF name, transformers name, shape) of every tensor of the model."""
    matrix = (model.n_vocab, model.n_embd)
    biases = model.arch == "qwen2" or "model.layers.0.self_attn.q_proj.bias" in checkpoint
    names = [("token_embd.weight", "model.embed_tokens.weight", matrix)]
    for i in range(model.n_layer):
        for name, shape in model.layer_shapes(biases).items():
            names.append((f"blk.{i}.{name}", f"model.layers.{i}.{LAYER_NAMES[name]}", shape))
    names.append(("output_norm.weight", "model.norm.weight", (model.n_embd,)))
    if not model.tied:
        names.append(("output.weight", "lm_head.weight", matrix))
    return names


def check_all_used(checkpoint, names, model):
    """A tensor without a place in the model would change what it computes."""
    used = {name for _, name, _ in names} | ({"lm_head.weight"} if model.tied else set())
    for name in checkpoint:
        if name not in used and not name.endswith(".rotary_emb.inv_freq"):
            raise ExportError(f"{checkpoint.folder}: tensor '{name}' has no place in a {model.arch} model")


def model_tensors(checkpoint, config, params, type_):
    model = config.dimensions
    names = tensor_names(model, checkpoint)
    check_all_used(checkpoint, names, model)
    tensors = []
    for name, hf_name, shape in names:
        rows, group = checkpoint.reader(hf_name, shape), 1
        if params:
            rows = params.merge(name, rows)
        if model.is_rotated(name):
            rows, group = interleave(rows, model.head_dim), model.head_dim
        tensors.append(Tensor(name, shape, type_, rows, group))
    if config.rope_factors is not None:
        rows = lambda begin, end: config.rope_factors[begin:end]
        tensors.append(Tensor("rope_freqs.weight", config.rope_factors.shape, Type.F32, rows))
    return tensors


def export_model(folder, out, type="f16", attn_params=None, pre=None):
    """Writes a Hugging Face checkpoint (a directory) as a GGUF model.

    `type` is that of the matrices: a key of TYPES. `attn_params` (default: the directory's
    attn_params.safetensors, if it has one) are trained attention parameters; low-rank updates among them are
    added to the weights. `pre` replaces the name of the tokenizer's rules for words. Raises ExportError.
    """
    folder = Path(folder)
    config = Config(folder)
    model = config.dimensions
    checkpoint = Checkpoint(folder)
    vocabulary = tokenizer.load(folder, model.n_vocab, pre)
    if not attn_params and (folder / ATTN_PARAMS).exists():
        attn_params = folder / ATTN_PARAMS
    params = AttnParams(attn_params, model) if attn_params else None
    tensors = model_tensors(checkpoint, config, params, TYPES[type])

    def add_keys(writer):
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(folder.resolve().name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(FILE_TYPES[TYPES[type]])
        config.add_keys(writer)
        vocabulary.add_keys(writer)
        if params:
            params.add_keys(writer, with_updates=False)

    write(out, model.arch, add_keys, tensors + (params.tensors() if params else []))


def base_dimensions(path):
    """Dimensions of a GGUF model."""
    try:
        reader = gguf.GGUFReader(path)
    except OSError as e:
        raise ExportError(f"{path}: {e.strerror}") from None
    except (ValueError, IndexError, KeyError) as e:
        raise ExportError(f"{path}: not a GGUF file: {e}") from None

    def key(name, default=None):
        field = reader.get_field(name)
        if field is None and default is None:
            raise ExportError(f"{path}: key '{name}' is missing")
        return default if field is None else field.contents()

    arch = key("general.architecture")
    if arch not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ExportError(f"{path}: architecture '{arch}' is not supported (known: {known})")
    n_embd, n_head = key(f"{arch}.embedding_length"), key(f"{arch}.attention.head_count")
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ExportError(f"{path}: tensor 'token_embd.weight' is missing")
    return Dimensions(
        arch,
        n_layer=key(f"{arch}.block_count"),
        n_embd=n_embd,
        n_ff=key(f"{arch}.feed_forward_length"),
        n_head=n_head,
        n_head_kv=key(f"{arch}.attention.head_count_kv", n_head),
        head_dim=key(f"{arch}.attention.key_length", n_embd // n_head),
        n_vocab=shapes["token_embd.weight"][1],
        tied="output.weight" not in shapes,
    )


def export_adapter(attn_params, base, out, type="f16"):
    """Writes trained attention parameters (a safetensors file) as a sidecar for the GGUF model `base`.

    `type` is that of the low-rank updates: f32, f16 or bf16. Raises ExportError.
    """
    if TYPES[type] not in FLOATS:
        raise ExportError(f"type {type}: an adapter's updates are f32, f16 or bf16")
    model = base_dimensions(base)
    params = AttnParams(attn_params, model)

    def add_keys(writer):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        params.add_keys(writer, with_updates=True)

    write(out, model.arch, add_keys, params.tensors() + params.update_tensors(TYPES[type]))


def parse_arguments():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("model", nargs="?", metavar="HF_DIR", help="directory of a Hugging Face checkpoint")
    parser.add_argument("-o", dest="out", metavar="FILE", required=True, help="the GGUF file to write")
    parser.add_argument("--type", default="f16", choices=TYPES, help="of the matrices (default f16)")
    parser.add_argument("--attn-params", metavar="FILE", help="trained attention parameters (safetensors)")
    parser.add_argument("--base", metavar="MODEL", help="instead of HF_DIR: the GGUF model of an adapter")
    parser.add_argument("--pre", metavar="NAME", help="tokenizer.ggml.pre, where tokenizer.json doesn't tell")
    args = parser.parse_args()
    if bool(args.model) == bool(args.base):
        parser.error("give either HF_DIR or --base")
    if args.base and not args.attn_params:
        parser.error("--base needs --attn-params")
    if args.base and TYPES[args.type] not in FLOATS:
        parser.error(f"--type {args.type}: an adapter's updates are f32, f16 or bf16")
    return args


def main():
    args = parse_arguments()
    try:
        if args.base:
            export_adapter(args.attn_params, args.base, args.out, args.type)
        else:
            export_model(args.model, args.out, args.type, args.attn_params, args.pre)
    except ExportError as e:
        sys.exit(f"export.py: {e}")


if __name__ == "__main__":
    main()
