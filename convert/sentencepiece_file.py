"""tokenizer.model, a SentencePiece model: a protocol buffer, of which few fields matter here.

sentencepiece_model.proto: ModelProto {pieces = 1 {piece = 1, score = 2, type = 3}, trainer_spec = 2
{model_type = 3}, normalizer_spec = 3 {precompiled_charsmap = 2, add_dummy_prefix = 3,
remove_extra_whitespaces = 4}}. Its piece types have the numbers of GGUF's token types.
"""

import struct
from typing import NamedTuple

from convert.report import ExportError

BPE = 2


class Piece(NamedTuple):
    text: str
    score: float
    type: int


class SentencePieceModel(NamedTuple):
    pieces: list
    normalises: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """(number, value) of a message's fields; value is an int, or the bytes."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value = data[at : at + size]
            if len(value) < size:
                raise IndexError
            at += size
        yield tag >> 3, value


def parse_piece(data):
    message = dict(fields(data))
    return Piece(message[1].decode(), struct.unpack("<f", message.get(2, bytes(4)))[0], message.get(3, 1))


def read(path):
    try:
        parts = list(fields(path.read_bytes()))
        pieces = [parse_piece(value) for number, value in parts if number == 1]
        trainer, normalizer = (dict(f for n, value in parts if n == i for f in fields(value)) for i in (2, 3))
    except OSError as e:
        raise ExportError(f"{path}: {e.strerror}") from None
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, struct.error):
        raise ExportError(f"{path}: not a SentencePiece model") from None
    if not pieces:
        raise ExportError(f"{path}: not a SentencePiece model: it has no pieces")
    if trainer.get(3, 1) != BPE:
        raise ExportError(f"{path}: not a BPE model: unigram and other models are not supported")
    flags = (bool(normalizer.get(number, default)) for number, default in ((2, b""), (3, 1), (4, 1)))
    return SentencePieceModel(pieces, *flags)
