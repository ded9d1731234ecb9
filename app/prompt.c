/* prompt.c - from the command line to token ids, and through the model. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../tokenizer/chat.h"
#include "app.h"

int app_read_file(const char *path, char **text, size_t *len, struct error *err) {
    const char *name = path ? path : "standard input";
    FILE *file = path ? fopen(path, "rb") : stdin;
    if (!file) return fail(err, "%s: can't read: %s", name, strerror(errno));
    size_t cap = 1 << 16, n = 0;
    char *buf = malloc(cap);
    while (buf) {
        size_t got = fread(buf + n, 1, cap - 1 - n, file);
        n += got;
        if (n < cap - 1) break;
        char *bigger = realloc(buf, cap *= 2);
        if (!bigger) free(buf);
        buf = bigger;
    }
    int failed = ferror(file), reason = errno;
    if (path) fclose(file);
    if (!buf) return fail(err, "%s: out of memory for %zu bytes", name, cap);
    if (failed) {
        free(buf);
        return reason == EINTR ? fail_interrupted(err) : fail(err, "%s: can't read: %s", name, strerror(reason));
    }
    buf[n] = 0;
    *text = buf;
    *len = n;
    return 0;
}

/* "1 2 3"; commas are taken for spaces. The text ends in NUL. */
static int parse_ids(const char *text, struct token_list *list, struct error *err) {
    for (const char *p = text; ; ) {
        p += strspn(p, " \t\r\n,");
        if (!*p) return 0;
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (!isdigit((unsigned char)*p) || errno || id < 0 || id > INT_MAX)
            return fail_usage(err, "--ids: '%.*s' is not a token id", (int)strcspn(p, " \t\r\n,"), p);
        if (token_list_push(list, (int)id)) return fail(err, "out of memory for %d token ids", list->n);
        p = end;
    }
}

static int read_ids(const char *ids, struct token_list *list, struct error *err) {
    if (ids[0] != '@') return parse_ids(ids, list, err);
    char *text;
    size_t len;
    if (app_read_file(ids + 1, &text, &len, err)) return -1;
    int status = strlen(text) < len ? fail(err, "%s: not a list of token ids", ids + 1) : parse_ids(text, list, err);
    free(text);
    return status;
}

static int encode_chat(const struct app *app, const char *text, size_t len, struct token_list *tokens,
                       struct error *err) {
    if (strlen(text) < len) return fail(err, "the prompt has a NUL byte, which --chat can't take");
    struct chat_format *format = chat_detect(app->file, err);
    if (!format) return -1;
    char *turn = chat_render_turn(format, app->options.system, text, true, err);
    int status = turn ? tokenizer_encode(app->tokenizer, turn, strlen(turn), true, true, tokens, err) : -1;
    free(turn);
    chat_format_free(format);
    return status;
}

int app_read_prompt(const struct app *app, struct token_list *tokens, struct error *err) {
    const struct options *o = &app->options;
    if (o->ids) return read_ids(o->ids, tokens, err);
    char *read = NULL;
    const char *text = o->prompt;
    size_t len = text ? strlen(text) : 0;
    if (!text) {
        if (app_read_file(o->prompt_file, &read, &len, err)) return -1;
        text = read;
    }
    int status = o->chat ? encode_chat(app, text, len, tokens, err)
                         : tokenizer_encode(app->tokenizer, text, len, true, true, tokens, err);
    free(read);
    return status;
}

/* A bar of 30 cells, drawn over itself. */
static void draw_progress(int done, int total, double seconds) {
    char bar[31];
    int filled = (int)(30.0 * done / total);
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(30 - filled));
    bar[30] = 0;
    fprintf(stderr, "\r[%s] %d/%d tokens, %.0f tok/s ", bar, done, total, done / (seconds > 1e-3 ? seconds : 1e-3));
    if (done == total) fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

/* A session whose batches hold n tokens, where its attention has to see them all at once. */
static int fit_whole_prompt(struct app *app, int n, struct error *err) {
    struct session_options options = app->session->options;
    if (!session_whole_prompt(app->session) || n <= options.n_batch) return 0;
    options.n_batch = n;
    session_free(app->session);
    app->session = session_create(app->model, &options, err);
    return app->session ? 0 : -1;
}

int app_prefill(struct app *app, const struct token_list *tokens, app_batch_fn on_batch, void *arg,
                struct error *err) {
    struct session *s = app->session;
    if (!session_fits(s, tokens->n))
        return fail(err, "the prompt has %d tokens%s, but only %d of %d are free in the context: raise -c", tokens->n,
                    s->landmark_block ? " and landmarks between them" : "", s->options.n_ctx - s->n_past,
                    s->options.n_ctx);
    if (fit_whole_prompt(app, tokens->n, err)) return -1;
    s = app->session;
    int n_predict = app->options.n_predict >= 0 ? app->options.n_predict : tokens->n / 4;
    session_expect(s, (int64_t)tokens->n + n_predict);
    bool progress = !app->options.quiet && tokens->n > s->options.n_batch && isatty(STDERR_FILENO);
    double start = app_clock();
    int i = 0;
    while (i < tokens->n && !*app->interrupted) {
        int n = tokens->n - i < s->options.n_batch ? tokens->n - i : s->options.n_batch;
        enum phase phase = i + n == tokens->n ? PHASE_PROMPT_END : PHASE_PROMPT;
        if (session_forward(s, tokens->ids + i, n, phase, err)) return -1;
        if (on_batch && on_batch(app, arg, i, n, err)) return -1;
        i += n;
        if (progress) draw_progress(i, tokens->n, app_clock() - start);
    }
    app->figures.prompt_tokens += i;
    app->figures.prompt_seconds += app_clock() - start;
    return 0;
}
