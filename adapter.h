/* adapter.h - sidecar files (--adapter): trained attention parameters and low-rank updates of the weights.
 *
 * A sidecar is a GGUF whose general.type is "adapter". Its tensors come before the model's own
 * (model_weight()); tensors named as llama.cpp names them, "blk.0.attn_q.weight.lora_a" and "...lora_b" (or
 * without ".weight"), update a weight for as long as the adapter is in use. */
#pragma once

#include "model.h"

/* Maps the sidecar and makes room for its updates. */
int adapter_open(struct model *m, const char *path, struct error *err);

/* Attaches to the weight called `name` the update that the adapter has for it, if any. */
int adapter_attach(struct model *m, const char *name, struct weight *w, struct error *err);

/* Fails where the adapter has an update that no weight took. */
int adapter_check(const struct model *m, struct error *err);
