#include "tokenizer/pretokenize.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "tokenizer/unicode.h"
#include "tokenizer/utf8.h"

/* A rule finds its next match in text[pos..end), as if that were the whole
 * text: where it begins goes to *begin, where it ends is returned. Without a
 * match both are `end`. What lies between matches makes words of its own. */
typedef size_t (*rule_fn)(const char *text, size_t pos, size_t end, size_t *begin);

/* A code point with its class; len 0 stands for the end of the text. */
struct cp {
    uint32_t code;
    enum unicode_class class;
    size_t len;
};

static struct cp cp_at(const char *text, size_t pos, size_t end) {
    struct cp cp = {UTF8_INVALID, CLASS_OTHER, 0};
    if (pos < end) {
        cp.code = utf8_next(text + pos, end - pos, &cp.len);
        cp.class = unicode_class(cp.code);
    }
    return cp;
}

/* Character classes; all are false at the end of the text. */

static bool is_letter(struct cp cp) {
    return cp.class == CLASS_UPPER || cp.class == CLASS_LOWER || cp.class == CLASS_LETTER;
}

static bool is_number(struct cp cp) {
    return cp.class == CLASS_NUMBER;
}

static bool is_space(struct cp cp) {
    return cp.class == CLASS_SPACE;
}

static bool is_newline(struct cp cp) {
    return cp.code == '\n' || cp.code == '\r';
}

static bool is_newline_or_slash(struct cp cp) {
    return is_newline(cp) || cp.code == '/';
}

static bool is_punct(struct cp cp) {
    return cp.class == CLASS_PUNCT;
}

/* [^\s\p{L}\p{N}] */
static bool is_mark(struct cp cp) {
    return cp.len > 0 && !is_space(cp) && !is_letter(cp) && !is_number(cp);
}

/* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
static bool is_upper_like(struct cp cp) {
    return cp.class == CLASS_UPPER || cp.class == CLASS_LETTER || cp.class == CLASS_MARK;
}

/* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
static bool is_lower_like(struct cp cp) {
    return cp.class == CLASS_LOWER || cp.class == CLASS_LETTER || cp.class == CLASS_MARK;
}

static bool is_default_punct(struct cp cp) {
    return is_punct(cp) || (cp.code < 128 && cp.code > 0 && strchr("$+<=>^~|", (int)cp.code));
}

static bool is_falcon_punct(struct cp cp) {
    return is_default_punct(cp) || cp.code == '`';
}

static bool is_between(struct cp cp, uint32_t low, uint32_t high) {
    return cp.code >= low && cp.code <= high;
}

static bool is_deepseek_cjk(struct cp cp) {
    return is_between(cp, 0x0800, 0x9FA5) || is_between(cp, 0xAC00, 0xD7FF);
}

/* [!-/:-~ and the like of these above ASCII]: the range from : to ~ does include A-Z and a-z. */
static bool is_deepseek_punct(struct cp cp) {
    return is_between(cp, '!', '/') || is_between(cp, ':', '~') || is_between(cp, 0xFF01, 0xFF0F) ||
           is_between(cp, 0xFF1A, 0xFF5E) || is_between(cp, 0x2018, 0x201F) || is_between(cp, 0x3000, 0x3002);
}

