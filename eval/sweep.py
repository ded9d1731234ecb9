"""sweep.py - accuracy against memory or work: many specs, each with pass keys and with perplexity.

Every spec is asked for pass keys (passkey.py) and scores a text against dense attention (./run --score): all of
it as one prompt, or with --generated N its last N tokens, fed one by one after the others as if generated. The
figure has one line per family of specs, those that differ in budget, k or topk alone, over the share of the
context that a generated token attends to, or that the cache holds (--over cached).

    python eval/sweep.py --over cached --kv-evict none {window,keydiff,h2o}:budget={20,40,60,80}%

The text is the reference of the Python language, which every Python brings along (pydoc_data.topics), unless
--text names another.
"""

import re
from pathlib import Path

import harness
import passkey

SCORE_KEY = [*harness.SUBJECT, "text", "generated"]
SCORE_FIGURES = [
    "perplexity",
    "compare_perplexity",
    "mean_kl",
    "top1_agreement",
    "cache_bytes",
    "entries_cached",
    "attention_mass",
    "cached_mass",
]


def python_reference():
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def beginning(engine, text, length):
    """The words of a text that make at most `length` tokens."""
    ends = [match.end() for match in re.finditer(r"\S+", text[: 16 * length])]
    if engine.count_tokens(text[: ends[-1]]) < length:
        raise harness.EngineError(f"the text to score has fewer than {length} tokens")
    n = harness.largest(
        lambda n: n <= len(ends) and engine.count_tokens(text[: ends[n - 1]]) <= length, length // 2
    )
    return text[: ends[n - 1]]


def score(engine, table, name, text, specs, lengths, generated, so_far):
    """A row of --score for each spec and length; with so_far, those that the table has."""
    rows = []
    for length in lengths:
        part = None
        for spec in specs:
            key = dict(harness.subject(engine, spec, length), text=name, generated=generated)
            row = table.find(**key)
            if not row and not so_far:
                part = part or beginning(engine, text, length)
                stats = engine.score(part, length, spec, generated)
                row = table.add(**key, **{name: stats.get(name, "") for name in SCORE_FIGURES})
                harness.tell(
                    f"{spec}: {length} tokens, perplexity {stats['perplexity']:.3f}, "
                    f"dense {stats['compare_perplexity']:.3f}, KL {stats['mean_kl']:.4f}"
                )
            if row:
                rows.append(row)
    return rows


def family(spec):
    """The spec without the numbers that say how much is kept."""
    return re.sub(r"[:,](budget|topk|k)=[^,;@]*", "", str(spec)).replace(" + ", "\n")


def share(answers, column):
    """Mean entries attended or cached, of those that dense attention has: the prompt and half the answer."""
    return harness.mean(answers, column) / (harness.mean(answers, "prompt_tokens") + passkey.N_PREDICT / 2)


def print_table(answers, scores, specs, lengths):
    """lengths: (of the prompts with pass keys, of the text that is scored)"""
    print(
        "| attention | tokens | attended | cached | pass keys | perplexity | of dense | KL | same top token "
        "| mass attended | mass cached |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for length, score_length in lengths:
        for spec in specs:
            asked, scored = harness.of(answers, spec, length), harness.of(scores, spec, score_length)
            attended, cached = (
                f"{100 * share(asked, name):.1f}%" for name in ("entries_attended", "entries_cached")
            )
            found = f"{100 * harness.mean(asked, 'correct'):.0f}% of {len(asked)}"
            print(f"| {spec} | {length} | {attended} | {cached} | {found} | {score_cells(scored)} |")


def score_cells(rows):
    """Perplexity, KL, agreement and mass for the table; empty while there is no score."""
    if not rows:
        return " | | | | | "
    perplexity, dense, kl, top1 = (harness.mean(rows, name) for name in SCORE_FIGURES[:4])
    mass = " | ".join(f"{100 * float(rows[0][name]):.1f}%" if rows[0][name] else "" for name in SCORE_FIGURES[-2:])
    return f"{perplexity:.3f} | {100 * (perplexity / dense - 1):+.2f}% | {kl:.4f} | {100 * top1:.1f}% | {mass}"


def plot(answers, scores, specs, lengths, over, path):
    """A row for each length: pass keys found, and what perplexity loses."""
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(map(family, specs)))
    figure = Figure(figsize=(12, 0.6 + 3.8 * len(lengths)), layout="constrained")
    grid = figure.subplots(len(lengths), 2, squeeze=False)
    for (found, lost), (length, score_length) in zip(grid, lengths):
        for i, name in enumerate(families):
            points = []
            for spec in specs:
                if family(spec) == name:
                    asked, scored = harness.of(answers, spec, length), harness.of(scores, spec, score_length)
                    points.append(
                        (
                            100 * share(asked, f"entries_{over}"),
                            100 * harness.mean(asked, "correct"),
                            harness.mean(scored, "mean_kl"),
                        )
                    )
            x, accuracy, kl = zip(*sorted(points))
            style = {"marker": "os^vDPX*"[i % 8], "color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
            found.plot(x, accuracy, label=name, **style)
            lost.plot(x, kl, **style)
        found.set_ylabel("pass keys found, %")
        found.set_ylim(-3, 103)
        lost.set_ylabel("mean KL to dense, nats")
        lost.set_yscale("symlog", linthresh=1e-3)
        for axes, tokens in ((found, length), (lost, score_length)):
            axes.set_title(f"{tokens} tokens")
            axes.set_xlabel(f"entries {over}, % of the context")
            axes.grid(alpha=0.3)
        if not scores:
            lost.remove()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv):
    p = harness.parser("Pass keys and perplexity of many specs.", [4000], "sweep")
    p.add_argument("--keys", type=int, default=10, metavar="N", help="pass keys of each length (default 10)")
    p.add_argument(
        "--text", metavar="FILE", help="the text to score; default: the reference of the Python language"
    )
    p.add_argument(
        "--score-length", type=int, metavar="N", help="tokens of the text to score; default: those of a prompt"
    )
    p.add_argument(
        "--generated",
        type=int,
        default=0,
        metavar="N",
        help="the text's last N tokens follow the others one by one, and only they count; default: all count",
    )
    p.add_argument(
        "--over", choices=["attended", "cached"], default="attended", help="what the figure's x axis is"
    )
    options, specs, engine = harness.parse(p, argv)
    asked = harness.Table(f"{options.out}-passkey.csv", harness.ANSWER_COLUMNS, harness.PROMPT_KEY)
    scored = harness.Table(f"{options.out}-score.csv", [*SCORE_KEY, *SCORE_FIGURES], SCORE_KEY)
    prompts = passkey.prompts(engine, options.lengths, options.keys, None, options.seed)
    answers = harness.ask(engine, asked, prompts, specs, passkey.N_PREDICT, passkey.found, options.so_far)
    text = Path(options.text).read_text() if options.text else python_reference()
    name = Path(options.text).name if options.text else "python reference"
    lengths = [(length, options.score_length or length) for length in options.lengths]
    score_lengths = sorted({score_length for _, score_length in lengths})
    scores = score(engine, scored, name, text, specs, score_lengths, options.generated, options.so_far)
    print_table(answers, scores, specs, lengths)
    plot(answers, scores, specs, lengths, options.over, f"{options.out}.png")


if __name__ == "__main__":
    harness.script(main)
