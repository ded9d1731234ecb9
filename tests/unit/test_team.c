/* How a team splits work: every part has one owner, and parts follow the speeds that were measured. */
#include <stdlib.h>
#include <string.h>

#include "../../kernels/team.h"
#include "check.h"

#define MOST_WORKERS 7
#define N 1003

typedef void (*split_fn)(const struct worker *, int, int, int *, int *);

struct job {
    split_fn split;
    int align;
    double speeds[MOST_WORKERS]; /* measured before the split; 0: none */
    int begin[MOST_WORKERS], end[MOST_WORKERS];
};

static void split(struct worker *w, void *arg) {
    struct job *job = arg;
    if (job->speeds[w->id] > 0) worker_measured(w, job->speeds[w->id]);
    team_barrier(w);
    job->split(w, N, job->align, &job->begin[w->id], &job->end[w->id]);
}

static int size(const struct job *job, int i) { return job->end[i] - job->begin[i]; }

/* Runs the job: the parts follow one another from 0 to N, cut at multiples of align. */
static void check_split(struct team *team, struct job *job) {
    int n = team_size(team);
    team_run(team, split, job);
    CHECK(job->begin[0] == 0 && job->end[n - 1] == N);
    for (int i = 0; i < n; i++) {
        CHECK(job->begin[i] <= job->end[i] && job->begin[i] % job->align == 0);
        if (i) CHECK(job->begin[i] == job->end[i - 1]);
    }
}

static void test_even(int n_workers) {
    struct error err;
    struct team *team = team_create(n_workers, &err);
    CHECK(team);
    for (int align = 1; align <= 16; align *= 4) {
        struct job job = {.split = worker_range, .align = align};
        check_split(team, &job);
        for (int i = 0; i < n_workers; i++) CHECK_NEAR(size(&job, i), (double)N / n_workers, align);
        job.split = worker_share;
        check_split(team, &job);
        for (int i = 0; i < n_workers; i++) CHECK_NEAR(size(&job, i), (double)N / n_workers, align);
    }
    team_free(team);
}

/* The first worker is as fast as all others together. */
static void test_speeds(int n_workers) {
    struct error err;
    struct team *team = team_create(n_workers, &err);
    CHECK(team);
    struct job job = {.split = worker_share, .align = 4};
    for (int i = 1; i < n_workers; i++) job.speeds[i] = 2;
    check_split(team, &job); /* one has not been measured: even still */
    CHECK_NEAR(size(&job, 0), (double)N / n_workers, 4);

    job.speeds[0] = 2 * (n_workers - 1);
    check_split(team, &job);
    CHECK_NEAR(size(&job, 0), N / 2.0, 4);

    /* It stalls once: its part shrinks by some, no more. */
    job.speeds[0] /= 1000;
    check_split(team, &job);
    CHECK(size(&job, 0) < N / 2 - 4 && size(&job, 0) > 0.45 * N);

    /* It stays slow: the others take over. */
    job.speeds[0] = 1;
    for (int i = 0; i < 60; i++) check_split(team, &job);
    CHECK_NEAR(size(&job, 0), N / (1.0 + 2 * (n_workers - 1)), 8);

    /* Nothing new: all stays as it is. */
    int before = size(&job, 0);
    memset(job.speeds, 0, sizeof job.speeds);
    check_split(team, &job);
    CHECK(size(&job, 0) == before);
    team_free(team);
}

int main(void) {
    for (int n = 1; n <= MOST_WORKERS; n++) test_even(n);
    for (int n = 2; n <= MOST_WORKERS; n++) test_speeds(n);
    return check_done("team");
}
