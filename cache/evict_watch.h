/* evict_watch.h - how much of dense attention's probability falls on what another, evicting cache holds.
 *
 * An evicted key can't be scored any more, so that this is measured where all are still there: in a second
 * session over the same tokens, in the place of its eviction. Before each batch it is told what the first
 * session's caches hold. */
#pragma once

#include "evict.h"

/* Evicts nothing, and measures. */
int evict_watch_create(struct evict **out, const struct evict_shape *shape, struct error *err);

/* Takes note of the positions that a layer of the other session holds. */
void evict_watch_hold(struct evict *watch, int layer, const struct kv_cache *held);

/* How many rows (a token's query in one head) a layer has measured, and the sum of their probabilities
 * that fall on the positions held and, causally, on the row's own batch. */
void evict_watch_mass(const struct evict *watch, int layer, double *rows, double *mass);
