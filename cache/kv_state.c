#include "../state.h"
#include "cache.h"

int kv_state(struct kv_cache *c, struct state_io *io, struct error *err) {
    int most = 0;
    for (int g = 0; g < c->n_head_kv; g++) {
        int n = c->heads[g].n;
        state_int(io, &n, 0, 1 << 30);
        if (!state_has(io, (size_t)n, c->k_row_bytes + c->v_row_bytes)) return 0;
        if (!io->saving && n > most) most = n;
    }
    if (!io->saving && kv_reserve(c, most, err)) return -1;
    for (int g = 0; g < c->n_head_kv; g++) {
        struct kv_head *h = &c->heads[g];
        state_int(io, &h->n, 0, io->saving ? h->n : most);
        state_bytes(io, h->pos, (size_t)h->n * sizeof *h->pos);
        state_bytes(io, h->k, (size_t)h->n * c->k_row_bytes);
        state_bytes(io, h->v, (size_t)h->n * c->v_row_bytes);
    }
    return 0;
}
