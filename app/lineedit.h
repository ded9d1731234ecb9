/* lineedit.h - lines from standard input; typed ones with editing and a history.
 *
 * On a terminal: Left, Right, Home, End, Ctrl-A/E; Backspace, Delete, Ctrl-K/U/W (to the end, to the
 * start, a word); Up, Down; Ctrl-L redraws, Ctrl-C empties the line, Ctrl-Z suspends. A paste becomes part
 * of the line, newlines and all. Otherwise (a pipe, TERM=dumb) lines are read as they come. */
#pragma once

#include <signal.h>
#include <stddef.h>

#include "../error.h"

struct lineedit;

/* Once *stop (set by a signal handler) is not 0, a wait for input ends. NULL when memory is short. */
struct lineedit *lineedit_create(const volatile sig_atomic_t *stop, struct error *err);
void lineedit_free(struct lineedit *e);

/* The next line without its newline, valid until the next call; *line is NULL at the end of the input
 * (Ctrl-D or Ctrl-C on an empty line, *stop). A backslash at its end continues it: the result then has a
 * newline in that place. The prompt (ASCII) is for people: it goes to standard error, for typed lines only.
 * The terminal is in its own mode during the call alone. */
int lineedit_read(struct lineedit *e, const char *prompt, const char **line, size_t *len, struct error *err);
