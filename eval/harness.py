"""harness.py - what the evaluation scripts share: calls of ./run, rows that survive a stop, options.

A measurement is one process: ./run reads a prompt from a file, answers greedily, and leaves its figures in a
JSON object (--stats). Its row goes to a CSV at once, so that a script started again skips what is done.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RUN = os.environ.get("RUN", ROOT / "run")
MODEL = ROOT / "models" / "smollm2.gguf"

# Columns that say what was measured; no two rows of a CSV agree in all of them.
SUBJECT = ["model", "args", "attn", "kv_evict", "length"]
PROMPT_KEY = [*SUBJECT, "depth", "seed", "expected"]
FIGURES = ["prompt_tokens", "prompt_tps", "gen_tps", "cache_bytes", "entries_attended", "entries_cached"]
ANSWER_COLUMNS = [*PROMPT_KEY, "answer", "correct", *FIGURES]


class EngineError(Exception):
    """./run refused or failed; the text is what it said."""


class Spec(NamedTuple):
    """One way to attend: --attn and --kv-evict. A number with a % means a share of the prompt's length."""

    attn: str
    kv_evict: str

    def __str__(self):
        return self.attn if self.kv_evict == "none" else f"{self.attn} + {self.kv_evict}"

    def options(self, length):
        def tokens(share):
            return str(round(float(share[1]) * length / 100))

        attn, kv_evict = (re.sub(r"(\d+(?:\.\d+)?)%", tokens, text) for text in self)
        return ["--attn", attn, *(["--kv-evict", kv_evict] if kv_evict != "none" else [])]


class Prompt(NamedTuple):
    length: int  # tokens it was made for; it has at most as many
    depth: float  # where the fact stands: 0 start, 100 end
    seed: int
    text: str
    expected: str


class Engine:
    """./run with a model and further arguments (`-b 128`) that every call gets."""

    def __init__(self, binary=RUN, model=MODEL, args=()):
        self.binary, self.model, self.args = str(binary), str(model), list(args)

    def call(self, *args):
        """What ./run prints; EngineError if it fails."""
        try:
            result = subprocess.run(
                [self.binary, self.model, *args], capture_output=True, stdin=subprocess.DEVNULL
            )
        except OSError as e:
            raise EngineError(f"{self.binary}: {e.strerror}: run make first, or set RUN or --run") from e
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip()
            raise EngineError(said or f"{self.binary} ended with status {result.returncode}")
        return result.stdout.decode(errors="replace")

    def count_tokens(self, text):
        with temporary(text) as prompt:
            return len(self.call("-f", prompt.name, "--tokenize").split())

    def measure(self, *args):
        """(what it prints, the object that --stats writes)"""
        with temporary("") as stats:
            printed = self.call(*args, *self.args, "-q", "--stats", stats.name)
            return printed, json.loads(Path(stats.name).read_text())

    def answer(self, prompt, spec, n_predict):
        """The greedy continuation of a prompt, and the figures."""
        with temporary(prompt.text) as file:
            args = ["-f", file.name, "-n", str(n_predict), "--temp", "0", *spec.options(prompt.length)]
            return self.measure(*args)

    def score(self, text, length, spec, generated=0):
        """The figures of --score --compare dense on a text, of whose tokens the last ones are as if generated."""
        prompt = ["--score-prompt", str(self.count_tokens(text) - generated)] if generated else []
        with temporary(text) as file:
            args = ["--score", file.name, *prompt, "--compare", "dense", *spec.options(length)]
            return self.measure(*args)[1]


def temporary(text):
    file = tempfile.NamedTemporaryFile(mode="w", encoding="utf-8", suffix=".txt")
    file.write(text)
    file.flush()
    return file


