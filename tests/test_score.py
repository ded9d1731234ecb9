"""--score: what counts, and the attention mass that modes and policies keep, against the reference."""

import pytest

from conftest import ids_text, perplexity, run, stats
from test_cli import assert_fails

MODEL = {"n_embd": 96, "n_head": 6, "n_head_kv": 2, "n_layer": 3, "n_ctx": 1024}
TEXT = "the rain on the roof and then another hour of it, in the end 12 and 12; what was left lay dry. "


@pytest.fixture
def scored(tiny_model, tmp_path):
    """(calls --score and gives the figures and what is printed, token ids of the text, reference)"""
    path, reference = tiny_model(**MODEL)
    text = tmp_path / "text"
    text.write_text(TEXT * 2)
    ids = [int(i) for i in run(path, "-f", text, "--tokenize").stdout.split()]

    def score(*args):
        figures, result = stats(path, tmp_path, "--score", text, "--kv-type", "f32", "-b", 16, *args)
        return figures, (result.stdout + result.stderr).decode()

    return score, ids, reference


def masses(reference, ids, attn, kv_evict, **options):
    """Per layer: (mean mass of what is attended to in what is cached, mean dense mass of what is cached)"""
    dense, sparse = [], []
    reference.logits(ids, trace=dense)
    reference.logits(ids, attn=attn, kv_evict=kv_evict, batch=16, trace=sparse, **options)
    first = options.get("n_prompt", 0) if "prefill=dense" in attn else 0
    return [
        (
            (s.probs * s.attended).sum(-1)[:, first:].mean().item(),
            (d.probs * s.visible).sum(-1).mean().item(),
        )
        for d, s in zip(dense, sparse)
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("attn", ["topk:k=6,recent=4,sink=2,prefill=sparse", "moba:block=8,topk=3"])
@pytest.mark.parametrize("kv_evict", [None, "window:budget=40", "keydiff:budget=48,recent=4"])
def test_attention_mass(scored, attn, kv_evict):
    score, ids, reference = scored
    evict = ["--kv-evict", kv_evict] if kv_evict else []
    figures, printed = score("--attn", attn, "--compare", "dense", *evict)
    want = masses(reference, ids, attn, kv_evict)
    assert len(figures["layers"]) == len(want)
    for layer, (attended, cached) in zip(figures["layers"], want):
        assert layer["attn"] == attn.split(":")[0]
        assert layer["attention_mass"] == pytest.approx(attended, abs=2e-3)
        assert layer.get("cached_mass") == (pytest.approx(cached, abs=2e-3) if kv_evict else None)
    assert figures["attention_mass"] == pytest.approx(mean(a for a, _ in want), abs=2e-3)
    assert 0.1 < figures["attention_mass"] < 0.99
    assert f"attention_mass: {figures['attention_mass']:.4f}" in printed
    if kv_evict:
        assert figures["cached_mass"] == pytest.approx(mean(c for _, c in want), abs=2e-3)
        assert 0.1 < figures["cached_mass"] < 0.99
        assert f"cached_mass: {figures['cached_mass']:.4f}" in printed


@pytest.mark.parametrize("policy", "streaming h2o tova knorm lagkv expected keydiff:rerotate=1".split())
def test_cached_mass_under_every_policy(scored, policy):
    score, ids, reference = scored
    policy = f"{policy}{',' if ':' in policy else ':'}budget=48"
    figures, _ = score("--kv-evict", policy, "--compare", "dense")
    want = mean(cached for _, cached in masses(reference, ids, "dense", policy))
    assert figures["cached_mass"] == pytest.approx(want, abs=2e-3)
    assert "attention_mass" not in figures


def test_layers_that_attend_to_everything_are_not_measured(scored):
    score, ids, reference = scored
    attn = "moba:block=8,topk=2@1"
    figures, _ = score("--attn", attn, "--compare", "dense")
    assert [layer.get("attention_mass") is not None for layer in figures["layers"]] == [False, True, False]
    want = masses(reference, ids, attn, None)[1][0]
    assert figures["attention_mass"] == pytest.approx(want, abs=2e-3)


def test_nothing_is_measured_without_being_asked_for(scored):
    score, _, _ = scored
    figures, printed = score("--attn", "moba:block=8,topk=2", "--kv-evict", "window:budget=40")
    assert "mass" not in printed + str(figures)


@pytest.mark.parametrize("spec", [
    ("dense", None), ("topk:k=6,recent=4,sink=2,prefill=dense", None), ("moba:block=8,topk=2", None),
    ("dense", "snapkv:budget=40,window=8"), ("dense", "keydiff:budget=40"),
], ids=str)
def test_score_prompt(scored, spec):
    """What follows the prompt goes in as if generated, and counts alone."""
    score, ids, reference = scored
    attn, kv_evict = spec
    n = len(ids) - 30
    evict = ["--kv-evict", kv_evict] if kv_evict else []
    figures, _ = score("--attn", attn, *evict, "--score-prompt", n, "--compare", "dense")
    rows = reference.logits(ids, attn=attn, kv_evict=kv_evict, batch=16, n_prompt=n)
    assert figures["perplexity"] == pytest.approx(perplexity(rows[n - 1 :], ids[n - 1 :]), rel=1e-3)
    dense = reference.logits(ids)
    assert figures["compare_perplexity"] == pytest.approx(perplexity(dense[n - 1 :], ids[n - 1 :]), rel=1e-3)
    assert (figures["prompt_tokens"], figures["gen_tokens"]) == (n, 30)
    if "topk" in attn:
        want = mean(attended for attended, _ in masses(reference, ids, attn, None, n_prompt=n))
        assert figures["attention_mass"] == pytest.approx(want, abs=2e-3)


def test_score_prompt_takes_no_less_than_a_token(scored):
    score, ids, _ = scored
    assert score("--score-prompt", 1)[0]["perplexity"] == pytest.approx(score()[0]["perplexity"], rel=1e-3)


def test_usage(tiny_model, tmp_path):
    path, _ = tiny_model(**MODEL)
    text = tmp_path / "text"
    text.write_text("the rain")
    assert_fails(run(path, "-p", "x", "--score-prompt", 3, ok=False), 2, "--score")
    assert_fails(run(path, "--score", text, "--score-prompt", 999, ok=False), 1, "--score-prompt 999")
    assert_fails(run(path, "--score", text, "--score-prompt", 0, ok=False), 2, "--score-prompt")


def test_a_mode_that_needs_the_whole_text_is_compared_too(tiny_model, tmp_path):
    """Longer than -b: both sessions take it in one piece."""
    path, _ = tiny_model(**MODEL)
    text = tmp_path / "text"
    text.write_text(TEXT * 2)
    args = ("--attn", "mosa:router=knorm,select=sequence,k=9", "--compare", "dense", "-b", 8)
    figures, _ = stats(path, tmp_path, "--score", text, *args)
    assert figures["mean_kl"] > 0


def test_recall_is_reported_while_generating(tiny_model, tmp_path):
    path, _ = tiny_model(**MODEL)
    attn = "topk:k=6,recent=4,recall=1"
    figures, _ = stats(path, tmp_path, "--ids", ids_text(range(3, 90)), "-n", 9, "--attn", attn)
    assert figures["recall"] == 1 and 0 < figures["attention_mass"] < 1
