#include "output.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_OPEN 8 /* files at a time */

/* Temporary files that exist, in what a signal handler may read. */
static _Atomic(char *) unfinished[MOST_OPEN];

/* Puts one name, or NULL, where another is. */
static void replace_unfinished(char *name, char *by) {
    for (int i = 0; i < MOST_OPEN; i++) {
        char *expected = name;
        if (atomic_compare_exchange_strong(&unfinished[i], &expected, by)) return;
    }
}

void output_abandon(void) {
    for (int i = 0; i < MOST_OPEN; i++) {
        const char *temporary = atomic_load(&unfinished[i]);
        if (temporary) unlink(temporary);
    }
}

/* Standard output or error, if it goes to this file, or -1: opened anew the file would lose what it has. */
static int standard_stream(const struct stat *st) {
    struct stat own;
    for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++)
        if (fstat(fd, &own) == 0 && own.st_dev == st->st_dev && own.st_ino == st->st_ino) return fd;
    return -1;
}

int output_check(const char *path, struct error *err) {
    struct stat st;
    if (stat(path, &st) == 0)
        return S_ISDIR(st.st_mode) ? fail(err, "%s: can't write: %s", path, strerror(EISDIR)) : 0;
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strdup(path) : strdup(".");
    if (!folder) return fail(err, "%s: out of memory", path);
    if (slash) folder[slash - path + 1] = 0;
    int status = access(folder, W_OK) ? fail(err, "%s: can't write: %s", path, strerror(errno)) : 0;
    free(folder);
    return status;
}

/* Names of a file and of the one that it is written to; `found` says whether the path leads to a file already. */
static int name_files(struct output *out, bool found, struct error *err) {
    out->target = found ? realpath(out->path, NULL) : strdup(out->path);
    size_t size = out->target ? strlen(out->target) + 32 : 0;
    out->temporary = out->target ? malloc(size) : NULL;
    if (!out->temporary) return fail(err, "%s: out of memory", out->path);
    snprintf(out->temporary, size, "%s.%ld.tmp", out->target, (long)getpid());
    return 0;
}

static void forget_names(struct output *out) {
    if (out->temporary) replace_unfinished(out->temporary, NULL);
    free(out->target);
    free(out->temporary);
}

int output_open(struct output *out, const char *path, struct error *err) {
    *out = (struct output){.path = path};
    struct stat st;
    bool found = stat(path, &st) == 0;
    int stream = found ? standard_stream(&st) : -1;
    if (stream >= 0) {
        int copy = dup(stream);
        out->file = copy < 0 ? NULL : fdopen(copy, "wb");
    } else if (found && !S_ISREG(st.st_mode)) {
        out->file = fopen(path, "wb");
    } else {
        if (name_files(out, found, err)) return -1;
        replace_unfinished(NULL, out->temporary);
        out->file = fopen(out->temporary, "wb");
        if (out->file && found) fchmod(fileno(out->file), st.st_mode & 07777);
    }
    if (!out->file) {
        int reason = errno;
        forget_names(out);
        return fail(err, "%s: can't write: %s", path, strerror(reason));
    }
    return 0;
}

static int fail_commit(struct output *out, int reason, struct error *err) {
    if (out->temporary) unlink(out->temporary);
    forget_names(out);
    return fail(err, "%s: can't write: %s", out->path, strerror(reason));
}

void output_discard(struct output *out) {
    fclose(out->file);
    if (out->temporary) unlink(out->temporary);
    forget_names(out);
}

int output_commit(struct output *out, struct error *err) {
    errno = 0;
    bool ok = fflush(out->file) == 0 && !ferror(out->file) && (!out->temporary || fsync(fileno(out->file)) == 0);
    int reason = errno ? errno : EIO;
    if (fclose(out->file) && ok) {
        ok = false;
        reason = errno;
    }
    if (!ok) return fail_commit(out, reason, err);
    if (out->temporary && rename(out->temporary, out->target)) return fail_commit(out, errno, err);
    forget_names(out);
    return 0;
}
