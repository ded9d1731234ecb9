"""train/: its modes are the reference's, a stopped run goes on as if it hadn't, and ./run computes what was trained."""

import math
import random
import re
import sys
from argparse import Namespace

import pytest
import torch

from conftest import DATA, ROOT, logits, relative_error
from reference import modes as reference, tiny
from reference.model import Layer, Rope

sys.path[:0] = [str(ROOT), str(ROOT / "train")]
import average
import model as model_
import modes
import mosa_claim
import tales
import tasks as tasks_
import train
from export import export_model

H, D, T, BASE = 4, 16, 96, 10000.0
SMALL = dict(
    n_embd=64,
    n_layer=2,
    n_head=H,
    n_head_kv=2,
    n_ff=96,
    moba_block=16,
    moba_topk=3,
    mosa_k=24,
    landmark_block=16,
    landmark_topk=2,
    infini_segment=32,
)


def verses():
    text = (DATA / "prose.txt").read_text()
    return [v.strip() for v in re.split(r"(?<=[.?!])\s+", text) if v.strip()]


@pytest.fixture
def tasks(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks_, "kjv_verses", verses)
    monkeypatch.setattr(tasks_.Tasks, "recall", tasks_.Tasks.copying)  # too few names in this text
    return tasks_.load(tmp_path / "run")


@pytest.fixture(params=[2, 4], ids=["gqa", "mha"])
def layer(request):
    torch.manual_seed(request.param)
    q, k, v = (torch.randn(T, n, D) for n in (H, request.param, request.param))
    tensors = {"attn_mosa_router": torch.randn(request.param, 32), "attn_infini_gate": torch.randn(H)}
    rope = Rope(modes.Rope(D, BASE).inv_freq, 1.0, interleaved=False)
    return Layer(torch.randn(T, 32), q, k, v, rope, T, tensors, torch.arange(T) % 16 == 15)


def trained(name, layer):
    q, k, v = (x.transpose(0, 1)[None] for x in (layer.q, layer.k, layer.v))
    rope, at = modes.Rope(D, BASE), torch.arange(T)
    gate = layer.tensors["attn_infini_gate"]
    router = (layer.x @ layer.tensors["attn_mosa_router"].T)[None]
    out = {
        "moba": lambda: modes.moba(q, k, v, rope, at, 10, 3),
        "mosa": lambda: modes.mosa(q, k, v, rope, at, router, 20, 1, True),
        "mosa_all": lambda: modes.mosa(q, k, v, rope, at, router, 2 * T, 0, False),
        "landmark": lambda: modes.landmark(q, k, v, rope, 16, 6),
        "landmark_1": lambda: modes.landmark(q, k, v, rope, 16, 1),
        "infini": lambda: modes.infini(q, k, v, rope, gate, 40),
        "infini_delta": lambda: modes.infini(q, k, v, rope, gate, 32, True),
    }[name]()
    return out[0].transpose(0, 1)


def referred(name, layer):
    if name == "moba":
        t = torch.arange(T)
        q, k, v = (reference.per_query_head(x, H) for x in (layer.q, layer.k, layer.v))
        scores = layer.rope.rotate(q, t) @ layer.rope.rotate(k, t).mT / D**0.5
        visible = (t <= t[:, None]).expand(H, T, T)
        return (reference.moba(scores, t, visible, t >= 0, 10, 3, "moba") @ v).transpose(0, 1)
    return {
        "mosa": lambda: reference.mosa(layer, 20, 1, True, "prefix", "trained"),
        "mosa_all": lambda: reference.mosa(layer, 2 * T, 0, False, "prefix", "trained"),
        "landmark": lambda: reference.landmark(layer, 16, 6, "token"),
        "landmark_1": lambda: reference.landmark(layer, 16, 1, "token"),
        "infini": lambda: reference.infini(layer, 40, 0, None),
        "infini_delta": lambda: reference.infini(layer, 32, 1, None),
    }[name]()


@pytest.mark.parametrize(
    "name", ["moba", "mosa", "mosa_all", "landmark", "landmark_1", "infini", "infini_delta"]
)
def test_modes_are_the_references(name, layer):
    assert (trained(name, layer) - referred(name, layer)).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["dense", "moba", "mosa"])
def test_bias_makes_a_key_count_several_times(mode, layer):
    """As if the first ten tokens stood there three times, at the same places."""
    rope = modes.Rope(D, BASE)
    attend = {
        "dense": modes.dense,
        "moba": lambda *args, **options: modes.moba(*args, T * 3, 1, **options),
        "mosa": lambda *args, **options: modes.mosa(*args, torch.zeros(1, args[0].shape[2], H), 1, H, **options),
    }[mode]
    q, k, v = (x.transpose(0, 1)[None] for x in (layer.q, layer.k, layer.v))
    often = torch.cat((torch.arange(10).repeat(3), torch.arange(10, T)))
    bias = torch.zeros(T, T)
    bias[10:, :10] = math.log(3)
    want = attend(*(x[:, :, often] for x in (q, k, v)), rope, often)[:, :, 30:]
    got = attend(q, k, v, rope, torch.arange(T), bias=bias)[:, :, 10:]
    assert torch.allclose(got, want, atol=1e-5)


