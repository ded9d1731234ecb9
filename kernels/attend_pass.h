/* attend_pass.h - a pass of few rows over a block of entries, in which lanes are channels: what its two products work
 * on, and what they ask of memory meanwhile. */
#pragma once

#include "attend_simd.h"

#define FEW 4               /* rows that share one reading of the entries */
#define QUERIES_BYTES 10240 /* of that many rows in any form */

/* ASKS_AHEAD: what is prefetched as the rows of a block are read, which lie at `from`: what lies so many bytes on;
 * from `end` on that is at `next`, if there is any. Twice, as in prefetch.h, or `far` is 0. */
struct rows_ahead {
    const uint8_t *from, *end, *next;
    size_t near, far;
    bool second_level; /* not to the first-level cache */
};

/* What a product is compiled for; in the copy for any head size, d, n and row_bytes are variables. */
struct pass {
    enum kv_type type;
    int R, d, n;      /* rows; head size; entries, a multiple of 16 */
    size_t row_bytes; /* of keys or values */
    bool listed;      /* entries may be scattered */
};

/* What one pass of up to FEW rows over up to ATTEND_BLOCK entries works on. */
struct entries {
    const float *q[FEW]; /* queries */
    float *acc[FEW];     /* weighted sums */
    float shrink[FEW];   /* what those are multiplied by, as the largest score has changed */
    int n, d;
    const uint8_t *k, *v;   /* stored rows */
    int list[ATTEND_BLOCK]; /* which of them: 0, 1 and so on or, if they are scattered, any; the last of these is
                             * repeated up to a multiple of 16 */
    bool scattered;
    struct rows_ahead ahead_k, ahead_v;
    const uint8_t *with_keys, *with_values; /* what is asked for while those are read, or NULL: see soon_with_keys() */
    _Alignas(64) float p[FEW][ATTEND_BLOCK]; /* scores, then weights */
    float largest[FEW];                      /* weight of a row */
    /* Queries as QK wants them, and the first of those: they stay the same from block to block. */
    const float *ready;
    _Alignas(64) uint8_t queries[QUERIES_BYTES];
};

/* Entries are gone through up to a multiple of 16, whole vectors of any width. */
INLINE int padded(int n) { return (n + 15) / 16 * 16; }

/* Row i + j of the block's keys or values, with a constant for j. */
INLINE const uint8_t *row_at(struct pass pass, const struct entries *e, const uint8_t *rows, int i, int j) {
    if (pass.listed) return rows + (size_t)e->list[i + j] * pass.row_bytes;
    return rows + (size_t)i * pass.row_bytes + (size_t)j * pass.row_bytes;
}

/* ---- prefetching ---------------------------------------------------------------
 *
 * Memory should have work all the time. CPUs with AVX-512 ask for keys while they read keys, and for values while they
 * read values, as tuned on each. The others ask for a block's values while they read its keys and find its weights,
 * and for the next keys while they read the values: 15% faster on Zen 3, where memory had been idle with the weights
 * and the values' later channels. */

#define ASKS_AHEAD (LANES == 16) /* as CPUs with AVX-512 do */
#define WITH_KEYS_QUARTERS 3 /* of the values, the rest with the weights */

/* Where what is read some time later lies, or NULL; `stride` bytes of it are asked for with each row that is read. */
struct soon {
    const uint8_t *near, *far;
    size_t stride;
    bool second_level;
};

/* Where nothing is read after the range, this is the row itself, as that costs less than a branch. */
INLINE const uint8_t *row_ahead(const uint8_t *row, size_t bytes, struct rows_ahead ahead) {
    const uint8_t *p = row + bytes;
    return p < ahead.end ? p : ahead.next ? ahead.next + (p - ahead.end) : row;
}

/* What is read after row i of the block, as its first channels are. */
INLINE struct soon soon_after(struct pass pass, const struct rows_ahead *ahead, int c, int i) {
    struct soon soon = {.stride = pass.row_bytes};
    if (c > 0 || (pass.listed && !ahead->near)) return soon;
    const uint8_t *row = ahead->from + (size_t)i * pass.row_bytes;
    soon.near = row_ahead(row, ahead->near, *ahead);
    if (ahead->far) soon.far = row_ahead(row, ahead->far, *ahead);
    soon.second_level = ahead->second_level;
    return soon;
}

