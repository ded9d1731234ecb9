/* bench.c - prompt and generation speed at given depths of context. */
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "bench_text.h"

#define BENCH_TOKENS 32  /* generated at each depth, unless -n says otherwise */
#define MAX_DEPTHS 64

static int parse_depths(const char *text, int *depths, struct error *err) {
    int n = 0;
    for (const char *p = text; ; p++) {
        char *end;
        long depth = strtol(p, &end, 10);
        if (end == p || (*end && *end != ',') || depth < 1 || depth > 1 << 30 || n == MAX_DEPTHS
            || (n && depth <= depths[n - 1]))
            return fail_usage(err, "--depths takes ascending numbers such as 512,4096, not '%s'", text);
        depths[n++] = (int)depth;
        if (!*end) return n;
        p = end;
    }
}

/* The prompt given, or a text of our own, as often as it takes to have n tokens. */
static int fill_tokens(const struct app *app, struct token_list *tokens, int n, struct error *err) {
    const struct options *o = &app->options;
    bool given = o->prompt || o->prompt_file || o->ids;
    if (given ? app_read_prompt(app, tokens, err)
              : tokenizer_encode(app->tokenizer, bench_text, strlen(bench_text), true, false, tokens, err))
        return -1;
    if (tokens->n == 0) return fail_usage(err, "--bench: the prompt is empty");
    int *ids = realloc(tokens->ids, (size_t)n * sizeof *ids);
    if (!ids && n > tokens->n) return fail(err, "out of memory for %d tokens", n);
    if (ids) tokens->ids = ids;
    for (int i = tokens->n; i < n; i++) tokens->ids[i] = tokens->ids[i - tokens->n];
    tokens->n = n;
    return 0;
}

/* Runs tokens n_history..depth-1, or fewer after Ctrl-C; *seconds is the time of the last batch, *last its size. */
static int fill_to(struct app *app, const struct token_list *tokens, int depth, double *seconds, int *last,
                   struct error *err) {
    struct session *s = app->session;
    while (s->n_history < depth && !*app->interrupted) {
        /* The last batch is a full one, so that its speed is that of a long prompt. */
        int left = depth - s->n_history, batch = s->options.n_batch;
        int n = left > 2 * batch ? batch : left > batch ? left - batch : left;
        double start = app_clock();
        if (session_forward(s, tokens->ids + s->n_history, n, n == left ? PHASE_PROMPT_END : PHASE_PROMPT, err)) return -1;
        *seconds = app_clock() - start;
        *last = n;
        app->figures.prompt_tokens += n;
        app->figures.prompt_seconds += *seconds;
    }
    return 0;
}

/* A CSV field: specs may contain commas. */
static void print_field(const char *text) {
    printf(strchr(text, ',') ? "\"%s\"," : "%s,", text);
}

static int bench_depth(struct app *app, const struct token_list *tokens, int depth, int n_gen, struct error *err) {
    const struct options *o = &app->options;
    struct session *s = app->session;
    double prompt_seconds = 0;
    int n_prompt = 0;
    session_expect(s, depth - s->n_history + n_gen);
    if (fill_to(app, tokens, depth, &prompt_seconds, &n_prompt, err)) return -1;
    if (*app->interrupted) return 0;
    struct session_stats before, after;
    session_stats(s, &before);
    int n_before = s->n_generated;
    double start = app_clock();
    for (int i = 0; i < n_gen; i++) {
        if (session_forward(s, tokens->ids + s->n_history, 1, PHASE_GENERATE, err)) return -1;
        session_logits(s, 0, 1, app->logits);
    }
    double gen_seconds = app_clock() - start;
    app->figures.gen_tokens += n_gen;
    app->figures.gen_seconds += gen_seconds;
    session_stats(s, &after);
    double attended = after.entries_attended * s->n_generated - before.entries_attended * n_before;
    print_field(o->attn ? o->attn : "dense");
    print_field(o->kv_evict ? o->kv_evict : "none");
    print_field(o->kv_type);
    printf("%d,%d,%.1f,%.1f,%zu,%.1f\n", s->options.n_threads, depth, n_prompt / prompt_seconds,
           n_gen ? n_gen / gen_seconds : 0, after.cache_bytes, n_gen ? attended / n_gen : 0);
    return app_flush(err);
}

/* One batch that isn't counted: what a program pays once, such as reading the file, is not the speed at a depth.
 * What it makes room for is what the first depth needs. */
static int warm_up(struct app *app, const struct token_list *tokens, int depth, int n_gen, struct error *err) {
    struct session *s = app->session;
    int n = depth < s->options.n_batch ? depth : s->options.n_batch;
    session_expect(s, (int64_t)depth + n_gen);
    int status = session_forward(s, tokens->ids, n, PHASE_PROMPT_END, err);
    session_reset(s);
    return status;
}

int job_bench(struct app *app, struct error *err) {
    int depths[MAX_DEPTHS];
    int n = parse_depths(app->options.depths ? app->options.depths : "512", depths, err);
    if (n < 0) return -1;
    int n_gen = app->options.n_predict >= 0 ? app->options.n_predict : BENCH_TOKENS;
    for (int i = 1; i < n; i++)
        if (depths[i] <= (int64_t)depths[i - 1] + n_gen)
            return fail_usage(err, "--depths: %d is less than %d tokens after the one before", depths[i], n_gen);
    int64_t total = (int64_t)depths[n - 1] + n_gen;
    if (total > app->session->options.n_ctx)
        return fail_usage(err, "--depths: %lld tokens are needed, but -c is %d", (long long)total,
                          app->session->options.n_ctx);
    struct token_list tokens = {0};
    int status = fill_tokens(app, &tokens, (int)total, err);
    if (!status) status = warm_up(app, &tokens, depths[0], n_gen, err);
    if (!status) printf("attn,kv_evict,kv_type,threads,depth,prompt_tps,gen_tps,cache_bytes,entries_attended\n");
    for (int i = 0; i < n && !status && !*app->interrupted; i++)
        status = bench_depth(app, &tokens, depths[i], n_gen, err);
    token_list_free(&tokens);
    return status;
}
