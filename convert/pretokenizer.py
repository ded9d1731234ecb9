"""tokenizer.ggml.pre, the name of the rules that split text into words, from those in a tokenizer.json."""

import re

from convert.report import ExportError, note

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
LETTERS = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ"  # how deepseek-llm's list of letters begins
PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"

NAMES = {
    (GPT2,): "gpt-2",
    (DIGIT, GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
    (TEKKEN,): "tekken",
    (r"[\r\n]", LETTERS, PUNCTUATION, r"\s+$", CJK, DIGIT): "deepseek-llm",
    (r"[\r\n]", LETTERS, PUNCTUATION, r"\s+$", CJK, DIGITS): "deepseek-llm",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT): "deepseek-coder",
}
# Other spellings of the same
SPELLINGS = {
    "\r": r"\r",
    "\n": r"\n",
    r"'(?i:[sdmt]|ll|ve|re)": "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?:[sdmt]|ll|ve|re)": "'s|'t|'re|'ve|'m|'ll|'d",
}


def spell(regex):
    regex = re.sub(r"\\x\{([0-9A-Fa-f]+)\}", lambda m: chr(int(m[1], 16)), regex)
    for other, usual in SPELLINGS.items():
        regex = regex.replace(other, usual)
    return LETTERS if regex.startswith(LETTERS) else regex


def rules(step):
    """Regexes that a step of the pre-tokenizer applies one after the other; what is none goes by its type."""
    kind = step.get("type")
    if kind == "Sequence":
        return [rule for s in step.get("pretokenizers", []) for rule in rules(s)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [DIGIT if step.get("individual_digits") else DIGITS]
    inverted = bool(step.get("invert"))
    if kind == "Split" and step.get("behavior") == ("Removed" if inverted else "Isolated"):
        regex = step.get("pattern", {}).get("Regex")
        return [spell(regex) if regex else kind]
    return [f"a {kind} step"]


def find_name(path, tokenizer):
    """The name for the pre-tokenizer of a tokenizer.json (read from `path`)."""
    found = tuple(rules(tokenizer.get("pre_tokenizer") or {"type": "ByteLevel", "use_regex": False}))
    if found not in NAMES:
        known = ", ".join(sorted(set(NAMES.values())))
        raise ExportError(
            f"{path}: key 'pre_tokenizer' is not known ({' then '.join(found) or 'nothing'}): "
            f"give the nearest of {known} with --pre"
        )
    name, whole_words = NAMES[found], tokenizer["model"].get("ignore_merges") is True
    if name == "llama-bpe" and not whole_words:
        return "dbrx"  # the same words, without looking these up first
    if whole_words and name not in ("llama-bpe", "tekken"):
        note(f"{path}: key 'ignore_merges' is ignored with these rules ({name})")
    return name
