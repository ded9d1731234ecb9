/* gguf_bytes.c - the bytes of a file: mapped, or read into memory. */
#include "gguf_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_descriptor(int fd, const char *path, struct stat *st, struct error *err) {
    if (fstat(fd, st)) {
        return fail(err, "%s: %s", path, strerror(errno));
    }
    if (S_ISDIR(st->st_mode)) {
        return fail(err, "%s: a directory, not a GGUF file: name the .gguf file in it", path);
    }
    if (!S_ISREG(st->st_mode)) {
        return fail(err, "%s: not a regular file, so it can't be mapped: copy it to a disk first", path);
    }
    if (st->st_size == 0) {
        return fail(err, "%s: the file is empty: fetch it again", path);
    }
    if ((uint64_t)st->st_size > SIZE_MAX) {
        return fail(err, "%s: %" PRId64 " bytes are too many for this machine's address space", path,
                    (int64_t)st->st_size);
    }
    return 0;
}

static int map_file(struct gguf *file, int fd, const char *path, struct error *err) {
    void *base = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return fail(err, "%s: can't map %zu bytes: %s", path, file->size, strerror(errno));
    }
#ifdef MADV_HUGEPAGE
    madvise(base, file->size, MADV_HUGEPAGE); /* a file not cached yet is read in huge pages where the system can */
#endif
    file->base = base;
    return 0;
}

static int copy_file(struct gguf *file, int fd, const char *path, struct error *err) {
    if (arena_create(&file->copy, file->size)) {
        return fail(err, "%s: out of memory for its %zu bytes: leave out --no-mmap", path, file->size);
    }
    file->base = file->copy.data;
    for (size_t done = 0; done < file->size;) {
        ssize_t n = read(fd, (char *)file->copy.data + done, file->size - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return fail(err, "%s: can't read byte %zu of %zu: %s", path, done, file->size,
                        n < 0 ? strerror(errno) : "the file has become shorter");
        }
        done += (size_t)n;
    }
    return 0;
}

int gguf_load_bytes(struct gguf *file, enum gguf_access how, struct error *err) {
    const char *path = gguf_shown_path(file->path);
    /* O_NONBLOCK: a FIFO must not make us wait for its writer. */
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return fail(err, "%s: can't open it: %s", path, strerror(errno));
    }
    struct stat st;
    int status = check_descriptor(fd, path, &st, err);
    if (!status) {
        file->size = (size_t)st.st_size;
        status = how == GGUF_COPIED ? copy_file(file, fd, path, err) : map_file(file, fd, path, err);
    }
    close(fd);
    return status;
}

void gguf_release_bytes(struct gguf *file) {
    if (file->copy.data) {
        arena_free(&file->copy);
    } else if (file->base) {
        munmap((void *)file->base, file->size);
    }
}
