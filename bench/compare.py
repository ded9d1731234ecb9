"""Speed beside llama.cpp and ik_llama.cpp: same file, same threads, same tokens, in turns.

Writes results/NAME.md (a table with the machine's name) and results/NAME.png (speed against depth). Every
figure is the best of --repeat runs, each in a process of its own, the engines taking turns, so that a busy
moment of the machine hits all alike; the median is given where it differs by more than 5%. An engine that
crashes gets the signal's name instead of a figure. The last column is the largest share of what the machine could
do at most when it was reached, measured by limits.c before and after each run, as where other machines use the same
memory that changes within minutes: of its bandwidth while decoding, of its 8-bit arithmetic in prompts.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from awake import cores_awake  # noqa: E402
from work import Work  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RUN = Path(os.environ.get("RUN", ROOT / "run"))
LIMITS = Path(os.environ.get("BUILD", ROOT / "build")) / "bench-limits"
PEERS = ROOT / ".venv-bench" / "bin" / "python"
TEXT = ROOT / "tests" / "data" / "prose.txt"
NAMES = {"ours": "attn.c", "ik": "ik_llama.cpp", "llama": "llama.cpp", "pytorch": "PyTorch, bfloat16"}

# row: (job, depth, KV type); see peer.py for the jobs
ROWS = {
    "prompt 512": ("prompt", 512, "f16"),
    "prompt 4096": ("prompt", 4096, "f16"),
    "decode, short": ("depth", 64, "f16"),
    "decode at 4096": ("depth", 4096, "f16"),
    "decode at 16384": ("depth", 16384, "f16"),
    "decode at 16384, q8_0 KV": ("depth", 16384, "q8_0"),
    "first token, ms": ("first", 16, "f16"),
}
LONG_ROWS = {"prompt 32768": ("prompt", 32768, "f16")}
BATCH = 512  # tokens of a prompt per forward pass
CURVE = [64, 512, 1024, 2048, 4096, 8192, 16384]


class Failed(Exception):
    pass


def call(command, **options):
    """Standard output of a command; Failed with the reason it gave, or its signal."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if result.returncode < 0:
        raise Failed(signal.Signals(-result.returncode).name)
    if result.returncode:
        raise Failed((result.stderr.strip().splitlines() or ["failed"])[-1])
    return result.stdout


def measure_limits(threads, prefix):
    """{"read_gbs": ..., "int8_gops": ...} of this machine just now."""
    header, row = call([*prefix, LIMITS, "-t", threads]).splitlines()
    return dict(zip(header.split(","), map(float, row.split(","))))