/* So many quarters of the block at `from`, as `width` channels of row i from c on are read. */
INLINE struct soon soon_meanwhile(struct pass pass, const uint8_t *from, size_t quarters, int c, int width, int i) {
    struct soon soon = {.stride = pass.row_bytes * quarters / 4 * (size_t)width / (size_t)pass.d};
    if (!pass.listed || from) soon.near = from + (size_t)(c / width * pass.n + i) * soon.stride;
    return soon;
}

/* What to ask for as `width` channels of key i from c on are read. */
INLINE struct soon soon_with_keys(struct pass pass, const struct entries *e, int c, int width, int i) {
    return ASKS_AHEAD ? soon_after(pass, &e->ahead_k, c, i)
                      : soon_meanwhile(pass, e->with_keys, WITH_KEYS_QUARTERS, c, width, i);
}

INLINE struct soon soon_with_values(struct pass pass, const struct entries *e, int c, int width, int i) {
    return ASKS_AHEAD ? soon_after(pass, &e->ahead_v, c, i) : soon_meanwhile(pass, e->with_values, 4, c, width, i);
}

/* The lines that begin in bytes [begin, end). */
INLINE void prefetch_lines(const uint8_t *p, size_t begin, size_t end, bool second_level) {
    size_t first = (begin + 63) / 64 * 64;
    if (second_level) for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line, 0, 2);
    else for (size_t line = first; line < end; line += 64) __builtin_prefetch(p + line);
}

INLINE bool asks(struct pass pass, struct soon soon) { return (!ASKS_AHEAD && !pass.listed) || soon.near; }

/* Bytes [begin, end) there. A few lines at a time: where many are asked for at once, the reads behind them wait. */
INLINE void prefetch_part(struct pass pass, struct soon soon, size_t begin, size_t end) {
    if (!asks(pass, soon)) return;
    prefetch_lines(soon.near, begin, end, soon.second_level);
    if (ASKS_AHEAD && soon.far) prefetch_lines(soon.far, begin, end, soon.second_level);
}

/* The next so many bytes. */
INLINE void prefetch_next(struct pass pass, struct soon *soon, size_t bytes) {
    prefetch_part(pass, *soon, 0, bytes);
    if (asks(pass, *soon)) soon->near += bytes;
    if (ASKS_AHEAD && soon->far) soon->far += bytes;
}

/* ---- copies of a product ------------------------------------------------------- */

/* Defines name(R, e): f(pass, e) with what `pass` has as constants, so that the compiler makes a copy of f for each. */
#define FOR_ROWS(name, f, type, listed, d, n)                                  \
    NOINLINE void name(int R, struct entries *e) {                             \
        const size_t row_bytes = kv_row_bytes(type, d);                        \
        switch (R) {                                                           \
        case 1: f((struct pass){type, 1, d, n, row_bytes, listed}, e); break;  \
        case 2: f((struct pass){type, 2, d, n, row_bytes, listed}, e); break;  \
        case 3: f((struct pass){type, 3, d, n, row_bytes, listed}, e); break;  \
        default: f((struct pass){type, 4, d, n, row_bytes, listed}, e); break; \
        }                                                                      \
    }

/* For any head size and scattered entries. */
#define FOR_ANY(name, f, type) FOR_ROWS(name, f, type, true, e->d, padded(e->n))

/* The same with copies for the usual head sizes, for blocks of which `usual` holds, of `count` entries. */
#define FOR_SIZES_IF(usual, name, f, type, count)             \
    FOR_ROWS(name##_64, f, type, false, 64, count)            \
    FOR_ROWS(name##_128, f, type, false, 128, count)          \
    FOR_ANY(name##_any, f, type)                              \
    static void name(int R, struct entries *e) {              \
        const int size = !e->scattered && (usual) ? e->d : 0; \
        if (size == 64) name##_64(R, e);                      \
        else if (size == 128) name##_128(R, e);               \
        else name##_any(R, e);                                \
    }
#define FOR_SIZES(name, f, type) FOR_SIZES_IF(true, name, f, type, padded(e->n))

/* Both products of a block of entries with R rows, of any type, in float32: attend_float.h, once for an instruction
 * set. */
#define qk_any OF_ISA(qk_any)
#define pv_any OF_ISA(pv_any)

/* e->p[r][i] = e->q[r] . k_i */
void qk_any(enum kv_type type, int R, struct entries *e);

/* e->acc[r] = e->acc[r] * e->shrink[r] + sum of e->p[r][i] v_i */
void pv_any(enum kv_type type, int R, struct entries *e);
