#include "lineview.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../tokenizer/utf8.h"

void lineview_put(const char *bytes, size_t n) {
    while (n > 0) {
        ssize_t written = write(STDERR_FILENO, bytes, n);
        if (written < 0 && errno != EINTR) return;
        if (written > 0) {
            bytes += written;
            n -= (size_t)written;
        }
    }
}

struct range {
    uint32_t first, last;
};

/* Combining marks and format characters of widespread scripts: they take no cell of their own. */
static const struct range no_cell[] = {
    {0x300, 0x36f}, {0x483, 0x489}, {0x591, 0x5bd}, {0x610, 0x61a}, {0x64b, 0x65f}, {0xe31, 0xe31},
    {0xe34, 0xe3a}, {0xe47, 0xe4e}, {0x1ab0, 0x1aff}, {0x1dc0, 0x1dff}, {0x200b, 0x200f}, {0x20d0, 0x20ff},
    {0x3099, 0x309a}, {0xfe00, 0xfe0f}, {0xfe20, 0xfe2f}, {0xfeff, 0xfeff}, {0xe0100, 0xe01ef},
};

/* East Asian wide characters and emoji. */
static const struct range two_cells[] = {
    {0x1100, 0x115f}, {0x231a, 0x231b}, {0x23e9, 0x23ec}, {0x2614, 0x2615}, {0x2648, 0x2653},
    {0x26a1, 0x26a1}, {0x26bd, 0x26be}, {0x26d4, 0x26d4}, {0x2705, 0x2705}, {0x2728, 0x2728},
    {0x274c, 0x274e}, {0x2753, 0x2757}, {0x2795, 0x2797}, {0x2b50, 0x2b55}, {0x2e80, 0x303e},
    {0x3041, 0xa4cf}, {0xa960, 0xa97f}, {0xac00, 0xd7a3}, {0xf900, 0xfaff}, {0xfe30, 0xfe6f},
    {0xff01, 0xff60}, {0xffe0, 0xffe6}, {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f900, 0x1faff},
    {0x20000, 0x3fffd},
};

static bool in_ranges(uint32_t c, const struct range *ranges, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (c >= ranges[i].first && c <= ranges[i].last) return true;
    return false;
}

static int cells_of(uint32_t c) {
    if (c < 0x300) return 1;
    if (in_ranges(c, no_cell, sizeof no_cell / sizeof *no_cell)) return 0;
    return in_ranges(c, two_cells, sizeof two_cells / sizeof *two_cells) ? 2 : 1;
}

/* How the first character of text[0..n) is shown, and in how many cells. Returns its length. */
static size_t show_character(const char *text, size_t n, char shown[8], int *cells) {
    size_t len;
    uint32_t c = utf8_next(text, n, &len);
    if (c < 0x20 || c == 0x7f) {
        snprintf(shown, 8, "^%c", (char)(c ^ 0x40));
        *cells = 2;
        return len;
    }
    if (c == UTF8_INVALID || (c >= 0x80 && c < 0xa0)) c = 0xfffd;
    shown[utf8_write(c, shown)] = 0;
    *cells = cells_of(c);
    return len;
}

/* A cell, counted from the start of the prompt. */
struct place {
    int row, col;
};

/* The rows that fit on the screen. */
struct window {
    int columns, n_rows, first_row;
};

static bool is_visible(const struct window *w, int row) {
    return row >= w->first_row && row < w->first_row + w->n_rows;
}

static void next_row(const struct window *w, struct place *at, FILE *out) {
    if (out && is_visible(w, at->row) && is_visible(w, at->row + 1)) fputs("\r\n", out);
    *at = (struct place){.row = at->row + 1};
}

/* What there is to draw. */
struct line {
    const char *prompt, *text;
    size_t n, cursor;
};

/* Places prompt and text, and writes what falls into the window to `out` (NULL: nowhere). Returns the end,
 * where there is always room for the cursor. Rows are broken here, not left to the terminal. */
static struct place lay_out(const struct line *line, const struct window *w, struct place *cursor,
                            FILE *out) {
    struct place at = {.col = (int)strlen(line->prompt)};
    if (out && w->first_row == 0) fputs(line->prompt, out);
    for (size_t i = 0; ; ) {
        char shown[8] = "";
        int cells = 1;
        bool newline = i < line->n && line->text[i] == '\n';
        size_t len = 1;
        if (i < line->n && !newline) len = show_character(line->text + i, line->n - i, shown, &cells);
        if (at.col + cells > w->columns) next_row(w, &at, out);
        if (i == line->cursor) *cursor = at;
        if (i == line->n) return at;
        if (newline) {
            next_row(w, &at, out);
        } else {
            if (out && is_visible(w, at.row)) fputs(shown, out);
            at.col += cells;
        }
        i += len;
    }
}

static struct window screen(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 8 || size.ws_row < 2)
        return (struct window){.columns = 80, .n_rows = 24};
    return (struct window){.columns = size.ws_col, .n_rows = size.ws_row};
}

void lineview_draw(struct lineview *v, const char *prompt, const char *text, size_t n, size_t cursor) {
    char *bytes = NULL;
    size_t n_bytes = 0;
    FILE *out = open_memstream(&bytes, &n_bytes);
    if (!out) return;
    const struct line line = {.prompt = prompt, .text = text, .n = n, .cursor = cursor};
    struct window w = screen();
    struct place at = {0}, end = lay_out(&line, &w, &at, NULL);
    if (at.row >= w.n_rows) w.first_row = at.row - w.n_rows + 1;
    if (v->cursor_row) fprintf(out, "\033[%dA", v->cursor_row);
    fputs("\r\033[J", out);
    lay_out(&line, &w, &at, out);
    int last_row = end.row < w.first_row + w.n_rows ? end.row : w.first_row + w.n_rows - 1;
    if (last_row > at.row) fprintf(out, "\033[%dA", last_row - at.row);
    fputc('\r', out);
    if (at.col) fprintf(out, "\033[%dC", at.col);
    v->cursor_row = at.row - w.first_row;
    if (fclose(out) == 0) lineview_put(bytes, n_bytes);
    free(bytes);
}

void lineview_restart(struct lineview *v) { v->cursor_row = 0; }
