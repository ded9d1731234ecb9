#include "sampler.h"

#include <math.h>
#include <stdlib.h>

int sampler_init(struct sampler *s, const struct sampler_options *options, int n_vocab, struct error *err) {
    *s = (struct sampler){.options = *options, .rng = options->seed, .n_vocab = n_vocab};
    s->candidates = malloc((size_t)n_vocab * sizeof *s->candidates);
    return s->candidates ? 0 : fail(err, "out of memory for sampling among %d tokens", n_vocab);
}

void sampler_free(struct sampler *s) { free(s->candidates); }

void sampler_accept(struct sampler *s, int token) {
    s->recent[s->n_recent++ % SAMPLER_RECENT] = token;
}

/* splitmix64 (Steele et al. 2014): uniform in [0, 1). */
static double random_uniform(struct sampler *s) {
    uint64_t z = s->rng += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* Once per distinct recent token, however often it occurred. */
static void penalise_repeats(struct sampler *s) {
    int n = s->n_recent < SAMPLER_RECENT ? s->n_recent : SAMPLER_RECENT;
    for (int i = 0; i < n; i++) {
        int first = 0;
        while (s->recent[first] != s->recent[i]) first++;
        if (first < i) continue;
        float *logit = &s->candidates[s->recent[i]].logit;
        *logit = *logit > 0 ? *logit / s->options.repeat_penalty : *logit * s->options.repeat_penalty;
    }
}

/* Best logit first; the lower id wins a tie, so that runs repeat exactly. */
static int compare(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Moves the k best candidates to the front, unordered (Hoare's quickselect). */
static void select_best(struct candidate *c, int n, int k) {
    int low = 0, high = n - 1;
    while (low < high) {
        struct candidate pivot = c[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (compare(&c[i], &pivot) < 0) i++;
            while (compare(&c[j], &pivot) > 0) j--;
            if (i <= j) {
                struct candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        }
        if (k - 1 <= j) high = j;
        else if (k - 1 >= i) low = i;
        else return;
    }
}

static void softmax(struct candidate *c, int n, float temp) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].p = expf((c[i].logit - c[0].logit) / temp);
    for (int i = 0; i < n; i++) c[i].p = (float)(c[i].p / sum);
}

/* How many of the sorted candidates top-p and min-p leave; at least one. */
static int truncate_tail(const struct sampler_options *o, struct candidate *c, int n) {
    softmax(c, n, 1);
    if (o->top_p < 1) {
        double sum = 0;
        int keep = 0;
        while (keep < n && sum < o->top_p) sum += c[keep++].p;
        n = keep > 0 ? keep : 1;
    }
    if (o->min_p > 0) {
        int keep = 1;
        while (keep < n && c[keep].p >= o->min_p * c[0].p) keep++;
        n = keep;
    }
    return n;
}

static int greedy(const struct candidate *c, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (c[i].logit > c[best].logit) best = i;
    return isfinite(c[best].logit) ? c[best].id : -1;
}

int sampler_sample(struct sampler *s, const float *logits) {
    const struct sampler_options *o = &s->options;
    struct candidate *c = s->candidates;
    int n = s->n_vocab;
    /* Damaged weights give NaN, which no order holds for. */
    for (int i = 0; i < n; i++)
        c[i] = (struct candidate){.id = i, .logit = isnan(logits[i]) ? -INFINITY : logits[i]};
    if (o->repeat_penalty != 1) penalise_repeats(s);
    if (o->temp <= 0) return greedy(c, n);

    if (o->top_k > 0 && o->top_k < n) {
        select_best(c, n, o->top_k);
        n = o->top_k;
    }
    qsort(c, (size_t)n, sizeof *c, compare);
    if (!isfinite(c[0].logit)) return -1;
    n = truncate_tail(o, c, n);
    softmax(c, n, o->temp);
    double r = random_uniform(s);
    for (int i = 0; i < n - 1; i++)
        if ((r -= c[i].p) < 0) return c[i].id;
    return c[n - 1].id;
}
