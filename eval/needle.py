"""needle.py - whether one fact is found in a long text, over depth x length, as a heat map.

The haystack is made of the paragraphs of eval/haystack.txt in random order. Their names and numbers are
drawn anew each time, so that a text longer than the file doesn't repeat itself word for word. The needle says
under what the spare key to some place is kept; the answer must begin with exactly that. Every spec gets the
same prompts.

    python eval/needle.py --lengths 1000 2000 4000 8000 --attn dense topk:k=64 moba:block=64,topk=16
"""

import random
import re
from pathlib import Path

import harness
from harness import Prompt

HAYSTACK = Path(__file__).resolve().parent / "haystack.txt"
N_PREDICT = 8

PEOPLE = (
    "Ada Lindqvist, Tomas Ferreira, old Mr Okafor, Ines Moreau, the younger Petrov, Hana Sato, "
    "Brother Anselm, Mrs Baptiste, Kofi Mensah, Aunt Rosalind, Wilhelm Kranz, Doctor Amari, Lucia Bell, "
    "Jonas Eklund, Miss Tran"
).split(", ")
TOWNS = (
    "Arlesford, Port Merrin, Halvik, San Telmo, Kestrel Bay, Oberau, Linden Cross, Tarragh, Vesper Hill, "
    "Dunmore, Salt Ferry, Castelbruno, Nordby, Millhaven"
).split(", ")
MONTHS = (
    "January, February, March, April, May, June, July, August, September, October, November, December"
).split(", ")

PLACES = "boathouse, chapel, cider mill, greenhouse, harbour office, library, old school, pump house".split(
    ", "
)
ADJECTIVES = "blue, broken, copper, green, little, red, stone, white, wooden, yellow".split(", ")
THINGS = "barrel, bench, bucket, flower pot, kettle, ladder, lantern, statue, sundial, wheelbarrow".split(
    ", "
)

NEEDLE = "The spare key to the {place} is kept under the {thing}."
QUESTION = (
    "Question: Where is the spare key to the {place}?\nAnswer: The spare key to the {place} is kept under the"
)


def haystack(rng, n):
    """n paragraphs, all those of the file before one comes again."""
    paragraphs = HAYSTACK.read_text().strip().split("\n\n")
    order = []
    while len(order) < n:
        order += rng.sample(paragraphs, len(paragraphs))
    return [fill_in(rng, paragraph) for paragraph in order[:n]]


def fill_in(rng, paragraph):
    return paragraph.format(
        person=rng.choice(PEOPLE),
        town=rng.choice(TOWNS),
        month=rng.choice(MONTHS),
        number=rng.randint(11, 98),
    )


def sentences(paragraphs):
    """[(sentence, what joins it to the one before)]"""
    parts = []
    for paragraph in paragraphs:
        for i, sentence in enumerate(re.split(r"(?<=[.]) ", paragraph)):
            parts.append((sentence, " " if i else "\n\n"))
    return parts


def text(hay, depth, place, thing):
    """The prompt: hay with the needle after `depth` percent of its sentences."""
    at = round(len(hay) * depth / 100)
    needle = (NEEDLE.format(place=place, thing=thing), " ")
    body = "".join(join + sentence for sentence, join in [*hay[:at], needle, *hay[at:]]).strip()
    return f"{body}\n\n{QUESTION.format(place=place)}"


def prompts(engine, lengths, depths, n_needles, seed):
    """n_needles prompts for each length and depth."""
    for its_seed in range(seed, seed + n_needles):
        for length in lengths:
            for depth in depths:
                yield prompt(engine, length, depth, its_seed)


def prompt(engine, length, depth, seed):
    rng = random.Random(f"{seed} {length} {depth:g}")
    place = rng.choice(PLACES)
    thing = f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
    hay = sentences(haystack(rng, length // 30 + 1))  # no paragraph has fewer tokens

    def fits(n):
        return n <= len(hay) and engine.count_tokens(text(hay[:n], depth, place, thing)) <= length

    n_sentences = harness.largest(fits, length // 25)
    return Prompt(length, depth, seed, text(hay[:n_sentences], depth, place, thing), thing)


def found(answer, thing):
    return bool(re.match(rf"\s*{thing}\b", answer))


def plot(rows, specs, lengths, depths, path):
    """One heat map for each spec, its figures in its title."""
    from matplotlib.figure import Figure

    n_columns = min(len(specs), 3)
    n_lines = -(-len(specs) // n_columns)
    figure = Figure(figsize=(4.6 * n_columns, 1.4 + 3.3 * n_lines), layout="constrained")
    grid = figure.subplots(n_lines, n_columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes in grid[len(specs) :]:
        axes.set_visible(False)
    for axes, spec in zip(grid, specs):
        its = harness.select(rows, attn=spec.attn, kv_evict=spec.kv_evict)
        share = [[share_at(its, length, depth) for length in lengths] for depth in depths]
        image = axes.imshow(share, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
        longest = harness.of(rows, spec, max(lengths))
        found = f"{100 * harness.mean(its, 'correct'):.0f}%"
        axes.set_title(f"{spec}\n{found}; {max(lengths)} tokens: {harness.cost(longest)}", fontsize=8)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{depth:g}%" for depth in depths])
        axes.set_xlabel("tokens")
        axes.set_ylabel("depth of the needle")
    figure.colorbar(image, ax=figure.axes, label="share found", shrink=0.6)
    figure.savefig(path, dpi=110)


def share_at(rows, length, depth):
    return harness.mean(harness.select(rows, length=length, depth=f"{depth:g}"), "correct")


def main(argv):
    p = harness.parser("A needle in a haystack, over depth and length.", [1000, 2000, 4000, 8000], "needle")
    p.add_argument(
        "--depths",
        nargs="+",
        type=float,
        default=[0, 20, 40, 60, 80, 100],
        metavar="X",
        help="depths of the needle in percent",
    )
    p.add_argument(
        "--needles", type=int, default=1, metavar="N", help="prompts for each length and depth (default 1)"
    )
    p.add_argument("-n", type=int, default=N_PREDICT, metavar="N", help="tokens of an answer (default 8)")
    options, specs, engine = harness.parse(p, argv)
    table = harness.Table(f"{options.out}.csv", harness.ANSWER_COLUMNS, harness.PROMPT_KEY)
    asked = prompts(engine, options.lengths, options.depths, options.needles, options.seed)
    rows = harness.ask(engine, table, asked, specs, options.n, found, options.so_far)
    harness.print_answers(rows, specs, options.lengths)
    plot(rows, specs, options.lengths, options.depths, f"{options.out}.png")


if __name__ == "__main__":
    harness.script(main)
