#include "tokenizer/tokenizer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/bpe.h"
#include "tokenizer/spm.h"
#include "tokenizer/vocab.h"

#define MAX_TEXT ((size_t)1 << 29) /* bytes; symbols are counted with an int */

struct tokenizer {
    struct vocab vocab;
    bool is_spm;
    struct bpe bpe;
    struct spm spm;
    struct token_set always;   /* tokens that are found in any text ... */
    struct token_set special;  /* ... and in text where control tokens are parsed */
    bool strip_after_special;  /* Phi-3: white space after a special token is dropped */
    bool *ends_generation;     /* [n_vocab] */
    int bos, eos;
    bool add_bos, add_eos;
};

/* Texts of the tokens that end an answer or, of a code model, a file. */
static const char *const end_texts[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
    "<｜end▁of▁sentence｜>", /* DeepSeek */
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>",
    "<|file_sep|>",
};

/* Reads a token id from the file; *id stays as it is if there is none. */
static int read_id(const struct tokenizer *t, const struct gguf *file, const char *key, int *id,
                   struct error *err) {
    int64_t value;
    if (!gguf_get_int(file, key, &value)) {
        return 0;
    }
    if (value < 0 || value >= t->vocab.n) {
        return fail(err, "%s: %s is %lld, but there are %d tokens", gguf_path(file), key, (long long)value,
                    t->vocab.n);
    }
    *id = (int)value;
    return 0;
}

/* A file without token types can't say that "<|im_end|>" is no ordinary text. */
static void mark_end_tokens(struct tokenizer *t) {
    for (size_t i = 0; i < sizeof end_texts / sizeof end_texts[0]; i++) {
        int id = vocab_find(&t->vocab, end_texts[i], strlen(end_texts[i]));
        if (id >= 0 && !t->vocab.has_types) {
            t->vocab.types[id] = TOKEN_CONTROL;
        }
        if (id >= 0 && t->vocab.types[id] != TOKEN_NORMAL) {
            t->ends_generation[id] = true;
        }
    }
}

static int load_special_ids(struct tokenizer *t, const struct gguf *file, struct error *err) {
    int eot = -1, eom = -1;
    if (t->is_spm) { /* what sentencepiece numbers them */
        t->bos = t->vocab.n > 1 ? 1 : -1;
        t->eos = t->vocab.n > 2 ? 2 : -1;
    }
    if (read_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos, err) ||
        read_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos, err) ||
        read_id(t, file, "tokenizer.ggml.eot_token_id", &eot, err) ||
        read_id(t, file, "tokenizer.ggml.eom_token_id", &eom, err)) {
        return -1;
    }
    t->ends_generation = calloc((size_t)t->vocab.n, sizeof *t->ends_generation);
    if (!t->ends_generation) {
        return fail(err, "out of memory for the vocabulary");
    }
    mark_end_tokens(t);
    const int ends[] = {t->eos, eot, eom};
    for (int i = 0; i < 3; i++) {
        if (ends[i] >= 0) {
            t->ends_generation[ends[i]] = true;
        }
    }
    t->add_bos = t->is_spm || pre_tokenizer_adds_bos(t->bpe.pre);
    gguf_get_bool(file, "tokenizer.ggml.add_bos_token", &t->add_bos);
    gguf_get_bool(file, "tokenizer.ggml.add_eos_token", &t->add_eos);
    return 0;
}

/* GGUF has no key for how Phi-3 treats white space: known from the model's name, as in llama.cpp. */
static bool is_phi3(const struct gguf *file) {
    struct gguf_string name = {"", 0};
    char lower[128] = "";
    gguf_get_string(file, "general.name", &name);
    for (size_t i = 0; i < name.len && i + 1 < sizeof lower; i++) {
        lower[i] = (char)tolower((unsigned char)name.data[i]);
    }
    return strstr(lower, "phi-3") || strstr(lower, "phi3");
}

/* SentencePiece's user-defined tokens are part of its text, except that
 * Phi-3's are added to the outside like control tokens. */
static int load_special_sets(struct tokenizer *t, const struct gguf *file, struct error *err) {
    t->strip_after_special = t->is_spm && is_phi3(file);
    unsigned always = t->is_spm && !t->strip_after_special ? 0 : 1 << TOKEN_USER_DEFINED;
    unsigned special = always | 1 << TOKEN_CONTROL | 1 << TOKEN_UNKNOWN;
    if (token_set_init(&t->always, &t->vocab, always, err)) {
        return -1;
    }
    return token_set_init(&t->special, &t->vocab, special, err);
}

