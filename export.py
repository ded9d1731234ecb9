#!/usr/bin/env python3
"""Makes GGUF files that ./run and llama.cpp load.

    export.py HF_DIR -o model.gguf [--type q8_0] [--attn-params FILE]
    export.py --attn-params FILE --base model.gguf -o adapter.gguf

The first form converts a Hugging Face checkpoint (llama, mistral, qwen2, qwen3), with trained attention
parameters if there are any; the second makes these alone a sidecar for `./run --adapter`. See docs/export.md.
"""

import argparse
import sys

import gguf

from convert.architecture import ARCHITECTURES, Dimensions
from convert.attn_params import AttnParams
from convert.gguf_file import FLOATS, TYPES, write
from convert.report import ExportError


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
        raise ExportError(f"{path}: architecture '{arch}' is not supported (known: {', '.join(known_names())})")
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


def known_names():
    return sorted(set(ARCHITECTURES.values()))


def export_adapter(attn_params, base, out, type="f16"):
    """Writes trained attention parameters (a safetensors file) as a sidecar for the GGUF model `base`.

    `type` is that of the low-rank updates: f32, f16 or bf16. Raises ExportError.
    """
    if TYPES[type] not in FLOATS:
        raise ExportError(f"--type {type}: low-rank updates are f32, f16 or bf16")
    model = base_dimensions(base)
    params = AttnParams(attn_params, model)

    def add_keys(writer):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        params.add_keys(writer, with_updates=True)

    write(out, model.arch, add_keys, params.tensors() + params.update_tensors(TYPES[type]))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("-o", dest="out", metavar="FILE", required=True, help="the GGUF file to write")
    parser.add_argument("--type", default="f16", choices=TYPES, help="of the matrices (default f16)")
    parser.add_argument("--attn-params", metavar="FILE", help="routers, gates, landmark, low-rank updates (safetensors)")
    parser.add_argument("--base", metavar="MODEL", help="the GGUF model that an adapter is for")
    return parser.parse_args()


def main():
    args = parse_arguments()
    try:
        export_adapter(args.attn_params, args.base, args.out, args.type)
    except ExportError as e:
        sys.exit(f"export.py: {e}")


if __name__ == "__main__":
    main()
