"""What the tests of tokenizers and chat templates share: C tools, and GGUF files with a vocabulary only."""

import os
import struct
import subprocess
from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models" / "smollm2.gguf"


def build_tool(name, directory):
    """Compiles tests/NAME.c with $CC and $CFLAGS; the path of the program."""
    path = directory / name
    sources = [ROOT / file for file in (f"tests/{name}.c", "error.c", "arena.c")]
    sources += [*ROOT.glob("gguf*.c"), *ROOT.glob("tokenizer/*.c")]
    flags = os.environ.get("CFLAGS", "-O2").split()
    command = [os.environ.get("CC", "cc"), "-std=gnu11", *flags, f"-I{ROOT}", "-o", path, *sources, "-lm"]
    subprocess.run(command, check=True)
    return path


def pack(strings):
    """Strings as the tools read them: length and bytes."""
    return b"".join(struct.pack("<I", len(s)) + s for s in (s if isinstance(s, bytes) else s.encode() for s in strings))


def write_vocabulary(path, model="gpt2", tokens=("a",), types=None, pre=None, merges=None, scores=None, name="test",
                     template=None, **more):
    """A GGUF file with nothing but a tokenizer; `more` are keys under tokenizer.ggml. None leaves a key out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    optional = [(writer.add_tokenizer_model, model), (writer.add_tokenizer_pre, pre), (writer.add_token_list, tokens),
                (writer.add_token_types, types), (writer.add_token_merges, merges), (writer.add_token_scores, scores),
                (writer.add_chat_template, template)]
    for add, value in optional:
        if value is not None:
            add(value)
    for key, value in more.items():
        add = {bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
