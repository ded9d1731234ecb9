"""What the bundled checkpoint is trained on: texts, and tasks that are made up as training goes.

An example is a list of (text, whether it is an answer). A sequence is examples one after the other, cut at the
wanted number of tokens.
"""

import random
import re
import subprocess
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import tales

TALES = 0.8  # of the text is tales, the rest verses
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# the prompt of Landmark Attention (Mohtashami and Jaggi, 2023), as eval/passkey.py asks it
PASSKEY_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GRASS = ["The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again."]
PASSKEY = "The pass key is {0}. Remember it. {0} is the pass key."
PASSKEY_QUESTION = "What is the pass key? The pass key is"


def kjv_verses():
    """The King James Bible (public domain), verse by verse, from Debian's `bible-kjv` package."""
    try:
        lines = subprocess.run(
            ["bible", "-f", "-l200", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except FileNotFoundError:
        raise SystemExit("train: the text comes from Debian's package bible-kjv: apt-get install bible-kjv") from None
    verses = []
    for line in lines:
        start = re.match(r"[0-9]?[A-Z][A-Za-z]*[0-9]+:[0-9]+ (.*)", line)
        if start:
            verses.append(start[1].strip())
        elif line.strip():
            verses[-1] += " " + line.strip()
    return verses


def train_tokenizer(verses, n_vocab=1024):
    """A byte-level BPE that splits digits one by one, as SmolLM2's does ("smollm" in GGUF)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [" ".join([PASSKEY_TASK, *GRASS, PASSKEY, PASSKEY_QUESTION, *TEMPLATES])] * 400
    tokenizer.train_from_iterator(verses + prompts, trainer)
    return tokenizer


TEMPLATES = [
    "The number of {0} is {1}.",
    "What is the number of {0}? The number of {0} is",
    "Repeat these words:",
    "Tell me of {0}.",
    "What is the pass key in this text?",
    "The pass key is {0}.",
]


class Tasks:
    def __init__(self, verses, tokenizer):
        self.tokenizer = tokenizer
        held_out = min(200, len(verses) // 10)
        self.held_out, self.verses = verses[:held_out], verses[held_out:]
        text = " ".join(verses)
        self.words = sorted(set(re.findall(r"[a-z]{3,}", text.lower())))
        self.names = sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{6,}", text)))
        self.verses_with = {}
        for verse in self.verses:
            for word in set(re.findall(r"[A-Za-z]{4,}", verse)):
                if len(verse) < 160:
                    self.verses_with.setdefault(word, []).append(verse)
        self.lengths = {}

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def n_tokens(self, text):
        if text not in self.lengths:
            self.lengths[text] = len(self.encode(text))
        return self.lengths[text]

    def filler(self, rng, n_tokens):
        """About n_tokens of grass or, one time in three, of verses; never more."""
        if rng.random() < 0.33:
            out, i = [], rng.randrange(len(self.verses))
            while n_tokens > 0:
                verse = self.verses[i % len(self.verses)]
                n_tokens -= self.n_tokens(verse)
                if n_tokens >= 0:
                    out.append(verse)
                i += 1
            return " ".join(out)
        out, i = [], 0
        while (n_tokens := n_tokens - self.n_tokens(" " + GRASS[i % len(GRASS)])) >= 0:
            out.append(GRASS[i % len(GRASS)])
            i += 1
        return " ".join(out)

    def passkey(self, rng, length):
        key = str(rng.randint(10000, 99999))
        room = max(length - 90, 0)
        before = int(room * rng.random())
        text = "\n".join(
            [
                PASSKEY_TASK,
                self.filler(rng, before),
                PASSKEY.format(key),
                self.filler(rng, room - before),
                PASSKEY_QUESTION,
            ]
        )
        if rng.random() < 0.2:
            body = text.rsplit("\n", 1)[0]
            return chat(f"{body}\nWhat is the pass key in this text?", f"The pass key is {key}.")
        return [(text, False), (f" {key}", True), (".\n", False)]

    def recall(self, rng, length):
        n = max(min(length - 30, 480) // 18, 1)
        names = rng.sample(self.names, n)
        numbers = [rng.randint(1000, 9999) for _ in names]
        facts = "\n".join(TEMPLATES[0].format(*pair) for pair in zip(names, numbers))
        out = [(facts + "\n", False)]
        for i in rng.sample(range(n), min(n, 2)):
            out += [(TEMPLATES[1].format(names[i]), False), (f" {numbers[i]}", True), (".\n", False)]
        return out

    def copying(self, rng, length):
        n = rng.randint(3, max(4, min(length // 8, 60)))
        words = " ".join(rng.choice(self.words) for _ in range(n))
        if rng.random() < 0.3:
            return chat(f"Repeat these words: {words}", words)
        return [(f"Repeat these words: {words}\n", False), (words, True), ("\n", True)]

    def verse_about(self, rng, length):
        word = rng.choice(list(self.verses_with)) if rng.random() < 0.5 else rng.choice(self.words)
        verse = rng.choice(self.verses_with.get(word, self.verses))
        return chat(f"Tell me of {word}.", verse, answer=False)

    def tale_about(self, rng, length):
        names = tales.cast(rng)
        about = rng.choice(["", " about {hero}", " about a {animal}", " about {hero} and {friend}"]).format_map(names)
        return chat(f"Tell me a story{about}.", tales.tale(rng, names), answer=False)

    def text(self, rng, length):
        if rng.random() < TALES:
            return [("".join(tales.tale(rng) + "\n" for _ in range(max(length // 160, 1))), False)]
        i = rng.randrange(len(self.verses))
        return [("\n".join(self.verses[i : i + max(length // 30, 1)]) + "\n", False)]

    def sequence(self, rng, length):
        """(ids, answers) of `length` tokens; answers[i] says whether ids[i] is part of an answer."""
        ids, answers = [], []
        while len(ids) < length:
            left = length - len(ids)
            room = left if left < 160 or rng.random() < 0.7 else rng.randint(100, left)
            kinds = (self.passkey, self.recall, self.copying, self.verse_about, self.tale_about, self.text)
            kind = rng.choices(kinds, (28, 12, 15, 2, 18, 25) if left >= 100 else (0, 0, 40, 5, 10, 45))[0]
            for text, is_answer in kind(rng, room):
                piece = self.encode(text)
                ids += piece
                answers += [is_answer] * len(piece)
        return ids[:length], answers[:length]

    def repeats(self, rng, n, length):
        """(ids, answers) [n, length]: random tokens over and over; all but the first time can be known."""
        period = rng.randint(length // 8, length // 2)
        tokens = range(len(SPECIALS), self.tokenizer.get_vocab_size())
        ids = torch.tensor([rng.choices(tokens, k=period) for _ in range(n)])
        ids = ids.repeat(1, -(-length // period))[:, :length]
        return ids, (torch.arange(length) >= period).expand_as(ids)

    def texts_batch(self, rng, n, length):
        """(ids, answers) [n, length] of tales or of verses that follow one another; none of it is an answer."""
        ids = []
        while len(ids) < n:
            piece = self.encode(self.text(rng, 4 * length)[0][0])
            if len(piece) >= length:
                ids.append(piece[:length])
        return torch.tensor(ids), torch.zeros(n, length, dtype=torch.bool)

    def batch(self, rng, n, length):
        pairs = [self.sequence(rng, length) for _ in range(n)]
        return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])

    def stream(self, rng, segment, n_before, n_between, n_question):
        """A pass key in a stream: (filler, needle in 2 segments, filler, question in n_question, which of its ids are
        answer).

        What is hard comes more often than by chance: digits that a key has twice, a border of segments in the key, key
        and question side by side, an answer that starts a segment (from where nothing before can be seen)."""
        seed = rng.random()  # one kind of filler throughout

        def fill(n):
            ids = self.encode(" " + self.filler(random.Random(seed), n + 24))
            shift = rng.randrange(24)
            ids = ids[shift : shift + n]
            while len(ids) < n:
                ids += self.encode(" " + GRASS[rng.randrange(len(GRASS))])
            return ids[:n]

        digits = rng.sample("0123456789", 3) if rng.random() < 0.3 else "0123456789"
        key = "".join(rng.choices(digits, k=5))
        needle = self.encode("\n" + PASSKEY.format(key) + "\n")
        question = self.encode("\n" + PASSKEY_QUESTION)
        answer = self.encode(f" {key}")
        near = segment > len(needle + question + answer) and rng.random() < 0.25

        last = 2 * segment - len(needle)
        at = rng.randrange(last + 1)
        if rng.random() < 0.25:
            number = rng.choice([i for i in range(len(needle)) if needle[i : i + len(answer)] == answer])
            at = min(max(segment - number - rng.randrange(1, len(answer)), 0), last)
        far = fill(2 * segment) if near else fill(at) + needle + fill(last - at)

        room = n_question * segment - len(question) - len(answer)
        at = rng.randrange(len(needle) if near else 0, room)
        if n_question > 1 and rng.random() < 0.15:
            at = segment - len(question)
        rest = room - at
        before = fill(at)
        if near:
            start = rng.randrange(at - len(needle) + 1)
            before[start : start + len(needle)] = needle
        answers = [False] * (at + len(question)) + [True] * len(answer) + [False] * rest
        asked = before + question + answer + fill(rest)
        return fill(n_before * segment), far, fill(n_between * segment), asked, answers


def chat(user, assistant, answer=True):
    return [
        (f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{assistant}<|im_end|>", answer),
        ("\n", False),
    ]


def load(folder: Path):
    """The tasks with the tokenizer of a training folder, made where it isn't there yet."""
    verses = kjv_verses()
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer(verses).save(str(path))
    return Tasks(verses, Tokenizer.from_file(str(path)))
