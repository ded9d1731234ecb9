/* team.h - the threads of a session.
 *
 * One parallel region per forward pass: every worker runs the same function
 * from top to bottom and meets the others at barriers, which spin for a short
 * while before they sleep. That costs about a microsecond where a fork and
 * join per matrix product costs several. Plain pthreads, so gcc and clang need
 * no OpenMP runtime. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "../error.h"

struct team;

struct worker {
    int id;             /* 0 .. n-1; worker 0 is the thread that called team_run() */
    int n;              /* workers in the team */
    struct team *team;
    unsigned sense;     /* private to the barrier */
    const uint8_t *soon, *soon_end; /* memory that it will read soon: prefetched while it waits at a barrier */
    double from, to;    /* the part of 0..1 that is this worker's in worker_share() */
    double speed;       /* of late, smoothed; 0: not measured yet */
    double measured;    /* since the last barrier; 0: nothing */
};

struct team *team_create(int n_threads, struct error *err);
void team_free(struct team *team);
int team_size(const struct team *team);

/* Runs fn(worker, arg) on every worker and returns when all have finished. */
void team_run(struct team *team, void (*fn)(struct worker *, void *), void *arg);

/* Waits until every worker is here. What was written before is visible after. */
void team_barrier(struct worker *w);

/* The next index of a shared loop, counted from 0 since the last barrier: call
 * until it reaches the loop's length. Who gets which index differs from run to
 * run, so the work of an index must not depend on who does it. */
int team_next(struct worker *w);

/* A number of things that are done, which the workers add to and wait for where a barrier would keep those waiting
 * who have other work: team_done() adds one, team_await() returns when there are n, which is the most there will
 * be. What was written before team_done() is visible then. */
struct team_count {
    _Alignas(64) atomic_uint n;
};
void team_done(struct worker *w, struct team_count *count);
void team_await(struct worker *w, struct team_count *count, int n);

/* This worker's part [*begin, *end) of 0..n-1, split evenly in steps of align. */
void worker_range(const struct worker *w, int n, int align, int *begin, int *end);

/* The same in proportion to the workers' speeds, which differ where cores do or where their ways to memory do. Who has
 * which part changes at barriers. */
void worker_share(const struct worker *w, int n, int align, int *begin, int *end);
/* This worker's speed just now, in the unit of all others, which measure theirs before the same barrier. */
void worker_measured(struct worker *w, double speed);
