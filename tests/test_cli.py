"""The command line: exit codes, messages, files, statistics. Every failure is one line on standard error."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time

import gguf
import numpy as np
import pytest

from conftest import BUNDLED, ROOT, RUN, ids_text, logits, random_ids, run, stats
from reference import tiny

STATS_KEYS = {
    "prompt_tokens",
    "prompt_seconds",
    "prompt_tps",
    "gen_tokens",
    "gen_seconds",
    "gen_tps",
    "load_seconds",
    "weights_bytes",
    "cache_bytes",
    "peak_rss_bytes",
    "entries_attended",
    "entries_cached",
    "attn",
    "kv_evict",
    "layers",
    "kv_type",
    "isa",
    "threads",
    "seed",
}


@pytest.fixture
def model(tiny_model):
    return tiny_model()[0]


def assert_fails(result, code, *mentions):
    """Exit status `code`, nothing on standard output, one line on standard error that has the words."""
    message = result.stderr.decode()
    assert result.returncode == code, f"exit {result.returncode}: {message}"
    assert result.stdout == b""
    errors = [line for line in message.splitlines() if not line.startswith("warning:")]
    assert len(errors) == 1 and message.endswith("\n"), message
    for word in mentions:
        assert word in message, f"{word!r} is not in {message!r}"


@pytest.mark.parametrize(
    "args, mention",
    [
        (["--no-such-option"], "--no-such-option"),
        (["-z"], "-z"),
        (["-n"], "-n"),
        (["-n", "many"], "many"),
        (["-n", "99999999999999999999"], "-n"),
        (["-n", "-2"], "-n"),
        (["-b", "0"], "-b"),
        (["-t", "0"], "-t"),
        (["-c", "-5"], "-c"),
        (["--temp", "hot"], "hot"),
        (["--temp", "nan"], "--temp"),
        (["--temp=-1"], "--temp"),
        (["--top-p", "1.5"], "--top-p"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--attn", "spiral"], "spiral"),
        (["--attn", "dense@x"], "x"),
        (["--attn", "dense@7"], "7"),
        (["--attn", "dense:k=1"], "dense"),
        (["--attn", ""], "--attn"),
        (["--kv-type", "q3_z"], "q3_z"),
        (["--rope-scaling", "sideways"], "sideways"),
        (["--rope-scale", "0"], "--rope-scale"),
        (["--isa", "z80"], "z80"),
        (["-p", "a", "-f", "b"], "-f"),
        (["--compare", "dense"], "--score"),
        (["--depths", "512"], "--bench"),
        (["--bench", "--depths", "a"], "a"),
        (["--bench", "--depths", "64", "-n", str(2**31 - 1)], "tokens are needed"),
        (["--bench", "--depths", "16,17", "-n", "2"], "17"),
        (["--seed", " 1"], "--seed"),
        (["-q=1"], "-q"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_usage(model, args, mention):
    assert_fails(
        run(model, "-p", "x", "-n", 1, *args, ok=False) if args[0] != "-p" else run(model, *args, ok=False),
        2,
        mention,
    )


def test_names_with_newlines_stay_in_one_line(model):
    assert_fails(run(model, "-f", "no\nsuch\x1bfile", ok=False), 1, r"no\nsuch\x1bfile")
    assert_fails(run(model, "-p", "x", "--attn", "a\nb", ok=False), 2, r"a\nb")


def test_a_wrong_spec_is_blamed_on_its_option(model, tmp_path):
    (tmp_path / "text").write_text("the rain")
    result = run(model, "--score", tmp_path / "text", "--compare", "spiral", ok=False)
    assert_fails(result, 2, "--compare: there is no mode 'spiral'")


def test_second_model_is_wrong_usage(model):
    assert_fails(run(model, "other.gguf", ok=False), 2, "other.gguf")


@pytest.mark.parametrize(
    "content, mention",
    [
        (None, "No such file"),
        (b"", "damaged.gguf"),
        (b"GGUF", "damaged.gguf"),
        (b"not a model at all, but long enough to hold a header", "GGUF"),
        (b"GGUF" + (99).to_bytes(4, "little") + bytes(40), "99"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16 + bytes(40), "damaged.gguf"),
    ],
)
def test_bad_model_files(tmp_path, content, mention):
    path = tmp_path / "damaged.gguf"
    if content is not None:
        path.write_bytes(content)
    for args in (["-p", "x", "-n", "1"], ["--inspect"], ["-p", "x", "--tokenize"]):
        assert_fails(run(path, *args, ok=False), 1, mention)


def test_model_is_a_directory(tmp_path):
    assert_fails(run(tmp_path, "-p", "x", ok=False), 1, str(tmp_path))


def test_truncated_model(tmp_path, model):
    whole = model.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert_fails(run(path, "-p", "x", ok=False), 1, "short.gguf")


def test_unknown_architecture(tmp_path):
    path = tiny.write(tmp_path / "other.gguf", tiny.Tiny(arch="mamba"))
    assert_fails(run(path, "-p", "x", ok=False), 1, "mamba")


def test_vocabulary_only_file(tiny_model, model):
    vocabulary, _ = tiny_model(weights=False)
    text = "the cat and 12 other things"
    assert run(vocabulary, "-p", text, "--tokenize").stdout == run(model, "-p", text, "--tokenize").stdout
    assert_fails(run(vocabulary, "-p", text, ok=False), 1, "token_embd")


def test_missing_tensor_is_named(tmp_path, model):
    path = tmp_path / "renamed.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_UP.weight"))
    assert_fails(run(path, "-p", "x", ok=False), 1, "blk.1.ffn_up.weight")


def test_wrong_shape_is_named(tmp_path, model):
    path = tmp_path / "swapped.gguf"
    content = model.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_X.weight")
    content = content.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")
    path.write_bytes(content.replace(b"blk.0.attn_X.weight", b"blk.0.attn_k.weight"))
    assert_fails(run(path, "-p", "x", ok=False), 1, "blk.0.attn_q.weight")


def test_split_model(tmp_path, tiny_model):
    """Two parts, tensors divided between them, as gguf-split writes them."""
    whole, _ = tiny_model(arch="qwen2")
    reader = gguf.GGUFReader(whole)
    tensors = list(reader.tensors)
    half = len(tensors) // 2
    for part, chosen in enumerate((tensors[:half], tensors[half:])):
        out = gguf.GGUFWriter(tmp_path / f"m-{part + 1:05d}-of-00002.gguf", "qwen2")
        if part == 0:
            for name, field in reader.fields.items():
                if name.startswith("GGUF.") or name == "general.architecture":
                    continue
                sub = field.types[-1] if len(field.types) > 1 else None
                out.add_key_value(name, field.contents(), field.types[0], sub)
        out.add_uint16("split.no", part)
        out.add_uint16("split.count", 2)
        out.add_int32("split.tensors.count", len(tensors))
        for t in chosen:
            out.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
    ids = random_ids(30)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert np.array_equal(logits(first, ids), logits(whole, ids))
    assert np.array_equal(logits(first, ids, "--no-mmap"), logits(whole, ids))
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    assert_fails(run(first, "--ids", "5", ok=False), 1, "m-00002-of-00002.gguf")


def test_no_mmap_needs_the_file_no_longer(tmp_path):
    """A file that is cut while a program has it mapped ends that program."""
    copy = tmp_path / "copy.gguf"
    shutil.copy(BUNDLED, copy)
    args = ["-p", "And the king", "-n", 400, "--temp", 0, "-q"]
    command = [RUN, copy, "--no-mmap", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        begin = process.stdout.read(1)
        os.truncate(copy, 0)
        assert begin + process.stdout.read() == run(BUNDLED, *args).stdout
    assert process.returncode == 0


def test_no_mmap_without_memory(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))

    big = tmp_path / "big.gguf"
    big.touch()
    os.truncate(big, 1 << 29)
    result = run(big, "--no-mmap", "-p", "x", preexec_fn=limit, ok=False)
    assert_fails(result, 1, "big.gguf", "out of memory", "--no-mmap")


def test_prompt_longer_than_context(model):
    assert_fails(run(model, "--ids", ids_text(random_ids(40)), "-c", 32, "-n", 1, ok=False), 1, "40", "-c")


def test_context_longer_than_trained_warns_and_takes_no_memory(model, tmp_path):
    figures, result = stats(model, tmp_path, "-p", "then", "-n", 4, "-c", 100_000_000)
    assert b"warning" in result.stderr
    assert figures["cache_bytes"] < 1 << 20


def test_generation_stops_at_the_end_of_the_context(model, tmp_path):
    figures, result = stats(
        model, tmp_path, "--ids", ids_text(random_ids(20)), "-n", 100, "-c", 32, "--temp", 0
    )
    assert figures["prompt_tokens"] == 20
    assert 12 <= figures["gen_tokens"] <= 13  # the last one needs no place in the context


def test_ids_out_of_range(model):
    assert_fails(run(model, "--ids", "5 100000", "-n", 1, ok=False), 1, "100000")
    assert_fails(run(model, "--ids", "-1", "-n", 1, ok=False), 2, "-1")
    for text, what in ("five", "five"), ("1+2", "+2"), ("+5", "+5"):
        assert_fails(run(model, "--ids", text, "-n", 1, ok=False), 2, f"'{what}'")


@pytest.mark.parametrize("args", [["-p", ""], ["--ids", ""], []], ids=["-p", "--ids", "stdin"])
def test_empty_prompt(model, args):
    assert_fails(run(model, *args, "-n", 1, ok=False), 1, "empty")


def test_missing_prompt_file(model):
    assert_fails(run(model, "-f", "/nonexistent/prompt", ok=False), 1, "/nonexistent/prompt")
    assert_fails(run(model, "--score", "/nonexistent/text", ok=False), 1, "/nonexistent/text")


def test_a_nul_byte_is_no_end_of_a_chat(model, tmp_path):
    (tmp_path / "text").write_bytes(b"the\0rain")
    assert_fails(run(model, "-f", tmp_path / "text", "--chat", "--tokenize", ok=False), 1, "NUL")
    assert b" 3 " in run(model, "-f", tmp_path / "text", "--tokenize").stdout  # byte 0, the first after the specials


@pytest.mark.parametrize("option", ["--stats", "--session"])
@pytest.mark.parametrize("target", ["/nonexistent/out", "/tmp"])
def test_no_work_for_what_can_not_be_written(model, option, target):
    assert_fails(run(model, "-p", "the rain", "-n", 20, option, target, ok=False), 1, target)


@pytest.mark.parametrize("option", ["--logits", "--stats"])
@pytest.mark.parametrize(
    "target, mention", [("/dev/full", "No space left"), ("/nonexistent/out", "/nonexistent/out")]
)
def test_unwritable_output(model, option, target, mention):
    result = run(model, "-p", "the rain", "-n", 0, "-q", option, target, ok=False)
    assert_fails(result, 1, target, mention)


def test_failed_output_leaves_the_old_file(model, tmp_path):
    out = tmp_path / "logits"
    out.write_bytes(b"precious")
    assert_fails(run(model, "--ids", "5 100000", "--logits", out, ok=False), 1)
    assert out.read_bytes() == b"precious" and os.listdir(tmp_path) == ["logits"]


def test_output_goes_where_a_link_leads(model, tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    run(model, "-p", "the rain", "-n", 1, "--stats", link)
    assert link.is_symlink() and json.loads(target.read_text())["gen_tokens"] == 1
    assert target.stat().st_mode & 0o777 == 0o600 and len(os.listdir(tmp_path)) == 2


def test_output_to_standard_output_follows_the_text(model, tmp_path):
    """A link stands in for /dev/stdout, which a program that renames over it would destroy."""
    link, out = tmp_path / "stdout", tmp_path / "out"
    link.symlink_to("/proc/self/fd/1")
    args = [RUN, model, "-p", "the rain", "-n", "4", "--temp", "0"]
    with open(out, "wb") as file:
        subprocess.run([*args, "--stats", link], stdout=file, stderr=subprocess.DEVNULL, check=True)
    text = run(*args[1:]).stdout
    assert link.is_symlink() and out.read_bytes().startswith(text)
    assert json.loads(out.read_bytes()[len(text) :])["gen_tokens"] == 4


def test_standard_output_on_a_full_disk(model):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [RUN, model, "-p", "the rain", "-n", "20", "-q"],
            stdout=full,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    assert result.returncode == 1
    assert b"standard output" in result.stderr and result.stderr.count(b"\n") == 1


def test_closed_pipe(model):
    process = subprocess.Popen(
        [RUN, model, "-p", "the rain", "-n", "400", "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    message = process.stderr.read()
    assert process.wait(60) == 1
    assert message.count(b"\n") == 1


def test_interrupt_ends_a_generation(model):
    process = subprocess.Popen(
        [RUN, model, "-p", "the rain", "-n", "-1", "-c", "100000000", "--seed", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("job", [[], ["--tokenize"]], ids=["generate", "tokenize"])
def test_interrupt_while_waiting_for_standard_input(model, job, number):
    with subprocess.Popen(
        [RUN, model, "-q", *job],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests themselves may be under nohup
    ) as process:
        process.stdin.write(b"the")
        process.stdin.flush()
        time.sleep(1)  # until it waits for more
        process.send_signal(number)
        process.wait(30)  # before the pipe is closed, which it would notice as well
        out, message = process.communicate()
    assert (process.returncode, out, message) == (130, b"", b"run: interrupted\n")


def test_nohup(model):
    with subprocess.Popen(
        [RUN, model, "-p", "the rain", "-n", "3000", "-c", "4000", "-q", "--seed", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGHUP)
        process.stdout.read()
        assert process.wait(30) == 0


def test_interrupt_while_nobody_reads(model, tmp_path):
    """The pipe is full; the session is saved all the same."""
    session = tmp_path / "session"
    with subprocess.Popen(
        [RUN, model, "-p", "the rain", "-n", "-1", "-c", "100000", "-q", "--seed", "1", "--session", session],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        buffered, end = -1, time.monotonic() + 60
        while buffered != (buffered := unread(process.stdout)) or buffered < 4000:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        assert process.wait(30) == 130
    assert b"can't" not in message and session.stat().st_size > 0


def test_a_second_interrupt_leaves_no_temporary_file(model, tmp_path):
    ids = tmp_path / "ids"
    ids.write_text(ids_text(random_ids(100_000)))
    with subprocess.Popen(
        [RUN, model, "--ids", f"@{ids}", "-b", "64", "-c", "200000", "--logits", tmp_path / "logits"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("logits.*.tmp")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # both before it can end
            process.send_signal(number)
        assert process.wait(30) == 130
    assert list(tmp_path.iterdir()) == [ids]


def unread(pipe):
    """Bytes in it."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_an_interrupted_prompt_counts_what_was_read(model, tmp_path):
    ids, file = tmp_path / "ids", tmp_path / "stats"
    n = 100_000
    ids.write_text(ids_text(random_ids(n)))
    with subprocess.Popen(
        [RUN, model, "--ids", f"@{ids}", "-n", "1", "-b", "64", "-c", str(2 * n), "-q", "--stats", file],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    figures = json.loads(file.read_text())
    assert 0 < figures["prompt_tokens"] < n and figures["prompt_tokens"] == figures["entries_cached"]


def test_weights_that_are_no_numbers(model, tmp_path):
    path, text = tmp_path / "nan.gguf", tmp_path / "text"
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "output_norm.weight")
    data = bytearray(model.read_bytes())
    data[tensor.data_offset : tensor.data_offset + 4] = np.float32("nan").tobytes()
    path.write_bytes(data)
    text.write_text("the rain and the sun")
    assert_fails(run(path, "-p", "the", "-n", 5, ok=False), 1, "nan.gguf", "damaged")
    assert_fails(run(path, "--score", text, ok=False), 1, "nan.gguf", "damaged")


