#include "sparse_internal.h"

size_t page_group_bytes(int d) { return (size_t)page_width(d) * (PAGE_GROUP / 2 + 2 * sizeof(float)); }

/* ---- building ---------------------------------------------------------------- */

/* low = min(low, x), high = max(high, x) */
static void extend_ranges(float *restrict low, float *restrict high, const float *restrict x, int n) {
    for (int c = 0; c < n; c++) {
        low[c] = x[c] < low[c] ? x[c] : low[c];
        high[c] = x[c] > high[c] ? x[c] : high[c];
    }
}

/* Smallest and largest value of each channel in every page, [PAGE_GROUP][width]. */
static void page_ranges(const struct attend_kernels *a, const struct kv_view *kv, int begin, int width,
                        float *low, float *high) {
    _Alignas(64) float key[KV_MAX_DIM] = {0};
    for (int i = 0; i < PAGE * PAGE_GROUP; i++) {
        float *least = low + i / PAGE * width, *most = high + i / PAGE * width;
        a->load(kv->type_k, kv->d, kv->k + (size_t)(begin + i) * kv->k_row_bytes, key);
        if (i % PAGE) {
            extend_ranges(least, most, key, width);
        } else {
            memcpy(least, key, (size_t)width * sizeof *key);
            memcpy(most, key, (size_t)width * sizeof *key);
        }
    }
}

/* Where a page's codes of a channel are. */
static int page_byte(int width, int page, int c) {
    return ((page / PAGE_LANES * (width / 8) + c / 8) * PAGE_LANES + page % PAGE_LANES) * 4 + c % 4;
}

static int page_shift(int c) { return c % 8 / 4 * 4; }

static int page_code(float x, float base, float inverse) {
    float code = (x - base) * inverse + 0.5f;
    return code >= PAGE_CODES ? PAGE_CODES : code > 0 ? (int)code : 0; /* a NaN is 0 */
}

/* The four codes of a byte: of channels c and c + 4, which are zero where the padding begins. */
static uint8_t page_byte_at(const float *low, const float *high, const float *base, const float *inverse) {
    return (uint8_t)(page_code(low[0], base[0], inverse[0]) | page_code(high[0], base[0], inverse[0]) << 2 |
                     page_code(low[4], base[4], inverse[4]) << 4 | page_code(high[4], base[4], inverse[4]) << 6);
}

void page_group_build(const struct attend_kernels *a, const struct kv_view *kv, int begin, void *group) {
    float low[PAGE_GROUP * KV_MAX_DIM], high[PAGE_GROUP * KV_MAX_DIM], inverse[KV_MAX_DIM];
    int width = page_width(kv->d);
    uint8_t *codes = group;
    float *base = (float *)(void *)(codes + (size_t)width * PAGE_GROUP / 2), *step = base + width;
    page_ranges(a, kv, begin, width, low, high);

    memcpy(base, low, (size_t)width * sizeof *base);
    memcpy(step, high, (size_t)width * sizeof *step);
    for (int p = 1; p < PAGE_GROUP; p++) {
        extend_ranges(base, step, low + p * width, width);
        extend_ranges(base, step, high + p * width, width);
    }
    for (int c = 0; c < width; c++) {
        step[c] = (step[c] - base[c]) / PAGE_CODES;
        inverse[c] = step[c] > 0 ? 1 / step[c] : 0;
    }
    for (int p = 0; p < PAGE_GROUP; p++)
        for (int c = 0; c < width; c += c % 4 == 3 ? 5 : 1)
            codes[page_byte(width, p, c)] =
                page_byte_at(low + p * width + c, high + p * width + c, base + c, inverse + c);
}

/* ---- the k best -------------------------------------------------------------- */

#define SAMPLE 512

/* A float as an integer with the same order, and back. */
static int32_t ordinal(float x) {
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i ^ (i >> 31 & 0x7fffffff);
}

static float from_ordinal(int32_t i) {
    float x;
    i ^= i >> 31 & 0x7fffffff;
    memcpy(&x, &i, sizeof x);
    return x;
}

/* The largest value that k or more of x [n] reach, or a smaller one that exactly k reach. By bisection:
 * counting takes a fraction of a cycle per value. */
static float least_of_best(const struct sparse_kernels *s, const float *x, int n, int k) {
    int64_t reached = ordinal(-INFINITY), missed = (int64_t)ordinal(INFINITY) + 1;
    while (missed - reached > 1) {
        int64_t middle = reached + (missed - reached) / 2;
        int count = s->count(x, n, from_ordinal((int32_t)middle));
        if (count >= k) reached = middle;
        else missed = middle;
        if (count == k) break;
    }
    return from_ordinal((int32_t)reached);
}

