/* cache.h - storage of keys and values, one store per layer.
 *
 * Every KV head keeps its own list of entries, oldest first, because an
 * eviction policy may keep different ones in each. Without eviction entry i
 * stands at position i. Keys are stored as the attention mode gives them
 * (rotated, except where a mode says otherwise). The store grows as it fills. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../arena.h"
#include "../error.h"
#include "../kernels/attend.h"
#include "../kernels/kernels.h"

struct kv_head {
    int n, cap;   /* entries; room for entries */
    int *pos;     /* [cap] position of each entry in the token sequence */
    uint8_t *k;   /* [cap] rows of k_row_bytes */
    uint8_t *v;   /* [cap] rows of v_row_bytes */
};

struct kv_cache {
    int n_head_kv, head_dim;
    enum kv_type type_k, type_v;
    size_t k_row_bytes, v_row_bytes;
    struct kv_head *heads; /* [n_head_kv] */
    struct arena arena;    /* where all the heads' arrays lie */
    int expected;          /* entries of a head that are known to come: one that grows makes room for as many */
    /* kv_row_store(), or the faster twin that struct attend_kernels has. */
    void (*store)(enum kv_type type, int d, const float *x, uint8_t *row);
};

int kv_init(struct kv_cache *c, int n_head_kv, int head_dim, enum kv_type type_k, enum kv_type type_v,
            struct error *err);
void kv_free(struct kv_cache *c);

/* Makes room for n more entries in every head. Serial; may move the arrays. */
int kv_reserve(struct kv_cache *c, int n, struct error *err);

/* Appends one entry to a head that has room, converting to the store's types. */
void kv_append(struct kv_cache *c, int head, int pos, const float *k, const float *v);

/* The same in two steps, for several threads at once: kv_write() fills entry i >= n
 * (room is reserved), kv_advance() makes the next n written entries of every head valid. */
void kv_write(const struct kv_cache *c, int head, int i, int pos, const float *k, const float *v);
void kv_advance(struct kv_cache *c, int n);

/* Entry i of a head as float32 [head_dim]. */
void kv_key(const struct kv_cache *c, int head, int i, float *out);
void kv_value(const struct kv_cache *c, int head, int i, float *out);

/* A head's rows as the kernels of attend.h take them; until the next change. */
struct kv_view kv_view(const struct kv_cache *c, int head);

/* Says that a view's range will be followed by one from entry i of `then` on. */
void kv_read_then(struct kv_view *kv, const struct kv_view *then, int i);

/* Keeps the n entries whose indices `keep` lists in ascending order and drops
 * the others. Threads may do this to different heads at once. */
void kv_keep(struct kv_cache *c, int head, const int *keep, int n);

/* Gives memory that entries no longer need back to the system, if it is much. Serial; may move the arrays. */
void kv_trim(struct kv_cache *c);

/* The end of the run of consecutive indices that begins at keep[i]: what moves in one piece. */
int kv_run(const int *keep, int n, int i);

/* Drops every entry at position >= pos (to go back in a conversation). */
void kv_truncate(struct kv_cache *c, int pos);

size_t kv_bytes(const struct kv_cache *c);       /* allocated now */
const char *kv_type_name(enum kv_type type);
/* "f16" or "q8_0,f16" (K, V). */
int kv_types_parse(const char *text, enum kv_type *k, enum kv_type *v, struct error *err);

/* Saves the entries, or restores them into an empty store (state.h). -1 when memory is short. */
struct state_io;
int kv_state(struct kv_cache *c, struct state_io *io, struct error *err);
