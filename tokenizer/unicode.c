#include "tokenizer/unicode.h"

#include <stddef.h>

#include "tokenizer/unicode_table.h"

enum unicode_class unicode_class(uint32_t code_point) {
    if (code_point < 128) {
        return (enum unicode_class)ascii_class[code_point];
    }
    if (code_point > 0x10FFFF) {
        return CLASS_OTHER;
    }
    /* The last run that starts at or before the code point; the first starts at 0. */
    size_t low = 0, high = sizeof unicode_runs / sizeof unicode_runs[0];
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (unicode_runs[middle] >> 4 <= code_point) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return (enum unicode_class)(unicode_runs[low] & 15);
}
