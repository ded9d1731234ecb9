#include "session_file.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "app/output.h"
#include "state.h"

/* File: magic, model fingerprint, options as text, tokens, the last batch's final hidden state (its logits
 * start the next answer), every layer's state, checksum. */
static const char magic[8] = "ATTNSES2"; /* the last is the format's version */

#define MAX_OPTIONS 1024

/* Adds a file's tensor table and the first bytes of every tensor. */
static uint64_t file_fingerprint(const struct gguf *file, uint64_t hash) {
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        const uint64_t words[] = {t->type, t->size, (uint64_t)t->ne[0], (uint64_t)t->ne[1]};
        for (size_t j = 0; j < 4; j++) hash = (hash ^ words[j]) * 0x100000001b3u;
        for (size_t j = 0; t->data && j < t->size && j < 64; j++) hash = (hash ^ t->data[j]) * 0x100000001b3u;
    }
    return hash;
}

/* Tells checkpoints apart, and their adapters. */
static uint64_t model_fingerprint(const struct model *m) {
    uint64_t hash = file_fingerprint(m->file, 0xcbf29ce484222325u);
    return m->adapter ? file_fingerprint(m->adapter, hash) : hash;
}

/* All that changes what the layers keep. */
static void options_text(const struct session *s, char text[MAX_OPTIONS]) {
    const struct session_options *o = &s->options;
    const struct rope *rope = &s->model->config.rope;
    memset(text, 0, MAX_OPTIONS);
    snprintf(text, MAX_OPTIONS, "attn=%s evict=%s k=%s v=%s rope=%.9g,%.9g", o->attn ? o->attn : "dense",
             s->evict ? o->kv_evict : "none", kv_type_name(o->type_k), kv_type_name(o->type_v), rope->inv_freq[rope->n_pairs - 1], rope->magnitude);
}

/* What comes before the tokens; all of it must be the same again. */
struct header {
    char magic[8];
    uint64_t fingerprint;
    char options[MAX_OPTIONS];
};

static struct header make_header(const struct session *s) {
    struct header h = {.fingerprint = model_fingerprint(s->model)};
    memcpy(h.magic, magic, sizeof magic);
    options_text(s, h.options);
    return h;
}

/* Tokens, the hidden state of the last one (its logits start the next answer), and every layer's state. The
 * counts are set when restoring. */
static int body_state(struct session *s, struct state_io *io, struct error *err) {
    int n_embd = s->model->config.n_embd, n_history = s->n_history;
    float *last = s->x + (io->saving ? (size_t)(s->n - 1) * (size_t)n_embd : 0);
    state_int(io, &s->n_past, 1, s->options.n_ctx);
    state_int(io, &n_history, 1, s->options.n_ctx);
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
    if (body_state(s, &io, err)) {
        output_discard(&out);
        return -1;
    }
    uint64_t checksum = io.checksum;
    state_bytes(&io, &checksum, sizeof checksum);
    return output_commit(&out, err);
}

/* 0 with *why set where the file is another's. */
static int check_header(const struct session *s, struct state_io *io, const char **why) {
    struct header header, expected = make_header(s);
    state_bytes(io, &header, sizeof header);
    if (io->failed || memcmp(header.magic, magic, sizeof magic - 1)) *why = "it is not a session file";
    else if (memcmp(header.magic, magic, sizeof magic)) *why = "another version of this program wrote it";
    else if (header.fingerprint != expected.fingerprint) *why = "it is of another model";
    else if (memcmp(header.options, expected.options, MAX_OPTIONS)) *why = "it was made with other options";
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
    if (!check_header(s, &io, why)) return 0;
    if (body_state(s, &io, err)) return -1;
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
    int status = fstat(fileno(file), &st) ? fail(err, "%s: can't read the session: %s", path, strerror(errno))
                                          : restore(s, file, (size_t)st.st_size, path, prompt, n_prompt, why, err);
    fclose(file);
    if (status != 1) session_reset(s);
    return status;
}
