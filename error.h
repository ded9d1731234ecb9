/* error.h - how a function says what went wrong.
 *
 * Every function that can fail takes a `struct error *` and returns 0 or a
 * pointer on success, -1 or NULL on failure. Only run.c prints the text. */
#pragma once

#include <stdbool.h>

struct error {
    char text[512];
    bool usage;       /* the command line is wrong, not the world: exit status 2 */
    bool interrupted; /* by Ctrl-C, nothing is wrong: exit status 130 */
};

/* Formats a message into err (which may be NULL) and returns -1, so that a
 * caller can write `return fail(err, ...)`. Say what was wrong, in which file,
 * tensor, key or option, and what to do about it; no newline. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int fail(struct error *err, const char *format, ...);

/* The same for a mistake in an option's value. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int fail_usage(struct error *err, const char *format, ...);

/* Ctrl-C came while waiting. */
int fail_interrupted(struct error *err);
