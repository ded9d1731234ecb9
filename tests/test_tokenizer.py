"""Token ids against the `tokenizers` and `sentencepiece` libraries, on generated strings.

The vocabularies are SmolLM2's, if models/smollm2.gguf is there, and small ones
trained here for every pre-tokenizer and for SentencePiece's options.
"""

import functools
import io
import json
import random
import re
import resource
import struct
import subprocess

import gguf
import pytest
import sentencepiece
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from tokenizer_corpus import corpus, every_code_point
from tokenizer_files import SMOLLM2, build_tool, pack, write_vocabulary

N_STRINGS = 2400

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters in deepseek-llm's rule, as code points.
DEEPSEEK_LETTERS = (
    r"\s?["
    + re.sub(
        r"[0-9A-F]+",
        r"\\x{\g<0>}",
        """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A
    38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF
    1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D
    1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
    1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
    2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
    A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
    104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
""",
    )
    .replace(" ", "")
    .replace("\n", "")
    + "]+"
)
DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def split(*rules):
    """The rules one after the other, then bytes; a rule is a regex or a pre-tokenizer."""
    steps = [pre_tokenizers.Split(Regex(r), "isolated") if isinstance(r, str) else r for r in rules]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(steps + [bytes_only])


def byte_level(*before, after=()):
    """GPT-2's own pre-tokenizer, with others around it."""
    steps = [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), *after]
    return pre_tokenizers.Sequence(steps)


def digits():
    return pre_tokenizers.Digits(individual_digits=True)