def test_biases_that_are_not_added_are_refused(tiny_model, tmp_path):
    model = tiny_model(arch="qwen2")[0].read_bytes()
    path = tmp_path / "biased.gguf"
    path.write_bytes(model.replace(b"blk.0.attn_q.bias", b"blk.0.ffn_up.bias"))
    assert_fails(run(path, "-p", "the", "-n", 1, ok=False), 1, "biased.gguf", "blk.0.ffn_up.bias")


def test_no_tokens_asked_for(model, tmp_path):
    figures, result = stats(model, tmp_path, "-p", "the rain", "-n", 0)
    assert result.stdout == b"" and figures["gen_tokens"] == 0


def test_stats(model, tmp_path):
    ids = random_ids(50)
    figures, result = stats(
        model, tmp_path, "--ids", ids_text(ids), "-n", 10, "--seed", 7, "-t", 2, "--temp", 0
    )
    assert set(figures) == STATS_KEYS
    assert figures["prompt_tokens"] == 50 and figures["gen_tokens"] == 10
    assert figures["threads"] == 2 and figures["seed"] == 7
    assert (figures["attn"], figures["kv_evict"], figures["kv_type"]) == ("dense", "none", "f16")
    assert figures["isa"] in ("c", "avx2", "avx512", "avx512vnni", "amx", "neon")
    assert figures["prompt_tps"] == pytest.approx(50 / figures["prompt_seconds"], rel=0.02)
    # the last token is printed without being run, or with
    assert 59 <= figures["entries_cached"] <= 60
    assert 54 <= figures["entries_attended"] <= 56
    assert figures["cache_bytes"] >= 59 * 2 * 2 * 16 * 2 * 2
    assert figures["weights_bytes"] == pytest.approx(model.stat().st_size, rel=0.1)
    assert figures["peak_rss_bytes"] > figures["cache_bytes"]


