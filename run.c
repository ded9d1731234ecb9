/* run.c - the command line of attn.c.
 *
 * Reads the options, loads what the job needs, and hands over to the job: generate, chat, logits, score, bench
 * (app/). The forward pass is in model.c, the attention modes in attention/. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "app/app.h"
#include "app/output.h"

#define VERSION "0.1.0"

enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* The one thing that a signal handler can reach. */
static volatile sig_atomic_t interrupted;

/* The first Ctrl-C asks the job to stop at the next token; a second one before it did ends the program. */
static void on_interrupt(int signal_number) {
    if (interrupted) {
        output_abandon();
        _exit(EXIT_INTERRUPTED);
    }
    interrupted = signal_number;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_interrupt}, hangup;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup has it ignored */
        sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a closed pipe shows as a failed write */
}

static int rope_options(const struct options *o, struct rope_options *rope, struct error *err) {
    static const struct { const char *name; int scaling; } known[] = {
        {"none", ROPE_SCALE_NONE}, {"linear", ROPE_SCALE_LINEAR}, {"yarn", ROPE_SCALE_YARN},
    };
    *rope = (struct rope_options){.scaling = -1, .scale = o->rope_scale, .base = o->rope_base};
    if (!o->rope_scaling) return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(o->rope_scaling, known[i].name)) rope->scaling = known[i].scaling;
    return rope->scaling < 0 ? fail_usage(err, "--rope-scaling must be none, linear or yarn, not '%s'", o->rope_scaling) : 0;
}

static int default_threads(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 64 ? 64 : (int)n;
}

/* What layers say about themselves, each thing once. */
static void print_warnings(const struct session *s) {
    for (int l = 0; l < s->model->config.n_layer; l++) {
        const char *warning = s->layers[l].warning;
        for (int i = 0; i < l && warning; i++)
            if (s->layers[i].warning == warning) warning = NULL;
        if (warning) fprintf(stderr, "warning: %s\n", warning);
    }
}

/* Limits and defaults that depend on the checkpoint. */
static int open_session(struct app *app, struct error *err) {
    const struct options *o = &app->options;
    const struct config *c = &app->model->config;
    struct session_options options = {
        .n_ctx = o->n_ctx ? o->n_ctx : c->n_ctx_train,
        .n_batch = o->n_batch,
        .n_threads = o->n_threads ? o->n_threads : default_threads(),
        .precise = o->logits || o->score, /* these are about the numbers, not about speed */
        .measure = o->compare,
        .attn = o->attn,
        .kv_evict = o->kv_evict,
    };
    if (options.n_batch > options.n_ctx) options.n_batch = options.n_ctx;
    if (kv_types_parse(o->kv_type, &options.type_k, &options.type_v, err)) return -1;
    if (options.n_ctx > c->n_ctx_train)
        fprintf(stderr, "warning: -c %d is more than the %d tokens that this checkpoint was trained for\n",
                options.n_ctx, c->n_ctx_train);
    app->session = session_create(app->model, &options, err);
    if (!app->session) return -1;
    print_warnings(app->session);
    size_t piece_room = tokenizer_max_piece(app->tokenizer);
    app->logits = malloc((size_t)c->n_vocab * sizeof *app->logits);
    app->piece = malloc(piece_room + UTF8_STREAM_ROOM(piece_room));
    if (!app->logits || !app->piece) return fail(err, "out of memory for %d logits", c->n_vocab);
    const struct sampler_options sampling = {
        .temp = o->temp, .top_k = o->top_k, .top_p = o->top_p, .min_p = o->min_p,
        .repeat_penalty = o->repeat_penalty, .seed = o->seed,
    };
    return sampler_init(&app->sampler, &sampling, c->n_vocab, err);
}

