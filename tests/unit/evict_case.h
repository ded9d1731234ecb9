/* evict_case.h - one layer's cache with eviction, fed with queries, keys and values of the test's choice. */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "../../cache/evict.h"

struct evict_case {
    struct evict_shape shape;
    struct rope rope;
    int layer;
    int n_past;              /* tokens so far */
    struct kv_cache cache;   /* of `layer`; the other layers share it, unused */
    struct evict *evict;
    struct team *team;
};

/* The batch in progress: heads before RoPE, q [n,H,d], k and v [n,G,d]. */
struct evict_case_batch {
    int n;
    bool prefill, prompt_end;
    const float *q, *k, *v;
};

/* -1 where the spec is refused. */
static int evict_case_open(struct evict_case *c, const char *spec, const struct evict_shape *shape,
                           float rope_base, enum kv_type type, struct error *err) {
    *c = (struct evict_case){.shape = *shape};
    c->rope = (struct rope){.n_pairs = shape->head_dim / 2, .magnitude = 1};
    for (int i = 0; i < c->rope.n_pairs; i++)
        c->rope.inv_freq[i] = powf(rope_base, -2.0f * (float)i / (float)shape->head_dim);
    c->shape.rope = &c->rope;
    c->shape.attend = attend_select("c", true);
    c->shape.select = sparse_select("c");
    if (kv_init(&c->cache, shape->n_head_kv, shape->head_dim, type, type, err)) return -1;
    c->team = team_create(shape->n_threads, err);
    if (!c->team || evict_create(&c->evict, spec, &c->shape, err)) return -1;
    for (int l = 0; c->evict && l < shape->n_layer; l++) evict_attach(c->evict, l, &c->cache, NULL, NULL);
    return 0;
}

static void evict_case_close(struct evict_case *c) {
    evict_free(c->evict);
    team_free(c->team);
    kv_free(&c->cache);
}

struct evict_case_job {
    struct evict_case *c;
    struct evict_batch batch;
};

static void evict_case_work(struct worker *w, void *arg) {
    struct evict_case_job *job = arg;
    evict_step(job->c->evict, job->c->layer, &job->batch, w);
}

/* What a layer does with a batch, short of attending: RoPE, storing, evicting. */
static int evict_case_forward(struct evict_case *c, const struct evict_case_batch *b, struct error *err) {
    int H = c->shape.n_head, G = c->shape.n_head_kv, d = c->shape.head_dim, pairs = 2 * c->rope.n_pairs;
    int rope_pos = evict_rope_pos(c->evict, c->layer, c->n_past);
    float *q = malloc(sizeof *q * (size_t)(b->n * H * d));
    float *rope = malloc(sizeof *rope * (size_t)(b->n * pairs));
    int status = q && rope && !kv_reserve(&c->cache, b->n, err) ? evict_reserve(c->evict, b->n, err) : -1;
    for (int i = 0; i < b->n && !status; i++) {
        float key[KV_MAX_DIM];
        rope_table(&c->rope, rope_pos + i, rope + i * pairs);
        for (int h = 0; h < H; h++) {
            float *head = q + (i * H + h) * d;
            memcpy(head, b->q + (i * H + h) * d, sizeof *head * (size_t)d);
            rope_rotate(&c->rope, rope + i * pairs, head);
            for (int x = 0; x < d; x++) head[x] /= sqrtf((float)d);
        }
        for (int g = 0; g < G; g++) {
            memcpy(key, b->k + (i * G + g) * d, sizeof *key * (size_t)d);
            rope_rotate(&c->rope, rope + i * pairs, key);
            kv_append(&c->cache, g, c->n_past + i, key, b->v + (i * G + g) * d);
        }
    }
    struct evict_case_job job = {c, {.n = b->n, .pos = c->n_past, .rope_pos = rope_pos, .prefill = b->prefill,
                                     .prompt_end = b->prompt_end, .q = q, .rope = rope}};
    if (!status) team_run(c->team, evict_case_work, &job);
    c->n_past += b->n;
    free(q);
    free(rope);
    return status;
}
