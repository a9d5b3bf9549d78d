/* SPDX-License-Identifier: Apache-2.0 */
/* sim.c: runs scenarios. `sim --seed N [--scenarios M] [--jobs J] [--ops N] [--twice] [--verbose]` runs seeds N, N+1, ... in J processes (default: one per processor, one for a single
 * scenario); one that fails prints the command that runs it again. With --twice each seed runs two times and the digests of the traces must be equal. Without --seed: a fixed first
 * seed, TARN_TEST_SCALE times the default number of scenarios, one in a hundred of them twice. A run of a thousand or more in which a fault or a row of the conflict table did not
 * come up fails.
 *
 * Each process takes the next seed from a counter that all share, so what a seed does never depends on how many there are. `traces` in the last line is the sum of all traces' digests:
 * two runs over the same seeds print the same one.
 *
 * A scenario that does not end within HANGS_S of real time is a failure of its own: an alarm prints its seed and where it stands, and aborts. No process outlives the first one, which
 * makes the directory that all work in and removes it in the end, also when it is ended by a signal. */
#include <execinfo.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "disk.h"
#include "sim.h"
#include "../tmpdir.h"

#define TURNS_MAX 200000u
#define FAILURES_MAX 30u
#define JOBS_MAX 64u
#define TWICE_EACH 100u
#define MANY 1000u   /* from here on everything must have happened */
#define HANGS_S 120u /* a scenario takes 0.1 s of an idle processor */

/* Shared by all processes. */
struct shared { _Atomic uint64_t next, done, failed, traces; _Atomic uint64_t total[SIM_COUNTS]; _Atomic uint64_t seed[JOBS_MAX]; /* what each process is at */ };

static char base_dir[200];
static volatile uint64_t current_seed;

static void on_alarm(int sig) {
        char line[160];
        void *at[64];
        int n = snprintf(line, sizeof line, "seed %llu: hangs: no end after %u s\n  again: sim --seed %llu --verbose\n", (unsigned long long)current_seed, HANGS_S, (unsigned long long)current_seed);
        (void)!write(STDERR_FILENO, line, (size_t)n);
        backtrace_symbols_fd(at, backtrace(at, ARRAY_SIZE(at)), STDERR_FILENO);
        abort();
}

static int scenario(uint64_t seed, bool verbose, unsigned ops, struct digest *ret, struct shared *shared) {
        static struct world world;
        struct world *w = &world;
        current_seed = seed;
        (void)alarm(HANGS_S);
        int r = world_open(w, seed, base_dir, verbose);
        if (r < 0) {
                fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, w->why[0] ? w->why : err_name(r));
                return r;
        }
        int64_t until = w->clock.mono_ms + 3600000;
        w->faults = true;
        w->operations = true;
        unsigned wanted = ops ? ops : 20 + (unsigned)pick(w, 60);
        while (w->ops_done < wanted && !w->why[0] && world_turn(w, until))
                if (w->turns > TURNS_MAX)
                        wrong(w, "more than %u turns: somebody runs in a circle", TURNS_MAX);
        w->faults = w->operations = false;
        if (!w->why[0])
                (void)!oracle_check(w);
        w->count[SIM_TURNS] = w->turns;
        w->count[SIM_OPERATIONS] = w->ops_done;
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                w->count[SIM_CONFLICTS] += counter_get(&w->clients[i].counters, conflicts);
                w->count[SIM_REFUSED] += counter_get(&w->clients[i].counters, ops_refused);
                w->count[SIM_COMMITTED] += counter_get(&w->clients[i].counters, ops_committed);
        }
        for (unsigned i = 0; i < SIM_COUNTS && shared; i++)
                (void)atomic_fetch_add(&shared->total[i], w->count[i]);
        r = w->why[0] ? -EIO : 0;
        if (r < 0)
                fprintf(stderr, "seed %llu: %s\n  again: sim --seed %llu --verbose%s%s\n", (unsigned long long)seed, w->why, (unsigned long long)seed, ops ? " --ops " : "",
                        ops ? "(as given)" : "");
        sha256_end(w->trace, ret);
        world_close(w);
        return r;
}

struct args { uint64_t seed, scenarios; unsigned ops, jobs; bool verbose, twice, sample; };

static void run(const struct args *a, struct shared *shared, unsigned job) {
        for (;;) {
                uint64_t i = atomic_fetch_add(&shared->next, 1);
                struct digest x, y;
                if (i >= a->scenarios || atomic_load(&shared->failed) >= FAILURES_MAX)
                        return;
                shared->seed[job] = a->seed + i;
                int r = scenario(a->seed + i, a->verbose, a->ops, &x, shared);
                if (r >= 0 && (a->twice || (a->sample && i % TWICE_EACH == 0))) {
                        r = scenario(a->seed + i, false, a->ops, &y, NULL);
                        if (r >= 0 && !digest_equal(&x, &y)) {
                                fprintf(stderr, "seed %llu: two runs gave two traces\n", (unsigned long long)(a->seed + i));
                                r = -EIO;
                        }
                }
                uint64_t first;
                memcpy(&first, x.b, sizeof first);
                (void)atomic_fetch_add(&shared->traces, first);
                (void)atomic_fetch_add(&shared->failed, r < 0);
                (void)atomic_fetch_add(&shared->done, 1);
        }
}

