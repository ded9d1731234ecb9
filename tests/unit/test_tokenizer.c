/* test_tokenizer.c - token ids of the golden vocabularies, decoding, and input that is no text. */
#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf_writer.h"
#include "tokenizer/chat.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Bytes that make trouble: pieces of UTF-8 sequences, spaces, digits, letters, special tokens. */
static size_t random_text(uint32_t *state, char *out, size_t size) {
    static const char *const pieces[] = {
        " ", "  ", "\n", "\r\n", "\t", "a", "B", "ab", "'s", "'LL", "1", "23", "\xC3", "\xA9", "é", "\xE2\x82",
        "€", "\xF0\x9F", "\xF0\x9F\x98\x80", "\xFF", "\xED\xA0\x80", "中", "\xCC\x81", "ǅ", "ʰ", "٣",
        "\xC2\xA0", "　", "<|im_end|>", "<s>", "</s>", "<|im_", "▁", "-", "/", "!!", "$", "`", "\xC5\xBF", "!",
        "\xEF\xBC\x81",
    };
    size_t n = 0, wanted = next_random(state) % 40;
    for (size_t i = 0; i < wanted; i++) {
        const char *piece = pieces[next_random(state) % (sizeof pieces / sizeof pieces[0])];
        char byte = (char)next_random(state);
        size_t len = next_random(state) % 16 == 0 ? 1 : strlen(piece);
        if (n + len < size) {
            memcpy(out + n, len == 1 && strlen(piece) != 1 ? &byte : piece, len);
            n += len;
        }
    }
    return n;
}

static struct tokenizer *load(const char *path, struct gguf **file) {
    struct error err = {.text = ""};
    *file = gguf_open(path, GGUF_MAPPED, &err);
    struct tokenizer *t = *file ? tokenizer_load(*file, &err) : NULL;
    if (!t) {
        printf("%s\n", err.text);
        exit(1);
    }
    return t;
}

/* Decodes `hex` in place; its length. */
static size_t from_hex(char *hex) {
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) {
        hex[n] = (char)byte;
    }
    return n;
}

/* A line of tokenizer.txt: are these the ids? */
static bool golden_line_holds(const struct tokenizer *t, char *hex, const char *ids) {
    struct token_list list = {0};
    struct error err;
    size_t len = from_hex(hex);
    bool same = tokenizer_encode(t, hex, len, false, true, &list, &err) == 0;
    for (int i = 0; same && i < list.n; i++) {
        char *end;
        same = strtol(ids, &end, 10) == list.ids[i] && end != ids;
        ids = end;
    }
    same = same && ids[strspn(ids, " \n")] == '\0';
    token_list_free(&list);
    return same;
}

static void test_golden(const struct tokenizer *bpe, const struct tokenizer *spm) {
    static char line[1 << 16];
    FILE *f = fopen("tests/golden/tokenizer.txt", "r");
    CHECK(f != NULL);
    int n = 0;
    while (f && fgets(line, sizeof line, f)) {
        char *hex = line + 4, *colon = strchr(hex, ':');
        CHECK(colon != NULL);
        if (colon) {
            *colon = '\0';
            CHECK(golden_line_holds(line[0] == 'b' ? bpe : spm, hex, colon + 1));
            n++;
        }
    }
    CHECK(n > 100);
    if (f) {
        fclose(f);
    }
}

/* The text that the ids of text[0..len) stand for; its length. */
static size_t round_trip(const struct tokenizer *t, const char *text, size_t len, char *out) {
    struct token_list list = {0};
    struct error err;
    size_t n = 0;
    CHECK(tokenizer_encode(t, text, len, false, true, &list, &err) == 0);
    for (int i = 0; i < list.n; i++) {
        size_t piece = tokenizer_piece(t, list.ids[i], true, out + n, tokenizer_max_piece(t));
        CHECK(piece > 0 && piece <= tokenizer_max_piece(t));
        n += piece;
    }
    token_list_free(&list);
    return n;
}