/* The letters that deepseek-llm's rule lists: most of those that have case. */
static bool is_deepseek_letter(struct cp cp) {
    static const uint16_t ranges[][2] = {
        {0x0041, 0x005A}, {0x0061, 0x007A}, {0x00B5, 0x00B5}, {0x00C0, 0x00D6}, {0x00D8, 0x00F6},
        {0x00F8, 0x01BA}, {0x01BC, 0x01BF}, {0x01C4, 0x0293}, {0x0295, 0x02AF}, {0x0370, 0x0373},
        {0x0376, 0x0377}, {0x037B, 0x037D}, {0x037F, 0x037F}, {0x0386, 0x0386}, {0x0388, 0x038A},
        {0x038C, 0x038C}, {0x038E, 0x03A1}, {0x03A3, 0x03F5}, {0x03F7, 0x0481}, {0x048A, 0x052F},
        {0x0531, 0x0556}, {0x10A0, 0x10C5}, {0x13A0, 0x13F5}, {0x13F8, 0x13FD}, {0x1C90, 0x1CBA},
        {0x1CBD, 0x1CBF}, {0x1D00, 0x1D2B}, {0x1D6B, 0x1D77}, {0x1D79, 0x1D9A}, {0x1E00, 0x1F15},
        {0x1F18, 0x1F1D}, {0x1F20, 0x1F45}, {0x1F48, 0x1F4D}, {0x1F50, 0x1F57}, {0x1F59, 0x1F59},
        {0x1F5B, 0x1F5B}, {0x1F5D, 0x1F5D}, {0x1F5F, 0x1F7D}, {0x1F80, 0x1FB4}, {0x1FB6, 0x1FBC},
        {0x1FBE, 0x1FBE}, {0x1FC2, 0x1FC4}, {0x1FC6, 0x1FCC}, {0x1FD0, 0x1FD3}, {0x1FD6, 0x1FDB},
        {0x1FE0, 0x1FEC}, {0x1FF2, 0x1FF4}, {0x1FF6, 0x1FFC}, {0x2102, 0x2102}, {0x2107, 0x2107},
        {0x210A, 0x2113}, {0x2115, 0x2115}, {0x2119, 0x211D}, {0x2124, 0x2124}, {0x2126, 0x2126},
        {0x2128, 0x2128}, {0x212A, 0x212D}, {0x212F, 0x2134}, {0x2139, 0x2139}, {0x213C, 0x213F},
        {0x2145, 0x2149}, {0x214E, 0x214E}, {0x2183, 0x2184}, {0x2C00, 0x2C7B}, {0x2C7E, 0x2CE4},
        {0x2CEB, 0x2CEE}, {0x2CF2, 0x2CF3}, {0xA640, 0xA66D}, {0xA680, 0xA69B}, {0xA722, 0xA76F},
        {0xA771, 0xA787}, {0xA78B, 0xA78E}, {0xAB70, 0xABBF}, {0xFB00, 0xFB06}, {0xFB13, 0xFB17},
        {0xFF21, 0xFF3A}, {0xFF41, 0xFF5A},
    };
    if (cp.code >= 0x10000) {
        return is_between(cp, 0x10400, 0x1044F) || is_between(cp, 0x104B0, 0x104D3) ||
               is_between(cp, 0x104D8, 0x104FB) || is_between(cp, 0x10C80, 0x10CB2) ||
               is_between(cp, 0x10CC0, 0x10CF2) || is_between(cp, 0x118A0, 0x118DF) ||
               is_between(cp, 0x1E900, 0x1E943);
    }
    size_t i = 0;
    while (i + 1 < sizeof ranges / sizeof ranges[0] && cp.code > ranges[i][1]) {
        i++;
    }
    return is_between(cp, ranges[i][0], ranges[i][1]);
}

/* The end of the run of characters in a class that begins at pos. */
static size_t run_end(const char *text, size_t pos, size_t end, bool (*in_class)(struct cp)) {
    struct cp cp;
    while (cp = cp_at(text, pos, end), in_class(cp)) {
        pos += cp.len;
    }
    return pos;
}

/* Rules that match runs of a class. */

/* [class]+, at most `most` characters */
static size_t find_run(const char *text, size_t pos, size_t end, size_t *begin, bool (*in_class)(struct cp),
                       int most) {
    struct cp cp;
    while (cp = cp_at(text, pos, end), cp.len > 0 && !in_class(cp)) {
        pos += cp.len;
    }
    *begin = pos;
    for (int i = 0; i < most && (cp = cp_at(text, pos, end), in_class(cp)); i++) {
        pos += cp.len;
    }
    return pos;
}

/* \s?[class]+ */
static size_t find_spaced_run(const char *text, size_t pos, size_t end, size_t *begin,
                              bool (*in_class)(struct cp)) {
    while (pos < end) {
        struct cp cp = cp_at(text, pos, end);
        size_t run = pos;
        if (is_space(cp) && in_class(cp_at(text, pos + cp.len, end))) {
            run = pos + cp.len;
        }
        size_t stop = run_end(text, run, end, in_class);
        if (stop > run) {
            *begin = pos;
            return stop;
        }
        pos += cp.len;
    }
    *begin = end;
    return end;
}

static size_t rule_newline(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_newline, 1);
}

static size_t rule_digit(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_number, 1);
}

static size_t rule_digits(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_number, INT32_MAX);
}

static size_t rule_cjk(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_deepseek_cjk, INT32_MAX);
}

static size_t rule_falcon_punct(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_falcon_punct, INT32_MAX);
}

static size_t rule_default_punct(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_run(text, pos, end, begin, is_default_punct, INT32_MAX);
}

static size_t rule_spaced_letters(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_spaced_run(text, pos, end, begin, is_letter);
}

static size_t rule_spaced_punct(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_spaced_run(text, pos, end, begin, is_punct);
}

static size_t rule_deepseek_letters(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_spaced_run(text, pos, end, begin, is_deepseek_letter);
}

static size_t rule_deepseek_punct(const char *text, size_t pos, size_t end, size_t *begin) {
    return find_spaced_run(text, pos, end, begin, is_deepseek_punct);
}

