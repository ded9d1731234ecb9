/* spec.h - `--attn 'mode[:key=value,...][@layers];...'` */
#pragma once

#include "attention.h"

/* Chooses mode and options of every layer: what `spec` (NULL: dense everywhere) says, else what the
 * checkpoint or its adapter says, else the built-in defaults. `layers` has one element per layer of the
 * model, whose mode and params are set. */
int attn_spec_apply(const char *spec, struct attn_layer *layers, const struct model *model, struct error *err);
