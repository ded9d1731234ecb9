"""The evaluation scripts: their prompts, their judgement, and whole runs on a tiny model."""

import csv
import random
import re
import sys

import pytest

from conftest import ROOT, RUN

sys.path.insert(0, str(ROOT / "eval"))

import harness  # noqa: E402
import needle  # noqa: E402
import passkey  # noqa: E402
import sweep  # noqa: E402
from harness import Engine, Spec, Table  # noqa: E402


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine(RUN, tiny_model(n_ctx=2048)[0])


def table_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("answer", [0, 1, 2, 7, 100, 999])
@pytest.mark.parametrize("guess", [1, 8, 100, 5000])
def test_largest(answer, guess):
    calls = []

    def fits(n):
        calls.append(n)
        return n <= answer

    assert harness.largest(fits, guess) == answer
    assert len(calls) < 60


def test_a_share_of_the_prompt_becomes_entries():
    spec = Spec("topk:k=2.5%,recent=8", "keydiff:budget=40%")
    assert spec.options(4000) == ["--attn", "topk:k=100,recent=8", "--kv-evict", "keydiff:budget=1600"]
    assert Spec("dense", "none").options(4000) == ["--attn", "dense"]


@pytest.mark.parametrize(
    "answer, right",
    [
        (" 12345.", True),
        ("is 12345, says 99999", True),
        (" 123456", False),
        (" 1234", False),
        (" 99999 12345", False),
        ("", False),
    ],
)
def test_a_pass_key_is_the_first_number(answer, right):
    assert passkey.found(answer, "12345") == right


@pytest.mark.parametrize(
    "answer, right",
    [
        (" red kettle. The", True),
        ("red kettle", True),
        (" red kettles", False),
        (" big red kettle", False),
        ("", False),
    ],
)
def test_a_needle_is_the_beginning_of_the_answer(answer, right):
    assert needle.found(answer, "red kettle") == right


def test_pass_key_prompts(engine):
    prompts = list(passkey.prompts(engine, [400, 900], 5, None, 1))
    assert prompts == list(passkey.prompts(engine, [400, 900], 5, None, 1))
    assert [p.text for p in prompts] != [p.text for p in passkey.prompts(engine, [400, 900], 5, None, 2)]
    for length in 400, 900:
        assert {p.depth for p in prompts if p.length == length} == {0, 25, 50, 75, 100}
    for p in prompts:
        assert p.length - 40 < engine.count_tokens(p.text) <= p.length + 5
        before, key, after = re.fullmatch(
            r"(?s)(.*)The pass key is (\d{5})\. Remember it\. \2 is the pass key\.\n(.*)", p.text
        ).groups()
        assert key == p.expected
        green_before, green = before.count("grass"), p.text.count("grass")
        assert abs(green_before - green * p.depth / 100) <= 1


def test_needle_prompts(engine):
    prompts = list(needle.prompts(engine, [1500], [0, 50, 100], 2, 1))
    assert prompts == list(needle.prompts(engine, [1500], [0, 50, 100], 2, 1))
    assert len({p.text for p in prompts}) == 6
    for p in prompts:
        assert 1500 - 200 < engine.count_tokens(p.text) <= 1500
        assert p.text.count(p.expected) == 1
        body, question = p.text.split("\n\nQuestion:")
        assert question.endswith("is kept under the")
        assert abs(body.index(p.expected) / len(body) - p.depth / 100) < 0.15


def test_haystack_has_every_paragraph_before_one_again():
    file = needle.HAYSTACK.read_text().strip().split("\n\n")
    hay = needle.haystack(random.Random(1), 2 * len(file))
    assert all("{" not in paragraph for paragraph in hay)
    endings = [paragraph[-25:] for paragraph in hay if paragraph[-25:] in needle.HAYSTACK.read_text()]
    assert len(endings) > len(file) and all(endings.count(e) <= 2 for e in endings)


def test_rows_survive_a_stop(tmp_path):
    path = tmp_path / "rows.csv"
    columns = ["spec", "depth", "answer"]
    table = Table(path, columns, ["spec", "depth"])
    table.add(spec="topk:k=1,recent=2", depth=5, answer='says "no"')
    table.add(spec="dense", depth=5, answer="yes")
    with open(path, "a") as file:
        file.write("dense,6,ye")  # no end of line: the write was cut
    table = Table(path, columns, ["spec", "depth"])
    assert table.find(spec="topk:k=1,recent=2", depth=5)["answer"] == 'says "no"'
    assert not table.find(spec="dense", depth=6)
    table.add(spec="dense", depth=6, answer="yes")
    assert [row["depth"] for row in table_of(path)] == ["5", "5", "6"]
    with pytest.raises(SystemExit, match="other columns"):
        Table(path, columns[:2], ["spec"])


