#include "landmarks.h"

#include <string.h>

/* The token that the checkpoint or its adapter uses. */
static int find_token(struct session *s, struct error *err) {
    static const char key[] = "attention.landmark.token_id", tensor[] = "landmark_embd.weight";
    const struct model *m = s->model;
    int n_vocab = m->config.n_vocab;
    int64_t id = n_vocab;
    bool given = (m->adapter && gguf_get_int(m->adapter, key, &id)) || gguf_get_int(m->file, key, &id);
    if (id < 0 || id > n_vocab)
        return fail(err, "%s: key '%s' is %lld, outside 0..%d", gguf_path(m->file), key, (long long)id,
                    n_vocab);
    s->landmark_id = (int)id;
    if (id < n_vocab) return 0;
    if (model_weight(m, tensor, 1, m->config.n_embd, false, &s->landmark_embd, err)) return -1;
    if (s->landmark_embd.data) return 0;
    return fail(err, "%s: landmark attention needs tensor '%s'%s, which is missing: give a checkpoint or "
                "--adapter that has it, or use --attn landmark:key=mean, which needs no training",
                gguf_path(m->file), tensor, given ? "" : " or key 'attention.landmark.token_id'");
}

int landmarks_init(struct session *s, struct error *err) {
    for (int l = 0; l < s->model->config.n_layer; l++) {
        const struct attn_mode *mode = s->layers[l].mode;
        int block = mode->landmark_block ? mode->landmark_block(&s->layers[l]) : 0;
        if (block && s->landmark_block && block != s->landmark_block)
            return fail_usage(err, "--attn landmark: layers have blocks of %d and %d tokens, but landmarks "
                              "stand at the same positions in all layers", s->landmark_block, block);
        if (block) s->landmark_block = block;
    }
    return s->landmark_block ? find_token(s, err) : 0;
}

int landmarks_room(const struct session *s, int n) {
    return s->landmark_block ? n + n / (s->landmark_block - 1) + 1 : n;
}

int landmarks_needed(const struct session *s, int n) {
    if (!s->landmark_block) return n;
    /* One that would come last is left out where it no longer fits: it would never be read. */
    return n + (s->n_past % s->landmark_block + n - 1) / (s->landmark_block - 1);
}

void landmarks_insert(struct session *s, const int *tokens, int n) {
    s->tokens = tokens;
    s->n = n;
    if (!s->landmark_block) return;
    int m = 0;
    for (int i = 0; i < n; i++) {
        s->expanded[m++] = tokens[i];
        int next = s->n_past + m;
        if (next % s->landmark_block == s->landmark_block - 1 && (i + 1 < n || next < s->options.n_ctx))
            s->expanded[m++] = s->landmark_id;
    }
    s->tokens = s->expanded;
    s->n = m;
}

void landmarks_drop(struct session *s, int n) {
    if (s->n == n) return;
    size_t n_embd = (size_t)s->model->config.n_embd;
    int first = s->n_past - s->n, kept = 0; /* n_past is behind the batch */
    for (int i = 0; i < s->n; i++) {
        if ((first + i) % s->landmark_block == s->landmark_block - 1) continue;
        memmove(s->x + (size_t)kept++ * n_embd, s->x + (size_t)i * n_embd, n_embd * sizeof *s->x);
    }
    s->n = n;
}
