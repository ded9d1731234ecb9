#!/usr/bin/env python3
"""Writes unicode_table.h: the character classes that pre-tokenizer rules ask for.

Each class is taken from the regex engine of the `tokenizers` library, which is
the reference for the rules, so that both have the same version of Unicode:

    python3 tokenizer/gen_unicode.py > tokenizer/unicode_table.h
"""

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

# In the order of enum unicode_class in unicode.h; 0 is "anything else".
CLASSES = [r"\s", r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}"]

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(regex):
    """The code points that a one-character regex matches."""
    split = Split(Regex(regex), "removed")
    found = set(CODE_POINTS)
    for i in range(0, len(CODE_POINTS), 4096):
        chunk = CODE_POINTS[i : i + 4096]
        for _, (begin, end) in split.pre_tokenize_str("".join(map(chr, chunk))):
            found.difference_update(chunk[begin:end])
    return found


def main():
    class_of = [0] * 0x110000
    for number, regex in enumerate(CLASSES, 1):
        for c in members(regex):
            assert class_of[c] == 0, f"U+{c:04X} is in two classes"
            class_of[c] = number

    starts = [c for c in range(0x110000) if c == 0 or class_of[c] != class_of[c - 1]]
    print("/* unicode_table.h - written by gen_unicode.py.")
    print(" *")
    print(" * Runs of code points of one class: the first code point << 4 | enum unicode_class.")
    print(" * ASCII also has a class per character, as it is most of what is looked up. */")
    print("#pragma once\n")
    print("#include <stdint.h>\n")
    print_array("uint8_t ascii_class[128]", [str(c) for c in class_of[:128]])
    print()
    print_array("uint32_t unicode_runs[]", [f"0x{c << 4 | class_of[c]:x}" for c in starts])


def print_array(declaration, values):
    print(f"static const {declaration} = {{")
    line = "   "
    for value in values:
        if len(line) + len(value) + 2 > 110:
            print(line)
            line = "   "
        line += f" {value},"
    print(line)
    print("};")


if __name__ == "__main__":
    main()