def test_a_stretched_sequence_has_longer_distances_and_a_crowded_past():
    most = 0
    for seed in range(50):
        at, bias = train.stretched(random.Random(seed), 96, 1000)
        steps, own = at.diff(), bias.exp()
        assert (steps > 0).all() and (steps > 1).sum() <= 2 and at[-1] < 1000
        assert own.diagonal().eq(1).all() and (own >= 1).all() and (own <= train.CROWD + 1e-3).all()
        most = max(most, own.max().item())
    assert most > train.CROWD / 2


def small_model(tasks):
    torch.manual_seed(3)
    model = model_.Model(model_.Config(n_vocab=tasks.tokenizer.get_vocab_size(), **SMALL))
    for p in model.parameters():  # far enough from zero for modes to differ
        p.data *= 3 if p.dim() > 1 else 1
    return model


def test_streams_add_up_to_a_whole_sequence(tasks):
    """Segment by segment with the memory carried along, as streams train, is Infini-attention on all of it."""
    model, c = small_model(tasks), model_.Config(**SMALL)
    ids = tasks.batch(random.Random(1), 2, 4 * c.infini_segment)[0]
    memories = [modes.empty_memory(2, c.n_head_kv, D) for _ in model.layers]
    parts = []
    for part in ids.split(c.infini_segment, dim=1):
        out, added = model.segment(part, memories)
        memories = [(M + dM, z + dz) for (M, z), (dM, dz) in zip(memories, added)]
        parts.append(out)
    assert torch.allclose(torch.cat(parts, dim=1), model(ids, "infini"), atol=1e-4)


@pytest.mark.long
def test_memory_is_read_from_the_start(tasks):
    """start_memory() makes an untrained model find most digits, through hundreds of times as much filler too."""
    torch.manual_seed(1)
    model = model_.Model(model_.Config(n_vocab=tasks.tokenizer.get_vocab_size()))
    train.start_memory(model, tasks, random.Random(1))
    for most_filler in (128, 20000):
        with torch.no_grad():
            right = [train.stream_loss(model, tasks, random.Random(i), most_filler)[1] for i in range(4)]
        assert sum(right) / len(right) > 0.35, most_filler  # 0.02 without


