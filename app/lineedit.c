#include "lineedit.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "../tokenizer/utf8.h"
#include "lineview.h"

#define MAX_HISTORY 200
#define ESCAPE_WAIT_MS 50   /* the bytes of one key follow each other faster than this */

struct lineedit {
    const volatile sig_atomic_t *stop;
    bool typed;                     /* a person types */
    bool terminal;                  /* ... at a screen with a cursor */
    struct termios cooked;          /* mode of the terminal before we changed it */
    char input[4096];               /* bytes that have been read but not looked at */
    size_t next_input, n_input;
    const char *prompt;
    char *text;                     /* the line so far; a NUL follows */
    size_t n, cap;
    size_t cursor;                  /* offset in text */
    struct lineview view;
    char *history[MAX_HISTORY];     /* oldest first */
    int n_history, at_history;      /* at_history == n_history: the new line */
    char *draft;                    /* the new line while an old one is shown */
    char *read_line;                /* getline()'s buffer */
    size_t read_cap;
};

static void put_text(const char *text) { lineview_put(text, strlen(text)); }

static void draw(struct lineedit *e) { lineview_draw(&e->view, e->prompt, e->text, e->n, e->cursor); }

/* ---- The text ---- */

static int insert(struct lineedit *e, const char *bytes, size_t n) {
    if (e->n + n + 1 > e->cap) {
        size_t cap = 2 * (e->n + n + 1);
        char *text = realloc(e->text, cap);
        if (!text) return -1;
        e->text = text;
        e->cap = cap;
    }
    memmove(e->text + e->cursor + n, e->text + e->cursor, e->n - e->cursor);
    memcpy(e->text + e->cursor, bytes, n);
    e->n += n;
    e->cursor += n;
    e->text[e->n] = 0;
    return 0;
}

/* Removes text[from..to) and leaves the cursor there. */
static void erase(struct lineedit *e, size_t from, size_t to) {
    if (from == to) return;
    memmove(e->text + from, e->text + to, e->n - to + 1);
    e->n -= to - from;
    e->cursor = from;
}

static int replace(struct lineedit *e, const char *text) {
    erase(e, 0, e->n);
    return insert(e, text, strlen(text));
}

/* A backslash at the end becomes a newline. */
static bool continues(struct lineedit *e) {
    if (e->n == 0 || e->text[e->n - 1] != '\\') return false;
    e->text[e->n - 1] = '\n';
    e->cursor = e->n;
    return true;
}

static size_t right_of(const struct lineedit *e, size_t at) {
    size_t len = 0;
    if (at < e->n) utf8_next(e->text + at, e->n - at, &len);
    return at + len;
}

static size_t left_of(const struct lineedit *e, size_t at) {
    for (size_t back = 4; back > 1; back--)
        if (back <= at && right_of(e, at - back) == at) return at - back;
    return at ? at - 1 : 0;
}

static size_t word_start(const struct lineedit *e, size_t at) {
    while (at && strchr(" \n", e->text[at - 1])) at--;
    while (at && !strchr(" \n", e->text[at - 1])) at--;
    return at;
}

/* ---- History ---- */

static void remember(struct lineedit *e) {
    if (e->n == 0 || (e->n_history && !strcmp(e->history[e->n_history - 1], e->text))) return;
    char *copy = strdup(e->text);
    if (!copy) return;
    if (e->n_history == MAX_HISTORY) {
        free(e->history[0]);
        memmove(e->history, e->history + 1, (MAX_HISTORY - 1) * sizeof *e->history);
        e->n_history--;
    }
    e->history[e->n_history++] = copy;
}

static int go_through_history(struct lineedit *e, int step) {
    int to = e->at_history + step;
    if (to < 0 || to > e->n_history) return 0;
    if (e->at_history == e->n_history) {
        free(e->draft);
        e->draft = strdup(e->n ? e->text : "");
        if (!e->draft) return -1;
    }
    e->at_history = to;
    return replace(e, to == e->n_history ? e->draft : e->history[to]);
}

/* ---- The keyboard ---- */

/* What comes in place of a byte. */
enum { INPUT_END = -1, INPUT_NONE = -2, INPUT_SIGNAL = -3 };

/* Keys that send more than a byte. */
enum { KEY_NONE = 256, KEY_UP, KEY_DOWN, KEY_LEFT, KEY_RIGHT, KEY_HOME, KEY_END, KEY_DELETE, KEY_PASTE };

#define CONTROL(letter) ((letter) & 0x1f)