float guess_least(const struct sparse_kernels *s, const float *x, int n, int k, float *spare) {
    float expected = (float)k * SAMPLE / (float)n;
    int rank = (int)(expected + 2.5f * sqrtf(expected)) + 3;
    if (rank >= SAMPLE) return -INFINITY;
    for (int i = 0; i < SAMPLE; i++) spare[i] = x[(size_t)i * (size_t)n / SAMPLE];
    return least_of_best(s, spare, SAMPLE, rank);
}

int select_best(const struct sparse_kernels *s, const float *x, int n, int k, int *best, float *spare) {
    if (k <= 0 || n <= 0) return 0;
    int count = n > 2 * SAMPLE ? s->at_least(x, n, guess_least(s, x, n, k, spare), best) : 0;
    if (count < k) count = s->at_least(x, n, -INFINITY, best);
    if (count <= k) return count;

    for (int i = 0; i < count; i++) spare[i] = x[best[i]];
    float least = least_of_best(s, spare, count, k);
    int surplus = s->count(spare, count, least) - k, kept = 0;
    /* So many of those equal to the least are too many: the last ones. */
    for (int i = count - 1; surplus > 0; i--) {
        if (spare[i] != least) continue;
        spare[i] = NAN;
        surplus--;
    }
    for (int i = 0; i < count; i++) {
        best[kept] = best[i];
        kept += spare[i] >= least;
    }
    return kept;
}

/* ---- plain C ------------------------------------------------------------------- */

/* A query as 8-bit weights of the codes: reach = offset + scale * sum of weights * codes. */
struct weights {
    int8_t low[KV_MAX_DIM], high[KV_MAX_DIM];
    float offset, scale;
};

static void page_weights(int d, const struct page_group *g, const float *q, struct weights *w) {
    float most = 0;
    w->offset = 0;
    for (int c = 0; c < d; c++) {
        most = fmaxf(most, fabsf(q[c] * g->step[c]));
        w->offset += q[c] * g->base[c];
    }
    most *= 0.5f + 0.5f * PAGE_REACH;
    float half = most > 0 ? 127 / most * 0.5f : 0;
    w->scale = most / 127;
    for (int c = 0; c < d; c++) {
        float middle = q[c] * g->step[c] * half, reach = fabsf(middle) * PAGE_REACH;
        w->low[c] = (int8_t)lrintf(middle - reach);
        w->high[c] = (int8_t)lrintf(middle + reach);
    }
}

static void reach_c(int d, const void *group, const float *q, size_t q_stride, int m, float *reach,
                    size_t stride) {
    struct page_group g = page_group(d, group);
    for (int r = 0; r < m; r++) {
        struct weights w;
        page_weights(d, &g, q + (size_t)r * q_stride, &w);
        for (int p = 0; p < PAGE_GROUP; p++) {
            int32_t sum = 0;
            for (int c = 0; c < d; c++) {
                int pair = g.codes[page_byte(g.width, p, c)] >> page_shift(c);
                sum += w.low[c] * (pair & PAGE_CODES) + w.high[c] * (pair >> 2 & PAGE_CODES);
            }
            reach[(size_t)r * stride + (size_t)p] = w.offset + w.scale * (float)sum;
        }
    }
}

static int count_c(const float *x, int n, float least) {
    int count = 0;
    for (int i = 0; i < n; i++) count += x[i] >= least;
    return count;
}

static int at_least_c(const float *x, int n, float least, int *index) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        index[count] = i;
        count += x[i] >= least;
    }
    return count;
}

const struct sparse_kernels sparse_c = {
    .isa = "c", .reach = reach_c, .count = count_c, .at_least = at_least_c,
};

static const struct {
    const char *isa;
    const struct sparse_kernels *kernels;
} choices[] = {
#if defined(__x86_64__) || defined(__i386__)
    {"avx2", &sparse_avx2},
    {"avx512", &sparse_avx512},
    {"avx512vnni", &sparse_avx512vnni},
    {"amx", &sparse_avx512vnni},
#elif defined(__aarch64__)
    {"neon", &sparse_neon},
    {"neondot", &sparse_neon},
#endif
};

const struct sparse_kernels *sparse_select(const char *isa) {
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (!strcmp(choices[i].isa, isa)) return choices[i].kernels;
    return &sparse_c;
}
