#include "tokenizer/merge.h"

#include <stdlib.h>

int merge_start(struct merge_work *work, size_t cap, struct error *err) {
    work->n = 0;
    if (cap <= work->cap) {
        return 0;
    }
    cap = cap > 2 * work->cap ? cap : 2 * work->cap;
    free(work->symbols);
    free(work->heap);
    work->cap = 0;
    work->symbols = malloc(cap * sizeof *work->symbols);
    /* A pair for each two neighbours; each merge takes one away and adds two. */
    work->heap = malloc(2 * cap * sizeof *work->heap);
    if (!work->symbols || !work->heap) {
        return fail(err, "out of memory for tokenizing a word of %zu bytes", cap);
    }
    work->cap = cap;
    return 0;
}

void merge_add(struct merge_work *work, int id, size_t start, size_t len) {
    int i = (int)work->n++;
    work->symbols[i] = (struct symbol){id, (uint32_t)start, (uint32_t)len, i - 1, -1, -1, 0};
    if (i > 0) {
        work->symbols[i - 1].next = i;
    }
}

void merge_free(struct merge_work *work) {
    free(work->symbols);
    free(work->heap);
}

/* Each entry has four children: entries are small, so these share a cache line. */

static void heap_push(struct merge_work *work, uint64_t entry) {
    size_t i = work->n_heap++;
    while (i > 0 && work->heap[(i - 1) / 4] > entry) {
        work->heap[i] = work->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    work->heap[i] = entry;
}

static uint64_t heap_pop(struct merge_work *work) {
    uint64_t *heap = work->heap, top = heap[0], entry = heap[--work->n_heap];
    size_t i = 0, child;
    while ((child = 4 * i + 1) < work->n_heap) {
        size_t end = child + 4 < work->n_heap ? child + 4 : work->n_heap;
        for (size_t other = child + 1; other < end; other++) {
            child = heap[other] < heap[child] ? other : child;
        }
        if (heap[child] >= entry) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = entry;
    return top;
}

/* Finds out what symbol i makes with the next one, and puts the pair into the heap. */
static void find_pair(struct merge_work *work, int i, pair_fn pair, const void *context) {
    struct symbol *left = &work->symbols[i];
    if (left->next >= 0 && pair(context, left, &work->symbols[left->next], &left->priority, &left->merged)) {
        heap_push(work, (uint64_t)left->priority << 32 | (uint32_t)i);
    } else {
        left->merged = -1;
    }
}

void merge_all(struct merge_work *work, pair_fn pair, const void *context) {
    work->n_heap = 0;
    for (size_t i = 0; i < work->n; i++) {
        find_pair(work, (int)i, pair, context);
    }
    while (work->n_heap > 0) {
        uint64_t entry = heap_pop(work);
        int i = (int)(uint32_t)entry;
        struct symbol *left = &work->symbols[i];
        if (left->len == 0 || left->merged < 0 || left->priority != entry >> 32) {
            continue; /* by now it is merged, or makes another pair */
        }
        struct symbol *right = &work->symbols[left->next];
        left->id = left->merged;
        left->len += right->len;
        left->next = right->next;
        right->len = 0;
        if (left->next >= 0) {
            work->symbols[left->next].prev = i;
        }
        find_pair(work, i, pair, context);
        if (left->prev >= 0) {
            find_pair(work, left->prev, pair, context);
        }
    }
}
