"""Interactive chat: on a terminal with line editing, and line by line from a pipe."""

import json
import re
import signal
import subprocess
import time

import pytest

from conftest import RUN, SMOLLM2, logits, run
from reference import tiny
from terminal import Terminal

GREEDY = ("--temp", 0, "-n", 8, "-q")


@pytest.fixture
def model(tiny_model):
    return tiny_model()[0]


@pytest.fixture
def endless_model(tiny_model):
    """Its answers go on until somebody stops them."""
    return tiny_model(n_ctx=1_000_000)[0]


@pytest.fixture
def terminal():
    """Starts a program on a terminal and waits for its prompt."""
    started = []

    def start(*args, prompt="> ", **kwargs):
        t = Terminal(*args, **kwargs)
        started.append(t)
        if prompt:
            t.wait_prompt(prompt)
        return t

    yield start
    for t in started:
        t.close()


def turn(text, first=True):
    """ChatML, as the tiny models' template has it."""
    end = "" if first else "<|im_end|>\n"
    return f"{end}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def tokenize(model, text):
    return [int(i) for i in run(model, "--tokenize", "-p", text).stdout.split()]


def continuation(model, ids, n=8):
    """The n most likely tokens after ids, one by one."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[-n:]


def chat(model, lines, *args, **kwargs):
    return run(model, "-i", *args, input="".join(line + "\n" for line in lines).encode(), **kwargs)


def shown_answer(model, *lines):
    """To one message, as a screen shows it."""
    return chat(model, lines, *GREEDY).stdout.decode().rstrip()


def figures(text):
    """Of the last /stats: (prompt tokens, generated tokens, tokens in the context)."""
    found = re.findall(r"prompt: (\d+) tokens.*?generated: (\d+) tokens.*?context: (\d+) of", text, re.DOTALL)
    return tuple(int(n) for n in found[-1])


# ---- From a pipe ----


def test_turns_continue_one_context(model, tmp_path):
    first = tokenize(model, turn("Hello"))
    answer = continuation(model, first)
    second = tokenize(model, turn("And then?", first=False))
    answer_2 = continuation(model, first + answer + second)

    file = tmp_path / "stats.json"
    result = chat(model, ["Hello", "And then?"], *GREEDY, "--stats", file)
    assert result.stdout.decode() == tiny.text_of(answer) + "\n" + tiny.text_of(answer_2) + "\n"
    assert result.stderr == b""
    written = json.loads(file.read_text())
    assert written["prompt_tokens"] == len(first) + len(second)  # no token twice
    assert written["gen_tokens"] == 16
    assert written["entries_cached"] == len(first) + len(second) + 16


def test_system_message(model):
    ids = tokenize(model, "<|im_start|>system\nBe brief.<|im_end|>\n" + turn("Hello"))
    result = chat(model, ["Hello"], *GREEDY, "--system", "Be brief.")
    assert result.stdout.decode() == tiny.text_of(continuation(model, ids)) + "\n"


@pytest.mark.parametrize("option", ["-p", "-f"])
def test_prompt_option_is_the_first_message(model, tmp_path, option):
    file = tmp_path / "message.txt"
    file.write_text("Hello")
    given = chat(model, ["And then?"], *GREEDY, option, "Hello" if option == "-p" else file)
    assert given.stdout == chat(model, ["Hello", "And then?"], *GREEDY).stdout


def test_empty_lines_are_not_messages(model):
    assert chat(model, ["", "Hello", "  ", ""], *GREEDY).stdout == chat(model, ["Hello"], *GREEDY).stdout
    assert chat(model, [], *GREEDY).stdout == b""


def test_last_line_needs_no_newline(model):
    result = run(model, "-i", *GREEDY, input=b"Hello")
    assert result.stdout == chat(model, ["Hello"], *GREEDY).stdout


def test_backslash_continues_a_message(model):
    result = chat(model, ["one\\", "two"], *GREEDY)
    ids = tokenize(model, turn("one\ntwo"))
    assert result.stdout.decode() == tiny.text_of(continuation(model, ids)) + "\n"


def test_clear_begins_anew(model):
    once = chat(model, ["Hello"], *GREEDY)
    twice = chat(model, ["Hello", "/clear", "Hello", "/stats"], *GREEDY)
    assert twice.stdout == 2 * once.stdout
    n = len(tokenize(model, turn("Hello")))
    assert figures(twice.stderr.decode()) == (2 * n, 16, n + 8)


STATEFUL = {
    "mosa": ("--attn", "mosa:k=16"),
    "infini": ("--attn", "infini:segment=16"),
    "landmark": ("--attn", "landmark:block=8,topk=2"),
    "window": ("--kv-evict", "window:budget=24"),
    "h2o": ("--kv-evict", "h2o:budget=24"),
}


@pytest.mark.parametrize("args", STATEFUL.values(), ids=STATEFUL)
def test_clear_forgets_what_modes_and_policies_keep(tiny_model, args):
    model = tiny_model(mosa="group", infini=True, landmark="vocab")[0]
    message = "This is long enough to fill some blocks, and segments, and budgets."
    once = chat(model, [message, "And then?"], *GREEDY, *args)
    twice = chat(model, [message, "And then?", "/clear", message, "And then?"], *GREEDY, *args)
    assert once.stdout.count(b"\n") == 2
    assert twice.stdout == 2 * once.stdout


def test_exit_leaves_the_rest_unread(model):
    assert chat(model, ["Hello", "/exit", "Hello"], *GREEDY).stdout == chat(model, ["Hello"], *GREEDY).stdout


def test_help_and_unknown_commands(model):
    result = chat(model, ["/help", "/frobnicate"], *GREEDY)
    assert result.stdout == b""
    message = result.stderr.decode()
    for command in ["/help", "/clear", "/stats", "/exit"]:
        assert f"  {command} " in message
    assert "/frobnicate" in message


def test_path_is_not_a_command(model):
    assert len(chat(model, ["/etc/passwd"], *GREEDY).stdout) > 1


def test_message_that_does_not_fit(model):
    result = chat(model, ["long " * 50, "hi"], *GREEDY, "-c", 100)
    assert b"/clear" in result.stderr and b"-c" in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert result.stdout == chat(model, ["hi"], *GREEDY).stdout


def test_context_that_fills_up(model):
    result = chat(model, ["hi", "and", "/clear", "hi"], "--temp", 0, "-q", "-c", 60)
    answers = result.stdout.decode().splitlines()
    assert len(answers) == 2 and answers[0] == answers[1]
    message = result.stderr.decode()
    assert message.count("the context of 60 tokens is full") == 2
    assert message.count("no room") == 1


def test_raw_lines_go_in_as_they_are(model):
    result = chat(model, ["Once upon", " a time"], "--raw", *GREEDY)
    first = tokenize(model, "Once upon")
    answer = continuation(model, first)
    second = continuation(model, first + answer + tokenize(model, " a time"))
    assert result.stdout.decode() == tiny.text_of(answer) + "\n" + tiny.text_of(second) + "\n"


def test_raw_empty_line_goes_on(model):
    whole = run(model, "-p", "Once upon", "--temp", 0, "-n", 16, "-q").stdout
    assert chat(model, ["", "Once upon", ""], "--raw", *GREEDY).stdout.replace(b"\n", b"") == whole


def test_unknown_template(model, tmp_path):
    template = tiny.CHAT_TEMPLATE.encode()
    file = tmp_path / "odd.gguf"
    file.write_bytes(model.read_bytes().replace(template, b"{{ messages }}".ljust(len(template))))
    result = chat(file, ["Hello"], *GREEDY, ok=False)
    assert result.returncode == 1 and result.stdout == b""
    assert b"--raw" in result.stderr and b"template" in result.stderr and result.stderr.count(b"\n") == 1
    assert chat(file, ["Hello"], "--raw", *GREEDY).stdout == chat(model, ["Hello"], "--raw", *GREEDY).stdout


def test_missing_template(model, tmp_path):
    file = tmp_path / "plain.gguf"
    file.write_bytes(model.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.that_template"))
    result = chat(file, ["Hello"], *GREEDY, ok=False)
    assert result.returncode == 1 and b"--raw" in result.stderr and result.stderr.count(b"\n") == 1


def test_message_with_a_nul_byte(model):
    result = run(model, "-i", *GREEDY, input=b"a\0b\n", ok=False)
    assert result.returncode == 1 and b"NUL" in result.stderr
    assert run(model, "-i", "--raw", *GREEDY, input=b"a\0b\n").stdout


def test_token_ids_are_not_a_message(model):
    assert run(model, "-i", "--ids", "5 6", ok=False).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_piped_chat(endless_model, number):
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with subprocess.Popen([RUN, endless_model, "-i", "-q"], **pipes) as process:
        process.stdin.write(b"Hello\nHello\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert rest.count(b"\n") == 1 and rest.endswith(b"\n")


# ---- On a terminal ----


def test_conversation_on_a_terminal(model, terminal):
    result = chat(model, ["Hello", "And then?"], *GREEDY)
    answers = [line.rstrip() for line in result.stdout.decode().splitlines()]
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see("Hello\r", answers[0], ">")
    t.send_and_see("And then?\r", answers[1], ">")
    t.send("\x04")
    assert t.exit_status() == 0
    assert t.screen.lines() == ["> Hello", answers[0], "> And then?", answers[1], ">"]


def test_ctrl_c_stops_the_answer_only(endless_model, terminal):
    t = terminal(RUN, endless_model, "--seed", 1)
    for turns in range(1, 3):
        n = len(t.output)
        t.send("Hello\r")
        t.wait(lambda t, n=n: len(t.output) > n + 100)
        t.send("\x03")
        t.wait_prompt()
        t.send("/stats\r")
        t.wait(lambda t, k=turns: t.output.count("context: ") == k)
        t.wait_prompt()
        prompt, generated, context = figures(t.output)
        first, later = (len(tokenize(endless_model, turn("Hello", first))) for first in (True, False))
        assert prompt == first + (turns - 1) * later
        assert generated > 10 * turns
        assert context == prompt + generated  # all that was shown is remembered
    t.send("\x04")
    assert t.exit_status() == 0


def test_ctrl_c_stops_a_long_message(endless_model, terminal, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("all work and no play " * 20_000)
    t = terminal(RUN, endless_model, "-f", file, "-i", "-b", 32, "--temp", 0, "-n", 8, prompt=None)
    t.wait(lambda t: " tok/s" in t.output)
    t.send("\x03")
    t.wait_prompt()
    read, total = map(int, re.search(r"stopped after (\d+) of the message's (\d+) tokens", t.output).groups())
    assert 0 < read < total
    t.send("Hello\r")
    t.wait_prompt()
    t.send("/stats\r")
    t.wait(lambda t: "context: " in t.output)
    assert figures(t.output)[2] == read + len(tokenize(endless_model, turn("Hello", first=False))) + 8
    t.send("\x04")
    assert t.exit_status() == 0


def test_sigterm_during_an_answer_ends_the_program(endless_model, terminal):
    t = terminal(RUN, endless_model, "-q")
    t.send("Hello\r")
    t.wait(lambda t: len(t.output) > 100)
    t.kill(signal.SIGTERM)
    assert t.exit_status() == 130


def test_ctrl_c_at_the_prompt(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see("Hell", "> Hell")
    t.send_and_see("\x03", ">")
    t.send("\x03")
    assert t.exit_status() == 0
    assert t.screen.lines() == [">"]


@pytest.mark.parametrize("end", ["eof", "sigterm", "exit"])
def test_terminal_is_restored(model, terminal, end):
    t = terminal(RUN, model, *GREEDY)
    assert not t.echoes()
    if end == "sigterm":
        t.kill(signal.SIGTERM)
    else:
        t.send("\x04" if end == "eof" else "/exit\r")
    assert t.exit_status() == (130 if end == "sigterm" else 0)
    assert t.modes() == t.modes_before
    assert t.output.rindex("\033[?2004l") > t.output.rindex("\033[?2004h")


def test_suspended_and_continued(model, terminal):
    t = terminal("/bin/sh", "-i", columns=500, prompt="shell", PS1="shell ", ENV="")
    t.send(f"'{RUN}' '{model}' {' '.join(map(str, GREEDY))}\r")
    t.wait_prompt()
    t.send_and_see("Hel", "> Hel")
    t.send("\x1a")
    t.wait_prompt("shell")
    assert t.echoes()
    t.send("fg\r")
    t.wait(lambda t: t.screen.lines()[-1] == "> Hel")
    t.send_and_see("lo\r", shown_answer(model, "Hello"), ">")
    t.send("\x04")
    t.wait_prompt("shell")


LEFT, RIGHT, UP, DOWN = "\033[D", "\033[C", "\033[A", "\033[B"
HOME, END, DELETE = "\033[H", "\033[F", "\033[3~"
EDITS = {
    "left and right": ("abc" + LEFT + LEFT + "X" + RIGHT + "Y", "aXbYc"),
    "home and end": ("abc" + HOME + "X" + END + "Y", "XabcY"),
    "ctrl-a and ctrl-e": ("abc\x01X\x05Y", "XabcY"),
    "other names of home and end": ("abc\033OHX\033[4~Y\033[1~Z", "ZXabcY"),
    "backspace": ("abc\x7f\x08d", "ad"),
    "delete and ctrl-d": ("abc\x01" + DELETE + "\x04", "c"),
    "ctrl-k": ("one two three" + LEFT * 5 + "\x0b", "one two "),
    "ctrl-u": ("one two three" + LEFT * 5 + "\x15", "three"),
    "ctrl-w": ("one two  \x17three", "one three"),
    "characters of several bytes": ("é日本🙂" + LEFT * 2 + "\x7fx", "éx本🙂"),
    "delete of several bytes": ("日" + LEFT + DELETE + "b", "b"),
    "combining marks": ("e\u0301a" + LEFT + "\x7f", "ea"),
    "on an empty line": ("\x02\x7f\x0b\x17\x15" + LEFT + RIGHT + DELETE + UP + DOWN + "a", "a"),
    "keys without a meaning": ("a\033b\t\033[99~\033[Z\033[1;5Pc", "ac"),
    "keys with ctrl": ("ab\033[1;5DX", "aXb"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_editing(model, terminal, edit):
    keys, line = EDITS[edit]
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see(keys, "> " + line.rstrip())
    t.send_and_see("\r", "> " + line.rstrip(), shown_answer(model, line), ">")


def test_keys_that_come_in_pieces(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see("ab", "> ab")
    for byte in LEFT:
        t.send(byte)
        time.sleep(0.01)
    t.wait(lambda t: t.screen.cursor() == (0, 3))
    for byte in "日".encode():
        t.send(bytes([byte]))
        time.sleep(0.01)
    t.wait(lambda t: t.screen.lines() == ["> a日b"])


def test_cursor_stands_where_wide_characters_end(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see("aé日🙂e\u0301", "> aé日🙂e\u0301")
    assert t.screen.cursor() == (0, 2 + 1 + 1 + 2 + 2 + 1)
    t.send(LEFT * 3)
    t.wait(lambda t: t.screen.cursor() == (0, 2 + 1 + 1 + 2))


def test_history(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    for message in ["one", "two", "two"]:
        t.send(message + "\r")
        t.wait_prompt()
    t.send_and_see("dra" + UP, "> two")
    t.send_and_see(UP, "> one")
    t.send_and_see(UP + "!", "> one!")
    t.send_and_see(DOWN, "> two")
    t.send_and_see(DOWN + DOWN, "> dra")


def test_long_lines_wrap(model, terminal):
    t = terminal(RUN, model, *GREEDY, columns=20, rows=10)
    letters = "abcdefghijklmnopqrstuvwxyz" * 2
    shown = "> " + letters
    t.send_and_see(letters, shown[:20], shown[20:40], shown[40:])
    assert t.screen.cursor() == (2, 14)
    t.send(HOME + "12")
    shown = "> 12" + letters
    rows = [shown[:20], shown[20:40], shown[40:]]
    t.wait(lambda t: t.screen.lines() == rows and t.screen.cursor() == (0, 4))
    t.send(END + "\x7f" * 16)
    t.wait(lambda t: t.screen.lines() == [shown[:20], shown[20:40]] and t.screen.cursor() == (2, 0))
    t.send("\x15")
    t.wait(lambda t: t.screen.lines() == [">"] and t.screen.cursor() == (0, 2))


def test_wide_character_does_not_fit_at_the_edge(model, terminal):
    t = terminal(RUN, model, *GREEDY, columns=9)
    t.send("日" * 4 + LEFT)
    t.wait(lambda t: t.screen.lines() == ["> 日日日", "日"] and t.screen.cursor() == (1, 0))


def test_line_longer_than_the_screen(model, terminal):
    t = terminal(RUN, model, *GREEDY, columns=20, rows=4)
    letters = "".join(chr(ord("a") + i % 26) for i in range(150))
    shown = "> " + letters
    rows = [shown[i : i + 20] for i in range(0, len(shown), 20)]
    t.send(letters)
    t.wait(lambda t: t.screen.lines()[-4:] == rows[-4:])
    t.send(HOME)
    t.wait(lambda t: t.screen.lines()[-4:] == rows[:4])
    t.send(END + "\x15")
    t.wait(lambda t: t.screen.lines()[-1:] == [">"])


@pytest.mark.parametrize("newline", ["\r", "\n", "\r\n"], ids=["cr", "lf", "crlf"])
def test_paste_is_one_message(model, terminal, newline):
    t = terminal(RUN, model, *GREEDY)
    t.send("ac" + LEFT)
    t.send_and_see(f"\033[200~b{newline}\tb\033[201~", "> ab", "^Ibc")
    t.send_and_see("\r", shown_answer(model, "ab\\", "\tbc"), ">")


def test_backslash_opens_another_row(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    t.send_and_see("one\\\rtwo", "> one", "two")
    t.send_and_see("\r", shown_answer(model, "one\\", "two"), ">")
    t.send_and_see(UP, "> one", "two")


def test_ctrl_l_clears_the_screen(model, terminal):
    t = terminal(RUN, model, *GREEDY)
    t.send("Hello\r")
    t.wait(lambda t: len(t.screen.lines()) == 3)
    t.send("abc\x0c")
    t.wait(lambda t: t.screen.lines() == ["> abc"] and t.screen.cursor() == (0, 5))


def test_resized_terminal(model, terminal):
    t = terminal(RUN, model, *GREEDY, columns=40)
    letters = "abcdefghijklmnopqrstuvwxyz"
    t.send_and_see(letters, "> " + letters)
    t.resize(20, 24)
    t.wait(lambda t: t.screen.lines() == ["> " + letters[:18], letters[18:]])


def test_dumb_terminal(model, terminal):
    t = terminal(RUN, model, *GREEDY, term="dumb")
    t.send_and_see("Hello\r", "> Hello", shown_answer(model, "Hello"), ">")
    t.send("\x04")
    assert t.exit_status() == 0
    assert "\033" not in t.output


def test_only_answers_go_to_standard_output(model, terminal, tmp_path):
    file = tmp_path / "answers.txt"
    t = terminal("/bin/sh", "-c", f'"$0" "$@" > {file}', RUN, model, "-i", *GREEDY)
    t.send_and_see("Hello\r", "> Hello", ">")
    t.send("\x04")
    assert t.exit_status() == 0
    assert file.read_bytes() == chat(model, ["Hello"], *GREEDY).stdout


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is missing: make model")
def test_smollm2_remembers():
    messages = ["The secret word is banana.", "What is the secret word?"]
    result = chat(SMOLLM2, messages, "--temp", 0, "-n", 20, "-q")
    assert "banana" in result.stdout.decode().splitlines()[-1]