static int load(struct tokenizer *t, const struct gguf *file, struct error *err) {
    struct gguf_string model;
    if (!gguf_get_string(file, "tokenizer.ggml.model", &model)) {
        return fail(err, "%s: tokenizer.ggml.model is missing: the file has no tokenizer", gguf_path(file));
    }
    t->is_spm = model.len == 5 && memcmp(model.data, "llama", 5) == 0;
    if (!t->is_spm && !(model.len == 4 && memcmp(model.data, "gpt2", 4) == 0)) {
        char quoted[64];
        gguf_quote(model, quoted, sizeof quoted);
        return fail(err, "%s: tokenizer.ggml.model %s is not supported (known: gpt2, llama)", gguf_path(file),
                    quoted);
    }
    if (vocab_load(&t->vocab, file, t->is_spm, err) ||
        (t->is_spm ? spm_load(&t->spm, &t->vocab, file, err) : bpe_load(&t->bpe, &t->vocab, file, err)) ||
        load_special_ids(t, file, err) || load_special_sets(t, file, err)) {
        return -1;
    }
    return 0;
}

struct tokenizer *tokenizer_load(const struct gguf *file, struct error *err) {
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        fail(err, "out of memory for the tokenizer");
        return NULL;
    }
    t->bos = t->eos = -1;
    if (load(t, file, err)) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) {
        return;
    }
    spm_free(&t->spm);
    bpe_free(&t->bpe);
    token_set_free(&t->always);
    token_set_free(&t->special);
    vocab_free(&t->vocab);
    free(t->ends_generation);
    free(t);
}

int tokenizer_n_vocab(const struct tokenizer *t) {
    return t->vocab.n;
}

int tokenizer_bos(const struct tokenizer *t) {
    return t->bos;
}

int tokenizer_eos(const struct tokenizer *t) {
    return t->eos;
}

bool tokenizer_is_eog(const struct tokenizer *t, int id) {
    return id >= 0 && id < t->vocab.n && t->ends_generation[id];
}

int token_list_push(struct token_list *list, int id) {
    if (list->n == list->cap) {
        int cap = list->cap < 64 ? 64 : list->cap * 2;
        int *ids = realloc(list->ids, (size_t)cap * sizeof *ids);
        if (!ids) {
            return -1;
        }
        list->ids = ids;
        list->cap = cap;
    }
    list->ids[list->n++] = id;
    return 0;
}

void token_list_free(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

/* Text without special tokens. */
static int encode_plain(const struct tokenizer *t, const char *text, size_t len, struct token_list *out,
                        struct error *err) {
    if (len == 0) {
        return 0;
    }
    return t->is_spm ? spm_encode(&t->spm, text, len, out, err) : bpe_encode(&t->bpe, text, len, out, err);
}

/* Of a Phi-3 checkpoint, all but three of the special tokens swallow the white space behind them. */
static bool strips_after(const struct tokenizer *t, int id) {
    static const char *const plain[] = {"<unk>", "<s>", "<|endoftext|>"};
    const struct token *token = &t->vocab.tokens[id];
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (token->len == strlen(plain[i]) && memcmp(token->text, plain[i], token->len) == 0) {
            return false;
        }
    }
    return t->strip_after_special;
}

static int encode_text(const struct tokenizer *t, const char *text, size_t len,
                       const struct token_set *special, struct token_list *out, struct error *err) {
    size_t plain = 0, pos = 0; /* text[plain..pos) has no special token */
    while (pos < len) {
        int id = token_set_match(special, &t->vocab, text + pos, len - pos);
        if (id < 0) {
            pos++;
            continue;
        }
        if (encode_plain(t, text + plain, pos - plain, out, err)) {
            return -1;
        }
        if (token_list_push(out, id)) {
            return fail(err, "out of memory for the tokens");
        }
        pos += t->vocab.tokens[id].len;
        while (pos < len && strips_after(t, id) && isspace((unsigned char)text[pos])) {
            pos++;
        }
        plain = pos;
    }
    return encode_plain(t, text + plain, len - plain, out, err);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_bos,
                     bool parse_special, struct token_list *out, struct error *err) {
    if (len > MAX_TEXT) {
        return fail(err, "a text of %zu bytes is too long to tokenize at once; at most %zu", len, MAX_TEXT);
    }
    if (add_bos && t->add_bos && t->bos >= 0 && token_list_push(out, t->bos)) {
        return fail(err, "out of memory for the tokens");
    }
    if (encode_text(t, text, len, parse_special ? &t->special : &t->always, out, err)) {
        return -1;
    }
    if (add_bos && t->add_eos && t->eos >= 0 && token_list_push(out, t->eos)) {
        return fail(err, "out of memory for the tokens");
    }
    return 0;
}

size_t tokenizer_piece(const struct tokenizer *t, int id, bool special, char *buf, size_t size) {
    if (id < 0 || id >= t->vocab.n) {
        return 0;
    }
    const struct token *token = &t->vocab.tokens[id];
    enum token_type type = (enum token_type)t->vocab.types[id];
    bool is_control = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
    if (is_control && !special) {
        return 0;
    }
    if (is_control || (type == TOKEN_USER_DEFINED && !t->is_spm)) {
        memcpy(buf, token->text, token->len < size ? token->len : size);
        return token->len;
    }
    return t->is_spm ? spm_spell(&t->spm, id, buf, size) : bpe_spell(token->text, token->len, buf, size);
}

size_t tokenizer_max_piece(const struct tokenizer *t) {
    return t->vocab.max_len;
}