/* The window has another size, or the program was stopped: what is on the screen is out of date. The signal may come
 * after that was drawn and before poll(). */
static volatile sig_atomic_t changed;

static void on_change(int signal_number) {
    (void)signal_number;
    changed = 1;
}

/* The next byte of input. wait_ms < 0: as long as it takes. */
static int next_byte(struct lineedit *e, int wait_ms) {
    if (e->next_input < e->n_input) return (unsigned char)e->input[e->next_input++];
    struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
    int ready;
    do { /* looks up every second, as a signal may have come just before poll() */
        if (*e->stop) return INPUT_END;
        if (changed) {
            changed = 0;
            return INPUT_SIGNAL;
        }
        ready = poll(&fd, 1, wait_ms < 0 ? 1000 : wait_ms);
    } while (ready < 0 ? errno == EINTR : ready == 0 && wait_ms < 0);
    if (ready == 0) return INPUT_NONE;
    ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, e->input, sizeof e->input);
    if (n < 0 && errno == EINTR) return INPUT_SIGNAL;
    if (n < 0 && errno == EAGAIN) return INPUT_NONE;
    if (n <= 0) return INPUT_END;
    e->n_input = (size_t)n;
    e->next_input = 1;
    return (unsigned char)e->input[0];
}

/* What follows an escape: "[" or "O", parameters, a final byte (ECMA-48). */
static int read_escape(struct lineedit *e) {
    int c = next_byte(e, ESCAPE_WAIT_MS), number = 0;
    bool first_parameter = true; /* the second one tells Shift and the like */
    if (c != '[' && c != 'O') return KEY_NONE;
    do {
        c = next_byte(e, ESCAPE_WAIT_MS);
        if (c == ';') first_parameter = false;
        if (c >= '0' && c <= '9' && first_parameter && number < 1000) number = 10 * number + c - '0';
    } while (c >= 0x20 && c < 0x40);
    switch (c) {
    case 'A': return KEY_UP;
    case 'B': return KEY_DOWN;
    case 'C': return KEY_RIGHT;
    case 'D': return KEY_LEFT;
    case 'H': return KEY_HOME;
    case 'F': return KEY_END;
    case '~': break;
    default: return KEY_NONE;
    }
    switch (number) {
    case 1: case 7: return KEY_HOME;
    case 4: case 8: return KEY_END;
    case 3: return KEY_DELETE;
    case 200: return KEY_PASTE;
    default: return KEY_NONE;
    }
}

/* Inserts what is pasted, up to the terminal's mark of the end. */
static int paste(struct lineedit *e) {
    static const char mark[] = "\033[201~";
    const size_t n_mark = sizeof mark - 1, start = e->cursor;
    for (int c, before = 0; ; before = c) {
        c = next_byte(e, -1);
        if (c == INPUT_END) return 0;
        if (c <= 0 || (c == '\n' && before == '\r')) continue;
        char byte = c == '\r' ? '\n' : (char)c;
        if (insert(e, &byte, 1)) return -1;
        if (e->cursor - start < n_mark || memcmp(e->text + e->cursor - n_mark, mark, n_mark)) continue;
        erase(e, e->cursor - n_mark, e->cursor);
        return 0;
    }
}

static void set_raw_mode(const struct lineedit *e) {
    struct termios raw = e->cooked;
    raw.c_iflag &= ~(tcflag_t)(BRKINT | ICRNL | INLCR | IGNCR | ISTRIP | IXON);
    raw.c_lflag &= ~(tcflag_t)(ECHO | ICANON | IEXTEN | ISIG);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    put_text("\033[?2004h"); /* pastes are marked */
}

static void set_cooked_mode(const struct lineedit *e) {
    put_text("\033[?2004l\r\n");
    tcsetattr(STDIN_FILENO, TCSADRAIN, &e->cooked);
}

static void suspend(struct lineedit *e) {
    set_cooked_mode(e);
    kill(0, SIGTSTP);
    set_raw_mode(e);
    lineview_restart(&e->view);
}

enum outcome { EDITING, SUBMITTED, ENDED, OUT_OF_MEMORY };

