/* landmarks.h - the landmark tokens that a session puts between its caller's tokens.
 *
 * With landmark attention (Mohtashami & Jaggi 2023) the last position of every block belongs to a landmark
 * token. It goes in as soon as the block's other tokens are there, with them in one batch, and takes a
 * position; its hidden state is dropped before anybody can ask for logits. */
#pragma once

#include "model.h"

/* Finds out whether the layers, whose modes are chosen, want landmarks: sets s->landmark_*. Fails where
 * they disagree on the block size or the checkpoint has no landmark token. */
int landmarks_init(struct session *s, struct error *err);

/* The most positions that a batch of n tokens can take, and how many the next n tokens need. */
int landmarks_room(const struct session *s, int n);
int landmarks_needed(const struct session *s, int n);

/* Sets s->tokens and s->n to the caller's n tokens and the landmarks that complete blocks among them. */
void landmarks_insert(struct session *s, const int *tokens, int n);

/* After the forward pass: leaves the caller's n tokens in s->x and s->n. */
void landmarks_drop(struct session *s, int n);
