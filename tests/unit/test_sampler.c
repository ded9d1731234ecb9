/* What tokens the sampler chooses, against the definition of each filter, in double precision. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../../sampler.h"
#include "check.h"

#define N_VOCAB 300
#define DRAWS 2000

/* Some logits twice, so that ids decide. */
static void make_logits(float *logits, int round) {
    for (int i = 0; i < N_VOCAB; i++)
        logits[i] = (float)(4 * sin(1.3 * (i % 250) * (round + 1) + 0.2 * (i % 250) * (i % 250)));
}

static bool before(const double *logits, int a, int b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
}

/* Each token's probability, filter after filter. */
static void expect(const struct sampler_options *o, const float *logits, const int *recent, int n_recent, double *p) {
    double l[N_VOCAB];
    int order[N_VOCAB];
    for (int i = 0; i < N_VOCAB; i++) {
        l[i] = isnan(logits[i]) ? -INFINITY : (double)logits[i];
        bool seen = false;
        for (int j = 0; j < n_recent; j++) seen |= recent[j] == i;
        if (seen) l[i] = l[i] > 0 ? l[i] / (double)o->repeat_penalty : l[i] * (double)o->repeat_penalty;
    }
    for (int i = 0; i < N_VOCAB; i++) {
        int at = i;
        for (; at > 0 && before(l, i, order[at - 1]); at--) order[at] = order[at - 1];
        order[at] = i;
    }
    int keep = o->top_k > 0 && o->top_k < N_VOCAB ? o->top_k : N_VOCAB;
    double total = 0, sum = 0;
    for (int j = 0; j < keep; j++) total += exp(l[order[j]] - l[order[0]]);
    if (o->top_p < 1) {
        int n = 0;
        while (n < keep && sum < (double)o->top_p) sum += exp(l[order[n++]] - l[order[0]]) / total;
        keep = n > 0 ? n : 1;
    }
    if (o->min_p > 0) {
        int n = 1;
        while (n < keep && exp(l[order[n]] - l[order[0]]) >= (double)o->min_p) n++;
        keep = n;
    }
    if (o->temp <= 0) keep = 1;
    const double temp = o->temp > 0 ? (double)o->temp : 1;
    memset(p, 0, N_VOCAB * sizeof *p);
    total = 0;
    for (int j = 0; j < keep; j++) total += p[order[j]] = exp((l[order[j]] - l[order[0]]) / temp);
    for (int i = 0; i < N_VOCAB; i++) p[i] /= total;
}

/* Frequencies within five standard deviations, and 2, of the expected ones; what is filtered out never comes. */
static void test_options(struct sampler_options options, const int *recent, int n_recent) {
    for (int round = 0; round < 4; round++) {
        float logits[N_VOCAB];
        double p[N_VOCAB];
        int count[N_VOCAB] = {0};
        struct sampler s;
        struct error err;
        make_logits(logits, round);
        if (round == 3) for (int i = 0; i < N_VOCAB; i += 3) logits[i] = i % 2 ? NAN : -INFINITY;
        expect(&options, logits, recent, n_recent, p);
        CHECK(sampler_init(&s, &options, N_VOCAB, &err) == 0);
        for (int i = 0; i < n_recent; i++) sampler_accept(&s, recent[i]);
        for (int i = 0; i < DRAWS; i++) {
            int token = sampler_sample(&s, logits);
            CHECK(token >= 0 && token < N_VOCAB);
            if (token >= 0 && token < N_VOCAB) count[token]++;
        }
        for (int i = 0; i < N_VOCAB; i++)
            CHECK_NEAR(count[i], DRAWS * p[i], p[i] > 0 ? 5 * sqrt(DRAWS * p[i] * (1 - p[i])) + 2 : 0);
        sampler_free(&s);
    }
}

/* With flat logits top-p reaches further than the few best that are looked at first: all but the last hundredth. */
static void test_flat(void) {
    const struct sampler_options o = {.temp = 1, .top_p = 0.99f, .repeat_penalty = 1, .seed = 3};
    const int tail = N_VOCAB * 9 / 10;
    float logits[N_VOCAB];
    double p[N_VOCAB], late = 0;
    int n_late = 0, last = 0;
    struct sampler s;
    struct error err;
    for (int i = 0; i < N_VOCAB; i++) logits[i] = -1e-3f * (float)i;
    expect(&o, logits, NULL, 0, p);
    for (int i = tail; i < N_VOCAB; i++) late += p[i];
    CHECK(sampler_init(&s, &o, N_VOCAB, &err) == 0);
    for (int i = 0; i < DRAWS; i++) {
        int token = sampler_sample(&s, logits);
        n_late += token >= tail;
        if (token > last) last = token;
    }
    CHECK_NEAR(n_late, DRAWS * late, 5 * sqrt(DRAWS * late * (1 - late)));
    CHECK(last < N_VOCAB && p[last] > 0);
    sampler_free(&s);
}

static void test_no_number(void) {
    for (int top_k = 0; top_k < 3; top_k++)
        for (int greedy = 0; greedy < 2; greedy++) {
            const struct sampler_options o = {
                .temp = greedy ? 0 : 1, .top_k = top_k, .top_p = 1, .repeat_penalty = 1};
            float logits[N_VOCAB];
            struct sampler s;
            struct error err;
            for (int i = 0; i < N_VOCAB; i++) logits[i] = i % 2 ? NAN : -INFINITY;
            CHECK(sampler_init(&s, &o, N_VOCAB, &err) == 0);
            CHECK(sampler_sample(&s, logits) == -1);
            logits[N_VOCAB - 1] = -50;
            CHECK(sampler_sample(&s, logits) == N_VOCAB - 1);
            sampler_free(&s);
        }
}

int main(void) {
    static const int recent[] = {3, 7, 3, 250, 257, 11, 0};
    const int n = sizeof recent / sizeof *recent;
    const struct sampler_options plain = {.temp = 1, .top_p = 1, .repeat_penalty = 1, .seed = 5};
    static const int top_k[] = {0, 1, 2, 40, 299, 300, 1000};
    for (size_t i = 0; i < sizeof top_k / sizeof *top_k; i++) {
        struct sampler_options o = plain;
        o.top_k = top_k[i];
        test_options(o, NULL, 0);
        o.temp = 0.7f;
        o.top_p = 0.9f;
        o.min_p = 0.05f;
        test_options(o, NULL, 0);
        o.repeat_penalty = 1.5f;
        test_options(o, recent, n);
        o.temp = 0;
        test_options(o, recent, n);
    }
    test_flat();
    test_no_number();
    return check_done("test_sampler");
}
