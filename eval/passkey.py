"""passkey.py - how often a five-digit key is found in a long text about grass.

The prompt is the one of Landmark Attention (Mohtashami and Jaggi, 2023; llama/run_test.py of
epfml/landmark-attention), in which the key stands between repetitions of five sentences. Here the filler is
cut at sentences, and its amount chosen so that the prompt has the wanted number of tokens. Every spec gets
the same prompts. The first number of the answer must be the key, digit for digit.

    python eval/passkey.py --lengths 4000 --keys 50 --attn dense topk:k=64 --kv-evict none keydiff:budget=40%
"""

import random
import re

import harness
from harness import Prompt

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = [
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
]
KEY = "The pass key is {0}. Remember it. {0} is the pass key."
QUESTION = "What is the pass key? The pass key is"
N_PREDICT = 8  # a space, five digits, and what shows that the number ends there


def filler(n):
    return " ".join(FILLER[i % len(FILLER)] for i in range(n))


def text(n_sentences, depth, key):
    before = round(n_sentences * depth / 100)
    return "\n".join([TASK, filler(before), KEY.format(key), filler(n_sentences - before), QUESTION])


def even_depths(n):
    """n depths from 0 to 100."""
    return [round(100 * i / (n - 1), 2) for i in range(n)] if n > 1 else [50]


def sentences_for(engine, length):
    """How many sentences of filler make a prompt of at most `length` tokens."""
    n = harness.largest(lambda n: engine.count_tokens(text(n, 50, 55555)) <= length, length // 5)
    if not n:
        raise harness.EngineError(f"--lengths {length}: the task alone has more tokens")
    return n


def prompts(engine, lengths, n_keys, depths, seed):
    """n_keys prompts of each length; the key's depth goes round `depths` (default: all different, evenly)."""
    depths = depths or even_depths(n_keys)
    for length in lengths:
        n_sentences = sentences_for(engine, length)
        order = list(range(n_keys))
        random.Random(f"{seed} order").shuffle(order)  # a stop leaves keys of all depths
        for i in order:
            depth = depths[i % len(depths)]
            key = random.Random(f"{seed} {length} {i}").randint(10000, 99999)
            yield Prompt(length, depth, seed, text(n_sentences, depth, key), str(key))


def found(answer, key):
    number = re.search(r"\d+", answer)
    return bool(number) and number[0] == key


def share_by_depth(rows, n_bins):
    """[n_bins] shares found, from the start of the text to its end; None where no key stands."""
    bins = [[] for _ in range(n_bins)]
    for row in rows:
        bins[min(int(float(row["depth"]) * n_bins / 100), n_bins - 1)].append(int(row["correct"]))
    return [sum(b) / len(b) if b else None for b in bins]


def plot(rows, specs, lengths, path):
    """One picture per length: a row for each spec, a column for each tenth of the text."""
    from matplotlib.figure import Figure

    n_bins = 10
    figure = Figure(figsize=(11, 1.3 + len(lengths) * (0.8 + 0.36 * len(specs))), layout="constrained")
    for axes, length in zip(figure.subplots(len(lengths), 1, squeeze=False)[:, 0], lengths):
        shares = [share_by_depth(harness.of(rows, spec, length), n_bins) for spec in specs]
        grid = [[float("nan") if s is None else s for s in line] for line in shares]
        image = axes.imshow(grid, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"pass keys found in {length} tokens")
        axes.set_xticks([i - 0.5 for i in range(n_bins + 1)], [f"{10 * i}%" for i in range(n_bins + 1)])
        axes.set_yticks(range(len(specs)), [str(spec) for spec in specs])
        for y, spec in enumerate(specs):
            its = harness.of(rows, spec, length)
            found = f"{100 * harness.mean(its, 'correct'):.0f}%  {harness.cost(its)}"
            axes.text(n_bins - 0.3, y, found, va="center")
    axes.set_xlabel("depth of the key in the text")
    figure.colorbar(image, ax=figure.axes, location="bottom", label="share found", shrink=0.3, aspect=40)
    figure.savefig(path, dpi=110)


def main(argv):
    p = harness.parser("Pass keys found in a long text.", [4000], "passkey")
    p.add_argument("--keys", type=int, default=50, metavar="N", help="prompts of each length (default 50)")
    p.add_argument(
        "--depths",
        nargs="+",
        type=float,
        metavar="X",
        help="depths of the keys in percent; default: as many as keys, from 0 to 100",
    )
    p.add_argument(
        "-n",
        type=int,
        default=N_PREDICT,
        metavar="N",
        help="tokens of an answer (default 8); more for models that talk first (-- --chat)",
    )
    options, specs, engine = harness.parse(p, argv)
    table = harness.Table(f"{options.out}.csv", harness.ANSWER_COLUMNS, harness.PROMPT_KEY)
    asked = prompts(engine, options.lengths, options.keys, options.depths, options.seed)
    rows = harness.ask(engine, table, asked, specs, options.n, found, options.so_far)
    harness.print_answers(rows, specs, options.lengths)
    plot(rows, specs, options.lengths, f"{options.out}.png")


if __name__ == "__main__":
    harness.script(main)