/* All byte tokens are there, so any bytes come back. */
static void test_any_bytes_come_back(const struct tokenizer *bpe, const struct tokenizer *spm) {
    static char text[1024], back[1 << 16];
    uint32_t state = 1;
    for (int i = 0; i < 3000; i++) {
        size_t len = random_text(&state, text, sizeof text);
        size_t n = round_trip(bpe, text, len, back);
        CHECK(n == len && memcmp(back, text, len) == 0);
        round_trip(spm, text, len, back);
    }
    CHECK(round_trip(bpe, "\0a\0", 3, back) == 3 && memcmp(back, "\0a\0", 3) == 0);
    CHECK(round_trip(spm, "\xC3(\xFF", 3, back) == 4 && memcmp(back, " \xC3(\xFF", 4) == 0);
}

static void test_special_tokens(const struct tokenizer *t) {
    struct token_list list = {0};
    struct error err;
    char buf[16] = "";
    CHECK(tokenizer_n_vocab(t) == 600 && tokenizer_bos(t) == 0 && tokenizer_eos(t) == 1);
    CHECK(tokenizer_encode(t, "<|im_end|><s>", 13, true, true, &list, &err) == 0);
    CHECK(list.n == 3 && list.ids[0] == 0 && list.ids[1] == 2 && list.ids[2] == 0);
    list.n = 0;
    CHECK(tokenizer_encode(t, "<|im_end|>", 10, false, false, &list, &err) == 0);
    CHECK(list.n > 1 && list.ids[0] > 2);
    token_list_free(&list);
    CHECK(tokenizer_is_eog(t, 1) && tokenizer_is_eog(t, 2));
    CHECK(!tokenizer_is_eog(t, 0) && !tokenizer_is_eog(t, -1) && !tokenizer_is_eog(t, 600));
    CHECK(tokenizer_piece(t, 2, false, buf, sizeof buf) == 0);
    CHECK(tokenizer_piece(t, 2, true, buf, 4) == 10 && memcmp(buf, "<|im\0", 5) == 0);
    CHECK(tokenizer_piece(t, -1, true, buf, 4) == 0 && tokenizer_piece(t, 600, true, buf, 4) == 0);
}

static int sum_word(void *context, const char *text, size_t begin, size_t end) {
    (void)text;
    size_t *next = context;
    if (begin != *next || end <= begin) {
        return -1;
    }
    *next = end;
    return 0;
}

/* The words of every rule are adjacent, not empty, and cover the text. */
static void test_words_cover_the_text(void) {
    char names[1024], text[1024];
    uint32_t state = 2;
    pre_tokenizer_names(names, sizeof names);
    for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
        const struct pre_tokenizer *pre = pre_tokenizer_find(name, strlen(name));
        CHECK(pre != NULL);
        for (int i = 0; pre && i < 300; i++) {
            size_t len = random_text(&state, text, sizeof text), next = 0;
            CHECK(pre_tokenize(pre, text, len, sum_word, &next) == 0 && next == len);
        }
    }
    CHECK(pre_tokenizer_find("smollm ", 7) == NULL && pre_tokenizer_find("", 0) == NULL);
    CHECK(pre_tokenizer_find("smollmX", 6) != NULL);
}

