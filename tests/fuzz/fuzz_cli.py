"""Random command lines under ASan and UBSan: fuzz_cli.py [N [SEED]]

Options come from `run -h`, values from what is right, nearly right and garbage. Every one must end by itself
with status 0, 1 or 2.
"""

import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reference import tiny  # noqa: E402

from sanitized import RUN, problem, report  # noqa: E402

GARBAGE = [
    "",
    " ",
    "-",
    "--",
    "=",
    "0",
    "-1",
    "1e99",
    "nan",
    "inf",
    "99999999999999999999",
    "0x10",
    "\n",
    "é",
    "\xff",
    "%s%n",
    "a" * 5000,
    ",",
    ":",
    ";",
    "@",
    "/",
    "/dev/null",
    "/dev/full",
    ".",
    "no/such/file",
    "true",
]
SPECS = [
    "dense",
    "dense@0",
    "dense@0;dense@1",
    "dense@5",
    "dense@-",
    "dense@1-0",
    "dense:",
    "dense:a=b",
    ";",
    "@",
    "moba:block=4,topk=2",
    "moba:block=0",
    "topk:k=2,recent=1,sink=0,prefill=sparse",
    "topk:k=-1",
    "mosa",
    "mosa:k=3",
    "mosa:router=knorm",
    "mosa:select=sequence",
    "landmark:block=4",
    "landmark:key=mean,block=2",
    "landmark:block=1",
    "infini",
    "infini:gate=0.5,segment=3",
    "infini:segment=0",
    "moba@0;topk:k=1@1",
]
EVICTION = [
    "none",
    "window:budget=8",
    "window:budget=0",
    "keydiff:budget=6,sink=2,recent=2",
    "h2o:budget=5,sink=0",
    "tova:budget=4",
    "snapkv:budget=9,window=4,kernel=3",
    "knorm:budget=1",
    "window:budget=3,sink=9",
    "lru",
]
# What a flag takes where it is used as meant; bounded, so that a run is short.
VALUES = {
    "-p": ["the rain", "12 and <|im_start|>", "\U0001f41f"],
    "-f": ["prompt.txt"],
    "--ids": ["5 6 7", "@ids.txt", "400"],
    "-n": ["0", "1", "5"],
    "-c": ["1", "16", "512", "100000"],
    "-t": ["1", "2", "3"],
    "-b": ["1", "7", "65536"],
    "--temp": ["0", "0.7", "1000"],
    "--top-k": ["0", "1", "40"],
    "--top-p": ["0", "0.5", "1"],
    "--min-p": ["0", "1"],
    "--repeat-penalty": ["1", "1.3"],
    "--seed": ["1", "18446744073709551615"],
    "--system": ["Be brief."],
    "--attn": SPECS,
    "--compare": SPECS,
    "--kv-evict": EVICTION,
    "--kv-type": ["f32", "f16", "q8_0", "q4_0", "f32,f16"],
    "--rope-scaling": ["none", "linear", "yarn"],
    "--rope-scale": ["1", "4"],
    "--rope-base": ["10000"],
    "--session": ["session.bin"],
    "--logits": ["out.logits"],
    "--score": ["prompt.txt"],
    "--depths": ["8", "8,40"],
    "--stats": ["stats.json"],
    "--isa": ["c", "avx2", "avx512"],
    "--adapter": ["prompt.txt"],
    "-m": ["tiny.gguf"],
}
ENDLESS = {"-n": {"-1"}, "--depths": set(GARBAGE)}  # garbage that would be taken at its word


def options():
    """[(option, takes a value)] as -h lists them."""
    text = subprocess.run([RUN, "-h"], capture_output=True, check=True).stdout.decode()
    return [(name, bool(value)) for name, value in re.findall(r"^\s+(--?[a-z-]+) ([A-Z]*)", text, re.M)]


def command_line(rng, known):
    args = ["tiny.gguf"] if rng.random() < 0.9 else [rng.choice(GARBAGE)]
    args += ["-n", "3"]
    for _ in range(rng.randrange(1, 6)):
        name, takes_value = rng.choice(known)
        if not takes_value:
            args.append(name)
            continue
        good = name in VALUES and rng.random() < 0.75
        value = rng.choice(VALUES[name] if good else GARBAGE)
        if value in ENDLESS.get(name, ()):
            continue
        args += [f"{name}={value}"] if rng.random() < 0.3 else [name, value]
    if rng.random() < 0.1:
        args.append(rng.choice(GARBAGE))
    return args


def main():
    n, seed = (int(a) for a in (sys.argv[1:] + ["200", "1"][len(sys.argv) - 1 :]))
    rng = random.Random(seed)
    known = options()
    with tempfile.TemporaryDirectory() as folder:
        extras = {"mosa": "group", "infini": True, "landmark": "own"}
        tiny.write(Path(folder) / "tiny.gguf", tiny.Tiny(n_embd=128, n_ff=64, n_ctx=64, **extras))
        (Path(folder) / "prompt.txt").write_text("the other thing and 12 then")
        (Path(folder) / "ids.txt").write_text("5 6 7 8")
        lines = [command_line(rng, known) for _ in range(n)]
        report("fuzz_cli", lines, lambda args: problem(args, stdin=b"the rain\n/exit\n", cwd=folder))


if __name__ == "__main__":
    main()
