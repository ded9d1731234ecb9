/* unicode.h - character classes of code points. */
#pragma once

#include <stdint.h>

/* General categories, as far as pre-tokenizer rules tell them apart. */
enum unicode_class {
    CLASS_OTHER,   /* controls, unassigned, UTF8_INVALID */
    CLASS_SPACE,   /* White_Space (a regex's \s) */
    CLASS_UPPER,   /* Lu, Lt */
    CLASS_LOWER,   /* Ll */
    CLASS_LETTER,  /* Lm, Lo: letters without case */
    CLASS_MARK,    /* M */
    CLASS_NUMBER,  /* N */
    CLASS_PUNCT,   /* P */
    CLASS_SYMBOL,  /* S */
};

enum unicode_class unicode_class(uint32_t code_point);
