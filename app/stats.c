/* stats.c - the figures of a run. */
#include <math.h>
#include <sys/resource.h>
#include <time.h>

#include "app.h"
#include "output.h"

double app_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double rate(int tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0; }

/* From /proc where there is one: ru_maxrss begins with what the parent process held before exec(). */
static size_t peak_rss(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    size_t kilobytes = 0;
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %zu kB", &kilobytes) == 1) break;
    if (status) fclose(status);
    if (kilobytes) return kilobytes * 1024;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (size_t)usage.ru_maxrss * 1024;
}

static void write_string(FILE *f, const char *key, const char *value) {
    fprintf(f, "  \"%s\": \"", key);
    for (const char *p = value; *p; p++) {
        if (*p == '"' || *p == '\\') fputc('\\', f);
        if ((unsigned char)*p < 0x20) fprintf(f, "\\u%04x", *p);
        else fputc(*p, f);
    }
    fprintf(f, "\",\n");
}

bool app_measures(const struct app *app, int layer, double *recall, double *mass) {
    double rows = 0;
    *recall = *mass = 0;
    for (int l = 0; l < app->model->config.n_layer; l++) {
        struct attn_stats stats;
        if (layer >= 0 && l != layer) continue;
        session_layer_stats(app->session, l, &stats);
        rows += stats.rows_measured;
        *recall += stats.recall;
        *mass += stats.mass;
    }
    if (rows > 0) {
        *recall /= rows;
        *mass /= rows;
    }
    return rows > 0;
}

/* What is known of one layer, or with layer = -1 of all, each figure between `begin` and `end`. */
static void write_measures(FILE *f, const struct app *app, int layer, const char *begin, const char *end) {
    const struct session *other = app->comparison.other;
    double recall, mass, cached = other ? session_watch_mass(other, layer) : (double)NAN;
    bool measured = app_measures(app, layer, &recall, &mass);
    if (measured && recall > 0) fprintf(f, "%s\"recall\": %.6f,%s", begin, recall, end);
    if (measured) fprintf(f, "%s\"attention_mass\": %.6f,%s", begin, mass, end);
    if (!isnan(cached)) fprintf(f, "%s\"cached_mass\": %.6f,%s", begin, cached, end);
}

static void write_layers(FILE *f, const struct app *app) {
    const struct session *s = app->session;
    int n_layer = app->model->config.n_layer, n_head = app->model->config.n_head;
    fprintf(f, "  \"layers\": [\n");
    for (int l = 0; l < n_layer; l++) {
        struct attn_stats stats;
        session_layer_stats(s, l, &stats);
        fprintf(f, "    {\"attn\": \"%s\", ", s->layers[l].mode->name);
        write_measures(f, app, l, "", " ");
        fprintf(f, "\"entries_attended\": %.3f, \"entries_cached\": %.3f, \"cache_bytes\": %zu}%s\n",
                s->n_generated ? stats.entries_attended / s->n_generated / n_head : 0, stats.entries_cached,
                stats.bytes, l + 1 < n_layer ? "," : "");
    }
    fprintf(f, "  ],\n");
}

static void write_comparison(FILE *f, const struct app *app) {
    const struct comparison *c = &app->comparison;
    if (c->tokens) fprintf(f, "  \"perplexity\": %.6f,\n", c->perplexity);
    if (c->tokens && app->options.compare)
        fprintf(f, "  \"compare_perplexity\": %.6f,\n  \"mean_kl\": %.8f,\n  \"top1_agreement\": %.6f,\n",
                c->other_perplexity, c->mean_kl, c->top1_agreement);
}

int app_write_stats(const struct app *app, const char *path, struct error *err) {
    const struct figures *fig = &app->figures;
    const struct options *o = &app->options;
    struct session_stats cache;
    session_stats(app->session, &cache);
    struct output out;
    if (output_open(&out, path, err)) return -1;
    FILE *f = out.file;
    fprintf(f, "{\n");
    fprintf(f, "  \"prompt_tokens\": %d,\n  \"prompt_seconds\": %.6f,\n  \"prompt_tps\": %.3f,\n", fig->prompt_tokens,
            fig->prompt_seconds, rate(fig->prompt_tokens, fig->prompt_seconds));
    fprintf(f, "  \"gen_tokens\": %d,\n  \"gen_seconds\": %.6f,\n  \"gen_tps\": %.3f,\n", fig->gen_tokens,
            fig->gen_seconds, rate(fig->gen_tokens, fig->gen_seconds));
    fprintf(f, "  \"load_seconds\": %.6f,\n  \"weights_bytes\": %zu,\n", fig->load_seconds,
            app->model->weights_bytes);
    fprintf(f, "  \"cache_bytes\": %zu,\n  \"peak_rss_bytes\": %zu,\n", cache.cache_bytes, peak_rss());
    fprintf(f, "  \"entries_attended\": %.3f,\n  \"entries_cached\": %.3f,\n", cache.entries_attended,
            cache.entries_cached);
    write_string(f, "attn", o->attn ? o->attn : "dense");
    write_string(f, "kv_evict", o->kv_evict ? o->kv_evict : "none");
    write_string(f, "kv_type", o->kv_type);
    write_string(f, "isa", kernels_isa(app->kernels));
    write_comparison(f, app);
    write_measures(f, app, -1, "  ", "\n");
    write_layers(f, app);
    fprintf(f, "  \"threads\": %d,\n  \"seed\": %llu\n}\n", app->session->options.n_threads,
            (unsigned long long)o->seed);
    return output_commit(&out, err);
}

void app_print_speeds(const struct app *app) {
    const struct figures *fig = &app->figures;
    struct session_stats cache;
    session_stats(app->session, &cache);
    fprintf(stderr, "prompt: %d tokens, %.1f tok/s; generated: %d tokens, %.1f tok/s; cache: %.1f MB; seed: %llu",
            fig->prompt_tokens, rate(fig->prompt_tokens, fig->prompt_seconds), fig->gen_tokens,
            rate(fig->gen_tokens, fig->gen_seconds), (double)cache.cache_bytes / 1e6,
            (unsigned long long)app->options.seed);
    double recall, mass;
    bool measured = app_measures(app, -1, &recall, &mass);
    if (measured && recall > 0) fprintf(stderr, "; recall: %.4f", recall);
    if (measured) fprintf(stderr, "; attention mass: %.4f", mass);
    fputc('\n', stderr);
}
