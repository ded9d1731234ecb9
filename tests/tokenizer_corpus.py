"""Strings on which tokenizers disagree, made from a seed."""

import functools
import random

ALPHABETS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüßéèñçåøÅŁłŠșǅǈʰªƻ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙЇЄҐѲ",
    "greek": "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΩάέήίόύώΆϊΐᾳᾼ",
    "cjk": "的一是不了人我在有他这中大来上国漢字日本語東京あいうえおかがアイウガー々〇㐀龥龦𠀀",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأةىًٌٍَُِّْ",
    "hebrew": "אבגדהוזחטיכךלמםנןסעפףצץקרשתְֱִּ",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसहािीुूेैोौं़्",
    "thai": "กขคงจฉชซญฐดตถทธนบปผพฟมยรลวศสหอฮะาิีึืุูเแโใไๆ็่้๊๋์",
    "hangul": "가나다라마바사아자차카타파하각난달람맘밥삿앙힣ㄱㅏ한글",
    "other": "აბგდႠႡᎠᏼⴀꙀꭰ𐐀𐐨𑢠𞤀ԱաℂℵⅣↃⓐ",
}
DIGITS = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "๐๑๒๓", "0123456789", "½²³¹ⅣⅫ①⑳〇𝟘𝟙"]
SPACES = [
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    "\r",
    " \n",
    "\n ",
    "\t\t",
    " \t ",
    "\u00a0",
    "\u2028",
    "\u2029",
    "\u3000",
    "\u2003",
    "\u1680",
    "\x0b",
    "\x0c",
    "\x85",
    "   \n   ",
    " \r\n \r\n  ",
    "\u202f ",
]
MARKS = [
    "\u0301",
    "\u0308",
    "\u0327",
    "\u20dd",
    "\u0903",
    "\u200d",
    "\u200b",
    "\u200e",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\ufe0f",
    "\U000e0001",
]
CONTROLS = [
    "\x00",
    "\x01",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\x80",
    "\x9f",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "\ue000",
]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "❤️", "✌🏿", "🧑🏾‍🚀", "1️⃣", "☃", "🤷🏼‍♂️"]
CONTRACTIONS = [
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'T",
    "'RE",
    "'Ve",
    "'M",
    "'LL",
    "'lL",
    "'D",
    "'x",
    "'",
    "''",
    "’s",
    "’ll",
    "‘",
    "ʼn",
    "'ſ",
    "'l",
    "'r",
    "'v",
    "don't",
    "I'M",
    "she'll've",
    "O'Reilly",
]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "...",
    "…",
    "—",
    "–",
    "«",
    "»",
    "„",
    "“",
    "”",
    "¡",
    "¿",
    "。",
    "，",
    "！",
    "？",
    "：",
    "「",
    "」",
    "‽",
    "€",
    "£",
    "¥",
    "±",
    "×",
    "÷",
    "∑",
    "√",
    "→",
    "©",
    "°",
    "``",
    "--",
    "==",
    "!=",
    "->",
    "=>",
    "//",
    "/*",
    "*/",
    "##",
    "||",
    "&&",
    "+=",
    "$$",
    "<>",
    "^^",
    "~~",
    "؟",
    "।",
    "!/",
    "?\n/",
    ";\r\n//\n",
]
CODE = [
    "def f(x):\n    return x+1\n",
    "for (int i = 0; i < n; i++) {\n\t\tsum += a[i];\n\t}",
    "#include <stdio.h>\r\n",
    "x = {'a': 1, \"b\": [2, 3.14e-5]}",
    "SELECT * FROM t WHERE id=42;",
    '<div class="x">&nbsp;</div>',
    "https://example.org/a?b=c&d=%20#e",
    "if(a&&b||!c)return 0x1F;",
    "\\begin{equation} \\alpha^2 \\end{equation}",
    "fooBarBaz XMLHttpRequest snake_case_name HTMLParser2Test",
    "    \n\t\n  }\n}\n\n\n",
    "a\t\tb  c   d    e",
]
SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<|user|>",
    "<tool_call>",
    "<|im_",
    "<|im_start|",
    "<",
    "<|",
    "[INST]",
    "<0x41>",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
]
PROSE = (
    "The quick brown fox jumps over the lazy dog. It wasn't there; we've looked! 42 people (or 1,234.56) said: "
    "\"That's what they'll do\", in 2024-05-17 at 10:30pm. Mr. O'Neil's e-mail is on the café's naïve façade. "
    "Быстрая лисица прыгнула через ленивую собаку. Η γρήγορη καφέ αλεπού. 敏捷的棕色狐狸跳过懒狗。 "
    "Der schnelle Fuchs übersprang größere Hürden. नमस्ते दुनिया। สวัสดีชาวโลก שלום עולם مرحبا بالعالم 안녕하세요 세계 "
).split(" ")