static int load(struct app *app, struct error *err) {
    const struct options *o = &app->options;
    struct load_options options = {.access = o->no_mmap ? GGUF_COPIED : GGUF_MAPPED};
    double start = app_clock();
    if (rope_options(o, &options.rope, err)) return -1;
    app->model = model_load(o->model, o->adapter, app->kernels, &options, err);
    if (!app->model) return -1;
    app->file = app->model->file;
    app->tokenizer = tokenizer_load(app->file, err);
    if (!app->tokenizer || open_session(app, err)) return -1;
    app->figures.load_seconds = app_clock() - start;
    return 0;
}

/* The jobs that run the model. */
static int run_model(struct app *app, struct error *err) {
    const struct options *o = &app->options;
    if (o->stats && output_check(o->stats, err)) return -1;
    if (o->session && output_check(o->session, err)) return -1;
    if (load(app, err)) return -1;
    bool prompt_given = o->prompt || o->prompt_file || o->ids;
    bool chat = o->interactive || (!prompt_given && isatty(STDIN_FILENO));
    int status = o->logits ? job_logits(app, err)
               : o->score  ? job_score(app, err)
               : o->bench  ? job_bench(app, err)
               : chat      ? job_chat(app, err)
                           : job_generate(app, err);
    if (status) return -1;
    if (o->stats && app_write_stats(app, o->stats, err)) return -1;
    if (!o->quiet && !o->bench) app_print_speeds(app);
    return 0;
}

/* The jobs that need the file alone. */
static int run_file(struct app *app, struct error *err) {
    struct gguf *file = gguf_open(app->options.model, GGUF_MAPPED, err);
    if (!file) return -1;
    app->file = file;
    int status;
    if (app->options.inspect) {
        status = job_inspect(file, err);
    } else {
        app->tokenizer = tokenizer_load(file, err);
        status = app->tokenizer ? job_tokenize(app, err) : -1;
        tokenizer_free(app->tokenizer);
        app->tokenizer = NULL;
    }
    gguf_close(file);
    return status;
}

static int run(struct app *app, struct error *err) {
    const struct options *o = &app->options;
    if (o->help) {
        options_help(stdout);
        return app_flush(err);
    }
    if (o->version) {
        printf("attn.c %s\n", VERSION);
        return app_flush(err);
    }
    if (o->list_attn) return job_list_attn(err);
    if (o->list_evict) return job_list_evict(err);
    if (o->inspect || o->tokenize) return run_file(app, err);
    return run_model(app, err);
}

static uint64_t random_seed(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return ((uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec) ^ (uint64_t)getpid() << 40;
}

/* In one line, whatever is in the names that it quotes. */
static void print_error(const struct error *err) {
    fputs("run: ", stderr);
    for (const char *p = err->text; *p; p++) {
        if (*p == '\n') fputs("\\n", stderr);
        else if ((unsigned char)*p < 0x20 || *p == 0x7f) fprintf(stderr, "\\x%02x", *p);
        else fputc(*p, stderr);
    }
    fputc('\n', stderr);
}

int main(int argc, char **argv) {
    struct app app = {.interrupted = &interrupted};
    struct error err = {0};
    catch_signals();
    if (options_parse(&app.options, argc, argv, &err)) {
        print_error(&err);
        return EXIT_USAGE;
    }
    if (!app.options.seed_text) app.options.seed = random_seed() >> 16;
    if (!app.options.model) app.options.model = DEFAULT_MODEL;
    app.kernels = kernels_select(app.options.isa, &err);
    int status = app.kernels ? run(&app, &err) : -1;
    if (status) print_error(&err);
    else if (interrupted) fprintf(stderr, "run: interrupted\n");
    sampler_free(&app.sampler);
    free(app.logits);
    free(app.piece);
    session_free(app.comparison.other);
    session_free(app.session);
    tokenizer_free(app.tokenizer);
    model_free(app.model);
    if (status && !err.interrupted) return err.usage ? EXIT_USAGE : EXIT_RUNTIME;
    return interrupted ? EXIT_INTERRUPTED : 0;
}
