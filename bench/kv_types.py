"""Decoding speed of KV cache types beside each other, deep in a text, as CSV and a ratio for each turn.

compare.py measures each type minutes after the other, as the prompt comes between, while other machines that use the
same memory come and go. Here the prompt is kept in a session file of each type, so that the types take turns within
seconds. The ratio is taken turn by turn, each time between two runs of the first type.

    bench/kv_types.py [--types f16,q8_0] [--depth 16384] [--turns 10] [--prefix 'chrt -f 10'] [--awake]
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from awake import cores_awake
from compare import ROOT, RUN, Failed, call, machine, text_ids

TOKENS = 128  # generated in a turn


def run(args, kv_type, ids, n, session, folder):
    """The figures of --stats for a prompt of `ids`, of which the session may hold a part, and n tokens more."""
    prompt, stats = folder / "ids", folder / "stats.json"
    prompt.write_text(" ".join(ids))
    options = ["-q", "--temp", 0, "--kv-type", kv_type, "-c", args.depth + 2 * TOKENS, "-t", args.threads]
    command = [*args.prefix, RUN, args.model, *options, "--ids", f"@{prompt}", "-n", n]
    call([*command, "--session", session, "--stats", stats])
    return json.loads(stats.read_text())


def decode_speed(args, kv_type, ids, folder):
    """Tokens/s from a copy of the type's session on: the run saves what it has read to the file that it was given."""
    copy = folder / "copy"
    shutil.copyfile(folder / kv_type, copy)
    figures = run(args, kv_type, ids[: args.depth + 1], TOKENS, copy, folder)
    if figures["gen_tokens"] != TOKENS or figures["prompt_tokens"] > 1:
        raise Failed(f"{figures['prompt_tokens']} tokens read and {figures['gen_tokens']} generated")
    return figures["gen_tps"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ROOT / "models" / "smollm2.gguf", type=Path)
    parser.add_argument("--types", default="f16,q8_0", help="the first is what the others are compared with")
    parser.add_argument("--depth", type=int, default=16384)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prefix", type=shlex.split, default=[], help="such as 'chrt -f 10'")
    parser.add_argument("--awake", action="store_true", help="no core sleeps: see awake.py")
    args = parser.parse_args()
    base, *others = args.types.split(",")
    if not others or args.turns < 1:
        parser.error("give two types or more, and a turn at least")
    ids = text_ids(args.model, args.depth + 1)
    print(f"# {args.model.name}, {args.threads} threads, {machine()}, tokens/s at {args.depth}")
    with tempfile.TemporaryDirectory() as name, cores_awake() if args.awake else contextlib.nullcontext():
        folder = Path(name)
        for kv_type in (base, *others):
            run(args, kv_type, ids[: args.depth], 0, folder / kv_type, folder)
        print(",".join(["turn", base, *(f"{t},times {base}" for t in others)]))
        ratios = {t: [] for t in others}
        before = decode_speed(args, base, ids, folder)
        for turn in range(args.turns):
            speeds = {t: decode_speed(args, t, ids, folder) for t in others}
            after = decode_speed(args, base, ids, folder)
            between = (before + after) / 2
            for t in others:
                ratios[t].append(speeds[t] / between)
            cells = (f"{speeds[t]:.1f},{ratios[t][-1]:.2f}" for t in others)
            print(",".join([str(turn + 1), f"{between:.1f}", *cells]), flush=True)
            before = after
        for t in others:
            print(f"# {t} times {base}: median {statistics.median(ratios[t]):.2f}")


if __name__ == "__main__":
    try:
        main()
    except Failed as e:
        sys.exit(f"kv_types.py: {e}")
    except BrokenPipeError:
        sys.stdout = None  # or Python complains once more when it ends
        sys.exit("kv_types.py: standard output: can't write: Broken pipe")
