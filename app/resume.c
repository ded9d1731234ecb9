/* resume.c - --session FILE. */
#include "../session_file.h"
#include "app.h"

int app_restore(struct app *app, const struct token_list *prompt, struct error *err) {
    const struct options *o = &app->options;
    if (!o->session) return 0;
    const char *why;
    int status = session_restore(app->session, o->session, prompt ? prompt->ids : NULL, prompt ? prompt->n : 0, &why,
                                 err);
    if (status < 0) return -1;
    if (status == 0 && why) fprintf(stderr, "%s: starting over: %s\n", o->session, why);
    if (status == 1 && !o->quiet)
        fprintf(stderr, "%s: resumed with %d tokens\n", o->session, app->session->n_history);
    return 0;
}

int app_save(struct app *app, struct error *err) {
    const char *path = app->options.session;
    return path && app->session->n_history ? session_save(app->session, path, err) : 0;
}
