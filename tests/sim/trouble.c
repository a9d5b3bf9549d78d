/* SPDX-License-Identifier: Apache-2.0 */
/* trouble.c: what goes wrong besides messages (those are net.c's). One disturbance at a time is picked; some last for a while. Each is counted, and must have happened in a run of many
 * scenarios. */
#include <string.h>

#include "api_call.h"
#include "disk.h"
#include "sim.h"

#define WORKSPACE 1u /* the only one */

static void link_changes(struct world *w, struct client *c) {
        c->connected = !c->connected;
        trace(w, "%s connected=%d", c->name, c->connected);
        if (!c->connected)
                net_cut(c);
        else if (chance(w, 300))
                engine_nudge(c->engine);
}

static void goes_down(struct world *w, struct client *c, enum down how) {
        static const enum sim_count count[] = { [DOWN_KILLED] = SIM_CRASHES, [DOWN_POWER] = SIM_POWER_CUTS, [DOWN_ROLLED_BACK] = SIM_ROLLBACKS };
        if (w->full == c) { /* to start needs room */
                w->full_until = 0;
                trouble_tick(w);
        }
        if (how != DOWN_CLEAN)
                w->count[count[how]]++;
        if (client_down(c, how) >= 0)
                (void)!client_up(c);
}

/* The server forgets the older half of what it remembers of the past. */
static void horizon_moves(struct world *w) {
        struct cursor at;
        if (net_server_at(w, &at) < 0 || at.seq < 2)
                return;
        uint64_t to = 1 + pick(w, at.seq);
        int r = meta_horizon_set(w->server->meta, WORKSPACE, to);
        trace(w, "horizon=%llu of %llu: %d", (unsigned long long)to, (unsigned long long)at.seq, r);
        w->count[SIM_HORIZONS] += r == 0;
}

static void server_goes_back(struct world *w) {
        struct id epoch;
        if (!w->has_backup) {
                (void)!server_backup(w);
                return;
        }
        w->count[SIM_SERVER_ROLLBACKS]++;
        bool told = chance(w, 500);
        if (server_rollback(w) >= 0 && told) {
                w->count[SIM_EPOCHS]++;
                (void)!meta_epoch_new(w->server->meta, WORKSPACE, &epoch);
        }
        if (w->quota_until == 0)
                (void)!meta_quota_set(w->server->meta, WORKSPACE, 0);
        trace(w, "server rolled back epoch=%d", told);
}

void disturb(struct world *w) {
        struct client *c = &w->clients[pick(w, w->n_clients)];
        uint64_t k = pick(w, w->server_dir[0] ? 140 : 100);
        if (k >= 100) {
                server_goes_back(w);
                return;
        }
        if (!c->up)
                return;
        if (k < 45) {
                link_changes(w, c);
        } else if (k < 50) {
                goes_down(w, c, DOWN_CLEAN);
        } else if (k < 70) {
                goes_down(w, c, w->power && chance(w, 700) ? DOWN_POWER : DOWN_KILLED);
        } else if (k < 76) {
                if (c->has_backup)
                        goes_down(w, c, DOWN_ROLLED_BACK);
                else
                        (void)!client_backup(c);
        } else if (k < 78) {
                if (w->n_clients < CLIENTS_MAX)
                        (void)!client_clone(c);
        } else if (k < 84) {
                horizon_moves(w);
        } else if (k < 90) {
                c->expired_until = w->clock.mono_ms + (int64_t)pick(w, 5000);
                w->count[SIM_EXPIRED]++;
                trace(w, "%s expired", c->name);
        } else if (k < 95) {
                int r = meta_quota_set(w->server->meta, WORKSPACE, 1);
                w->quota_until = w->clock.mono_ms + (int64_t)pick(w, 5000);
                w->count[SIM_QUOTA]++;
                trace(w, "quota %d", r);
        } else if (!w->full) {
                w->full = c;
                w->full_until = w->clock.mono_ms + (int64_t)pick(w, 3000);
                w->count[SIM_FULL]++;
                disk_full(c->dir);
                trace(w, "%s full", c->name);
        }
}

void trouble_tick(struct world *w) {
        if (w->full && w->full_until <= w->clock.mono_ms) {
                trace(w, "%s has room", w->full->name);
                w->full = NULL;
                disk_full("");
        }
        if (w->quota_until && w->quota_until <= w->clock.mono_ms) {
                w->quota_until = 0;
                (void)!meta_quota_set(w->server->meta, WORKSPACE, 0);
                trace(w, "no quota");
        }
}

void trouble_end(struct world *w) {
        w->full_until = 0;
        w->quota_until = w->quota_until ? 1 : 0;
        trouble_tick(w);
        for (unsigned i = 0; i < w->n_clients; i++)
                w->clients[i].expired_until = 0;
}