def test_a_stream_asks_for_the_key_that_it_holds(tasks):
    """Whole segments; the key stands in them twice before the answer, however they are cut."""
    segment, seen = 64, {"near": 0, "cut": 0, "starts": 0}
    for i in range(200):
        parts = tasks.stream(random.Random(i), segment, 1, 1, 2)
        before, needle, between, question, answers = parts
        assert [len(p) for p in parts] == [segment, 2 * segment, segment, 2 * segment, 2 * segment]
        start, end = answers.index(True), 2 * segment - answers[::-1].index(True)
        key, first = tasks.tokenizer.decode(question[start:end]).strip(), 3 * segment + segment + start
        assert re.fullmatch(r"\d{5}", key) and sum(answers) == end - start
        ids = before + needle + between + question
        number = ids[first : first + end - start]
        places = [i for i in range(first) if ids[i : i + len(number)] == number]
        assert len(places) == 2, (key, places)
        seen["near"] += places[0] >= 4 * segment
        seen["cut"] += any(i // segment != (i + len(number) - 1) // segment for i in places)
        seen["starts"] += start == segment
    assert min(seen.values()) > 10, seen


def test_tales_are_about_who_they_start_with():
    """Nothing of the grammar is left over, and every plot keeps hero and friend."""
    for seed in range(200):
        names = tales.cast(random.Random(seed))
        tale = tales.tale(random.Random(seed), names)
        assert not re.search(r"[][{}|]", tale) and re.search(r"[.]$", tale), tale
        assert tale.count(names["hero"]) > 2 and tale.count(names["friend"]) > 2, tale
        others = {n for names in tales.NAMES.values() for n in names} - {names["hero"], names["friend"]}
        assert not others & set(re.findall(r"\w+", tale)), tale


def arguments(folder, steps):
    return Namespace(
        folder=folder, steps=steps, batch=2, length=128, lr=1e-3, seed=1, save=3, modes=None, start=None, above=1
    )


def test_a_stopped_run_goes_on_as_if_it_had_not(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(model_.Config, "__init__", small_config(model_.Config.__init__))
    monkeypatch.setattr(train, "STREAMS", 2)
    folder = tmp_path / "run"
    train.train(arguments(folder, 6))
    whole = torch.load(folder / "state.pt", weights_only=True)["model"]
    (folder / "state.pt").unlink()

    saved, real = [], train.save

    def save_then_stop(*args):
        real(*args)
        saved.append(args[3])
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(arguments(folder, 6))
    train.train(arguments(folder, 6))
    assert saved == [3, 6]
    resumed = torch.load(folder / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_starts_from_an_exported_file(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(model_.Config, "__init__", small_config(model_.Config.__init__))
    monkeypatch.setattr(train, "STREAMS", 2)
    model, folder, path = small_model(tasks), tmp_path / "run", tmp_path / "model.gguf"
    model_.save_checkpoint(model, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})
    export_model(folder, path, type="f32")
    other = model_.Model(model_.Config(n_vocab=model.c.n_vocab))
    model_.load_exported(other, path)
    assert all(torch.equal(w, other.state_dict()[name]) for name, w in model.state_dict().items())

    args = arguments(folder, 4)
    args.start = path
    train.train(args)
    trained = torch.load(folder / "state.pt", weights_only=True)["model"]
    moved = max((trained[name] - w).abs().max().item() for name, w in model.state_dict().items())
    assert 0 < moved < 1e-3  # four steps of the warm-up


def test_the_upper_layers_have_a_rate_of_their_own(tasks, tmp_path, monkeypatch):
    """With --above 0 the layers above the memory stay as they are, and no other."""
    monkeypatch.setitem(SMALL, "n_layer", model_.MEMORY_LAYER + 2)
    monkeypatch.setattr(model_.Config, "__init__", small_config(model_.Config.__init__))
    monkeypatch.setattr(train, "STREAMS", 2)
    model = model_.Model(model_.Config(n_vocab=tasks.tokenizer.get_vocab_size()))
    folder, path = tmp_path / "run", tmp_path / "start.gguf"
    model_.save_checkpoint(model, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})
    export_model(folder, path, type="f32")
    args = arguments(folder, 4)
    args.start, args.above = path, 0
    train.train(args)
    trained = torch.load(folder / "state.pt", weights_only=True)["model"]
    stayed = {name for name, w in model.state_dict().items() if torch.equal(w, trained[name])}
    upper = {f"layers.{model_.MEMORY_LAYER}.mlp", f"layers.{model_.MEMORY_LAYER + 1}."}
    above = {name for name in trained if any(name.startswith(part) for part in upper)}
    assert above and above <= stayed
    assert not any(name in stayed for name in trained if name.startswith(("embed", "layers.0.self_attn.q_proj")))


def test_a_run_is_averaged_with_its_start(tasks, tmp_path):
    folder, path = tmp_path / "run", tmp_path / "start.gguf"
    start, moved = small_model(tasks), small_model(tasks)
    model_.save_checkpoint(start, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})
    export_model(folder, path, type="f32")
    with torch.no_grad():
        for i, w in enumerate(moved.parameters()):
            w += i
    train.save(folder, moved, train.optimizer_for(moved), 1, 128)
    for name, w in average.mean(folder, path).state_dict().items():
        assert torch.allclose(w, (start.state_dict()[name] + moved.state_dict()[name]) / 2, atol=1e-5), name


def test_a_file_that_is_no_such_model_is_one_line(tasks, tmp_path):
    args = arguments(tmp_path / "run", 4)
    other = tiny.write(tmp_path / "other.gguf", tiny.Tiny())
    for args.start, reason in ((tmp_path / "none", "No such file"), (other, "not an export of such a model")):
        with pytest.raises(SystemExit, match=f"{args.start}: {reason}"):
            train.train(args)


def small_config(init):
    return lambda self, **values: init(self, **{**SMALL, **values})


def test_training_lowers_the_loss_of_every_mode(tasks):
    model = small_model(tasks)
    optimizer = train.optimizer_for(model)
    for mode in train.MODES:
        losses = []
        for _ in range(8):
            loss, _ = train.step_loss(model, tasks, random.Random(1), mode, 0, 2, 128)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("mode", ["dense", "moba", "mosa", "landmark", "infini"])
def test_run_computes_what_was_trained(mode, tasks, tmp_path):
    model = small_model(tasks)
    folder, path = tmp_path / "run", tmp_path / "model.gguf"
    model_.save_checkpoint(model, folder, {"chat_template": tasks_.CHAT_TEMPLATE, "add_bos_token": False})
    export_model(folder, path, type="f32")
    block = SMALL["landmark_block"]
    n = 9 * block // block * (block - 1)
    ids = tasks.batch(random.Random(2), 1, n)[0]
    with torch.no_grad():
        if mode == "landmark":
            want = model(ids, mode).unflatten(1, (-1, block))[:, :, :-1].flatten(1, 2)
        else:
            want = model(ids, mode)
    got = logits(path, ids[0].tolist(), "--attn", mode, "--kv-type", "f32")
    # a far landmark block stands at one slot in training, at that of its rank in ./run: compare where they agree
    rows = slice(0, 3 * (block - 1)) if mode == "landmark" else slice(None)
    assert relative_error(got[rows], want[0][rows]) < 1e-3


def test_mosa_claim_compares_equal_flops():
    dense = mosa_claim.VARIANTS["dense"].flops()
    equal = [heads for name, heads in mosa_claim.VARIANTS.items() if "equal" in name]
    assert equal and all(0.97 < heads.flops() / dense <= 1 for heads in equal)
    torch.manual_seed(1)
    x = torch.randn(1, 40, mosa_claim.N_EMBD)
    heads = mosa_claim.SparseHeads(mosa_claim.Heads(1, 5, 40), modes.Rope(mosa_claim.D, BASE))
    assert torch.allclose(heads.sequence(x), heads.prefix(x), atol=1e-5)  # k = T: both choose every token
