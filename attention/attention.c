#include "attention.h"

#include <string.h>

extern const struct attn_mode attn_dense;
extern const struct attn_mode attn_moba;
extern const struct attn_mode attn_topk;
extern const struct attn_mode attn_mosa;
extern const struct attn_mode attn_landmark;
extern const struct attn_mode attn_infini;

const struct attn_mode *const attn_modes[] = {
    &attn_dense,
    &attn_moba,
    &attn_topk,
    &attn_mosa,
    &attn_landmark,
    &attn_infini,
    NULL,
};

const struct attn_mode *attn_mode_find(const char *name, size_t len) {
    for (int i = 0; attn_modes[i]; i++)
        if (strlen(attn_modes[i]->name) == len && !memcmp(attn_modes[i]->name, name, len)) return attn_modes[i];
    return NULL;
}
