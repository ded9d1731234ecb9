/* pages.h - which entries of a KV head each page holds, for index=page of topk.c.
 *
 * What a page knows of its keys, and what a group of pages is, says kernels/sparse.h. The newest entries, too few
 * for a group, have no page. */
#pragma once

#include "../kernels/sparse.h"

#define GROUP_ENTRIES (PAGE * PAGE_GROUP)

/* Of one KV head; zero at first. */
struct pages {
    int n, cap;        /* groups of PAGE_GROUP pages */
    uint8_t *groups;   /* [cap] of page_group_bytes() */
    int *start;        /* [cap * PAGE_GROUP + 1] first entry of each page, and the end of the last */
};

/* Groups that the head has when it has n entries: what it has now, and what is still to be built. */
int pages_groups(const struct pages *p, int n);

/* Room for those of n entries of head size d; -1 where memory is short. */
int pages_reserve(struct pages *p, int n, int d);

/* Makes group `group` >= p->n out of the entries from where the last one ends; several threads may make one each.
 * It counts when the caller raises p->n. */
void pages_build(struct pages *p, int group, const struct attend_kernels *a, const struct kv_view *kv);

/* How many pages begin before entry `end`, without groups that reach beyond entry `limit`. */
int pages_before(const struct pages *p, int limit, int end);

/* Only the entries that `keep` lists, ascending, will stay. Pages get shorter, which leaves what they know true;
 * when they are half empty all are forgotten, to be built anew. */
void pages_keep(struct pages *p, const int *keep, int n);

/* Forgets groups with entries that a head of n entries doesn't have. */
void pages_trim(struct pages *p, int n);

size_t pages_bytes(const struct pages *p, int d);
void pages_free(struct pages *p);