def test_passkey_script_goes_on_where_it_stopped(engine, tmp_path, monkeypatch, capsys):
    args = [
        engine.model,
        "--lengths",
        "300",
        "400",
        "--attn",
        "dense",
        "topk:k=8",
        "--kv-evict",
        "none",
        "keydiff:budget=50%",
        "--run",
        str(RUN),
        "--out",
        str(tmp_path / "keys"),
        "--keys",
    ]
    passkey.main([*args, "2", "--", "-b", "64"])
    rows = table_of(tmp_path / "keys.csv")
    assert len(rows) == 2 * 2 * 4
    assert {row["args"] for row in rows} == {"-b 64"}
    assert (tmp_path / "keys.png").read_bytes().startswith(b"\x89PNG")
    for length in "300", "400":
        its = {(row["attn"], row["kv_evict"]): row for row in rows if row["length"] == length}
        assert float(its["dense", "keydiff:budget=50%"]["entries_cached"]) == int(length) / 2
        assert float(its["topk:k=8", "none"]["entries_attended"]) < float(
            its["dense", "none"]["entries_attended"]
        )
        assert its["topk:k=8", "none"]["entries_cached"] == its["dense", "none"]["entries_cached"]

    calls = []
    answer = Engine.answer
    monkeypatch.setattr(Engine, "answer", lambda *a: calls.append(a) or answer(*a))
    passkey.main([*args, "2", "--", "-b", "64"])
    assert not calls and table_of(tmp_path / "keys.csv") == rows
    passkey.main([*args, "3", "--", "-b", "64"])  # depths 0, 50, 100 instead of 0, 100
    assert len(calls) == len(table_of(tmp_path / "keys.csv")) - len(rows) > 0
    assert capsys.readouterr().out.count("| topk:k=8 + keydiff:budget=50% | 400 |") == 3


def test_a_figure_of_what_is_there_so_far(engine, tmp_path, monkeypatch, capsys):
    out = tmp_path / "keys"
    args = [
        engine.model,
        "--lengths",
        "300",
        "--keys",
        "2",
        "--run",
        str(RUN),
        "--out",
        str(out),
        "--attn",
        "dense",
    ]
    passkey.main(args)
    monkeypatch.setattr(Engine, "answer", None)  # nothing is measured from here on
    passkey.main([*args, "--so-far"])
    out.with_suffix(".png").unlink()
    passkey.main([*args, "topk:k=8", "--so-far"])  # no prompt that both have answered
    assert "| topk:k=8 | 300 | 0/0 = nan% |" in capsys.readouterr().out
    assert out.with_suffix(".png").exists()


def test_needle_script(engine, tmp_path):
    out = str(tmp_path / "needle")
    needle.main(
        [
            engine.model,
            "--lengths",
            "500",
            "700",
            "--depths",
            "10",
            "90",
            "--run",
            str(RUN),
            "--out",
            out,
            "--attn",
            "dense",
            "moba:block=16,topk=4",
        ]
    )
    rows = table_of(out + ".csv")
    assert len(rows) == 2 * 2 * 2
    assert {row["expected"] for row in rows if row["attn"] == "dense"} == {
        row["expected"] for row in rows if row["attn"] != "dense"
    }
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")


def test_sweep_script(engine, tmp_path, capsys):
    out = str(tmp_path / "sweep")
    args = [
        engine.model,
        "--lengths",
        "300",
        "--keys",
        "1",
        "--run",
        str(RUN),
        "--out",
        out,
        "--over",
        "cached",
        "--kv-evict",
        "none",
        "window:budget=20%",
        "window:budget=60%",
    ]
    sweep.main([*args, "--", "-b", "32"])
    rows = {row["kv_evict"]: row for row in table_of(out + "-score.csv")}
    assert len(rows) == 3
    assert float(rows["none"]["mean_kl"]) < 1e-9
    assert float(rows["window:budget=20%"]["mean_kl"]) > float(rows["window:budget=60%"]["mean_kl"]) > 0
    assert float(rows["window:budget=20%"]["entries_cached"]) == 60
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < float(rows["window:budget=20%"]["cached_mass"]) < float(rows["window:budget=60%"]["cached_mass"]) < 1
    assert "| dense + window:budget=20% | 300 | 20" in capsys.readouterr().out


def test_sweep_of_generated_tokens(engine, tmp_path, capsys):
    """A policy that acts at the end of a prompt shows only in what follows."""
    out = str(tmp_path / "sweep")
    args = [engine.model, "--keys", "0", "--run", str(RUN), "--out", out, "--kv-evict", "snapkv:budget=50%"]
    sweep.main([*args, "--score-length", "200", "--generated", "30"])
    (row,) = table_of(out + "-score.csv")
    assert (row["length"], row["generated"], row["entries_cached"]) == ("200", "30", "130.0")
    assert float(row["mean_kl"]) > 0
    assert f"{float(row['perplexity']):.3f}" in capsys.readouterr().out


def test_what_the_engine_refuses_is_one_line(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "passkey.py",
            engine.model,
            "--lengths",
            "300",
            "--keys",
            "1",
            "--attn",
            "topk:k=no",
            "--run",
            str(RUN),
            "--out",
            str(tmp_path / "no"),
        ],
    )
    with pytest.raises(SystemExit) as e:
        harness.script(passkey.main)
    assert "k" in e.value.code and "no" in e.value.code and "\n" not in e.value.code
