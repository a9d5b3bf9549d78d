/* SPDX-License-Identifier: Apache-2.0 */
/* sim.c: runs scenarios. `sim --seed N [--scenarios M] [--verbose] [--ops N]` runs seeds N, N+1, ...; one that fails prints the command that runs it again. With
 * --twice each seed runs two times and the digests of the traces must be equal. Without --seed: a fixed first seed, TARN_TEST_SCALE times the default
 * number of scenarios, the first few of them twice. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "sim.h"

#define TURNS_MAX 200000u

struct totals { uint64_t turns, ops, crashes, conflicts, refused, committed; };

static int scenario(uint64_t seed, bool verbose, unsigned ops, struct digest *ret, struct totals *totals) {
        static struct world world;
        struct world *w = &world;
        int r = world_open(w, seed, verbose);
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
        totals->turns += w->turns;
        totals->ops += w->ops_done;
        totals->crashes += w->crashes;
        for (unsigned i = 0; i <= CLIENTS_MAX; i++) {
                totals->conflicts += counter_get(&w->clients[i].counters, conflicts);
                totals->refused += counter_get(&w->clients[i].counters, ops_refused);
                totals->committed += counter_get(&w->clients[i].counters, ops_committed);
        }
        r = w->why[0] ? -EIO : 0;
        if (r < 0)
                fprintf(stderr, "seed %llu: %s\n  again: sim --seed %llu --verbose%s%s\n", (unsigned long long)seed, w->why, (unsigned long long)seed, ops ? " --ops " : "",
                        ops ? "(as given)" : "");
        sha256_end(w->trace, ret);
        world_close(w);
        return r;
}

int main(int argc, char **argv) {
        uint64_t seed = 1, scenarios = 0;
        unsigned ops = 0;
        bool verbose = false, twice = false, given = false;
        struct totals totals = { 0 };
        for (int i = 1; i < argc; i++) {
                if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
                        seed = strtoull(argv[++i], NULL, 10);
                        given = true;
                } else if (!strcmp(argv[i], "--scenarios") && i + 1 < argc) {
                        scenarios = strtoull(argv[++i], NULL, 10);
                } else if (!strcmp(argv[i], "--ops") && i + 1 < argc) {
                        ops = (unsigned)strtoul(argv[++i], NULL, 10);
                } else if (!strcmp(argv[i], "--verbose")) {
                        verbose = true;
                } else if (!strcmp(argv[i], "--twice")) {
                        twice = true;
                } else {
                        fprintf(stderr, "usage: sim [--seed N] [--scenarios M] [--ops N] [--twice] [--verbose]\n");
                        return 2;
                }
        }
        if (log_open("sim", verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, NULL) < 0)
                return 1;
        if (scenarios == 0) {
                const char *scale = getenv("TARN_TEST_SCALE");
                scenarios = given ? 1 : SCENARIOS * MAX(1ul, scale ? strtoul(scale, NULL, 10) : 1ul);
        }
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        uint64_t done = 0, failed = 0;
        char hex[2 * DIGEST_BYTES + 1] = "";
        for (uint64_t i = 0; i < scenarios && failed < 10; i++) {
                struct digest a, b;
                if (scenario(seed + i, verbose, ops, &a, &totals) < 0)
                        failed++;
                else if (twice || (!given && i < 3)) {
                        if (scenario(seed + i, false, ops, &b, &totals) < 0 || !digest_equal(&a, &b)) {
                                fprintf(stderr, "seed %llu: two runs gave two traces\n", (unsigned long long)(seed + i));
                                failed++;
                        }
                }
                hex_encode(a.b, 8, hex);
                if (verbose)
                        fprintf(stderr, "seed %llu trace %s\n", (unsigned long long)(seed + i), hex);
                done++;
        }
        clock_gettime(CLOCK_MONOTONIC, &t1);
        double s = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
        printf("%llu scenarios from seed %llu, %llu failed, %.1f scenarios/s, %llu turns, %llu operations, %llu crashes, %llu committed, %llu refused, %llu conflict names; last trace %s\n",
               (unsigned long long)done, (unsigned long long)seed, (unsigned long long)failed, (double)done / s, (unsigned long long)totals.turns, (unsigned long long)totals.ops,
               (unsigned long long)totals.crashes, (unsigned long long)totals.committed, (unsigned long long)totals.refused, (unsigned long long)totals.conflicts, hex);
        return failed ? 1 : 0;
}
