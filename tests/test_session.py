"""--session FILE: what it is taken for, and what it never overwrites. (That modes go on where they were is tested
with the modes.)"""

import struct

import gguf
import pytest

from conftest import ids_text, random_ids, run
from test_cli import assert_fails

N = 60


@pytest.fixture
def model(tiny_model):
    return tiny_model()[0]


@pytest.fixture
def args(tmp_path):
    return "--ids", ids_text(random_ids(N)), "--session", tmp_path / "session", "-n", 8, "--temp", 0, "-q"


def scaled(model, path):
    """The same model with the second half of a tensor doubled: no size, name or first byte differs."""
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "blk.1.ffn_down.weight")
    data = bytearray(model.read_bytes())
    for at in range(tensor.data_offset + int(tensor.n_bytes) // 2, tensor.data_offset + int(tensor.n_bytes), 4):
        struct.pack_into("<f", data, at, 2 * struct.unpack_from("<f", data, at)[0])
    path.write_bytes(data)
    return path


def with_other_epsilon(model, path):
    data = model.read_bytes()
    assert data.count(struct.pack("<f", 1e-5)) == 1
    path.write_bytes(data.replace(struct.pack("<f", 1e-5), struct.pack("<f", 1e-2)))
    return path


@pytest.mark.parametrize("change", [scaled, with_other_epsilon])
def test_it_belongs_to_its_model(model, tmp_path, args, change):
    other = change(model, tmp_path / "other.gguf")
    run(model, *args)
    again = run(other, *args)
    assert b"starting over: it is of another model" in again.stderr
    assert again.stdout == run(other, *args[:2], *args[4:]).stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--rope-scaling", "linear"),
        ("--attn", "topk:k=8"),
        ("--kv-evict", "streaming:budget=20"),
        ("--kv-type", "f32"),
    ],
    ids=lambda options: options[0],
)
def test_it_belongs_to_its_options(model, args, options):
    scale = ("--rope-scaling", "yarn", "--rope-scale", 0.5)
    run(model, *args, *scale)
    again = run(model, *args, *scale, *options)
    assert b"starting over: it was made with other options" in again.stderr
    assert again.stdout == run(model, *args[:2], *args[4:], *scale, *options).stdout


def test_another_version_is_not_read(model, tmp_path, args):
    first = run(model, *args)
    saved = bytearray((tmp_path / "session").read_bytes())
    saved[7] ^= 3
    (tmp_path / "session").write_bytes(saved)
    again = run(model, *args)
    assert again.stdout == first.stdout
    assert b"starting over: another version of this program wrote it" in again.stderr


@pytest.mark.parametrize("content", [b"a text", b"a longer text " * 1000, b"ATTNSES"])
def test_a_file_that_is_none_stays(model, tmp_path, args, content):
    (tmp_path / "session").write_bytes(content)
    assert_fails(run(model, *args, ok=False), 1, "session", "not a session file")
    assert (tmp_path / "session").read_bytes() == content


def test_an_empty_file_is_filled(model, tmp_path, args):
    (tmp_path / "session").touch()
    first = run(model, *args)
    assert b"starting over" not in first.stderr
    assert run(model, *args).stdout == first.stdout and (tmp_path / "session").stat().st_size > 0


def test_one_that_a_smaller_context_has_no_room_for_stays(model, tmp_path, args):
    run(model, *args)
    saved = (tmp_path / "session").read_bytes()
    assert_fails(run(model, "-p", "x", *args[2:], "-c", 40, ok=False), 1, "session", "raise -c")
    assert (tmp_path / "session").read_bytes() == saved


def test_a_damaged_one_is_told_from_a_good_one(model, tmp_path, args):
    run(model, *args)
    saved = (tmp_path / "session").read_bytes()
    for at in range(24 + 8, len(saved), len(saved) // 30):
        (tmp_path / "session").write_bytes(saved[:at] + bytes([saved[at] ^ 16]) + saved[at + 1 :])
        assert_fails(run(model, *args, ok=False), 1, "damaged")
    for size in range(24, len(saved), len(saved) // 10):
        (tmp_path / "session").write_bytes(saved[:size])
        assert_fails(run(model, *args, ok=False), 1, "damaged")
