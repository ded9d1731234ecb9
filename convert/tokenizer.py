"""The tokenizer of a Hugging Face checkpoint as GGUF keys: byte-level BPE or SentencePiece's."""

from dataclasses import dataclass, field

from gguf import TokenType

from convert import pretokenizer, sentencepiece_file
from convert.checkpoint import read_json
from convert.report import ExportError, note

SPACE = "\u2581"  # what SentencePiece writes for a space
ADDED_SCORE = -1000.0  # never the result of a merge, so it doesn't matter
SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass
class Tokenizer:
    """What becomes keys of the GGUF file."""

    model: str  # tokenizer.ggml.model: "gpt2" (byte-level BPE) or "llama" (SentencePiece)
    tokens: list  # [n_vocab] text, or None where the vocabulary has a gap
    types: list
    scores: list = field(default_factory=list)  # SentencePiece
    merges: list = field(default_factory=list)  # byte-level BPE
    pre: str = ""
    add_space_prefix: bool = True
    remove_extra_spaces: bool = False
    add: dict = field(default_factory=dict)  # whether bos and eos go around every text
    ids: dict = field(default_factory=dict)  # of bos, eos, unk, pad, eot
    chat_template: object = None

    def put(self, path, token, text, type_, score=ADDED_SCORE):
        if not isinstance(token, int) or not 0 <= token < len(self.tokens):
            n = len(self.tokens)
            raise ExportError(f"{path}: token {text!r} has the id {token}, but the embedding has {n} rows")
        self.tokens[token], self.types[token] = text, type_
        if self.scores:
            self.scores[token] = score

    def find(self, path, key, text):
        if text not in self.tokens:
            raise ExportError(f"{path}: key '{key}' is {text!r}, which is not in the vocabulary")
        return self.tokens.index(text)

    def check(self, path, key, token):
        if not isinstance(token, int) or not 0 <= token < len(self.tokens):
            raise ExportError(f"{path}: key '{key}' is {token!r}, but there are {len(self.tokens)} tokens")
        return token

    def add_keys(self, writer):
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre or "default")
        writer.add_token_list([f"[PAD{i}]" if t is None else t for i, t in enumerate(self.tokens)])
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
            writer.add_remove_extra_whitespaces(self.remove_extra_spaces)
        else:
            writer.add_token_merges(self.merges)
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add["bos"])
        writer.add_add_eos_token(self.add["eos"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def empty(model, n_vocab):
    scores = [ADDED_SCORE] * n_vocab if model == "llama" else []
    return Tokenizer(model, [None] * n_vocab, [TokenType.UNUSED] * n_vocab, scores)


def load(folder, n_vocab, pre=None):
    """The tokenizer in a directory, padded to n_vocab tokens; `pre` replaces its pre-tokenizer's name."""
    try:
        return _load(folder, n_vocab, pre)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise ExportError(f"{folder}: the tokenizer's files don't have the form they should: {e}") from None


def _load(folder, n_vocab, pre):
    json_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    data = read_json(json_path) if json_path.exists() else {}
    if not data and not model_path.exists():
        raise ExportError(f"{json_path} is missing (and so is {model_path.name})")
    if data and not isinstance(data.get("model"), dict):
        raise ExportError(f"{json_path}: key 'model' is missing or not an object")
    if data and is_byte_level(data):
        t = from_byte_level(json_path, data, n_vocab, pre)
    elif model_path.exists():
        t = from_sentencepiece(model_path, n_vocab)
    else:
        t = from_sentencepiece_json(json_path, data, n_vocab)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    put_added_tokens(t, folder, data, config)
    read_special_ids(t, folder, config)
    if t.model == "llama" and "unk" in t.ids:
        t.types[t.ids["unk"]] = TokenType.UNKNOWN
    t.add = {name: adds(t, name, data, config) for name in ("bos", "eos")}
    if t.model == "llama" and isinstance(config.get("add_prefix_space"), bool):
        t.add_space_prefix = config["add_prefix_space"]
    t.chat_template = read_chat_template(folder, config)
    read_end_of_turn(t, folder)
    return t


# ---- the kinds of vocabularies ----


def steps(part):
    """A normalizer, pre-tokenizer or post-processor as the list of its steps."""
    part = part or {}
    for name in ("normalizers", "pretokenizers", "processors"):
        if name in part:
            return [s for p in part[name] for s in steps(p)]
    return [part] if part else []


def is_byte_level(data):
    return any(s.get("type") == "ByteLevel" for s in steps(data.get("pre_tokenizer")))


def bpe_model(path, data):
    """(vocabulary, merges as pairs) of a tokenizer.json."""
    model = data["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type", "BPE") != "BPE":
        raise ExportError(f"{path}: key 'model' is of type {model['type']!r}: only BPE is supported")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ExportError(f"{path}: key 'model': 'vocab' or 'merges' is missing")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ExportError(f"{path}: key '{key}' is {model[key]!r}: only an empty one is supported")
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) and s for s in pair)):
            raise ExportError(f"{path}: key 'merges', entry {i}: {merges[i]!r} is no pair of tokens")
    return vocab, pairs