static void test_utf8_next(void) {
    static const struct {
        const char *text;
        uint32_t code;
        size_t len;
    } cases[] = {
        {"a", 'a', 1}, {"\xC2\x80", 0x80, 2}, {"\xDF\xBF", 0x7FF, 2}, {"\xE0\xA0\x80", 0x800, 3},
        {"\xEF\xBF\xBF", 0xFFFF, 3}, {"\xF0\x90\x80\x80", 0x10000, 4}, {"\xF4\x8F\xBF\xBF", 0x10FFFF, 4},
        {"\x80", UTF8_INVALID, 1}, {"\xC1\xBF", UTF8_INVALID, 1}, {"\xC3", UTF8_INVALID, 1},
        {"\xE0\x9F\xBF", UTF8_INVALID, 1}, {"\xED\xA0\x80", UTF8_INVALID, 1},
        {"\xF0\x8F\xBF\xBF", UTF8_INVALID, 1}, {"\xF4\x90\x80\x80", UTF8_INVALID, 1},
        {"\xE2\x82", UTF8_INVALID, 1}, {"\xF0\x9F\x98", UTF8_INVALID, 1}, {"\xFF", UTF8_INVALID, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t len = 0, n = strlen(cases[i].text);
        char written[4];
        CHECK(utf8_next(cases[i].text, n, &len) == cases[i].code && len == cases[i].len);
        if (cases[i].code != UTF8_INVALID) {
            CHECK(utf8_write(cases[i].code, written) == n && memcmp(written, cases[i].text, n) == 0);
        }
    }
}

/* However the bytes arrive, the text is the same, and what has been written is whole. */
static void test_utf8_stream(void) {
    static const char bytes[] = "a\xC3\xA9€😀\xFF\xE2\x82z\xF0\x9F😀\xC3";
    static const char text[] = "aé€😀��z�😀�";
    size_t n = strlen(bytes);
    for (size_t step = 1; step <= n; step++) {
        struct utf8_stream stream = {{0}, 0};
        char out[UTF8_STREAM_ROOM(64)];
        size_t written = 0;
        for (size_t i = 0; i < n; i += step) {
            written += utf8_stream_push(&stream, bytes + i, step < n - i ? step : n - i, out + written);
            for (size_t at = 0, len; at < written; at += len) {
                CHECK(utf8_next(out + at, written - at, &len) != UTF8_INVALID);
            }
        }
        written += utf8_stream_flush(&stream, out + written);
        CHECK(written == strlen(text) && memcmp(out, text, written) == 0);
        CHECK(utf8_stream_flush(&stream, out) == 0);
    }
}

static void test_chat(void) {
    char path[] = "/tmp/test-tokenizer-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    struct gguf_writer w = {0};
    put_header(&w, 3, 0, 1);
    put_key_string(&w, "tokenizer.chat_template",
                   "{{ '<|im_start|>system\\nBe \\'good\\'.<|im_end|>\\n' + '<|im_start|>user\\n' }}");
    writer_save(&w, path);
    writer_free(&w);
    struct error err = {.text = ""};
    struct gguf *file = gguf_open(path, GGUF_MAPPED, &err);
    struct chat_format *format = file ? chat_detect(file, &err) : NULL;
    CHECK(format && strcmp(chat_format_name(format), "chatml") == 0);
    char *first = format ? chat_render_turn(format, NULL, "Hi", true, &err) : NULL;
    char *next = format ? chat_render_turn(format, "ignored", "So", false, &err) : NULL;
    CHECK(first && strcmp(first, "<|im_start|>system\nBe 'good'.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                 "<|im_start|>assistant\n") == 0);
    CHECK(next && strcmp(next, "<|im_end|>\n<|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\n") == 0);
    free(first);
    free(next);
    chat_format_free(format);
    gguf_close(file);
    unlink(path);
}

int main(void) {
    struct gguf *bpe_file, *spm_file;
    struct tokenizer *bpe = load("tests/golden/tokenizer_bpe.gguf", &bpe_file);
    struct tokenizer *spm = load("tests/golden/tokenizer_spm.gguf", &spm_file);
    test_golden(bpe, spm);
    test_any_bytes_come_back(bpe, spm);
    test_special_tokens(bpe);
    test_words_cover_the_text();
    test_utf8_next();
    test_utf8_stream();
    test_chat();
    tokenizer_free(bpe);
    tokenizer_free(spm);
    gguf_close(bpe_file);
    gguf_close(spm_file);
    return check_done("tokenizer");
}
