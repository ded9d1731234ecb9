#include "session_file.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "app/output.h"
#include "state.h"

/* File: magic, fingerprints of the model and of the options, tokens, the last batch's final hidden state (its
 * logits start the next answer), every layer's state, checksum. */
static const char magic[8] = "ATTNSES3"; /* the last is the format's version */

#define SAMPLES 8 /* places at which a tensor is looked at */
#define SAMPLE 64 /* bytes */

static uint64_t add_string(uint64_t hash, struct gguf_string s) {
    return checksum_add(checksum_add(hash, &s.len, sizeof s.len), s.data, s.len);
}

static uint64_t add_value(uint64_t hash, const struct gguf_array *a) {
    const uint8_t *cursor = a->data;
    hash = checksum_add(hash, &a->n, sizeof a->n);
    for (size_t i = 0; i < a->n; i++) {
        if (a->type == GGUF_STRING) {
            hash = add_string(hash, gguf_array_next(a, &cursor));
        } else {
            const int64_t whole = gguf_array_int(a, i); /* of a float: 0 */
            const double number = gguf_array_float(a, i);
            hash = checksum_add(checksum_add(hash, &whole, sizeof whole), &number, sizeof number);
        }
    }
    return hash;
}

static uint64_t add_tensor(uint64_t hash, const struct gguf_tensor *t) {
    const uint64_t words[] = {t->type, t->size, (uint64_t)t->ne[0], (uint64_t)t->ne[1]};
    hash = checksum_add(add_string(hash, t->name), words, sizeof words);
    if (!t->data) return hash;
    if (t->size <= SAMPLES * SAMPLE) return checksum_add(hash, t->data, t->size);
    for (size_t i = 0; i < SAMPLES; i++)
        hash = checksum_add(hash, t->data + (t->size - SAMPLE) / (SAMPLES - 1) * i, SAMPLE);
    return hash;
}

/* Adds a file's metadata, its tensor table and some bytes of every tensor. */
static uint64_t add_file(uint64_t hash, const struct gguf *file) {
    for (int i = 0; i < gguf_n_keys(file); i++)
        hash = add_value(add_string(hash, gguf_key_at(file, i)), &gguf_value_at(file, i)->array);
    for (int i = 0; i < gguf_n_tensors(file); i++) hash = add_tensor(hash, gguf_tensor_at(file, i));
    return hash;
}

/* Tells checkpoints apart, and their adapters. */
static uint64_t model_fingerprint(const struct model *m) {
    uint64_t hash = add_file(0, m->file);
    return m->adapter ? add_file(hash, m->adapter) : hash;
}

/* All that changes what the layers keep. */
static uint64_t options_fingerprint(const struct session *s) {
    const struct session_options *o = &s->options;
    const struct rope *rope = &s->model->config.rope;
    const char *const texts[] = {o->attn ? o->attn : "dense", s->evict ? o->kv_evict : "none",
                                 kv_type_name(o->type_k), kv_type_name(o->type_v)};
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) hash = checksum_add(hash, texts[i], strlen(texts[i]) + 1);
    hash = checksum_add(hash, rope->inv_freq, (size_t)rope->n_pairs * sizeof *rope->inv_freq);
    return checksum_add(hash, &rope->magnitude, sizeof rope->magnitude);
}

/* What comes before the tokens; all of it must be the same again. */
struct header {
    char magic[8];
    uint64_t model, options;
};

static struct header make_header(const struct session *s) {
    struct header h = {.model = model_fingerprint(s->model), .options = options_fingerprint(s)};
    memcpy(h.magic, magic, sizeof magic);
    return h;
}

/* Tokens, the hidden state of the last one (its logits start the next answer), and every layer's state. The
 * counts are set when restoring. */
