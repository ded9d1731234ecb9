/* inspect.c - what a file holds, and what the program offers. */
#include <stdio.h>

#include "app.h"

int job_inspect(const struct gguf *file, struct error *err) {
    printf("%s: %.1f MB, %d keys, %d tensors\n\n", gguf_path(file), (double)gguf_bytes(file) / 1e6,
           gguf_n_keys(file), gguf_n_tensors(file));
    for (int i = 0; i < gguf_n_keys(file); i++) {
        char key[128], value[256];
        gguf_quote(gguf_key_at(file, i), key, sizeof key);
        gguf_value_text(file, i, value, sizeof value);
        printf("%-47s %s\n", key, value);
    }
    putchar('\n');
    for (int i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        char name[128];
        gguf_quote(t->name, name, sizeof name);
        printf("%-37s %-5s", name, tensor_type_name(t->type));
        for (int d = 0; d < t->n_dims; d++) printf("%s%lld", d ? " x " : " ", (long long)t->ne[d]);
        putchar('\n');
    }
    return app_flush(err);
}

static void list_options(const struct param *params) {
    for (const struct param *p = params; p && p->name; p++) {
        char initial[32];
        params_initial(p, initial, sizeof initial);
        bool required = p->type == PARAM_INT && p->initial < p->min;
        printf("  %-16s %s (%s%s)\n", p->name, p->help, required ? "must be given" : "default ",
               required ? "" : initial);
    }
}

int job_list_attn(struct error *err) {
    for (int i = 0; attn_modes[i]; i++) {
        printf("%-10s %s\n", attn_modes[i]->name, attn_modes[i]->summary);
        list_options(attn_modes[i]->params);
    }
    return app_flush(err);
}

int job_list_evict(struct error *err) {
    for (int i = 0; evict_policies[i]; i++) {
        printf("%-10s %s\n", evict_policies[i]->name, evict_policies[i]->summary);
        list_options(evict_policies[i]->params);
    }
    return app_flush(err);
}