/* A run of many scenarios that did not meet one of the faults, or a row of the conflict table, proves nothing about it: their number. */
static uint64_t never_met(const struct shared *shared) {
        uint64_t n = 0;
        for (unsigned i = 0; i < SIM_COUNTS; i++)
                if (!shared->total[i]) {
                        fprintf(stderr, "never met: %s\n", sim_count_name[i]);
                        n++;
                }
        return n;
}

static volatile sig_atomic_t ended;

static void on_end(int sig) {
        ended = sig;
}

static pid_t start(const struct args *a, struct shared *shared, unsigned job) {
        pid_t parent = getpid(), pid = fork();
        if (pid)
                return pid;
        (void)signal(SIGTERM, SIG_DFL);
        (void)signal(SIGINT, SIG_DFL);
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
                _exit(1);
        run(a, shared, job);
        _exit(0);
}

/* Processes that were started and did not end well. */
static int run_all(const struct args *a, struct shared *shared) {
        struct sigaction on = { .sa_handler = on_end }; /* no SA_RESTART: it ends the wait */
        pid_t pid[JOBS_MAX];
        int status, bad = 0;
        (void)sigaction(SIGTERM, &on, NULL);
        (void)sigaction(SIGINT, &on, NULL);
        for (unsigned i = 0; i < a->jobs; i++)
                pid[i] = start(a, shared, i);
        for (unsigned i = 0; i < a->jobs; i++) {
                pid_t r = -1;
                while (pid[i] > 0 && (r = waitpid(pid[i], &status, 0)) < 0 && ended)
                        for (unsigned k = i; k < a->jobs; k++)
                                (void)kill(pid[k], SIGKILL);
                if (pid[i] < 0 || r != pid[i] || !WIFEXITED(status) || WEXITSTATUS(status)) {
                        fprintf(stderr, "seed %llu: the process ended with %s %d\n", (unsigned long long)shared->seed[i], pid[i] >= 0 && WIFSIGNALED(status) ? "signal" : "status",
                                pid[i] < 0 ? -1 : WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
                        bad++;
                }
        }
        return bad;
}

static int make_base(void) {
        const char *base = getenv("TMPDIR");
        struct stat st;
        if (!base)
                base = stat("/dev/shm", &st) == 0 ? "/dev/shm" : "/tmp";
        return (size_t)snprintf(base_dir, sizeof base_dir, "%s/tarn-sim-XXXXXX", base) >= sizeof base_dir ? -ENAMETOOLONG : tmpdir_new(base_dir) ? 0 : -errno;
}

static unsigned long number(const char *text) {
        return text ? strtoul(text, NULL, 10) : 0;
}

int main(int argc, char **argv) {
        struct args a = { .seed = 1, .sample = true };
        for (int i = 1; i < argc; i++) {
                if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
                        a.seed = strtoull(argv[++i], NULL, 10);
                        a.scenarios = MAX(a.scenarios, 1u);
                        a.sample = false;
                } else if (!strcmp(argv[i], "--scenarios") && i + 1 < argc) {
                        a.scenarios = number(argv[++i]);
                } else if (!strcmp(argv[i], "--jobs") && i + 1 < argc) {
                        a.jobs = (unsigned)number(argv[++i]);
                } else if (!strcmp(argv[i], "--ops") && i + 1 < argc) {
                        a.ops = (unsigned)number(argv[++i]);
                } else if (!strcmp(argv[i], "--verbose")) {
                        a.verbose = true;
                } else if (!strcmp(argv[i], "--twice")) {
                        a.twice = true;
                } else {
                        fprintf(stderr, "usage: sim [--seed N] [--scenarios M] [--jobs J] [--ops N] [--twice] [--verbose]\n");
                        return 2;
                }
        }
        if (log_open("sim", a.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, NULL) < 0)
                return 1;
        disk_start();
        if (a.scenarios == 0)
                a.scenarios = SCENARIOS * MAX(1ul, number(getenv("TARN_TEST_SCALE")));
        if (a.jobs == 0)
                a.jobs = (unsigned)MIN((uint64_t)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1l), MIN(a.scenarios, (uint64_t)JOBS_MAX));
        struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED)
                return 1;
        struct timespec t0, t1;
        void *load[1];
        (void)backtrace(load, 1); /* loads what it needs: not in a signal handler */
        (void)signal(SIGALRM, on_alarm);
        if (make_base() < 0)
                return 1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        int bad = 0;
        if (a.jobs > 1)
                bad = run_all(&a, shared);
        else
                run(&a, shared, 0);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        (void)alarm(0);
        world_remove(base_dir);
        double s = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
        uint64_t done = shared->done, failed = shared->failed + (uint64_t)bad;
        if (done >= MANY)
                failed += never_met(shared);
        printf("%llu scenarios from seed %llu, %.1f scenarios/s in %u processes", (unsigned long long)done, (unsigned long long)a.seed, (double)done / s, a.jobs);
        for (unsigned i = 0; i < SIM_ROWS; i++)
                printf(", %llu %s", (unsigned long long)shared->total[i], sim_count_name[i]);
        printf("\nrows of the conflict table");
        for (unsigned i = SIM_ROWS; i < SIM_COUNTS; i++)
                printf(", %llu %s", (unsigned long long)shared->total[i], sim_count_name[i]);
        printf("\ntraces %016llx, %llu failed\n", (unsigned long long)shared->traces, (unsigned long long)failed);
        return failed ? 1 : 0;
}