def largest(fits, guess):
    """The largest n >= 0 with fits(n), which holds up to that n, not beyond; few calls if guess is near."""
    low, high, step = 0, max(guess, 1), max(guess // 8, 1)
    while fits(high):
        low, high = high, high + step
        step *= 2
    while high - low > 1:
        middle = max((low + high) // 2, high - step)
        if fits(middle):
            low = middle
        else:
            high = middle
            step *= 2
    return low


class Table:
    """A CSV of rows, told apart by the columns `key`; what is added is on disk at once."""

    def __init__(self, path, columns, key):
        self.path, self.columns, self.key = Path(path), columns, key
        self.rows = []
        if self.path.exists():
            self._read()

    def _read(self):
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a stop may have cut the last row
        if whole != text:
            self.path.write_text(whole)
        reader = csv.DictReader(whole.splitlines())
        if whole and reader.fieldnames != self.columns:
            sys.exit(
                f"{self.path}: other columns than this script writes: move it away, or choose another --out"
            )
        self.rows = list(reader)

    def find(self, **key):
        """The row with these values in the key columns, or None."""
        wanted = [str(key[name]) for name in self.key]
        return next((row for row in self.rows if [row[name] for name in self.key] == wanted), None)

    def add(self, **row):
        row = {name: str(row[name]) for name in self.columns}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if not self.rows:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
        return row


def subject(engine, spec, length):
    return dict(zip(SUBJECT, [Path(engine.model).name, " ".join(engine.args), *spec, length]))


def figures(stats):
    return {name: f"{stats[name]:.6g}" if isinstance(stats[name], float) else stats[name] for name in FIGURES}


def ask(engine, table, prompts, specs, n_predict, judge, so_far=False):
    """Puts every prompt to every spec, one prompt after the other, so that a stop leaves comparable rows.
    judge(answer, expected) says whether an answer is right. Returns the rows, old and new; with so_far those
    of the prompts that every spec has answered."""
    rows = []
    for prompt in prompts:
        keys = [prompt_key(engine, prompt, spec) for spec in specs]
        its = [table.find(**key) for key in keys]
        if not so_far:
            for i, spec in enumerate(specs):
                its[i] = its[i] or ask_one(engine, table, prompt, spec, keys[i], n_predict, judge)
        if all(its):
            rows += its
    return rows


def prompt_key(engine, prompt, spec):
    its_subject = subject(engine, spec, prompt.length)
    return {**its_subject, "depth": f"{prompt.depth:g}", "seed": prompt.seed, "expected": prompt.expected}


def ask_one(engine, table, prompt, spec, key, n_predict, judge):
    text, stats = engine.answer(prompt, spec, n_predict)
    correct = int(judge(text, prompt.expected))
    answer = " ".join(text.split())
    verdict = "right" if correct else f"wrong, not {prompt.expected}"
    tell(f"{spec}: {prompt.length} tokens, depth {prompt.depth:g}%: {answer!r}, {verdict}")
    return table.add(**key, answer=answer, correct=correct, **figures(stats))


def tell(text):
    print(text, file=sys.stderr, flush=True)


def mean(rows, column):
    """Not a number where there are no rows, as while a sweep is under way."""
    return sum(float(row[column]) for row in rows) / len(rows) if rows else float("nan")


def select(rows, **values):
    return [row for row in rows if all(row[name] == str(value) for name, value in values.items())]


def of(rows, spec, length):
    return select(rows, attn=spec.attn, kv_evict=spec.kv_evict, length=length)


def cost(rows):
    """Memory and speeds in a few words, for a figure."""
    prompt, decode = (f"{mean(rows, name):.0f}" for name in ("prompt_tps", "gen_tps"))
    return f"{mean(rows, 'cache_bytes') / 1e6:.1f} MB, prompt {prompt}, decode {decode} tok/s"


def print_answers(rows, specs, lengths):
    """A Markdown table: what was found, at what speed and memory."""
    print(
        "| attention | tokens | found | prompt tok/s | decode tok/s | cache MB | entries attended | cached |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for length in lengths:
        for spec in specs:
            its = of(rows, spec, length)
            found = sum(int(row["correct"]) for row in its)
            speeds = " | ".join(f"{mean(its, name):.0f}" for name in ("prompt_tps", "gen_tps"))
            entries = " | ".join(f"{mean(its, name):.0f}" for name in ("entries_attended", "entries_cached"))
            print(
                f"| {spec} | {length} | {found}/{len(its)} = {100 * mean(its, 'correct'):.0f}% | {speeds} "
                f"| {mean(its, 'cache_bytes') / 1e6:.1f} | {entries} |"
            )


def parser(description, lengths, out):
    p = argparse.ArgumentParser(
        description=description,
        epilog="Everything after -- goes to ./run as it is "
        "and is part of what is measured: -- -b 128 --kv-type q8_0",
    )
    p.add_argument("model", nargs="?", default=str(MODEL), help="GGUF file; default: models/smollm2.gguf")
    p.add_argument(
        "--attn", nargs="+", default=["dense"], metavar="SPEC", help="attention, as ./run takes it"
    )
    p.add_argument(
        "--kv-evict",
        nargs="+",
        default=["none"],
        metavar="SPEC",
        help="eviction, as ./run takes it, under each --attn; budget=40%% is a share of the prompt",
    )
    p.add_argument("--lengths", nargs="+", type=int, default=lengths, metavar="N", help="tokens in a prompt")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--out",
        default=str(ROOT / "eval" / "results" / out),
        metavar="PATH",
        help="PATH.csv and PATH.png are written; default %(default)s",
    )
    p.add_argument("--so-far", action="store_true", help="measure nothing; table and figure of what is there")
    p.add_argument(
        "--run", default=str(RUN), metavar="FILE", help="the binary; default ./run of this repository"
    )
    return p


def parse(p, argv):
    """(options, specs, engine)"""
    cut = argv.index("--") if "--" in argv else len(argv)
    options = p.parse_args(argv[:cut])
    specs = [Spec(attn, evict) for attn in options.attn for evict in options.kv_evict]
    return options, specs, Engine(options.run, options.model, argv[cut + 1 :])


def script(main):
    """Runs main(argv); what ends it is one line."""
    try:
        main(sys.argv[1:])
    except EngineError as e:
        sys.exit(str(e))
    except BrokenPipeError:
        sys.stdout = None  # or Python complains once more when it ends
        sys.exit("standard output: can't write: Broken pipe")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
