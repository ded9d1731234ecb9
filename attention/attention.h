/* attention.h - the interface every attention mode implements.
 *
 * A layer's attention gets the hidden states and the un-rotated q, k and v of
 * one batch of tokens and writes the head outputs. It owns what it keeps from
 * earlier tokens (a KV store, a compressed memory, a router's members) and
 * reports its size and how many entries it read. A mode is one .c file and one
 * line in the table of attention.c. docs/add-a-mode.md walks through it. */
#pragma once

#include "../cache/cache.h"
#include "../params.h"
#include "../state.h"

struct model;

/* One layer's share of a forward pass. Shapes: n tokens, H query heads,
 * G KV heads, d head size. */
struct attn_batch {
    int n;             /* tokens */
    int pos;           /* position of the first; the others follow it */
    bool prefill;      /* prompt tokens, as opposed to generated ones */
    bool prompt_end;   /* the last of these is the prompt's last token */
    const float *x;    /* [n, n_embd] input of the layer's projections (after RMSNorm) */
    float *q;          /* [n, H, d] before RoPE; a mode may rotate in place */
    float *k;          /* [n, G, d] before RoPE; likewise */
    float *v;          /* [n, G, d] */
    const float *rope; /* [n, 2 * n_pairs] rope_table() of each token's position */
    float *out;        /* [n, H, d] to be written */
};

/* What is the same for every layer. */
struct attn_shape {
    int n_embd, n_head, n_head_kv, head_dim;
    float scale;               /* 1/sqrt(head_dim) */
    bool exact;                /* float32 arithmetic only; else 8- and 16-bit where it is faster */
    bool measure;              /* modes that leave entries out compare themselves with dense attention */
    enum kv_type type_k, type_v;
    int max_batch;             /* tokens in the largest batch */
    int n_ctx;                 /* positions, at most */
    int n_threads;
    const struct rope *rope;
    const struct kernels *kernels;
    const struct attend_kernels *attend; /* attend_select(kernels_isa(kernels), exact) */
};

struct attn_stats {
    size_t bytes;              /* allocated for this layer's state */
    double entries_cached;     /* mean over KV heads */
    double entries_attended;   /* summed over generated tokens and query heads */

    /* Of modes that measure themselves against dense attention, summed over the rows (a token's query in one
     * head) that were measured: */
    double rows_measured;
    double recall;             /* share of the best keys that were found */
    double mass;               /* share of dense attention's probabilities that the row's entries have */
};

/* One layer of one session. */
struct attn_layer {
    const struct attn_mode *mode;
    const struct attn_shape *shape;
    int index;                 /* which layer */
    void *params;              /* the mode's options, of mode->params_bytes */
    struct kv_cache cache;     /* for modes that keep keys and values; set up by the caller */
    void *state;               /* whatever else the mode keeps */
    void *scratch;             /* attn_scratch_bytes() or scratch_bytes(), shared by all layers of the session */

    /* What init() may want the session to know. */
    const char *warning;       /* one line for the user, such as that parameters aren't trained; or NULL */
    bool whole_prompt;         /* the prompt must come in one batch, and nothing can follow it */
};

struct attn_mode {
    const char *name;
    const char *summary;               /* one line for --list-attn */
    const struct param *params;        /* options, ended by a NULL name */
    size_t params_bytes;
    bool evictable;                    /* takes --kv-evict, without which layer->cache has every token */

    /* Any of these may be NULL where there is nothing to do. */

    /* Checks the options against the model, finds trained parameters,
     * allocates layer->state. */
    int (*init)(struct attn_layer *layer, const struct model *model, struct error *err);
    /* Bytes of layer->scratch that the mode needs, if more than attn_scratch_bytes(). Before init(). */
    size_t (*scratch_bytes)(const struct attn_layer *layer);
    /* Makes room for b->n more tokens. Called by one thread before forward(). */
    int (*reserve)(struct attn_layer *layer, const struct attn_batch *b, struct error *err);
    /* Writes b->out; called by all workers at once. Ends with a barrier. */
    void (*forward)(struct attn_layer *layer, const struct attn_batch *b, struct worker *w);
    void (*stats)(const struct attn_layer *layer, struct attn_stats *stats);
    void (*free)(struct attn_layer *layer);
    /* Forgets every token: layer->state becomes what init() made it. The caller empties layer->cache. */
    void (*reset)(struct attn_layer *layer);
    /* Saves what the layer keeps, or restores it into a layer that has seen no token (state.h). */
    int (*state)(struct attn_layer *layer, struct state_io *io, struct error *err);
    /* Only the n entries of a KV head that `keep` lists, ascending, will stay: --kv-evict. Called before they
     * move, by one worker a head. */
    void (*dropped)(struct attn_layer *layer, int head, const int *keep, int n);
    /* Forgets the tokens from position pos on. NULL where a mode can't go back. */
    void (*truncate)(struct attn_layer *layer, int pos);
    /* Positions per block whose last one is for a landmark that the session puts in; 0 for none. Called
     * before init(). */
    int (*landmark_block)(const struct attn_layer *layer);
};

/* Bytes of attn_layer.scratch, which wants 64-byte alignment (dense.c). Needs shape->attend. */
size_t attn_scratch_bytes(const struct attn_shape *shape);

/* The table of modes, ended by NULL. */
extern const struct attn_mode *const attn_modes[];
const struct attn_mode *attn_mode_find(const char *name, size_t len);
