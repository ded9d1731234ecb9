#!/usr/bin/env python3
"""Writes two small vocabularies and the reference's token ids for test_tokenizer.c.

    python3 tests/golden/make_tokenizer.py

tokenizer_bpe.gguf and tokenizer_spm.gguf hold nothing but a vocabulary, trained
here. Each line of tokenizer.txt is "bpe" or "spm", a string as hexadecimal
bytes ("-": empty), a colon and its token ids.
"""

import io
import json
import sys
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tokenizer_corpus import PROSE, corpus  # noqa: E402
from tokenizer_files import write_vocabulary  # noqa: E402

CONTROL = ["<s>", "</s>", "<|im_end|>"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")


def text():
    return [" ".join(PROSE)] * 3 + [s for s in corpus(800, seed=20) if "\0" not in s]


def make_bpe():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=CONTROL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text(), trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = [" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    write_vocabulary(HERE / "tokenizer_bpe.gguf", "gpt2", tokens, [3 if t in CONTROL else 1 for t in tokens],
                     pre="llama-bpe", merges=merges, bos_token_id=0, eos_token_id=1)
    return lambda s: tokenizer.encode(s, add_special_tokens=False).ids


def make_spm():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text()), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True,
        normalization_rule_name="identity", character_coverage=0.98, remove_extra_whitespaces=False, minloglevel=2)
    p = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(p.get_piece_size())
    types = [2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 1 for i in ids]
    write_vocabulary(HERE / "tokenizer_spm.gguf", "llama", [p.id_to_piece(i) for i in ids], types,
                     scores=[p.get_score(i) for i in ids])
    return p.encode


def main():
    with open(HERE / "tokenizer.txt", "w") as out:
        for name, encode in ("bpe", make_bpe()), ("spm", make_spm()):
            for s in corpus(2000, seed=21)[::25]:
                if name == "spm" and any(c in s for c in ("<s>", "</s>", "<unk>")):
                    continue  # test_tokenizer.c parses control tokens, which sentencepiece doesn't
                print(name, s.encode().hex() or "-", ":", *encode(s), file=out)


if __name__ == "__main__":
    main()