def test_default_seed_is_random_and_printed(model):
    args = (model, "-p", "the rain", "-n", 30, "--temp", 1.5, "--top-k", 0)
    first, second = run(*args), run(*args)
    seeds = [re.search(rb"seed: (\d+)", r.stderr).group(1).decode() for r in (first, second)]
    assert seeds[0] != seeds[1] and first.stdout != second.stdout
    assert run(*args, "--seed", seeds[0]).stdout == first.stdout


def test_seeds_reproduce_whatever_the_threads_and_batches(model):
    def sample(*extra):
        return run(model, "-p", "the rain", "-n", 40, "--temp", 1, "--seed", 11, *extra).stdout

    assert sample("-t", 1) == sample("-t", 2) == sample("-b", 1) == sample("-b", 3)
    assert sample() != run(model, "-p", "the rain", "-n", 40, "--temp", 1, "--seed", 12).stdout


def test_stdout_carries_the_text_alone(model):
    quiet = run(model, "-p", "the rain", "-n", 20, "--temp", 0, "-q")
    chatty = run(model, "-p", "the rain", "-n", 20, "--temp", 0)
    assert quiet.stdout == chatty.stdout and quiet.stderr == b""
    assert b"tok/s" in chatty.stderr


def test_output_is_valid_utf8_whatever_is_generated(tiny_model):
    path, _ = tiny_model(tied=True)  # any byte may come
    for seed in range(8):
        run(path, "-p", "the rain", "-n", 60, "--temp", 5, "--seed", seed).stdout.decode("utf-8")


