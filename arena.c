#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20) /* bytes from which an arena is mapped by itself */
#define GRAIN ((size_t)64 << 10)    /* a multiple of every system's page size */

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* A huge page must start at a multiple of its size. Asks for more and gives the ends back. */
static void *map_aligned(size_t bytes) {
    size_t length = bytes + HUGE_PAGE;
    char *all = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return NULL;
    size_t before = -(uintptr_t)all % HUGE_PAGE, after = length - before - bytes;
    if (before) munmap(all, before);
    if (after) munmap(all + before + bytes, after);
#ifdef MADV_HUGEPAGE
    madvise(all + before, bytes, MADV_HUGEPAGE); /* without them it is slower, no more */
#endif
    return all + before;
}

/* Whole huge pages where that is an eighth more at most. Reading q8_0 from small ones takes an eighth longer. */
static size_t round_size(size_t bytes) {
    size_t whole = round_up(bytes, HUGE_PAGE);
    if (whole - bytes <= bytes / 8) return whole;
    return round_up(bytes, bytes < HUGE_PAGE ? 64 : GRAIN);
}

int arena_create(struct arena *a, size_t bytes) {
    a->bytes = round_size(bytes);
    a->data = a->bytes < HUGE_PAGE ? aligned_alloc(64, a->bytes) : map_aligned(a->bytes);
    return a->data ? 0 : -1;
}

void arena_free(struct arena *a) {
    if (a->bytes < HUGE_PAGE) free(a->data);
    else munmap(a->data, a->bytes);
    *a = (struct arena){0};
}
