"""lengths.py - how long a text may get before the pass key in it is lost.

The prompts of passkey.py at growing lengths. The table and the figure show every row of the CSV, so that a mode
that reaches further, or one with other arguments of ./run, is asked by a command of its own:

    python eval/lengths.py MODEL --lengths 512 1024 2048 4096 --attn dense moba mosa
    python eval/lengths.py MODEL --lengths 512 16384 1000000 --attn infini --keys 10 -- -c 1048576
"""

import harness
import passkey


def series(rows):
    """{name: {length: its rows}}, by attention and arguments, in the order of the file."""
    out = {}
    for row in rows:
        spec = harness.Spec(row["attn"], row["kv_evict"])
        scaling = row["args"].partition("--rope-scaling ")[2]
        name = f"{spec}, {scaling.replace(' --rope-scale ', ' x')}" if scaling else str(spec)
        out.setdefault(name, {}).setdefault(int(row["length"]), []).append(row)
    return out


def share(rows):
    return harness.mean(rows, "correct")


def print_table(found):
    lengths = sorted({length for its in found.values() for length in its})
    print("| attention |", " | ".join(map(str, lengths)), "|")
    print("|---|" + "--:|" * len(lengths))
    for name, its in found.items():
        cells = (f"{share(its[n]):.0%} of {len(its[n])}" if n in its else "" for n in lengths)
        print(f"| {name} |", " | ".join(cells), "|")
    print("\n| attention | tokens | cache MB | entries attended | cached | prompt tok/s | decode tok/s |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, its in found.items():
        for n in (min(its), max(its)):
            cells = [harness.mean(its[n], "cache_bytes") / 1e6]
            names = ("entries_attended", "entries_cached", "prompt_tps", "gen_tps")
            cells += [harness.mean(its[n], column) for column in names]
            print(f"| {name} | {n} | {cells[0]:.2f} |", " | ".join(f"{x:.0f}" for x in cells[1:]), "|")


def plot(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, its) in enumerate(found.items()):
        lengths = sorted(its)
        shift = 0.004 * (i - len(found) / 2)  # lines that coincide stay visible
        axes.plot(lengths, [share(its[n]) + shift for n in lengths], marker="osD^vPX"[i % 7], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("pass keys found")
    axes.set_ylim(-0.04, 1.04)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=110)


def main(argv):
    p = harness.parser("Pass keys found at growing lengths.", [512, 1024, 2048, 4096], "lengths")
    p.add_argument("--keys", type=int, default=20, metavar="N", help="prompts of each length (default 20)")
    options, specs, engine = harness.parse(p, argv)
    table = harness.Table(f"{options.out}.csv", harness.ANSWER_COLUMNS, harness.PROMPT_KEY)
    if not options.so_far:
        asked = passkey.prompts(engine, options.lengths, options.keys, None, options.seed)
        harness.ask(engine, table, asked, specs, passkey.N_PREDICT, passkey.found)
    found = series(table.rows)
    print_table(found)
    plot(found, f"{options.out}.png")


if __name__ == "__main__":
    harness.script(main)