/* \s+$ */
static size_t rule_trailing_space(const char *text, size_t pos, size_t end, size_t *begin) {
    *begin = pos;
    while (pos < end) {
        struct cp cp = cp_at(text, pos, end);
        pos += cp.len;
        if (!is_space(cp)) {
            *begin = pos;
        }
    }
    return end;
}

/* [0-9][0-9][0-9] */
static size_t rule_three_digits(const char *text, size_t pos, size_t end, size_t *begin) {
    int n = 0;
    while (pos < end && n < 3) {
        n = text[pos] >= '0' && text[pos] <= '9' ? n + 1 : 0;
        pos++;
    }
    *begin = n == 3 ? pos - 3 : pos;
    return pos;
}

/* Rules that match everywhere: an alternative for each kind of word. */

/* (?i:'s|'t|'re|'ve|'m|'ll|'d), or without regard to case only where
 * ignore_case. Returns its length or 0. */
static size_t contraction(const char *text, size_t pos, size_t end, bool ignore_case) {
    if (end - pos < 2 || text[pos] != '\'') {
        return 0;
    }
    char letters[2] = {text[pos + 1], end - pos > 2 ? text[pos + 2] : 0};
    for (int i = 0; i < 2 && ignore_case; i++) {
        if (letters[i] >= 'A' && letters[i] <= 'Z') {
            letters[i] = (char)(letters[i] - 'A' + 'a');
        }
    }
    if (strchr("stmd", letters[0]) && letters[0]) {
        return 2;
    }
    if (!memcmp(letters, "re", 2) || !memcmp(letters, "ve", 2) || !memcmp(letters, "ll", 2)) {
        return 3;
    }
    /* U+017F, the long s, is an s without regard to case. */
    return ignore_case && !memcmp(letters, "\xC5\xBF", 2) ? 3 : 0;
}

/* \s+(?!\S)|\s+: leaves the last of several spaces to the word that follows. */
static size_t space_end(const char *text, size_t pos, size_t end) {
    size_t last = pos, stop = pos;
    struct cp cp;
    while (cp = cp_at(text, stop, end), is_space(cp)) {
        last = stop;
        stop += cp.len;
    }
    return stop < end && last > pos ? last : stop;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t rule_gpt2(const char *text, size_t pos, size_t end, size_t *begin) {
    *begin = pos;
    size_t length = contraction(text, pos, end, false);
    if (length > 0) {
        return pos + length;
    }
    size_t word = pos + (text[pos] == ' ');
    struct cp cp = cp_at(text, word, end);
    if (is_letter(cp)) {
        return run_end(text, word, end, is_letter);
    }
    if (is_number(cp)) {
        return run_end(text, word, end, is_number);
    }
    if (is_mark(cp)) {
        return run_end(text, word, end, is_mark);
    }
    return space_end(text, pos, end);
}

/* The alternatives that the newer rules end with, the first of which has no
 * match if pos is at a letter or a number:
 *  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t marks_or_space(const char *text, size_t pos, size_t end, bool (*after_marks)(struct cp)) {
    size_t word = pos + (text[pos] == ' ');
    size_t stop = run_end(text, word, end, is_mark);
    if (stop > word) {
        return run_end(text, stop, end, after_marks);
    }
    size_t newline = pos;
    stop = pos;
    struct cp cp;
    while (cp = cp_at(text, stop, end), is_space(cp)) {
        stop += cp.len;
        if (is_newline(cp)) {
            newline = stop;
        }
    }
    return newline > pos ? newline : space_end(text, pos, end);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|... */
static size_t match_llama3(const char *text, size_t pos, size_t end, int max_digits) {
    size_t length = contraction(text, pos, end, true);
    if (length > 0) {
        return pos + length;
    }
    struct cp cp = cp_at(text, pos, end);
    if (is_letter(cp)) {
        return run_end(text, pos, end, is_letter);
    }
    if (is_number(cp)) {
        size_t begin;
        return find_run(text, pos, end, &begin, is_number, max_digits);
    }
    if (!is_newline(cp) && is_letter(cp_at(text, pos + cp.len, end))) {
        return run_end(text, pos + cp.len, end, is_letter);
    }
    return marks_or_space(text, pos, end, is_newline);
}

static size_t rule_llama3(const char *text, size_t pos, size_t end, size_t *begin) {
    *begin = pos;
    return match_llama3(text, pos, end, 3);
}

static size_t rule_qwen2(const char *text, size_t pos, size_t end, size_t *begin) {
    *begin = pos;
    return match_llama3(text, pos, end, 1);
}

/* [upper-like]*[lower-like]+ from pos, or pos where it does not match. The
 * first part takes all it can, letters without case too, and gives back as few
 * of these as the second part needs. */
static size_t capitalised_end(const char *text, size_t pos, size_t end) {
    size_t stop = pos, after_caseless = pos;
    struct cp cp;
    while (cp = cp_at(text, stop, end), is_upper_like(cp)) {
        stop += cp.len;
        if (is_lower_like(cp)) {
            after_caseless = stop;
        }
    }
    return is_lower_like(cp) ? run_end(text, stop, end, is_lower_like) : after_caseless;
}

/* [^\r\n\p{L}\p{N}]?[upper-like]*[lower-like]+|[^\r\n\p{L}\p{N}]?[upper-like]+[lower-like]*|
 * \p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t rule_tekken(const char *text, size_t pos, size_t end, size_t *begin) {
    *begin = pos;
    struct cp cp = cp_at(text, pos, end);
    if (is_number(cp)) {
        return pos + cp.len;
    }
    bool prefix = !is_letter(cp) && !is_newline(cp);
    size_t word = prefix ? pos + cp.len : pos;
    size_t stop = capitalised_end(text, word, end);
    if (stop > word) {
        return stop;
    }
    stop = capitalised_end(text, pos, end); /* a combining mark can be prefix or word */
    if (stop > pos) {
        return stop;
    }
    stop = run_end(text, word, end, is_upper_like);
    return stop > word ? stop : marks_or_space(text, pos, end, is_newline_or_slash);
}

