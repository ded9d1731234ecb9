/* evict.h - KV-cache eviction: every KV head keeps its `budget` best entries.
 *
 * A policy gives each entry of a head a score; evict_step() does the rest after a layer's attention: it
 * protects the attention sink and the newest entries, keeps the best of the others, closes the gaps and gives
 * memory back. Of entries with equal scores the oldest stays. A policy is one evict_NAME.c and one line in
 * the table of evict.c. What the definitions leave open is settled as in kvpress (NVIDIA); where a policy
 * differs from the press of its name, its file says so. */
#pragma once

#include "../kernels/sparse.h"
#include "../kernels/team.h"
#include "../params.h"
#include "cache.h"

/* Options of every policy; one with options of its own embeds them as its first member. */
struct evict_options {
    int budget;    /* entries that a KV head keeps */
    int sink;      /* entries at positions below this always stay */
    int recent;    /* so do this many of the newest */
    int rerotate;  /* entries that stay move to consecutive places, for RoPE too */
    int block;     /* look at no more than this many entries over the budget at a time; 0: at all */
};

/* Their rows in a policy's table. `block` is a matter of policies that compare entries with each other. */
#define EVICT_OPTIONS(rerotate_initially)                                                                    \
    {"budget", PARAM_INT, offsetof(struct evict_options, budget), 0, 1, 1 << 30, NULL, NULL,                 \
     "entries that a KV head keeps"},                                                                        \
    {"sink", PARAM_INT, offsetof(struct evict_options, sink), 4, 0, 1 << 30, NULL, NULL,                     \
     "positions below this always stay"},                                                                    \
    {"recent", PARAM_INT, offsetof(struct evict_options, recent), 0, 0, 1 << 30, NULL, NULL,                 \
     "newest entries that always stay"},                                                                     \
    {"rerotate", PARAM_BOOL, offsetof(struct evict_options, rerotate), rerotate_initially, 0, 1, NULL, NULL, \
     "1: entries move to consecutive places"}

/* What is the same for every layer: H query heads, G KV heads, d head size. */
struct evict_shape {
    int n_layer, n_head, n_head_kv, head_dim;
    int n_ctx;           /* positions, at most */
    int n_threads;
    const struct rope *rope;
    const struct attend_kernels *attend;
    const struct sparse_kernels *select;
};

/* The tokens whose attention has just been computed. Their entries are the newest of every KV head. */
struct evict_batch {
    int n;
    int pos;             /* of the first in the token sequence */
    int rope_pos;        /* for RoPE: evict_rope_pos() */
    bool prefill;        /* prompt tokens, as opposed to generated ones */
    bool prompt_end;     /* the last one is the prompt's last */
    const float *q;      /* [n, H, d] rotated, times 1/sqrt(d) */
    const float *rope;   /* [n, 2 * n_pairs] rope_table() of each token */
};

/* What a layer keeps beside its KV cache. */
struct evict_head {
    float *memo;   /* [cap, policy's memo_size] what the policy remembers of each entry; at first zero */
    int cap;
    int known;     /* entries whose memo is filled, for policies that do this in score() */

    /* With rerotate=1 only. The newest entry stays where it is, so that those before a gap move, some of them with
     * every token. What has moved is kept in float32 as well: a key that is rounded again and again drifts, and one
     * that turns by less than a rounding never does. */
    int moved;     /* entry i stands at moved + i for RoPE */
    float *exact;  /* [exact_cap, d] keys of the first n_exact entries */
    int n_exact, exact_cap;
};

struct evict_layer {
    const struct evict *evict;
    int index;
    struct kv_cache *cache;
    struct evict_head *heads; /* [G] */
    void *state;              /* the policy's */
    void (*dropped)(void *owner, int head, const int *keep, int n);
    void *owner;
};

struct evict_policy {
    const char *name;
    const char *summary;             /* one line for --list-evict */
    const struct param *params;      /* options, ended by a NULL name */
    size_t options_bytes;            /* of a struct that begins with struct evict_options */
    bool prompt_only;                /* acts once, at the end of a prompt; what is generated then stays */
    bool uses_attention;             /* calls evict_attention() */
    bool uneven;                     /* heads or layers keep different numbers of entries */
    bool oldest_first;               /* the oldest entries but the sink go, which alone moves when re-rotated */

    /* Any of these but score() may be NULL. */