static int body_state(struct session *s, struct state_io *io, const char *path, struct error *err) {
    int n_embd = s->model->config.n_embd, n_history = s->n_history;
    float *last = s->x + (io->saving ? (size_t)(s->n - 1) * (size_t)n_embd : 0);
    state_int(io, &s->n_past, 1, INT32_MAX);
    state_int(io, &n_history, 1, s->n_past);
    if (s->n_past > s->options.n_ctx)
        return fail(err, "%s: the session has %d tokens, but the context only %d: raise -c", path, s->n_past,
                    s->options.n_ctx);
    if (!io->saving && session_reserve_history(s, n_history, err)) return -1;
    s->n_history = n_history;
    state_bytes(io, s->history, (size_t)s->n_history * sizeof *s->history);
    state_bytes(io, last, (size_t)n_embd * sizeof *last);
    s->n = 1;
    for (int l = 0; l < s->model->config.n_layer; l++) {
        struct attn_layer *layer = &s->layers[l];
        if (layer->mode->state(layer, io, err)) return -1;
    }
    return s->evict ? evict_state(s->evict, io, err) : 0;
}

int session_save(struct session *s, const char *path, struct error *err) {
    struct output out;
    if (output_open(&out, path, err)) return -1;
    struct state_io io = {.file = out.file, .saving = true};
    struct header header = make_header(s);
    state_bytes(&io, &header, sizeof header);
    if (body_state(s, &io, path, err)) {
        output_discard(&out);
        return -1;
    }
    uint64_t checksum = io.checksum;
    state_bytes(&io, &checksum, sizeof checksum);
    return output_commit(&out, err);
}

/* 0 with *why set where the file is another session's. What is none must not be overwritten at the end. */
static int check_header(const struct session *s, struct state_io *io, const char *path, const char **why,
                        struct error *err) {
    struct header header, expected = make_header(s);
    state_bytes(io, &header, sizeof header);
    if (io->failed || memcmp(header.magic, magic, sizeof magic - 1))
        return fail(err, "%s: not a session file: delete it or give another name", path);
    if (memcmp(header.magic, magic, sizeof magic)) *why = "another version of this program wrote it";
    else if (header.model != expected.model) *why = "it is of another model";
    else if (header.options != expected.options) *why = "it was made with other options";
    else return 1;
    return 0;
}

static int common_prefix(const int *a, int n_a, const int *b, int n_b) {
    int n = 0;
    while (n < n_a && n < n_b && a[n] == b[n]) n++;
    return n;
}

/* Goes back to what the session and the prompt have in common, leaving a token to run for its logits. */
static bool fit_to_prompt(struct session *s, const int *prompt, int n_prompt) {
    int n = common_prefix(s->history, s->n_history, prompt, n_prompt);
    if (n == s->n_history) return true;
    if (n == n_prompt) n--;
    if (s->evict) return false; /* what earlier tokens would have kept is gone */
    for (int l = 0; l < s->model->config.n_layer; l++)
        if (!s->layers[l].mode->truncate) return false;
    for (int l = 0; l < s->model->config.n_layer; l++) s->layers[l].mode->truncate(&s->layers[l], n);
    s->n_past = s->n_history = n;
    return n > 0;
}

static int restore(struct session *s, FILE *file, size_t size, const char *path, const int *prompt, int n_prompt,
                   const char **why, struct error *err) {
    uint64_t checksum, expected;
    struct state_io io = {.file = file, .left = size};
    int status = check_header(s, &io, path, why, err);
    if (status <= 0) return status;
    if (body_state(s, &io, path, err)) return -1;
    expected = io.checksum;
    state_bytes(&io, &checksum, sizeof checksum);
    if (io.failed || io.left || checksum != expected)
        return fail(err, "%s: the session file is damaged: delete it to start over", path);
    if (prompt && !fit_to_prompt(s, prompt, n_prompt)) {
        *why = "its tokens are not those that the prompt begins with";
        return 0;
    }
    return 1;
}

int session_restore(struct session *s, const char *path, const int *prompt, int n_prompt, const char **why,
                    struct error *err) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        if (errno != ENOENT) return fail(err, "%s: can't read the session: %s", path, strerror(errno));
        *why = NULL;
        return 0;
    }
    struct stat st;
    int status = 0;
    *why = NULL;
    if (fstat(fileno(file), &st)) status = fail(err, "%s: can't read the session: %s", path, strerror(errno));
    else if (st.st_size > 0) status = restore(s, file, (size_t)st.st_size, path, prompt, n_prompt, why, err);
    fclose(file);
    if (status != 1) session_reset(s);
    return status;
}