/* Rules apply one after the other, each to the words that those before it left. */
struct pre_tokenizer {
    const char *names; /* each ends with a space */
    rule_fn rules[7];
    bool ignore_merges;
    bool add_bos;
};

/* The names are those that llama.cpp's converter writes. The rules of falcon and
 * deepseek-llm are llama.cpp's too: the checkpoints' own ones split digits
 * further, where their vocabularies have no merges anyway. */
static const struct pre_tokenizer pre_tokenizers[] = {
    {"default ", {rule_default_punct, rule_gpt2, rule_digits, rule_three_digits}, false, false},
    {"gpt-2 mpt olmo jais phi-2 trillion exaone4 ", {rule_gpt2}, false, false},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b ", {rule_digit, rule_gpt2}, false, false},
    {"llama-bpe llama3 llama-v3 falcon3 pixtral ", {rule_llama3}, true, true},
    {"dbrx smaug-bpe ", {rule_llama3}, false, false},
    {"qwen2 deepseek-r1-qwen stablelm2 megrez ", {rule_qwen2}, false, false},
    {"tekken ", {rule_tekken}, true, true},
    {"deepseek-llm ",
     {rule_newline, rule_deepseek_letters, rule_deepseek_punct, rule_trailing_space, rule_cjk, rule_digits},
     false, false},
    {"deepseek-coder ", {rule_newline, rule_spaced_letters, rule_spaced_punct, rule_cjk, rule_digit},
     false, false},
    {"falcon ", {rule_falcon_punct, rule_gpt2, rule_three_digits}, false, false},
};

#define N_PRE_TOKENIZERS (sizeof pre_tokenizers / sizeof pre_tokenizers[0])

const struct pre_tokenizer *pre_tokenizer_find(const char *name, size_t len) {
    for (size_t i = 0; i < N_PRE_TOKENIZERS; i++) {
        const char *known = pre_tokenizers[i].names;
        for (const char *stop; (stop = strchr(known, ' ')); known = stop + 1) {
            if ((size_t)(stop - known) == len && memcmp(known, name, len) == 0) {
                return &pre_tokenizers[i];
            }
        }
    }
    return NULL;
}

void pre_tokenizer_names(char *buf, size_t size) {
    size_t used = 0;
    for (size_t i = 0; i < N_PRE_TOKENIZERS && used < size; i++) {
        used += (size_t)snprintf(buf + used, size - used, "%s", pre_tokenizers[i].names);
    }
    if (used > 0 && used < size) {
        buf[used - 1] = '\0'; /* the last space */
    }
}

bool pre_tokenizer_ignores_merges(const struct pre_tokenizer *pre) {
    return pre->ignore_merges;
}

bool pre_tokenizer_adds_bos(const struct pre_tokenizer *pre) {
    return pre->add_bos;
}

static int apply_rules(const rule_fn *rule, const char *text, size_t pos, size_t end, word_fn word,
                       void *context) {
    if (!*rule) {
        return word(context, text, pos, end);
    }
    while (pos < end) {
        size_t begin, stop = (*rule)(text, pos, end, &begin);
        int status = 0;
        if (begin > pos) {
            status = apply_rules(rule + 1, text, pos, begin, word, context);
        }
        if (!status && stop > begin) {
            status = apply_rules(rule + 1, text, begin, stop, word, context);
        }
        if (status) {
            return status;
        }
        pos = stop;
    }
    return 0;
}

int pre_tokenize(const struct pre_tokenizer *pre, const char *text, size_t len, word_fn word, void *context) {
    return apply_rules(pre->rules, text, 0, len, word, context);
}
