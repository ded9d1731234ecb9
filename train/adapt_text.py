"""The texts that adapters are trained and judged on, as token ids.

Running text: the King James Bible (Debian's bible-kjv) and the glosses of WordNet (wordnet-base), plus what
the model writes itself, if a file of that is given. Tasks: pass keys between sentences about grass, as
eval/passkey.py has them, and several keys hidden in running text. The Gospel of John and every tenth gloss of
WordNet are held out.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "eval"))
import passkey  # noqa: E402

WORDNET = Path("/usr/share/wordnet")
NAMES = "Anna Boris Clara David Emma Felix Grace Henry Irene James Karin Louis Maria Nora Oscar Paula".split()


class Sample(NamedTuple):
    ids: list  # [T] token ids
    answers: list  # positions whose next token is part of an answer


def bible():
    """(training text, held-out text), a verse a line."""
    try:
        verses = subprocess.run(
            ["bible", "-f", "-l2000", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except FileNotFoundError:
        sys.exit("the command `bible` is missing: install Debian's bible-kjv")
    held_out = [v.partition(" ")[2] for v in verses if v.startswith("John")]
    return " ".join(v.partition(" ")[2] for v in verses if not v.startswith("John")), " ".join(held_out)


def wordnet():
    """(training text, held-out text): a word and its gloss on each line, in random order."""
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        file = WORDNET / f"data.{part}"
        if not file.exists():
            sys.exit(f"{file} is missing: install Debian's wordnet-base")
        for line in file.read_text().splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            lines.append(f"{fields.split()[4].replace('_', ' ')}: {gloss.strip()}")
    random.Random(1).shuffle(lines)
    held_out = lines[::10]
    return "\n".join(x for i, x in enumerate(lines) if i % 10), "\n".join(held_out)


class Tokenizer:
    """Token ids as ./run has them."""

    def __init__(self, model, run=ROOT / "run"):
        self.command = [str(run), str(model), "--tokenize", "-f"]

    def __call__(self, text):
        with tempfile.NamedTemporaryFile(mode="w", encoding="utf-8", suffix=".txt") as file:
            file.write(text)
            file.flush()
            result = subprocess.run([*self.command, file.name], capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr.strip())
        return [int(x) for x in result.stdout.split()]


def running_text(tokenizer, folder, own=None):
    """{name: (training ids, held-out ids)}; tokenised once, then read from `folder`."""
    file = folder / "texts.npz"
    if not file.exists():
        texts = {"bible": bible(), "wordnet": wordnet()}
        if own:
            text = Path(own).read_text()
            texts["own"] = text[len(text) // 10 :], text[: len(text) // 10]
        parts = {f"{name}_{i}": text for name, both in texts.items() for i, text in enumerate(both)}
        np.savez(file, **{name: np.array(tokenizer(text), np.uint16) for name, text in parts.items()})
    data = np.load(file)
    return {name[:-2]: (data[name], data[f"{name[:-2]}_1"]) for name in data.files if name.endswith("_0")}


def passkey_sample(rng, tokenizer, length):
    """A prompt of eval/passkey.py with its answer, and ends of lines up to `length` tokens."""
    key = str(rng.randint(10000, 99999))
    n_sentences = length // 5
    while True:
        prompt = passkey.text(n_sentences, rng.uniform(0, 100), key)
        ids = tokenizer(f"{prompt} {key}.")
        if len(ids) <= length:
            break
        n_sentences -= max(1, (len(ids) - length) // 5)
    n_answer = len(tokenizer(f" {key}."))
    answers = list(range(len(ids) - n_answer - 1, len(ids) - 1))
    return Sample(ids + tokenizer("\n") * (length - len(ids)), answers)


def keys_sample(rng, tokenizer, text, length, n_keys=3):
    """Keys of several people, hidden in running text (token ids), all of which are asked for at the end."""
    keys = [(name, str(rng.randint(10000, 99999))) for name in rng.sample(NAMES, n_keys)]
    facts = [tokenizer(f"\nThe pass key of {name} is {key}. Remember it. {key} is the pass key of {name}.\n")
             for name, key in keys]
    questions = []
    for name, key in rng.sample(keys, n_keys):
        question = tokenizer(f"\nWhat is the pass key of {name}? The pass key of {name} is")
        questions.append((question, tokenizer(f" {key}.")))
    n_text = length - sum(map(len, facts)) - sum(len(q) + len(a) for q, a in questions)
    start = rng.randrange(len(text) - n_text)
    cuts = sorted(rng.randint(0, n_text) for _ in keys)
    ids, answers, done = [], [], 0
    for cut, fact in zip(cuts, facts):
        ids += [*map(int, text[start + done : start + cut]), *fact]
        done = cut
    ids += map(int, text[start + done : start + n_text])
    for question, answer in questions:
        answers += range(len(ids) + len(question) - 1, len(ids) + len(question) + len(answer) - 1)
        ids += [*question, *answer]
    return Sample(ids, answers)


class Texts:
    """Samples of a given length: running text, or with probability `tasks` a task."""

    def __init__(self, tokenizer, folder, tasks, own=None):
        self.tokenizer, self.tasks = tokenizer, tasks
        self.text = running_text(tokenizer, folder, own)

    def sample(self, rng, length):
        """`length` tokens."""
        text = self.text[rng.choice(sorted(self.text))][0]
        if rng.random() >= self.tasks:
            start = rng.randrange(len(text) - length)
            return Sample([*map(int, text[start : start + length])], [])
        if rng.random() < 0.5:
            return passkey_sample(rng, self.tokenizer, length)
        return keys_sample(rng, self.tokenizer, text, length)

    def held_out(self, length):
        """{name: ids}: the beginning of each held-out text."""
        return {name: [*map(int, both[1][:length])] for name, both in self.text.items()}
