"""MoBA and top-k where they meet the rest of the program: saved sessions, and SmolLM2's keys."""

import pytest

from conftest import DATA, SMOLLM2, ids_text, random_ids, run

SPECS = [
    "moba:block=8,topk=3", "moba:block=7,topk=2,decode=dense", "topk:k=6,recent=4,sink=2",
    "topk:k=6,recent=4,sink=2,prefill=sparse,index=exact", "dense@0;moba:block=8,topk=2@1-",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_a_saved_session_goes_on_where_it_was(tiny_model, tmp_path, spec, kv_type):
    path, _ = tiny_model(n_head_kv=2)
    ids, file = random_ids(110), tmp_path / "session"
    args = ("--attn", spec, "--kv-type", kv_type, "-b", 16, "--temp", 0)
    whole = run(path, "--ids", ids_text(ids), *args, "-n", 12).stdout
    run(path, "--ids", ids_text(ids[:53]), "--session", file, *args, "-n", 0)
    assert run(path, "--ids", ids_text(ids), "--session", file, *args, "-n", 12).stdout == whole


@pytest.mark.parametrize("spec", SPECS)
def test_a_session_goes_back(tiny_model, tmp_path, spec):
    """A prompt that departs from the saved one: what came after the common beginning is forgotten."""
    path, _ = tiny_model(n_head_kv=2)
    first, second, file = random_ids(90), random_ids(50) + random_ids(50, seed=1), tmp_path / "session"
    args = ("--attn", spec, "--kv-type", "f32", "-b", 1, "--temp", 0)
    fresh = run(path, "--ids", ids_text(second), *args, "-n", 12).stdout
    run(path, "--ids", ids_text(first), "--session", file, *args, "-n", 0)
    assert run(path, "--ids", ids_text(second), "--session", file, *args, "-n", 12).stdout == fresh


@pytest.mark.skipif(not SMOLLM2.exists(), reason="make model brings the checkpoint")
def test_pages_find_what_matters(tmp_path):
    """Of up to 1850 keys 512 are read to find 32: the text is as likely as with the exact choice."""
    text = tmp_path / "text"
    text.write_bytes((DATA / "prose.txt").read_bytes() * 2)
    spec = "topk:k=32,recent=32,prefill=sparse,index="
    result = run(SMOLLM2, "--score", text, "--attn", spec + "page", "--compare", spec + "exact")
    figures = dict(line.rsplit(": ", 1) for line in (result.stdout + result.stderr).decode().splitlines() if ": " in line)
    assert 0 < float(figures["mean_kl"]) < 0.03
