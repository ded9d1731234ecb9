/* session_file.h - a session on disk: --session FILE. */
#pragma once

#include "model.h"

/* Fills an empty session from the file, as far as its tokens begin `prompt` (NULL: whatever they are). Returns 1
 * when it was restored; 0 when there is no such file or it is empty (*why is NULL), or when it is of another model,
 * other options or other tokens (*why says which), the session then being empty; -1 with an error for a file that is
 * damaged, no session, or of more tokens than the context. */
int session_restore(struct session *s, const char *path, const int *prompt, int n_prompt, const char **why,
                    struct error *err);

/* Writes the session to the file, complete or not at all. */
int session_save(struct session *s, const char *path, struct error *err);