def test_tokenize(model):
    vocabulary = tiny.vocabulary()
    out = run(model, "-p", "<|im_start|>the 12", "--tokenize").stdout.decode()
    assert (
        out == ids_text([vocabulary.index(t) for t in ("<|im_start|>", "the", "Ġ", "1", "2")]) + "\n"
        or out == ids_text([vocabulary.index(t) for t in ("<|im_start|>", "the", "Ġ", "12")]) + "\n"
    )


def test_inspect(model):
    out = run(model, "--inspect").stdout.decode()
    for part in ("general.architecture", "llama", "blk.1.ffn_down.weight", "F32", "tokenizer.ggml.merges"):
        assert part in out


def test_version_help_and_lists():
    assert re.match(rb"attn\.c \d+\.\d+", run("--version").stdout)
    help_text = run("-h").stdout.decode()
    for option in (
        "-p",
        "-f",
        "--ids",
        "-n",
        "-c",
        "-t",
        "-b",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--seed",
        "--repeat-penalty",
        "-i",
        "--system",
        "--raw",
        "--attn",
        "--kv-evict",
        "--kv-type",
        "--adapter",
        "--rope-scaling",
        "--rope-scale",
        "--rope-base",
        "--tokenize",
        "--logits",
        "--score",
        "--compare",
        "--score-prompt",
        "--bench",
        "--depths",
        "--stats",
        "--inspect",
        "--list-attn",
        "--list-evict",
        "--version",
    ):
        assert re.search(rf"^\s+{option}\b", help_text, re.M), f"{option} is not in -h"
    assert b"dense" in run("--list-attn").stdout
    assert b"none" in run("--list-evict").stdout


