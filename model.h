/* model.h - a decoder-only transformer: what a checkpoint holds, and one timeline of text going through it.
 *
 * `struct model` is immutable once loaded and may be shared by sessions; all that changes while text is
 * processed hangs off `struct session`. Loading is in load.c, the forward pass in model.c: read that next. */
#pragma once

#include "attention/attention.h"
#include "cache/evict.h"
#include "cache/evict_watch.h"
#include "gguf.h"
#include "kernels/kernels.h"

#define MAX_NAME 64

struct config {
    char arch[MAX_NAME];   /* general.architecture: "llama", "qwen2", "qwen3" */
    int n_layer, n_embd, n_ff, n_vocab;
    int n_head, n_head_kv, head_dim;
    int n_ctx_train;       /* context length it was trained for */
    float norm_eps;
    struct rope rope;
};

/* Low-rank update of a weight W [rows, cols] by an adapter (Hu et al. 2021, LoRA): the product becomes
 * W x + scale * B (A x). */
struct lora {
    struct weight a;       /* [rank, cols] */
    struct weight b;       /* [rows, rank] */
    float scale;           /* alpha / rank */
};

struct layer {
    struct weight attn_norm;            /* [n_embd] */
    struct weight wq, bq;               /* [H*d, n_embd], [H*d] */
    struct weight wk, bk;               /* [G*d, n_embd], [G*d] */
    struct weight wv, bv;               /* [G*d, n_embd], [G*d] */
    struct weight q_norm, k_norm;       /* [d], or absent */
    struct weight wo;                   /* [n_embd, H*d] */
    struct weight ffn_norm;             /* [n_embd] */
    struct weight w_gate, w_up;         /* [n_ff, n_embd] */
    struct weight w_down;               /* [n_embd, n_ff] */
};

struct model {
    struct gguf *file;
    struct gguf *adapter;               /* --adapter, or NULL */
    const struct kernels *kernels;
    struct config config;
    struct weight token_embd;           /* [n_vocab, n_embd] */
    struct layer *layers;               /* [n_layer] */
    struct weight output_norm;          /* [n_embd] */
    struct weight output;               /* [n_vocab, n_embd]; token_embd where tied */
    struct lora *loras;                 /* [n_loras] what the weights' `lora` point to */
    int n_loras, max_rank;
    bool exact;                         /* no quantised weights: float32 arithmetic throughout */
    size_t weights_bytes;               /* tensors in use, in the file */
};

/* --rope-*: what is not given (-1, 0) stays as the file says. */
struct rope_options {
    int scaling;      /* enum rope_scaling, or -1 */
    float scale;      /* the context is stretched by this factor, or 0 */
    float base;       /* or 0 */
};

struct load_options {
    enum gguf_access access; /* of the checkpoint; an adapter is mapped */
    struct rope_options rope;
};

/* Opens a checkpoint and checks that every tensor the architecture needs is there with the right shape.
 * adapter_path may be NULL. NULL on failure. */
struct model *model_load(const char *path, const char *adapter_path, const struct kernels *kernels,
                         const struct load_options *options, struct error *err);
void model_free(struct model *model);

/* A tensor of the adapter or, failing that, of the model as a weight of rows x cols. A missing one leaves
 * *out empty and is an error only where `required`. */
int model_weight(const struct model *model, const char *name, int rows, int cols, bool required,
                 struct weight *out, struct error *err);

struct session_options {
    int n_ctx;                    /* limit on the positions of the timeline */
    int n_batch;                  /* tokens per forward pass of a prompt */
    int n_threads;
    enum kv_type type_k, type_v;
    bool precise;                 /* quantised weights: 16-bit activations and float32 attention throughout */
    bool measure;                 /* attn_shape.measure */
    const char *attn;             /* --attn SPEC, or NULL for dense */
    const char *kv_evict;         /* --kv-evict SPEC, or NULL for none */
};

/* What a batch of tokens is. Some modes and eviction policies treat prompts differently from generated text. */
enum phase { PHASE_PROMPT, PHASE_PROMPT_END, PHASE_GENERATE };

