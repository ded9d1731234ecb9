/* heap_mmap.c - mmap() for fuzzers, on the heap.
 *
 * Past the end of a mapped file there are zeros up to the end of the page,
 * which hides reads beyond it. Linked with -Wl,--wrap=mmap,--wrap=munmap, the
 * program gets a heap copy of just the file's size instead, whose bounds
 * AddressSanitizer watches. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *__wrap_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *address, size_t size);

void *__wrap_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    (void)address, (void)protection, (void)flags;
    void *copy = NULL;
    if (posix_memalign(&copy, 4096, size)) {
        return MAP_FAILED;
    }
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, (char *)copy + done, size - done, offset + (off_t)done);
        if (n <= 0) {
            free(copy);
            return MAP_FAILED;
        }
        done += (size_t)n;
    }
    return copy;
}

int __wrap_munmap(void *address, size_t size) {
    (void)size;
    free(address);
    return 0;
}