def test_bench_csv(tiny_model):
    path, _ = tiny_model(n_ctx=4096)
    lines = run(path, "--bench", "--depths", "128,1000", "-t", 2).stdout.decode().splitlines()
    assert lines[0] == "attn,kv_evict,kv_type,threads,depth,prompt_tps,gen_tps,cache_bytes,entries_attended"
    rows = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    assert [int(r["depth"]) for r in rows] == [128, 1000]
    for r in rows:
        assert float(r["prompt_tps"]) > 0 and float(r["gen_tps"]) > 0 and int(r["cache_bytes"]) > 0
        assert int(r["depth"]) < float(r["entries_attended"]) < int(r["depth"]) + 100


def test_stats_of_a_bench(model, tmp_path):
    figures, result = stats(model, tmp_path, "--bench", "--depths", "50,100", "-n", 3)
    assert len(result.stdout.splitlines()) == 3
    assert figures["prompt_tokens"] == 97 and figures["gen_tokens"] == 6
    assert figures["prompt_tps"] > 0 and figures["gen_tps"] > 0


def test_chat_uses_the_template(model):
    """--chat wraps the prompt in the checkpoint's ChatML; checked through the number of tokens seen."""
    plain = run(model, "-p", "the rain", "--tokenize").stdout.split()
    chat = run(model, "-p", "the rain", "--chat", "--tokenize").stdout.split()
    vocabulary = tiny.vocabulary()
    start, end = vocabulary.index("<|im_start|>"), vocabulary.index("<|im_end|>")
    ids = [int(i) for i in chat]
    assert ids.count(start) >= 2 and ids.count(end) >= 1
    text = " ".join(map(str, ids))
    assert " ".join(i.decode() for i in plain) in text


def test_unknown_chat_template_names_raw(tmp_path, model):
    path = tmp_path / "odd.gguf"
    template = tiny.CHAT_TEMPLATE.encode()
    path.write_bytes(model.read_bytes().replace(template, b"{{ " + b"x" * (len(template) - 6) + b" }}"))
    assert_fails(run(path, "-p", "the rain", "--chat", "-n", 1, ok=False), 1, "--raw")


def test_start_is_quick(model):
    best = 1e9
    for _ in range(5):
        start = time.monotonic()
        run(model, "-p", "the", "-n", 1)
        best = min(best, time.monotonic() - start)
    assert best < 0.5


def test_the_default_model_is_the_bundled_one():
    result = run("-p", "x", "-n", 1, ok=False, cwd="/")
    if result.returncode:  # from a folder that has none: the message names the file that was looked for
        assert_fails(result, 1, "models/")
    assert (ROOT / "models").is_dir()


def test_json_of_stats_escapes_option_texts(model, tmp_path):
    file = tmp_path / "s.json"
    run(model, "-p", "x", "-n", 1, "--attn", "dense@0-", "--stats", file)
    assert json.loads(file.read_text())["attn"] == "dense@0-"
