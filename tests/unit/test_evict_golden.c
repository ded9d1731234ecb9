/* Every policy that kvpress has keeps what kvpress's press keeps. tests/golden/make_evict.py. */
#include <math.h>

#include "check.h"
#include "evict_case.h"

struct header {
    int32_t n, H, G, d, n_layer, cases;
    float base;
};

struct record {
    char spec[96];
    int32_t layer, rerotated;
};

static float *read_floats(FILE *f, int n) {
    float *x = malloc(sizeof *x * (size_t)n);
    CHECK(x && fread(x, sizeof *x, (size_t)n, f) == (size_t)n);
    return x;
}

static void check_keys(FILE *f, const struct evict_case *c, int g, int count) {
    int d = c->cache.head_dim, moved = c->evict->layers[c->layer].heads[g].moved;
    float *keys = read_floats(f, count * d), key[KV_MAX_DIM], back[2 * ROPE_MAX_PAIRS];
    rope_table(&c->rope, -moved, back); /* kvpress's begin at 0 */
    for (int i = 0; i < count && i < c->cache.heads[g].n; i++) {
        double worst = 0;
        kv_key(&c->cache, g, i, key);
        rope_rotate(&c->rope, back, key);
        for (int x = 0; x < d; x++) worst = worse(worst, fabs((double)key[x] - keys[i * d + x]));
        CHECK_NEAR(worst, 0, 2e-5);
    }
    free(keys);
}

static void check_head(FILE *f, const struct evict_case *c, const struct record *r, int g) {
    const struct kv_head *head = &c->cache.heads[g];
    int32_t count = 0, different = 0;
    CHECK(fread(&count, sizeof count, 1, f) == 1);
    int32_t *kept = malloc(sizeof *kept * (size_t)count);
    CHECK(kept && fread(kept, sizeof *kept, (size_t)count, f) == (size_t)count);
    CHECK(head->n == count);
    for (int i = 0; i < count && i < head->n; i++) different += kept[i] != head->pos[i];
    if (different || head->n != count)
        printf("%s: head %d keeps %d, %d of %d differ\n", r->spec, g, head->n, different, count);
    CHECK(different == 0);
    if (r->rerotated) check_keys(f, c, g, count);
    free(kept);
}

static void check_case(FILE *f, const struct header *h, const float *q, const float *k, const float *v) {
    struct record r;
    struct evict_case c;
    struct error err = {0};
    CHECK(fread(&r, sizeof r, 1, f) == 1);
    const struct evict_shape shape = {
        .n_layer = h->n_layer, .n_head = h->H, .n_head_kv = h->G, .head_dim = h->d, .n_threads = 2,
    };
    CHECK(evict_case_open(&c, r.spec, &shape, h->base, KV_F32, &err) == 0);
    c.layer = r.layer;
    const struct evict_case_batch all = {.n = h->n, .prefill = true, .prompt_end = true,
                                         .q = q, .k = k, .v = v};
    CHECK(evict_case_forward(&c, &all, &err) == 0);
    if (err.text[0]) printf("%s\n", err.text);
    for (int g = 0; g < h->G; g++) check_head(f, &c, &r, g);
    evict_case_close(&c);
}

int main(void) {
    FILE *f = fopen("tests/golden/evict.bin", "rb");
    struct header h = {0};
    CHECK(f && fread(&h, sizeof h, 1, f) == 1);
    if (!f) return check_done("evict_golden");
    float *q = read_floats(f, h.n * h.H * h.d);
    float *k = read_floats(f, h.n * h.G * h.d), *v = read_floats(f, h.n * h.G * h.d);
    for (int i = 0; i < h.cases; i++) check_case(f, &h, q, k, v);
    CHECK(h.cases == 20 && fgetc(f) == EOF);
    free(q);
    free(k);
    free(v);
    fclose(f);
    return check_done("evict_golden");
}