# name of the case: (tokenizer.ggml.pre, pre-tokenizer as in the checkpoint's tokenizer.json)
PRE_TOKENIZERS = {
    "gpt-2": ("gpt-2", byte_level()),
    "mpt": ("mpt", byte_level()),
    "smollm": ("smollm", byte_level(digits())),
    "starcoder": ("starcoder", byte_level(digits())),
    "refact": ("refact", split(r"\p{N}", GPT2)),
    "llama-bpe": ("llama-bpe", split(LLAMA3)),
    "dbrx": ("dbrx", split(LLAMA3)),
    "qwen2": ("qwen2", split(QWEN2)),
    "tekken": ("tekken", split(TEKKEN)),
    "deepseek-llm": (
        "deepseek-llm",
        split("[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"),
    ),
    "deepseek-llm, own digits": (
        "deepseek-llm",
        split("[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, digits()),
    ),
    "deepseek-coder": ("deepseek-coder", split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}")),
    "falcon": ("falcon", split(r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "falcon, own digits": (
        "falcon",
        byte_level(
            pre_tokenizers.Punctuation("contiguous"),
            after=(
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ),
        ),
    ),
    "default": ("default", split(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "missing": (None, split(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
# These two checkpoints split digits further than the rule in use, which is llama.cpp's. It makes no difference,
# as a vocabulary trained with such a split has no merges across it.
FINER = {"deepseek-llm, own digits", "falcon, own digits"}
IGNORE_MERGES = {"llama-bpe", "tekken"}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
USER_DEFINED = ["<tool_call>", "<|user|>", "  x"]


@pytest.fixture(scope="session")
def tool(tmp_path_factory):
    return build_tool("tool_tokenize", tmp_path_factory.mktemp("tool"))


def run_tool(tool, model, mode, strings, *options):
    done = subprocess.run([tool, model, mode, *options], input=pack(strings), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def encode(tool, model, strings, *options):
    lines = run_tool(tool, model, "ids", strings, *options)
    return [[int(i) for i in line.split()] for line in lines.decode().split("\n")[:-1]]


def decode(tool, model, strings, *options):
    """What is left of the strings when they are encoded and decoded."""
    out = io.BytesIO(run_tool(tool, model, "text", strings, *options))
    texts = []
    while size := out.read(4):
        texts.append(out.read(struct.unpack("<I", size)[0]))
    return texts


def assert_same(strings, ours, reference):
    assert len(ours) == len(strings)
    wrong = [(s, a, b) for s, a, b in zip(strings, ours, reference) if a != b]
    assert not wrong, f"{len(wrong)} of {len(strings)} differ: (text, ids, expected) {wrong[0]}"


@functools.cache
def training_text():
    return [s for s in corpus(4000, seed=1) if "\0" not in s]


def gpt2_alphabet():
    """The character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


@functools.cache
def pair_vocabulary():
    """All pairs of bytes are tokens, in no order: wherever words are split shows in the ids.

    Some words are tokens that no merges lead to.
    """
    alphabet = gpt2_alphabet()
    pairs = [(a, b) for a in alphabet for b in alphabet]
    random.Random(10).shuffle(pairs)
    words = ["Ġthe", "abcd", "123", "ĠĠĠĠ", "ÐĲÐ°Ð°", "quick", "ĠFuchs"]
    tokens = CONTROL + alphabet + [a + b for a, b in pairs] + words
    return {t: i for i, t in enumerate(tokens)}, pairs


@functools.cache
def train_bpe(case, without=""):
    """A small vocabulary for an entry of PRE_TOKENIZERS, `without` some characters of the byte alphabet."""
    pre, pre_tokenizer = PRE_TOKENIZERS[case]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in IGNORE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in without]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=CONTROL,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    return tokenizer


def export_bpe(tokenizer, path, pre, **more):
    model = json.loads(tokenizer.to_str())["model"]
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    types = [
        (
            TokenType.CONTROL
            if t in CONTROL
            else TokenType.USER_DEFINED if t in USER_DEFINED else TokenType.NORMAL
        )
        for t in tokens
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return write_vocabulary(path, "gpt2", tokens, types, pre=pre, merges=merges, **more)


def reference_ids(tokenizer, strings, parse_special):
    tokenizer.encode_special_tokens = not parse_special
    return [e.ids for e in tokenizer.encode_batch(strings, add_special_tokens=False)]


@pytest.mark.parametrize("case", sorted(set(PRE_TOKENIZERS) - FINER))
def test_words(tool, tmp_path, case):
    pre, pre_tokenizer = PRE_TOKENIZERS[case]
    vocab, merges = pair_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in IGNORE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer
    types = [TokenType.CONTROL if t in CONTROL else TokenType.NORMAL for t in vocab]
    model = write_vocabulary(
        tmp_path / "pairs.gguf", "gpt2", list(vocab), types, pre=pre, merges=[" ".join(m) for m in merges]
    )
    strings = corpus(N_STRINGS, seed=11) + every_code_point()
    assert_same(strings, encode(tool, model, strings), reference_ids(tokenizer, strings, False))


@pytest.mark.parametrize("case", PRE_TOKENIZERS)
def test_byte_level_bpe(tool, tmp_path, case):
    tokenizer = train_bpe(case)
    model = export_bpe(tokenizer, tmp_path / "bpe.gguf", PRE_TOKENIZERS[case][0])
    strings = corpus(N_STRINGS, seed=2)
    assert_same(strings, encode(tool, model, strings, "special"), reference_ids(tokenizer, strings, True))
    assert_same(strings, encode(tool, model, strings), reference_ids(tokenizer, strings, False))
    assert decode(tool, model, strings, "special") == [s.encode() for s in strings]


def test_bytes_without_a_token_are_left_out(tool, tmp_path):
    """Before merging: their neighbours may then merge, as in `tokenizers`."""
    tokenizer = train_bpe("gpt-2", without="qÄ°Ģª")
    model = export_bpe(tokenizer, tmp_path / "bpe.gguf", "gpt-2")
    strings = corpus(600, seed=3) + ["thqe", "qq", " qthe"]
    assert_same(strings, encode(tool, model, strings, "special"), reference_ids(tokenizer, strings, True))


def invalid_utf8(n, seed):
    rng = random.Random(seed)
    made = [
        b"\xff",
        b"a\xc3",
        b"\xc3(",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf5\x80\x80\x80",
        b"\x80\x80 \x80",
        b"\xf4\x90\x80\x80",
    ]
    while len(made) < n:
        text = bytearray(rng.choice(corpus(400, seed=4)).encode() or b"x")
        for _ in range(rng.randint(1, 4)):
            text.insert(rng.randint(0, len(text)), rng.randrange(128, 256))
        made.append(bytes(text))
    return made


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "tekken", "deepseek-llm", "falcon"])
def test_invalid_utf8_keeps_its_bytes(tool, tmp_path, pre):
    """All byte tokens are in the vocabulary, so the ids spell the very bytes; the stream shows U+FFFD."""
    tokenizer = train_bpe(pre)
    model = export_bpe(tokenizer, tmp_path / "bpe.gguf", pre)
    strings = invalid_utf8(300, seed=5)
    byte_of = {c: b for b, c in enumerate(gpt2_alphabet())}
    names = {i: t for t, i in tokenizer.get_vocab().items()}
    for text, ids in zip(strings, encode(tool, model, strings)):
        words = (names[i] for i in ids)
        spelled = (w.encode() if w in USER_DEFINED else bytes(byte_of[c] for c in w) for w in words)
        assert b"".join(spelled) == text
    shown = decode(tool, model, strings)
    assert shown == [s.decode("utf-8", "replace").encode() for s in strings]


def field(reader, key):
    part = reader.fields[key]
    return [bytes(part.parts[i]).decode() for i in part.data]


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is missing: make model")
def test_smollm2(tool):
    reader = gguf.GGUFReader(SMOLLM2)
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = byte_level(digits())
    tokenizer.add_special_tokens(tokens[:17])
    strings = corpus(N_STRINGS, seed=6)
    assert_same(strings, encode(tool, SMOLLM2, strings, "special"), reference_ids(tokenizer, strings, True))
    assert_same(strings, encode(tool, SMOLLM2, strings), reference_ids(tokenizer, strings, False))


# SentencePiece

SPM_OPTIONS = {
    "llama": dict(byte_fallback=True),
    "no prefix": dict(byte_fallback=True, add_dummy_prefix=False),
    "fewer spaces": dict(byte_fallback=True, remove_extra_whitespaces=True),
    "user-defined": dict(
        byte_fallback=True, user_defined_symbols=["<tool_call>", "<|user|>", "▁▁", "▁▁▁▁", "ab", "'s"]
    ),
    "no bytes": dict(),
}


@functools.cache
def train_spm(name):
    options = dict(remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True)
    options.update(SPM_OPTIONS[name])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text()),
        model_writer=model,
        model_type="bpe",
        vocab_size=1400,
        normalization_rule_name="identity",
        character_coverage=0.98,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100000,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), options


def export_spm(processor, options, path, **more):
    n = processor.get_piece_size()
    tokens = [processor.id_to_piece(i) for i in range(n)]
    user_defined = options.get("user_defined_symbols", [])
    types = [
        (
            TokenType.UNKNOWN
            if processor.is_unknown(i)
            else (
                TokenType.CONTROL
                if processor.is_control(i)
                else (
                    TokenType.BYTE
                    if processor.is_byte(i)
                    else TokenType.USER_DEFINED if tokens[i] in user_defined else TokenType.NORMAL
                )
            )
        )
        for i in range(n)
    ]
    return write_vocabulary(
        path,
        "llama",
        tokens,
        types,
        scores=[processor.get_score(i) for i in range(n)],
        add_space_prefix=options["add_dummy_prefix"],
        remove_extra_whitespaces=options["remove_extra_whitespaces"],
        **more,
    )


@pytest.mark.parametrize("name", SPM_OPTIONS)
def test_sentencepiece(tool, tmp_path, name):
    processor, options = train_spm(name)
    model = export_spm(processor, options, tmp_path / "spm.gguf")
    strings = corpus(N_STRINGS, seed=7)
    assert_same(strings, encode(tool, model, strings), processor.encode(strings))
    if name == "no prefix":
        assert decode(tool, model, strings) == [s.replace("▁", " ").encode() for s in strings]


def test_sentencepiece_control_tokens(tool, tmp_path):
    """A control token in the text is that token; text begins anew behind it, with its own prefix."""
    processor, options = train_spm("llama")
    model = export_spm(processor, options, tmp_path / "spm.gguf")
    rng = random.Random(8)
    strings, expected = [], []
    for _ in range(300):
        parts = [s for s in rng.sample(corpus(300, seed=9), 3) if not re.search("</?s>|<unk>", s)]
        strings.append("</s>".join(parts))
        expected.append([i for part in parts for i in [2, *processor.encode(part)]][1:])
    assert_same(strings, encode(tool, model, strings, "special"), expected)


def test_phi3_drops_white_space_after_special_tokens(tool, tmp_path):
    processor, options = train_spm("llama")
    n = processor.get_piece_size()
    tokens = [processor.id_to_piece(i) for i in range(n)] + ["<|user|>", "<|end|>"]
    types = [TokenType.BYTE if processor.is_byte(i) else TokenType.NORMAL for i in range(n)]
    types += [TokenType.CONTROL] * 2
    types[:3] = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED]
    scores = [processor.get_score(i) for i in range(n)] + [0.0, 0.0]
    model = write_vocabulary(tmp_path / "phi.gguf", "llama", tokens, types, scores=scores, name="Phi-3 mini")
    ids = processor.encode
    ours = encode(tool, model, ["<|user|>\n Hello<|end|>\n", "<s> a</s> \tb"], "special")
    assert ours == [[n, *ids("Hello"), n + 1], [1, *ids(" a"), 2, *ids("b")]]


# Speed


def seconds(command, stdin):
    """Processor time of a command, whatever else this machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, input=stdin, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    "unit", ["a", " ", "ab", "\n", "1", "<", "<|im_start", "'", "aA", "中", "é\u0301", "\t x", "0 ", "!"]
)
def test_a_megabyte_takes_no_longer_than_prose(tool, tmp_path, unit):
    """Text that makes one long word, or many attempts at a rule or at a special token."""
    text = (unit * (1 << 20)).encode()[: 1 << 20]
    for pre in "tekken", "smollm", "deepseek-llm":
        model = export_bpe(train_bpe(pre), tmp_path / f"{pre}.gguf", pre)
        assert seconds([tool, model, "ids", "special"], pack([text])) < 2


@pytest.mark.parametrize("unit", ["a", " ", "ab", "xyz ", "\n", "中", "<|user|>"])
def test_a_megabyte_of_sentencepiece(tool, tmp_path, unit):
    processor, options = train_spm("user-defined")
    model = export_spm(processor, options, tmp_path / "spm.gguf")
    text = (unit * (1 << 20)).encode()[: 1 << 20]
    assert seconds([tool, model, "ids", "special"], pack([text])) < 2


# BOS, EOS and what is wrong with a file

BPE = dict(
    model="gpt2", pre="gpt-2", tokens=["a", "b", "ab", "<s>", "</s>"], types=[1, 1, 1, 3, 3], merges=["a b"]
)
SPM = dict(
    model="llama",
    tokens=["<unk>", "<s>", "</s>", "a", "b", "ab"],
    types=[2, 3, 3, 1, 1, 1],
    scores=[0.0, 0.0, 0.0, -2.0, -3.0, -1.0],
    add_space_prefix=False,
)


@pytest.mark.parametrize(
    "file, ids",
    [
        (BPE, [2]),
        (BPE | dict(bos_token_id=3), [2]),
        (BPE | dict(bos_token_id=3, add_bos_token=True), [3, 2]),
        (BPE | dict(bos_token_id=3, pre="llama-bpe"), [3, 2]),
        (BPE | dict(bos_token_id=3, pre="llama-bpe", add_bos_token=False), [2]),
        (BPE | dict(bos_token_id=3, eos_token_id=4, pre="tekken", add_eos_token=True), [3, 2, 4]),
        (SPM, [1, 5]),
        (SPM | dict(add_bos_token=False), [5]),
        (SPM | dict(bos_token_id=0, add_eos_token=True), [0, 5, 2]),
    ],
)
def test_bos_and_eos(tool, tmp_path, file, ids):
    model = write_vocabulary(tmp_path / "v.gguf", **file)
    assert encode(tool, model, ["ab"], "bos") == [ids]
    assert encode(tool, model, ["ab"]) == [[i for i in ids if file["tokens"][i] == "ab"]]


@pytest.mark.parametrize(
    "file, key, about",
    [
        (BPE | dict(model=None), "tokenizer.ggml.model", "missing"),
        (BPE | dict(model="t5"), "tokenizer.ggml.model", "'t5' is not supported (known: gpt2, llama)"),
        (BPE | dict(pre="new"), "tokenizer.ggml.pre", "'new' is not supported (known: default gpt-2 "),
        (BPE | dict(pre="llama"), "tokenizer.ggml.pre", "'llama' is not supported"),
        (BPE | dict(tokens=None), "tokenizer.ggml.tokens", "missing"),
        (BPE | dict(tokens=[1, 2]), "tokenizer.ggml.tokens", "not an array of strings"),
        (BPE | dict(types=[1, 1]), "tokenizer.ggml.token_type", "2 entries, but there are 5 tokens"),
        (BPE | dict(types=[1, 1, 1, 1, 9]), "tokenizer.ggml.token_type", "type 9 for token 4"),
        (BPE | dict(types=["x"] * 5), "tokenizer.ggml.token_type", "not an array of 32-bit integers"),
        (BPE | dict(merges=None), "tokenizer.ggml.merges", "missing"),
        (BPE | dict(merges=["a b", "ab"]), "tokenizer.ggml.merges", "entry 1 is not two tokens"),
        (BPE | dict(merges=["a b", "b a"]), "tokenizer.ggml.merges", "entry 1, 'b a', makes a token"),
        (BPE | dict(merges=["a b", "a " + "b" * 99]), "tokenizer.ggml.merges", "entry 1, "),
        (BPE | dict(bos_token_id=5), "tokenizer.ggml.bos_token_id", "is 5, but there are 5 tokens"),
        (BPE | dict(eos_token_id=99), "tokenizer.ggml.eos_token_id", "is 99, but"),
        (BPE | dict(eot_token_id=1 << 31), "tokenizer.ggml.eot_token_id", "is 2147483648, but"),
        (SPM | dict(scores=None), "tokenizer.ggml.scores", "missing"),
        (SPM | dict(scores=[0.0]), "tokenizer.ggml.scores", "1 entries, but there are 6 tokens"),
        (SPM | dict(types=None), "tokenizer.ggml.token_type", "missing"),
        (SPM | dict(unknown_token_id=6), "tokenizer.ggml.unknown_token_id", "is 6, but"),
    ],
)
def test_a_bad_vocabulary_is_one_line_that_names_the_key(tool, tmp_path, file, key, about):
    model = write_vocabulary(tmp_path / "v.gguf", **file)
    done = subprocess.run([tool, model, "ids"], input=pack(["ab"]), capture_output=True)
    message = done.stderr.decode()
    assert done.returncode == 1 and done.stdout == b""
    assert message.startswith(f"{model}: {key}") and about in message and message.count("\n") == 1