/* One timeline: what the attention layers keep of the tokens so far, and the buffers of a forward pass. */
struct session {
    const struct model *model;
    struct session_options options;
    struct team *team;
    struct attn_shape shape;
    struct attn_layer *layers;    /* [n_layer] */
    struct evict *evict;          /* what limits their caches, or NULL */
    int n_past;                   /* tokens so far = position of the next one */
    int *history;                 /* [n_history] the caller's tokens so far */
    int n_history, history_cap;
    int n_generated;              /* those that went in one by one after a prompt */

    /* Where a layer's attention wants landmark tokens, every block's last position is one (landmarks.c). */
    int landmark_block;           /* positions per block, or 0 */
    int landmark_id;              /* a token of the vocabulary, or n_vocab for the embedding below */
    struct weight landmark_embd;  /* [n_embd] */

    /* The batch in progress: n tokens, of which logits can be asked for until the next one. While the layers
     * run these include landmarks; afterwards they are the caller's own. */
    int n;
    int rope_pos;                 /* where its first token stands for RoPE: n_past, unless entries are re-rotated */
    enum phase phase;
    const int *tokens;            /* [n] */
    float *x;                     /* [n, n_embd] residual stream */
    float *x_norm;                /* [max(n, n_threads), n_embd] input of the projections */
    float *q, *k, *v;             /* [n, H*d], [n, G*d], [n, G*d] */
    float *attn_out;              /* [n, H*d] */
    float *hidden, *up;           /* [n, n_ff] */
    float *low_rank;              /* [n, max_rank] */
    int *expanded;                /* [n] tokens with landmarks between them */
    float *rope;                  /* [n, 2*n_pairs] cos and sin of the batch's positions */
    void *q8;                     /* quantised activations */
    float *residual;              /* [max(n, n_threads), widest input] what their 8 bits leave out */
    void *row_q8;                 /* one quantised row of each worker */
    void *scratch;                /* matmul scratch of all workers */
    void *attn_scratch;           /* the attention layers' */
    void *buffers;                /* the block that holds all of these */
};

struct session *session_create(const struct model *model, const struct session_options *options,
                               struct error *err);
void session_free(struct session *s);

/* Whether a layer's attention has to see the whole prompt in one batch and can't go on from there. */
bool session_whole_prompt(const struct session *s);

/* Forgets every token: the timeline begins anew. Sums over generated tokens (session_stats) go on. */
void session_reset(struct session *s);

/* Whether the context has room for n more tokens and the landmarks among them. */
bool session_fits(const struct session *s, int n);

/* Says that n more tokens are to come, as far as is known: caches that keep every token then grow once, for all of
 * them, which takes less memory and no copying. */
void session_expect(struct session *s, int64_t n);

/* Runs n tokens (1 <= n <= n_batch) through the model at positions n_past.. and appends them to the
 * timeline. -1 when the context is full, a token is not in the vocabulary, or memory is short; the timeline
 * is then as it was. */
int session_forward(struct session *s, const int *tokens, int n, enum phase phase, struct error *err);

/* Makes room for n more tokens in s->history. */
int session_reserve_history(struct session *s, int n, struct error *err);

/* Logits [n_rows, n_vocab] of tokens row..row+n_rows-1 of the last batch. */
void session_logits(struct session *s, int row, int n_rows, float *logits);

/* Sums over all layers. */
struct session_stats {
    size_t cache_bytes;
    double entries_cached;        /* mean per layer and KV head */
    double entries_attended;      /* mean per generated token, layer and query head */
};
void session_stats(const struct session *s, struct session_stats *stats);

/* One layer's, as it is. */
void session_layer_stats(const struct session *s, int layer, struct attn_stats *stats);

/* What another session's evictions lose, measured in this one, which evicts nothing (evict_watch.h): asks for
 * that before the first batch; says before each batch what the other now holds; gives the share of attention
 * probability that falls on it, in one layer or, with layer = -1, in all. NAN where nothing is measured, as
 * when a layer's mode keeps no entries. */
int session_watch(struct session *s, struct error *err);
void session_watch_hold(struct session *s, const struct session *other);
double session_watch_mass(const struct session *s, int layer);
