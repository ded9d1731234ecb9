/* lineview.h - a line that is being edited, on the screen (standard error), in as many rows as it takes.
 *
 * A character takes a cell, two (East Asian wide ones, emoji) or none (combining marks). */
#pragma once

#include <stddef.h>

/* Zero-initialise it. */
struct lineview {
    int cursor_row;  /* rows between the cursor and the top of what is drawn */
};

/* Draws prompt (ASCII) and text[0..n) over what was drawn before, as far as it fits on the screen around
 * the cursor, which is an offset in the text. */
void lineview_draw(struct lineview *v, const char *prompt, const char *text, size_t n, size_t cursor);

/* The next drawing begins in the row where the terminal's cursor is. */
void lineview_restart(struct lineview *v);

/* Sends bytes to the screen. */
void lineview_put(const char *bytes, size_t n);
