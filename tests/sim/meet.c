/* SPDX-License-Identifier: Apache-2.0 */
/* meet.c: two clients do something to the same thing in the same moment, so that every row of the conflict table comes up, and often. What each does is thrown for itself; which of them
 * the server hears first is the network's throw. */
#include <stdlib.h>
#include <string.h>

#include "sim.h"

/* What both see: by ids, because inodes differ from client to client. */
struct meet {
        struct id dir, node, other;  /* node has `name` in dir; other: another directory */
        char name[NAME_BYTES_MAX + 1], fresh[32];
        bool is_dir;
        struct text *same;
        unsigned turn;               /* 0, 1: who */
};

static bool ino_of(struct client *c, const struct id *id, uint64_t *ret) {
        return tree_find_id(c->cache->tree, id, ret) >= 0;
}

/* Still the same there; then the row is read. */
static bool target(struct client *c, const struct meet *m, uint64_t *ret_dir, struct node *ret) {
        return ino_of(c, &m->dir, ret_dir) && tree_lookup(c->cache->tree, *ret_dir, m->name, strlen(m->name), ret) >= 0 && id_equal(&ret->id, &m->node);
}

static void edit(struct client *c, const struct meet *m, bool same) {
        struct node n;
        uint64_t dir;
        if (!target(c, m, &dir, &n) || file_is_open(c->cache, n.ino))
                return;
        supersede(c, &n);
        (void)write_text(c, &n, same ? m->same : text_new(c));
}

static void edit_same(struct client *c, const struct meet *m) { edit(c, m, true); }
static void edit_other(struct client *c, const struct meet *m) { edit(c, m, false); }

static void unlink_it(struct client *c, const struct meet *m) {
        uint64_t dir;
        if (ino_of(c, &m->dir, &dir))
                (void)remove_name(c, dir, m->name);
}

static void rename_it(struct client *c, const struct meet *m) {
        struct node n;
        uint64_t dir;
        char to[64];
        if (!target(c, m, &dir, &n))
                return;
        snprintf(to, sizeof to, "%s%s", m->fresh, chance(c->w, 500) ? "" : c->name);
        (void)rename_to(c, dir, m->name, strlen(m->name), dir, to, strlen(to));
}

static void save_over(struct client *c, const struct meet *m) {
        struct node n, temp;
        uint64_t dir;
        if (!target(c, m, &dir, &n) || file_is_open(c->cache, n.ino) || make_file(c, dir, ".saved.tmp", 10, &temp) < 0)
                return;
        if (write_text(c, &temp, text_new(c)) >= 0)
                (void)rename_to(c, dir, ".saved.tmp", 10, dir, m->name, strlen(m->name));
}

static void change_mode(struct client *c, const struct meet *m) {
        struct node n;
        uint64_t dir;
        struct tree_attrs a = { .mask = ATTR_MODE, .mode = 0400 + (uint32_t)pick(c->w, 0400) };
        if (target(c, m, &dir, &n) && tree_setattr(c->cache->tree, n.ino, &a, &n) >= 0)
                trace(c->w, "%s mode of %s", c->name, m->name);
}

static void create(struct client *c, const struct meet *m, const struct id *in, bool same) {
        struct node n;
        uint64_t dir;
        if (ino_of(c, in, &dir) && make_file(c, dir, m->fresh, strlen(m->fresh), &n) >= 0)
                (void)write_text(c, &n, same ? m->same : text_new(c));
}

static void create_same(struct client *c, const struct meet *m) { create(c, m, &m->dir, true); }
static void create_other(struct client *c, const struct meet *m) { create(c, m, &m->dir, false); }
static void create_inside(struct client *c, const struct meet *m) { create(c, m, &m->node, false); }

static void mkdir_it(struct client *c, const struct meet *m) {
        uint64_t dir;
        if (ino_of(c, &m->dir, &dir))
                (void)make_dir(c, dir, m->fresh);
}

/* Each moves its one into the other's. */
static void move_inside(struct client *c, const struct meet *m) {
        struct node n, top;
        uint64_t dir, other;
        if (!target(c, m, &dir, &n) || !ino_of(c, &m->other, &other) || other == n.ino || tree_get(c->cache->tree, other, &top) < 0)
                return;
        if (m->turn == 0)
                (void)rename_to(c, dir, m->name, strlen(m->name), other, m->fresh, strlen(m->fresh));
        else
                (void)move_dir(c, other, n.ino, m->fresh);
}

typedef void act(struct client *c, const struct meet *m);
static act *const of_file[] = { edit_other, edit_other, edit_same, edit_same, unlink_it, unlink_it, rename_it, rename_it, save_over, change_mode, change_mode, create_other, create_same, mkdir_it };
static act *const of_dir[] = { unlink_it, unlink_it, rename_it, create_inside, create_inside, create_other, create_same, mkdir_it, mkdir_it, move_inside, move_inside, move_inside };

static act *throw_act(struct world *w, bool is_dir, act *first) {
        if (first && chance(w, 300)) /* the same */
                return first;
        return is_dir ? of_dir[pick(w, ARRAY_SIZE(of_dir))] : of_file[pick(w, ARRAY_SIZE(of_file))];
}

void op_meet(struct client *c) {
        struct world *w = c->w;
        struct client *d = &w->clients[pick(w, w->n_clients)];
        struct meet m = { .is_dir = chance(w, 350) };
        struct engine_status status;
        struct tree_entry e;
        struct node top;
        uint64_t dir, other;
        if (d == c || !d->up)
                return;
        engine_status(d->engine, &status);
        if (!status.loaded || !random_entry(c, m.is_dir ? NODE_DIR : NODE_FILE, &dir, &e) || tree_get(c->cache->tree, dir, &top) < 0)
                return;
        m.dir = top.id;
        m.node = e.node.id;
        snprintf(m.name, sizeof m.name, "%s", e.name);
        other = random_dir(c);
        for (unsigned i = 0; i < 4 && (other == INO_ROOT || other == e.node.ino); i++)
                other = random_dir(c);
        if (tree_get(c->cache->tree, other, &top) < 0)
                return;
        m.other = top.id;
        snprintf(m.fresh, sizeof m.fresh, "m%u", (unsigned)pick(w, 3));
        act *mine = throw_act(w, m.is_dir, NULL), *theirs = throw_act(w, m.is_dir, mine);
        if (mine == edit_same || mine == create_same || theirs == edit_same || theirs == create_same) {
                m.same = text_new(c);
                m.same->shared = true;
        }
        trace(w, "%s meets %s at %s", c->name, d->name, m.name);
        mine(c, &m);
        m.turn = 1;
        theirs(d, &m);
}