def from_byte_level(path, data, n_vocab, pre):
    vocab, pairs = bpe_model(path, data)
    for s in steps(data.get("normalizer")):
        if s.get("type") != "NFC":  # which engines leave out, as text is nearly always in it
            raise ExportError(f"{path}: key 'normalizer': {s.get('type')} is not supported")
    t = empty("gpt2", n_vocab)
    for text, token in vocab.items():
        t.put(path, token, text, TokenType.NORMAL)
    t.merges = [" ".join(pair) for pair in pairs]
    t.pre = pre or pretokenizer.find_name(path, data)
    return t


def from_sentencepiece(path, n_vocab):
    model = sentencepiece_file.read(path)
    if model.normalises:
        note(f"{path}: its normalisation of text is left out")
    t = empty("llama", n_vocab)
    for token, piece in enumerate(model.pieces):
        t.put(path, token, piece.text, piece.type, piece.score)
    t.add_space_prefix, t.remove_extra_spaces = model.add_dummy_prefix, model.remove_extra_whitespaces
    return t


def from_sentencepiece_json(path, data, n_vocab):
    """SentencePiece's BPE as transformers writes it: the rank of a piece's first merge is its score."""
    vocab, pairs = bpe_model(path, data)
    normalizer, pre_tokenizer = steps(data.get("normalizer")), steps(data.get("pre_tokenizer"))
    metaspace = [s for s in pre_tokenizer if s.get("type") == "Metaspace"]
    if not metaspace and not any(s.get("content") == SPACE for s in normalizer):
        raise ExportError(f"{path}: neither byte-level BPE nor SentencePiece's (no '{SPACE}' for spaces)")
    scores = {}
    for rank, (left, right) in enumerate(pairs):
        scores.setdefault(left + right, -float(rank))
    t = empty("llama", n_vocab)
    unknown = data["model"].get("unk_token")
    for text, token in vocab.items():
        is_byte = len(text) == 6 and text.startswith("<0x") and data["model"].get("byte_fallback")
        kind = TokenType.UNKNOWN if text == unknown else TokenType.BYTE if is_byte else TokenType.NORMAL
        t.put(path, token, text, kind, scores.get(text, 0.0))
    if metaspace:
        default = "always" if metaspace[0].get("add_prefix_space", True) else "never"
        t.add_space_prefix = metaspace[0].get("prepend_scheme", default) != "never"
    else:
        t.add_space_prefix = any(s.get("type") == "Prepend" for s in normalizer)
    return t


# ---- special tokens ----


def put_added_tokens(t, folder, data, config):
    """Tokens beside the vocabulary: special ones are control tokens, others are found in any text."""
    added = []  # (path, id, text, is special)
    path = folder / "added_tokens.json"
    if path.exists():
        added += [(path, token, text, False) for text, token in read_json(path).items()]
    path = folder / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    listed = [{"id": int(token) if token.isdigit() else token, **e} for token, e in decoder.items()]
    for path, entries in ((path, listed), (folder / "tokenizer.json", data.get("added_tokens") or [])):
        added += [(path, e.get("id"), e.get("content"), e.get("special") is True) for e in entries]
    for path, token, text, special in added:
        if not isinstance(text, str) or not text:
            raise ExportError(f"{path}: the added token with the id {token} has no text")
        if isinstance(token, int) and 0 <= token < len(t.tokens) and t.types[token] == TokenType.UNKNOWN:
            continue
        if t.model == "llama" and not special:
            text = text.replace(SPACE, " ")
        t.put(path, token, text, TokenType.CONTROL if special else TokenType.USER_DEFINED)


def first(value):
    return value[0] if isinstance(value, list) and value else value


def read_special_ids(t, folder, config):
    """tokenizer_config.json names them, else generation_config.json or config.json numbers them."""
    for name in SPECIAL:
        entry, key = config.get(f"{name}_token"), f"{name}_token"
        text = entry.get("content") if isinstance(entry, dict) else entry
        if text is not None:
            t.ids[name] = t.find(folder / "tokenizer_config.json", key, text)
            continue
        for path in (folder / "generation_config.json", folder / "config.json"):
            token = first(read_json(path).get(f"{key}_id")) if path.exists() else None
            if token is not None:
                t.ids[name] = t.check(path, f"{key}_id", token)
                break


def adds(t, name, data, config):
    """Whether a text gets this token at its start (bos) or end (eos)."""
    if isinstance(config.get(f"add_{name}_token"), bool):
        return config[f"add_{name}_token"] and name in t.ids
    if name not in t.ids:
        return False
    if data:
        processors = steps(data.get("post_processor"))
        templates = [s.get("single") for s in processors if s.get("type") == "TemplateProcessing"]
        edges = [template[0 if name == "bos" else -1] for template in templates if template]
        return any(e.get("SpecialToken", {}).get("id") == t.tokens[t.ids[name]] for e in edges)
    return t.model == "llama" and name == "bos"


def read_chat_template(folder, config):
    """A text, or a list of named ones."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ExportError(f"{path}: {e}") from None
    return config.get("chat_template")


def read_end_of_turn(t, folder):
    """Of the tokens that end generation besides EOS, the one that the chat template writes ends a turn."""
    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.exists() else None
    for token in ends if isinstance(ends, list) else []:
        t.check(path, "eos_token_id", token)
        if token != t.ids.get("eos") and t.tokens[token] and t.tokens[token] in str(t.chat_template):
            t.ids["eot"] = token