def _word(rng):
    alphabet = ALPHABETS[rng.choice(sorted(ALPHABETS))]
    word = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 8)))
    case = rng.randrange(6)
    return word.upper() if case == 0 else word.title() if case == 1 else word


def _piece(rng):
    kind = rng.randrange(14)
    if kind < 3:
        return _word(rng)
    if kind < 5:
        return rng.choice(PROSE)
    if kind == 5:
        digits = rng.choice(DIGITS)
        return "".join(rng.choice(digits) for _ in range(rng.randint(1, 9)))
    if kind < 8:
        return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7])
    if kind == 8:
        return rng.choice(MARKS) * rng.choice([1, 1, 2])
    if kind == 9:
        return rng.choice(CONTROLS + EMOJI)
    if kind == 10:
        return rng.choice(CONTRACTIONS)
    if kind == 11:
        return rng.choice(PUNCTUATION) * rng.choice([1, 1, 1, 2, 5])
    if kind == 12:
        return rng.choice(CODE)
    return rng.choice(SPECIALS)


def any_text(rng):
    """Pieces of every kind, with spaces between some of them."""
    glue = rng.choice(["", " ", " ", "mixed"])
    pieces = [_piece(rng) for _ in range(rng.randint(1, 12))]
    return "".join(p + (rng.choice(["", " "]) if glue == "mixed" else glue) for p in pieces)


def one_code_point_each(rng):
    """Code points from anywhere in Unicode, assigned or not."""
    highest = rng.choice([0x7F, 0x2FF, 0xFFFF, 0x1FFFF, 0x10FFFF])
    points = [rng.randint(0, highest) for _ in range(rng.randint(1, 20))]
    return "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)


def every_code_point():
    """Every assigned part of Unicode but the ideographs, each between letters of two kinds."""
    blocks = [
        (0, 0x3500),
        (0x9F80, 0xAC80),
        (0xD780, 0xD800),
        (0xF900, 0x13500),
        (0x16000, 0x17000),
        (0x18A00, 0x18D80),
        (0x1AF00, 0x20080),
        (0xE0000, 0xE0200),
    ]
    return [
        "".join(f"{chr(c)}a{chr(c)}\u05d0" for c in range(i, i + 64))
        for begin, end in blocks
        for i in range(begin, end, 64)
    ]


@functools.cache
def corpus(n, seed):
    """n strings; the first are the building blocks themselves, each with some neighbours."""
    rng = random.Random(seed)
    blocks = SPACES + MARKS + CONTROLS + EMOJI + CONTRACTIONS + PUNCTUATION + CODE + SPECIALS
    strings = [
        "",
        " ",
        "a",
        " a",
        "a ",
        "  a",
        "a  ",
        "\n",
        " \n",
        "a\n",
        "1",
        " 1",
        "12",
        "123",
        "1234",
        "1234567",
    ]
    strings += (
        blocks + [f"a{b}b" for b in blocks] + [f" {b} " for b in blocks] + [f"1{b}{b}A" for b in blocks]
    )
    while len(strings) < n:
        strings.append(one_code_point_each(rng) if rng.randrange(10) == 0 else any_text(rng))
    return strings[:n]
