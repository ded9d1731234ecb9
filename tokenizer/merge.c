#include "tokenizer/merge.h"

#include <stdlib.h>

int merge_start(struct merge_work *work, size_t cap, struct error *err) {
    work->n = 0;
    if (cap <= work->cap) {
        return 0;
    }
    cap += cap / 2;
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
    work->symbols[i] = (struct symbol){id, (uint32_t)start, (uint32_t)len, i - 1, -1};
    if (i > 0) {
        work->symbols[i - 1].next = i;
    }
}

void merge_free(struct merge_work *work) {
    free(work->symbols);
    free(work->heap);
}

static void heap_push(struct merge_work *work, uint64_t entry) {
    size_t i = work->n_heap++;
    while (i > 0 && work->heap[(i - 1) / 2] > entry) {
        work->heap[i] = work->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    work->heap[i] = entry;
}

static uint64_t heap_pop(struct merge_work *work) {
    uint64_t *heap = work->heap, top = heap[0], entry = heap[--work->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < work->n_heap) {
        if (child + 1 < work->n_heap && heap[child + 1] < heap[child]) {
            child++;
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

void merge_all(struct merge_work *work, pair_fn pair, const void *context) {
    struct symbol *symbols = work->symbols;
    uint32_t priority;
    int merged;
    work->n_heap = 0;
    for (size_t i = 0; i + 1 < work->n; i++) {
        if (pair(context, &symbols[i], &symbols[i + 1], &priority, &merged)) {
            heap_push(work, (uint64_t)priority << 32 | i);
        }
    }
    while (work->n_heap > 0) {
        uint64_t entry = heap_pop(work);
        int i = (int)(uint32_t)entry;
        struct symbol *left = &symbols[i];
        if (left->len == 0 || left->next < 0) {
            continue;
        }
        struct symbol *right = &symbols[left->next];
        /* The pair may be another one by now. */
        if (!pair(context, left, right, &priority, &merged) || priority != entry >> 32) {
            continue;
        }
        left->id = merged;
        left->len += right->len;
        left->next = right->next;
        right->len = 0;
        if (left->next >= 0) {
            symbols[left->next].prev = i;
            if (pair(context, left, &symbols[left->next], &priority, &merged)) {
                heap_push(work, (uint64_t)priority << 32 | (uint32_t)i);
            }
        }
        if (left->prev >= 0 && pair(context, &symbols[left->prev], left, &priority, &merged)) {
            heap_push(work, (uint64_t)priority << 32 | (uint32_t)left->prev);
        }
    }
}
