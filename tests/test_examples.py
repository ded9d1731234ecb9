"""The examples of docs/add-a-mode.md: added to the program as the text says, they work."""

import os
import re
import subprocess

import numpy as np
import pytest

import conftest
from conftest import ROOT, RUN, ids_text, logits, random_ids, relative_error, stats

OBJECTS = RUN.parent / "build" if RUN.parent == ROOT else RUN.parent
COMPILE = [os.environ.get("CC", "gcc"), "-std=gnu11", "-O1", f"-I{ROOT}", "-Wall", "-Wextra", "-Werror"]


def with_line(source, name, kind, table):
    """The text of a source file with one declaration and one line added to its table, which ends in NULL."""
    text = source.read_text().replace('#include "', f'#include "{source.parent}/')
    before, entries = text.split(f"const struct {kind} *const {table}")
    entries = re.sub(r"    NULL,", f"    &{name},\n    NULL,", entries, count=1)
    return f"{before}extern const struct {kind} {name};\nconst struct {kind} *const {table}{entries}"


@pytest.fixture(scope="module", autouse=True)
def extended_program(tmp_path_factory):
    """Every test of this file runs a ./run that has the two examples."""
    folder = tmp_path_factory.mktemp("extended")
    tables = {
        "attention/attention": ("attn_local", "attn_mode", "attn_modes[]"),
        "cache/evict": ("evict_vnorm", "evict_policy", "evict_policies[]"),
    }
    sources = [ROOT / "docs/examples/attn_local.c", ROOT / "docs/examples/evict_vnorm.c"]
    for table, line in tables.items():
        path = folder / f"{table.replace('/', '_')}.c"
        path.write_text(with_line(ROOT / f"{table}.c", *line))
        sources.append(path)
    replaced = {OBJECTS / f"{table}.o" for table in tables}
    folders = ["", "app", "attention", "cache", "kernels", "tokenizer"]
    objects = [o for f in folders for o in (OBJECTS / f).glob("*.o") if o not in replaced]
    program = folder / "run"
    subprocess.run([*COMPILE, "-o", program, *sources, *objects, "-lm", "-pthread"], check=True)
    usual = conftest.RUN
    conftest.RUN = program
    yield
    conftest.RUN = usual


def test_mode_is_listed_and_mixes():
    assert b"local" in conftest.run("--list-attn").stdout
    assert b"vnorm" in conftest.run("--list-evict").stdout


@pytest.mark.parametrize("window", [1, 5, 1000])
def test_mode_attends_to_a_window(tiny_model, window):
    """Which top-k attention with nothing but `recent` does too."""
    (model, _), ids = tiny_model(), random_ids(60)
    for batch in ("1", "7", "512"):
        got = logits(model, ids, "--attn", f"local:window={window}@1-", "-b", batch, "--kv-type", "f32")
        same = f"topk:k=0,sink=0,recent={window},prefill=sparse,index=exact@1-"
        want = logits(model, ids, "--attn", same, "-b", batch, "--kv-type", "f32")
        assert relative_error(got, want) < 1e-4


def test_policy_keeps_its_budget(tiny_model, tmp_path):
    (model, _), ids = tiny_model(), random_ids(60)
    figures, _ = stats(model, tmp_path, "--ids", ids_text(ids), "-n", "4", "-b", "8", "--kv-evict", "vnorm:budget=20")
    assert figures["entries_cached"] == 20
    dense = logits(model, ids, "-b", "8")
    evicted = logits(model, ids, "-b", "8", "--kv-evict", "vnorm:budget=20")
    assert np.array_equal(dense[:20], evicted[:20])
    assert not np.allclose(dense[-1], evicted[-1])
