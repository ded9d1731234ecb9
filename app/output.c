#include "output.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int output_open(struct output *out, const char *path, struct error *err) {
    *out = (struct output){.path = path};
    struct stat st;
    bool in_place = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    if (!in_place) {
        size_t size = strlen(path) + 32;
        out->temporary = malloc(size);
        if (!out->temporary) return fail(err, "%s: out of memory", path);
        snprintf(out->temporary, size, "%s.%ld.tmp", path, (long)getpid());
    }
    out->file = fopen(in_place ? path : out->temporary, "wb");
    if (!out->file) {
        int reason = errno;
        free(out->temporary);
        return fail(err, "%s: can't write: %s", path, strerror(reason));
    }
    return 0;
}

void output_discard(struct output *out) {
    fclose(out->file);
    if (out->temporary) unlink(out->temporary);
    free(out->temporary);
}

int output_commit(struct output *out, struct error *err) {
    errno = 0;
    bool ok = fflush(out->file) == 0 && !ferror(out->file) && (!out->temporary || fsync(fileno(out->file)) == 0);
    int reason = errno ? errno : EIO;
    if (!ok) {
        output_discard(out);
        return fail(err, "%s: can't write: %s", out->path, strerror(reason));
    }
    if (fclose(out->file)) {
        reason = errno;
        if (out->temporary) unlink(out->temporary);
        free(out->temporary);
        return fail(err, "%s: can't write: %s", out->path, strerror(reason));
    }
    if (out->temporary && rename(out->temporary, out->path)) {
        reason = errno;
        unlink(out->temporary);
        free(out->temporary);
        return fail(err, "%s: can't rename the finished file into place: %s", out->path, strerror(reason));
    }
    free(out->temporary);
    return 0;
}