    /* Checks options that depend on each other. */
    int (*check)(const void *options, struct error *err);
    /* Floats per entry of evict_head.memo. */
    int (*memo_size)(const struct evict *e);
    /* Bytes of evict_layer.state, zero at the start and after evict_reset(). */
    size_t (*state_bytes)(const struct evict *e);
    /* Takes note of a batch; `due` when an eviction follows. All workers; ends with a barrier. */
    void (*observe)(struct evict_layer *l, const struct evict_batch *b, bool due, struct worker *w);
    /* Scores the first n entries of a head, higher stays. One worker a head. */
    void (*score)(struct evict_layer *l, int head, int n, float *scores);
    /* Entry i, which has been scored, goes. One worker a head, before entries move. */
    void (*forget)(struct evict_layer *l, int head, int i);
    /* How many entries each head keeps, if not options.budget: budgets [G]. One worker, when all heads have
     * been scored and what must stay has INFINITY. */
    void (*share)(struct evict_layer *l, int *budgets);
};

/* Eviction in one session. */
struct evict {
    const struct evict_policy *policy;
    struct evict_options *options;   /* of policy->options_bytes */
    struct evict_shape shape;
    int memo_size;
    size_t state_bytes;
    struct evict_layer *layers;      /* [n_layer] */

    /* Scratch, used by one layer after the other. */
    int cap;                         /* entries of a head that it has room for */
    float *scores;                   /* [G, cap] */
    int *keep;                       /* [G, cap] */
    int *budgets;                    /* [G] */
    float *spare;                    /* [2, G, cap] for the policy; for the selection */
    float *attention;                /* of evict_attention() */
};

/* Reads `policy[:key=value,...]`. *out is NULL after "none" or a NULL spec. -1 with a usage error. */
int evict_create(struct evict **out, const char *spec, const struct evict_shape *shape, struct error *err);

/* The same with a policy that needn't be in the table; params is "key=value,...". */
int evict_create_policy(struct evict **out, const struct evict_policy *policy, const char *params,
                        const struct evict_shape *shape, struct error *err);
void evict_free(struct evict *e);

/* Says whose cache a layer's is, and whom to tell (or NULL) which entries of a head stay before they move. */
void evict_attach(struct evict *e, int layer, struct kv_cache *cache,
                  void (*dropped)(void *owner, int head, const int *keep, int n), void *owner);

/* Saves what is kept beside the caches, or restores it when the caches have been (state.h). */
struct state_io;
int evict_state(struct evict *e, struct state_io *io, struct error *err);

/* Forgets every token; the caches are the caller's. */
void evict_reset(struct evict *e);

/* Makes room for n more tokens in every layer. Serial; call it while the caches hold what is before them. */
int evict_reserve(struct evict *e, int n, struct error *err);

/* Where the next token stands for RoPE: at its position n_past, or with rerotate=1 behind the layer's entries.
 * The same for every layer. */
int evict_rope_pos(const struct evict *e, int layer, int n_past);

/* After a layer's attention over a batch: evicts where a head is over its budget. Called by all workers
 * after a barrier; ends with one. */
void evict_step(struct evict *e, int layer, const struct evict_batch *b, struct worker *w);

/* Bytes of memos and states. */
size_t evict_bytes(const struct evict *e);

/* The table of policies, ended by NULL, and one of them. */
extern const struct evict_policy *const evict_policies[];
const struct evict_policy *evict_policy_find(const char *name, size_t len);

/* ---- for policies ---- */

/* Entry i of a head as float32 [d]. */
void evict_key(const struct evict_layer *l, int head, int i, float *key);
void evict_value(const struct evict_layer *l, int head, int i, float *value);

/* A head's scores, as share() finds them. */
float *evict_scores(const struct evict *e, int head);

/* Attention probabilities from the newest n_q tokens, whose queries q [n_q, H, d] are, to a head's entries:
 * afterwards evict_attention_sums() [n] has them summed over these tokens and over the query heads of the
 * group. Probabilities are those of dense attention over what is cached, whatever the layer's mode. Never
 * holds more than a few rows of the n_q x n matrix. All workers; ends with a barrier. */
void evict_attention(const struct evict_layer *l, const float *q, int n_q, struct worker *w);
const float *evict_attention_sums(const struct evict_layer *l, int head);
size_t evict_attention_bytes(const struct evict_shape *shape, int cap);

/* sum of x[i] * y[i]; sum of x[i] */
float evict_dot(const float *x, const float *y, int n);
float evict_sum(const float *x, int n);
