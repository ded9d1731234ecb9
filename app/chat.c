/* chat.c - a conversation, one line of input after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../tokenizer/chat.h"
#include "app.h"
#include "lineedit.h"

struct chat {
    struct app *app;
    struct chat_format *format;  /* NULL with --raw: messages go into the context as they are */
    struct lineedit *input;
    bool typed;                  /* a person types at a terminal */
    bool over;                   /* /exit */
};

/* What to append to the context so that the model answers, or continues, this message. */
static int encode_message(const struct chat *chat, const char *text, size_t len, struct token_list *tokens,
                          struct error *err) {
    const struct app *app = chat->app;
    bool first = app->session->n_past == 0;
    if (!chat->format) return tokenizer_encode(app->tokenizer, text, len, first, true, tokens, err);
    if (strlen(text) < len) return fail(err, "a message has a NUL byte: only --raw can take that");
    char *turn = chat_render_turn(chat->format, app->options.system, text, first, err);
    if (!turn) return -1;
    int status = tokenizer_encode(app->tokenizer, turn, strlen(turn), first, true, tokens, err);
    free(turn);
    return status;
}

/* Only the new tokens go through the model; the answer's own are in the cache when it has been given. */
static int answer(struct app *app, const struct token_list *tokens, struct error *err) {
    struct session *s = app->session;
    int n_before = s->n_past;
    for (int i = 0; i < tokens->n; i++) sampler_accept(&app->sampler, tokens->ids[i]);
    if (app_prefill(app, tokens, NULL, NULL, err)) return -1;
    int n_read = s->n_past - n_before;
    if (n_read < tokens->n)
        fprintf(stderr, "\nstopped after %d of the message's %d tokens, which stay in the context\n", n_read,
                tokens->n);
    if (*app->interrupted || app->options.n_predict == 0) return 0;
    int status = app_generate(app, app->options.n_predict, err);
    putchar('\n');
    return status ? status : app_flush(err);
}

static int take_turn(struct chat *chat, const char *text, size_t len, struct error *err) {
    const struct session *s = chat->app->session;
    if (chat->format && text[strspn(text, " \t\n")] == 0) return 0;
    struct token_list tokens = {0};
    int status = encode_message(chat, text, len, &tokens, err);
    if (!status && !session_fits(s, tokens.n + 1))
        fprintf(stderr, "no room: the message has %d tokens, and %d of the context's %d are free; "
                        "/clear begins a new conversation, a larger -c makes room\n",
                tokens.n, s->options.n_ctx - s->n_past, s->options.n_ctx);
    else if (!status && (tokens.n > 0 || s->n > 0))
        status = answer(chat->app, &tokens, err);
    token_list_free(&tokens);
    return status;
}

/* The message given on the command line. */
static int take_first_turn(struct chat *chat, struct error *err) {
    const struct options *o = &chat->app->options;
    if (o->prompt) return take_turn(chat, o->prompt, strlen(o->prompt), err);
    if (!o->prompt_file) return 0;
    char *text;
    size_t len;
    if (app_read_file(o->prompt_file, &text, &len, err)) return -1;
    int status = take_turn(chat, text, len, err);
    free(text);
    return status;
}

/* ---- Commands ---- */

static void print_help(struct chat *chat);

static void clear(struct chat *chat) {
    session_reset(chat->app->session);
    chat->app->sampler.n_recent = 0;
    fprintf(stderr, "new conversation\n");
}

static void print_stats(struct chat *chat) {
    const struct session *s = chat->app->session;
    app_print_speeds(chat->app);
    fprintf(stderr, "context: %d of %d tokens\n", s->n_past, s->options.n_ctx);
}

static void leave(struct chat *chat) { chat->over = true; }

static const struct command {
    const char *name, *help;
    void (*run)(struct chat *chat);
} commands[] = {
    {"/help", "this list", print_help},
    {"/clear", "forget everything and begin a new conversation", clear},
    {"/stats", "speeds so far and size of the cache", print_stats},
    {"/exit", "leave (or Ctrl-D)", leave},
};

#define N_COMMANDS (sizeof commands / sizeof *commands)

static void print_help(struct chat *chat) {
    (void)chat;
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(stderr, "  %-8s %s\n", commands[i].name, commands[i].help);
    fprintf(stderr, "A backslash at the end of a line continues the message on the next one. "
                    "Ctrl-C stops an answer.\n");
}

/* A slash and a word, nothing else: a message may well begin with a path. */
static bool is_command(const char *line, size_t len) {
    return len > 1 && line[0] == '/' && 1 + strspn(line + 1, "abcdefghijklmnopqrstuvwxyz") == len;
}

static void run_command(struct chat *chat, const char *line) {
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(line, commands[i].name)) continue;
        commands[i].run(chat);
        return;
    }
    fprintf(stderr, "there is no command %s; /help lists them\n", line);
}

/* ---- */

/* Ctrl-C at a terminal stops the answer and not the program. Anything else stops the job. */
static bool stopped(struct chat *chat) {
    volatile sig_atomic_t *interrupted = chat->app->interrupted;
    if (chat->typed && *interrupted == SIGINT) *interrupted = 0;
    return *interrupted;
}

static int converse(struct chat *chat, struct error *err) {
    if (take_first_turn(chat, err)) return -1;
    while (!stopped(chat) && !chat->over) {
        const char *line;
        size_t len;
        if (lineedit_read(chat->input, "> ", &line, &len, err)) return -1;
        if (!line) return 0;
        if (is_command(line, len)) run_command(chat, line);
        else if (take_turn(chat, line, len, err)) return -1;
    }
    return 0;
}

int job_chat(struct app *app, struct error *err) {
    struct chat chat = {.app = app, .typed = isatty(STDIN_FILENO)};
    if (app->options.ids) return fail_usage(err, "-i takes a message (-p, -f), not --ids");
    if (!app->options.raw) {
        chat.format = chat_detect(app->model->file, err);
        if (!chat.format) return -1;
    }
    chat.input = lineedit_create(app->interrupted, err);
    int status = chat.input ? 0 : -1;
    if (!status && chat.typed && !app->options.quiet)
        fprintf(stderr, "%s chat, context of %d tokens; /help lists the commands, Ctrl-D leaves\n",
                chat.format ? chat_format_name(chat.format) : "raw", app->session->options.n_ctx);
    if (!status) status = app_restore(app, NULL, err);
    if (!status) status = converse(&chat, err);
    if (!status) status = app_save(app, err);
    lineedit_free(chat.input);
    chat_format_free(chat.format);
    return status;
}