def forget(model):
    """Has the model read from disk by the first engine, which is attn.c: in huge pages, if the system has them for
    files. All engines map those; a file that was just written lies in small ones."""
    with open(model, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def text_ids(model, n):
    """n token ids of our own text, over and over."""
    ids = call([RUN, model, "-f", TEXT, "--tokenize"]).split()
    return (ids * (n // len(ids) + 1))[:n]


def measure_ours(job, depth, kv_type, model, threads, ids, prefix, options):
    at_depth = job == "depth" or (job == "prompt" and depth <= BATCH)  # --bench warms up, as peer.py does
    common = [*prefix, RUN, model, "-t", threads, "--kv-type", kv_type, "-c", depth + 64, *options]
    with tempfile.TemporaryDirectory() as folder:
        file, stats = Path(folder) / "ids", Path(folder) / "stats.json"
        file.write_text(" ".join(ids[: depth + 32] if at_depth else ids[:depth]))
        if at_depth:
            header, row = call(
                [*common, "--bench", "--depths", depth, "-n", 32, "--ids", f"@{file}"]
            ).splitlines()
            cells = dict(zip(header.split(","), row.split(",")))
            return {"prompt_tps": float(cells["prompt_tps"]), "gen_tps": float(cells["gen_tps"])}
        start = time.perf_counter()
        n_generated = 1 if job == "first" else 0
        call([*common, "--ids", f"@{file}", "-n", n_generated, "--temp", 0, "-q", "--stats", stats])
        if job == "first":
            return {"seconds": time.perf_counter() - start}
        return {"prompt_tps": json.loads(stats.read_text())["prompt_tps"]}


def measure(engine, job, depth, kv_type, model, threads, ids, prefix=(), options=()):
    """`options` (--no-mmap) are known to run and to peer.py."""
    if engine == "ours":
        before = measure_limits(threads, prefix)
        result = measure_ours(job, depth, kv_type, model, threads, ids, prefix, options)
        after = measure_limits(threads, prefix)
        return {**result, **{what: max(before[what], after[what]) for what in ("read_gbs", "int8_gops")}}
    if engine == "pytorch":
        script = [*prefix, sys.executable, HERE / "pytorch_prompt.py", model, depth, threads]
        return json.loads(call(script, input=" ".join(ids)))
    command = [*prefix, PEERS, HERE / "peer.py", engine, job, depth, "--model", model, "--threads", threads]
    return json.loads(call([*command, "--kv-type", kv_type, *options], input=" ".join(ids)).splitlines()[-1])


class Results:
    """{(engine, job, depth, kv type): [result or Failed]}, and the table's view of it."""

    def __init__(self):
        self.runs = {}

    def add(self, key, result):
        self.runs.setdefault(key, []).append(result)

    def turns(self):
        return max(map(len, self.runs.values()))

    def good_runs(self, engine, job, depth, kv_type):
        return [r for r in self.runs.get((engine, job, depth, kv_type), []) if not isinstance(r, Failed)]

    def values(self, engine, job, depth, kv_type, what=None):
        what = what or {"prompt": "prompt_tps", "depth": "gen_tps", "first": "seconds"}[job]
        return [r[what] for r in self.good_runs(engine, job, depth, kv_type)]

    def best(self, engine, job, depth, kv_type, what=None):
        values = self.values(engine, job, depth, kv_type, what)
        return (min if job == "first" else max)(values) if values else None

    def cell(self, engine, job, depth, kv_type):
        best = self.best(engine, job, depth, kv_type)
        if best is None:
            runs = self.runs.get((engine, job, depth, kv_type))
            return str(runs[0]) if runs else ""
        median = statistics.median(self.values(engine, job, depth, kv_type))
        scale = 1000 if job == "first" else 1
        text = number(best * scale)
        return text if abs(median / best - 1) < 0.05 else f"{text} ({number(median * scale)})"


def number(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}"


def run_turns(results, rows, engines, args, ids):
    """Adds to the results one by one."""
    options = ["--no-mmap"] * args.no_mmap
    jobs = list(dict.fromkeys([*rows.values(), *(("depth", d, "f16") for d in args.curve)]))
    for turn in range(args.repeat):
        for job, depth, kv_type in jobs:
            if turn > 0 and depth > args.once_from:
                continue
            for engine in engines:
                if engine == "pytorch" and (job, depth) != ("prompt", 512):
                    continue
                if engine == "llama" and depth > args.llama_to:
                    continue
                try:
                    result = measure(
                        engine, job, depth, kv_type, args.model, args.threads, ids, args.prefix, options
                    )
                except Failed as failure:
                    result = failure
                print(f"{turn + 1}/{args.repeat} {job} {depth} {kv_type} {engine}: {result}", file=sys.stderr)
                results.add((engine, job, depth, kv_type), result)


def run_all(rows, engines, args, ids):
    results = Results()
    try:
        run_turns(results, rows, engines, args, ids)
    except KeyboardInterrupt:
        if not results.runs:
            raise Failed("stopped before the first result")
        print("stopped: the table has what was measured", file=sys.stderr)
    return results


def share(results, job, depth, kv_type, work):
    """Our share of the machine's limits, as a cell."""
    runs = results.good_runs("ours", job, depth, kv_type)
    if not runs or job == "first":
        return ""
    if job == "depth":
        return f"{max(work.decode_share(r['gen_tps'], depth, kv_type, r) for r in runs):.0%} of memory"
    return f"{max(work.prompt_share(r['prompt_tps'], depth, r) for r in runs):.0%} of 8-bit"


def limits(results):
    """The least and the most that the machine could do while we were measured, in words."""
    runs = [r for key in results.runs if key[0] == "ours" for r in results.good_runs(*key)]
    if not runs:
        return "not measured"
    gbs, gops = ([r[what] for r in runs] for what in ("read_gbs", "int8_gops"))
    return f"{min(gbs):.0f} to {max(gbs):.0f} GB/s from memory, {max(gops):.0f} GOPS in 8 bits"


def kv_types(results, depth=16384):
    """Our q8_0 KV against our f16 in each turn, in words. Turns may find the memory at different speeds, so that the
    best of all can't be compared."""
    f16, q8_0 = (results.good_runs("ours", "depth", depth, kv_type) for kv_type in ("f16", "q8_0"))
    if not f16 or len(f16) != len(q8_0):
        return ""
    ratios = [
        f"{q['gen_tps'] / f['gen_tps']:.2f} (at {f['read_gbs']:.0f} and {q['read_gbs']:.0f} GB/s)"
        for f, q in zip(f16, q8_0)
    ]
    return f"Decoding at {depth} with q8_0 KV, times f16 KV, by turns: {', '.join(ratios)}."


def table(results, rows, engines, work):
    ratios = [f"times {NAMES[e]}" for e in engines if e != "ours"]
    head = ["", *(NAMES[e] for e in engines), *ratios, "share of the limit"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, (job, depth, kv_type) in rows.items():
        cells = [results.cell(e, job, depth, kv_type) for e in engines]
        ours = results.best("ours", job, depth, kv_type)
        for engine in engines:
            theirs = results.best(engine, job, depth, kv_type)
            if engine == "ours":
                continue
            ratio = (theirs / ours if job == "first" else ours / theirs) if ours and theirs else None
            cells.append(f"{ratio:.2f}" if ratio else "")
        cells.append(share(results, job, depth, kv_type, work))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results, engines, depths, path, title):
    figure_, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, what, label in zip(axes, ("prompt_tps", "gen_tps"), ("prompt, last 512 tokens", "decode")):
        for engine in engines:
            points = [(d, results.best(engine, "depth", d, "f16", what)) for d in depths]
            points = [(d, v) for d, v in points if v]
            if points:
                axis.plot(*zip(*points), marker="o", label=NAMES[engine])
        axis.set(
            xscale="log", yscale="log", xlabel="depth of context (tokens)", ylabel="tokens/s", title=label
        )
        axis.set_xscale("log", base=2)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    figure_.suptitle(title)
    figure_.tight_layout()
    figure_.savefig(path, dpi=120)


def machine():
    info = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"model name\s*: (.*)", info)
    flags = set((re.search(r"flags\s*: (.*)", info) or [0, ""])[1].split())
    known = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if f in flags]
    return f"{cpu[1] if cpu else 'unknown CPU'}, {os.cpu_count()} cores ({', '.join(known)})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ROOT / "models" / "smollm2.gguf", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--engines", default="ours,ik,llama", help="of ours, ik, llama, pytorch")
    parser.add_argument("--rows", help="only rows whose names contain this")
    parser.add_argument("--long", action="store_true", help="also a prompt of 32768 tokens: many minutes")
    parser.add_argument("--once-from", type=int, default=8192, help="deeper runs are made once only")
    parser.add_argument("--llama-to", type=int, default=4096, help="how deep llama.cpp, the slowest, goes")
    parser.add_argument("--curve", type=lambda s: [int(d) for d in s.split(",") if d], default=CURVE)
    parser.add_argument(
        "--prefix", type=shlex.split, default=[], help="command to measure under, such as 'chrt -f 10'"
    )
    parser.add_argument("--awake", action="store_true", help="no core sleeps: see awake.py")
    parser.add_argument("--no-mmap", action="store_true", help="all but PyTorch read the model into memory")
    parser.add_argument("--name", help="of the output files; default: the model's")
    args = parser.parse_args()
    engines = args.engines.split(",")
    rows = {
        n: r
        for n, r in {**ROWS, **(LONG_ROWS if args.long else {})}.items()
        if not args.rows or args.rows in n
    }
    depth = max([r[1] for r in rows.values()] + args.curve)
    call(["make", "-s", f"BUILD={LIMITS.parent}", LIMITS], cwd=ROOT)
    forget(args.model)
    with cores_awake() if args.awake else contextlib.nullcontext():
        results = run_all(rows, engines, args, text_ids(args.model, depth + 64))
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    name = args.name or args.model.stem
    how = ", read into memory" if args.no_mmap else ""
    title = f"{args.model.name}{how}, {args.threads} threads, {machine()}"
    heading = (
        f"{title}; tokens/s, best of {results.turns()} (median where it differs). "
        f"Limits: {limits(results)}."
    )
    parts = [heading, table(results, rows, engines, Work.of(args.model)), kv_types(results)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    (out / f"{name}.md").write_text(text)
    if args.curve:
        plot(results, engines, args.curve, out / f"{name}.png", title)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except Failed as e:
        sys.exit(f"compare.py: {e}")
