#include "pages.h"

#include <stdlib.h>

#include "sparse.h"

static int paged(const struct pages *p) { return p->n ? p->start[p->n * PAGE_GROUP] : 0; }

int pages_groups(const struct pages *p, int n) { return p->n + (n - paged(p)) / GROUP_ENTRIES; }

int pages_reserve(struct pages *p, int n, int d) {
    int need = pages_groups(p, n), cap = p->cap + p->cap / 2;
    if (need <= p->cap) return 0;
    if (cap < need) cap = need;
    void *groups = realloc(p->groups, (size_t)cap * page_group_bytes(d));
    if (groups) p->groups = groups;
    int *start = realloc(p->start, ((size_t)cap * PAGE_GROUP + 1) * sizeof *start);
    if (start) p->start = start;
    if (!groups || !start) return -1;
    if (p->cap == 0) start[0] = 0;
    p->cap = cap;
    return 0;
}

void pages_build(struct pages *p, int group, const struct attend_kernels *a, const struct kv_view *kv) {
    int begin = paged(p) + (group - p->n) * GROUP_ENTRIES;
    page_group_build(a, kv, begin, p->groups + (size_t)group * page_group_bytes(kv->d));
    for (int i = 1; i <= PAGE_GROUP; i++) p->start[group * PAGE_GROUP + i] = begin + i * PAGE;
}

int pages_before(const struct pages *p, int limit, int end) {
    int n = p->n;
    while (n > 0 && p->start[n * PAGE_GROUP] > limit) n--;
    return first_at(p->start, n * PAGE_GROUP, end);
}

void pages_keep(struct pages *p, const int *keep, int n) {
    int kept = 0;
    for (int page = 0; page <= p->n * PAGE_GROUP && p->n > 0; page++) {
        while (kept < n && keep[kept] < p->start[page]) kept++;
        p->start[page] = kept;
    }
    if (kept < p->n * GROUP_ENTRIES / 2) {
        p->n = 0;
        p->start[0] = 0;
    }
}

void pages_trim(struct pages *p, int n) {
    while (p->n > 0 && p->start[p->n * PAGE_GROUP] > n) p->n--;
}

size_t pages_bytes(const struct pages *p, int d) {
    return (size_t)p->cap * (page_group_bytes(d) + PAGE_GROUP * sizeof *p->start);
}

void pages_free(struct pages *p) {
    free(p->groups);
    free(p->start);
}