static enum outcome press(struct lineedit *e, int key) {
    int failed = 0;
    char byte = (char)key;
    switch (key) {
    case INPUT_END: return ENDED;
    case INPUT_SIGNAL: set_raw_mode(e); break;
    case '\r': case '\n': return continues(e) ? EDITING : SUBMITTED;
    case CONTROL('C'):
        if (e->n == 0) return ENDED;
        erase(e, 0, e->n);
        break;
    case CONTROL('D'):
        if (e->n == 0) return ENDED;
        erase(e, e->cursor, right_of(e, e->cursor));
        break;
    case CONTROL('H'): case 0x7f: erase(e, left_of(e, e->cursor), e->cursor); break;
    case KEY_DELETE: erase(e, e->cursor, right_of(e, e->cursor)); break;
    case CONTROL('K'): erase(e, e->cursor, e->n); break;
    case CONTROL('U'): erase(e, 0, e->cursor); break;
    case CONTROL('W'): erase(e, word_start(e, e->cursor), e->cursor); break;
    case CONTROL('B'): case KEY_LEFT: e->cursor = left_of(e, e->cursor); break;
    case CONTROL('F'): case KEY_RIGHT: e->cursor = right_of(e, e->cursor); break;
    case CONTROL('A'): case KEY_HOME: e->cursor = 0; break;
    case CONTROL('E'): case KEY_END: e->cursor = e->n; break;
    case CONTROL('P'): case KEY_UP: failed = go_through_history(e, -1); break;
    case CONTROL('N'): case KEY_DOWN: failed = go_through_history(e, 1); break;
    case CONTROL('L'):
        put_text("\033[H\033[2J");
        lineview_restart(&e->view);
        break;
    case CONTROL('Z'): suspend(e); break;
    case KEY_PASTE: failed = paste(e); break;
    default:
        if (key >= 0x20 && key < 0x100) failed = insert(e, &byte, 1);
    }
    return failed ? OUT_OF_MEMORY : EDITING;
}

static enum outcome edit(struct lineedit *e) {
    struct sigaction change = {.sa_handler = on_change}, resize_before, continue_before;
    sigaction(SIGWINCH, &change, &resize_before);
    sigaction(SIGCONT, &change, &continue_before);
    set_raw_mode(e);
    lineview_restart(&e->view);
    e->at_history = e->n_history;
    enum outcome outcome = EDITING;
    while (outcome == EDITING) {
        if (e->next_input == e->n_input) draw(e);
        int key = next_byte(e, -1);
        outcome = press(e, key == '\033' ? read_escape(e) : key);
    }
    e->cursor = e->n;
    draw(e);
    set_cooked_mode(e);
    sigaction(SIGWINCH, &resize_before, NULL);
    sigaction(SIGCONT, &continue_before, NULL);
    if (outcome == SUBMITTED) remember(e);
    return outcome;
}

/* ---- Without a screen ---- */

static enum outcome read_plain(struct lineedit *e) {
    if (e->typed) put_text(e->prompt);
    do {
        errno = 0;
        ssize_t n = getline(&e->read_line, &e->read_cap, stdin);
        if (n < 0) {
            if (errno == ENOMEM) return OUT_OF_MEMORY;
            if (e->typed) put_text("\n");
            return e->n && !*e->stop ? SUBMITTED : ENDED;
        }
        if (n && e->read_line[n - 1] == '\n') n--;
        if (n && e->read_line[n - 1] == '\r') n--;
        if (insert(e, e->read_line, (size_t)n)) return OUT_OF_MEMORY;
    } while (continues(e));
    return SUBMITTED;
}

/* ---- */

struct lineedit *lineedit_create(const volatile sig_atomic_t *stop, struct error *err) {
    struct lineedit *e = calloc(1, sizeof *e);
    if (!e) {
        fail(err, "out of memory for the line editor");
        return NULL;
    }
    const char *term = getenv("TERM");
    e->stop = stop;
    e->typed = isatty(STDIN_FILENO);
    e->terminal = e->typed && isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb");
    return e;
}

void lineedit_free(struct lineedit *e) {
    if (!e) return;
    for (int i = 0; i < e->n_history; i++) free(e->history[i]);
    free(e->draft);
    free(e->read_line);
    free(e->text);
    free(e);
}

int lineedit_read(struct lineedit *e, const char *prompt, const char **line, size_t *len, struct error *err) {
    e->prompt = prompt;
    erase(e, 0, e->n);
    bool editing = e->terminal && tcgetattr(STDIN_FILENO, &e->cooked) == 0;
    enum outcome outcome = editing ? edit(e) : read_plain(e);
    if (outcome == OUT_OF_MEMORY) return fail(err, "out of memory for a message of %zu bytes", e->n);
    *line = outcome == SUBMITTED ? (e->text ? e->text : "") : NULL;
    *len = e->n;
    return 0;
}
