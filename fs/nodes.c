/* SPDX-License-Identifier: Apache-2.0 */
/* nodes.c: what the kernel knows, and who is in flight.
 *
 * The table has one slot of 24 bytes for each nodeid that the kernel holds (its lookup count), so it is as large as the kernel's own inode cache and
 * shrinks with FORGET. It answers one question for the notifier: does the kernel know this node at all? Most notes of a first load end there.
 * Open addressing with linear probing, hashed by ino: all incarnations of a node lie in one run.
 *
 *   slot       nlookup > 0, or hot: in the table; else removed (the run behind it moves up)
 *   hot        made by the first open or parked request, gone with the last of them; or a ghost, until FORGET
 *
 * Registrations (struct reg) are a ring in the order of their beginning. A request that reads rows and whose reply the kernel caches is registered from before
 * the first row until its reply is written. A note that arrives carries the newest registration's number at that moment: only requests up to it may have
 * read the old rows, and the notifier lets them end first. These requests never wait for the network, so this is short. Requests that
 * may wait (READ, WRITE) are *parked*: counted per node, and only notes of that node that drop pages wait for them.
 *
 * Everything here is guarded by m->lock (RANK_QUEUE): nodes_kept is called by the tree under its own lock. */
#include "fs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS_MIN 256u

static size_t slot_home(const struct mount *m, uint64_t nodeid) {
        return (size_t)((nodeid_ino(nodeid) * 0x9e3779b97f4a7c15u) >> 20) & (m->slots_room - 1);
}

int nodes_init(struct mount *m) {
        m->slots_room = SLOTS_MIN;
        m->slots = calloc(m->slots_room, sizeof *m->slots);
        m->regs.next = m->regs.prev = &m->regs;
        if (!m->slots)
                return -ENOMEM;
        /* the root is known from the beginning and never forgotten */
        m->slots[slot_home(m, FUSE_ROOT_ID)] = (struct slot){ .nodeid = FUSE_ROOT_ID, .nlookup = UINT32_MAX };
        m->n_slots = 1;
        return 0;
}

void nodes_free(struct mount *m) {
        for (size_t i = 0; m->slots && i < m->slots_room; i++)
                if (m->slots[i].hot) {
                        notes_free(m->slots[i].hot->waiting);
                        free(m->slots[i].hot->ghost);
                        free(m->slots[i].hot);
                }
        free(m->slots);
        m->slots = NULL;
}

struct slot *slot_find_locked(struct mount *m, uint64_t nodeid) {
        lock_assert_held(&m->lock);
        for (size_t i = slot_home(m, nodeid);; i = (i + 1) & (m->slots_room - 1)) {
                if (m->slots[i].nodeid == nodeid)
                        return &m->slots[i];
                if (m->slots[i].nodeid == 0)
                        return NULL;
        }
}

size_t slots_of_ino_locked(struct mount *m, uint64_t ino, uint64_t *ret, size_t max) {
        size_t n = 0;
        for (size_t i = slot_home(m, ino); m->slots[i].nodeid != 0 && n < max; i = (i + 1) & (m->slots_room - 1))
                if (nodeid_ino(m->slots[i].nodeid) == ino)
                        ret[n++] = m->slots[i].nodeid;
        return n;
}

static int table_resize(struct mount *m, size_t room) {
        struct slot *old = m->slots, *fresh = calloc(room, sizeof *fresh);
        size_t old_room = m->slots_room;
        if (!fresh)
                return -ENOMEM;
        m->slots = fresh;
        m->slots_room = room;
        for (size_t i = 0; i < old_room; i++)
                if (old[i].nodeid != 0) {
                        size_t k = slot_home(m, old[i].nodeid);
                        while (fresh[k].nodeid != 0)
                                k = (k + 1) & (room - 1);
                        fresh[k] = old[i];
                }
        free(old);
        return 0;
}

static void slot_remove(struct mount *m, struct slot *s) {
        size_t hole = (size_t)(s - m->slots), mask = m->slots_room - 1;
        for (size_t i = (hole + 1) & mask; m->slots[i].nodeid != 0; i = (i + 1) & mask) {
                size_t home = slot_home(m, m->slots[i].nodeid);
                if (((i - home) & mask) >= ((i - hole) & mask)) { /* its home is not between the hole and it */
                        m->slots[hole] = m->slots[i];
                        hole = i;
                }
        }
        m->slots[hole] = (struct slot){ 0 };
        m->n_slots--;
        if (m->slots_room > SLOTS_MIN && m->n_slots < m->slots_room / 8)
                (void)table_resize(m, m->slots_room / 2); /* stays large without memory */
}

static void slot_tidy(struct mount *m, struct slot *s) {
        struct hot *h = s->hot;
        if (s->nlookup == 0 && h && h->ghost && h->opens == 0 && h->parked == 0 && !h->waiting) {
                free(h->ghost);
                free(h);
                s->hot = NULL;
        }
        if (s->nlookup == 0 && !s->hot)
                slot_remove(m, s);
}

int nodes_ref(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (!s) {
                if ((m->n_slots + 1) * 4 > m->slots_room * 3) {
                        int r = table_resize(m, m->slots_room * 2);
                        if (r < 0)
                                return r;
                }
                size_t i = slot_home(m, nodeid);
                while (m->slots[i].nodeid != 0)
                        i = (i + 1) & (m->slots_room - 1);
                m->slots[i] = (struct slot){ .nodeid = nodeid };
                m->n_slots++;
                s = &m->slots[i];
        }
        if (s->nlookup < UINT32_MAX)
                s->nlookup++;
        return 0;
}

void nodes_forget(struct mount *m, uint64_t nodeid, uint64_t n) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (!s || s->nlookup == UINT32_MAX)
                return;
        assert(n <= s->nlookup);
        s->nlookup -= (uint32_t)n;
        slot_tidy(m, s);
}

struct hot *hot_of_locked(struct mount *m, uint64_t nodeid) {
        struct slot *s = slot_find_locked(m, nodeid);
        if (!s)
                return NULL;
        if (!s->hot) {
                s->hot = calloc(1, sizeof *s->hot);
                if (s->hot) {
                        s->hot->nodeid = nodeid;
                        s->hot->waiting_last = &s->hot->waiting;
                        s->hot->entry_notes = m->n_entry_notes;
                }
        }
        return s->hot;
}

void hot_drop_locked(struct mount *m, struct hot *h) {
        struct slot *s = slot_find_locked(m, h->nodeid);
        assert(s && s->hot == h);
        if (h->opens > 0 || h->parked > 0 || h->waiting)
                return;
        if (h->ghost) {
                slot_tidy(m, s);
                return;
        }
        s->hot = NULL;
        free(h);
        slot_tidy(m, s);
}

bool nodes_kept(void *mount, uint64_t ino) {
        struct mount *m = mount;
        LOCK_SCOPE(&m->lock);
        for (size_t i = slot_home(m, ino); m->slots[i].nodeid != 0; i = (i + 1) & (m->slots_room - 1))
                if (nodeid_ino(m->slots[i].nodeid) == ino && m->slots[i].hot && m->slots[i].hot->opens > 0)
                        return true;
        return false;
}

int nodes_open(struct mount *m, uint64_t nodeid, bool write) {
        LOCK_SCOPE(&m->lock);
        struct hot *h = hot_of_locked(m, nodeid);
        if (!h)
                return -ENOMEM;
        if (h->opens++ == 0)
                h->entry_notes = m->n_entry_notes;
        h->writers += write;
        return 0;
}

bool nodes_opened(struct mount *m, uint64_t nodeid, const struct node *view, struct file *file) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        assert(s && s->hot && s->hot->opens > s->hot->files);
        struct hot *h = s->hot;
        h->file = file;
        h->files++;
        if (view) {
                h->mtime_ns = view->mtime_ns;
                h->ctime_ns = view->ctime_ns;
                h->kill_priv = view->mode & 06000;
                h->kill_caps = m->cfg.owner_stored && view->has_xattrs;
                h->unlinked |= view->unlinked;
        }
        return s->pending == 0 && !m->flood;
}

void nodes_closing(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        assert(s && s->hot && s->hot->files > 0);
        if (--s->hot->files == 0)
                s->hot->file = NULL;
}

bool nodes_close(struct mount *m, uint64_t nodeid, bool write) {
        bool look = false;
        lock_take(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        assert(s && s->hot && s->hot->opens > 0 && s->hot->writers >= write);
        struct hot *h = s->hot;
        h->writers -= write;
        if (--h->opens == 0)
                look = h->unlinked || h->entry_notes != m->n_entry_notes;
        hot_drop_locked(m, h);
        lock_drop(&m->lock);
        return look && !nodes_kept(m, nodeid_ino(nodeid));
}

void nodes_unlinked(struct mount *m, uint64_t ino) {
        LOCK_SCOPE(&m->lock);
        for (size_t i = slot_home(m, ino); m->slots[i].nodeid != 0; i = (i + 1) & (m->slots_room - 1))
                if (nodeid_ino(m->slots[i].nodeid) == ino && m->slots[i].hot)
                        m->slots[i].hot->unlinked = true;
}

void nodes_ghost(struct mount *m, const struct node *n) {
        LOCK_SCOPE(&m->lock);
        struct hot *h = hot_of_locked(m, nodeid_of(n));
        if (!h || h->ghost)
                return; /* without memory stat of it is ENOENT */
        h->ghost = malloc(sizeof *n);
        if (h->ghost) {
                *h->ghost = *n;
                h->ghost->nlink = 0;
        }
        hot_drop_locked(m, h);
}

bool nodes_ghost_get(struct mount *m, uint64_t nodeid, struct node *ret) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (!s || !s->hot || !s->hot->ghost)
                return false;
        *ret = *s->hot->ghost;
        return true;
}

void nodes_set_kill(struct mount *m, uint64_t nodeid, bool kill) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (s && s->hot)
                s->hot->kill_priv = kill;
}

bool nodes_take_kill(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        bool kill = s && s->hot && s->hot->kill_priv;
        if (kill)
                s->hot->kill_priv = false;
        return kill;
}

bool nodes_known(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        return slot_find_locked(m, nodeid) != NULL;
}

void nodes_set_caps(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (s && s->hot)
                s->hot->kill_caps = true;
}

bool nodes_take_caps(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        bool kill = s && s->hot && s->hot->kill_caps;
        if (kill)
                s->hot->kill_caps = false;
        return kill;
}

bool nodes_view(struct mount *m, uint64_t nodeid, uint64_t *ret_ino, int64_t *ret_mtime_ns, int64_t *ret_ctime_ns) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        if (!s || !s->hot || !s->hot->file)
                return false;
        *ret_ino = file_ino(s->hot->file);
        *ret_mtime_ns = s->hot->mtime_ns;
        *ret_ctime_ns = s->hot->ctime_ns;
        return true;
}

int nodes_park(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct hot *h = hot_of_locked(m, nodeid);
        if (!h)
                return -ENOMEM;
        h->parked++;
        return 0;
}

void nodes_unpark(struct mount *m, uint64_t nodeid) {
        LOCK_SCOPE(&m->lock);
        struct slot *s = slot_find_locked(m, nodeid);
        assert(s && s->hot && s->hot->parked > 0);
        struct hot *h = s->hot;
        if (--h->parked == 0 && h->waiting) {
                note_requeue_locked(m, h->waiting);
                h->waiting = NULL;
                h->waiting_last = &h->waiting;
        }
        hot_drop_locked(m, h);
}

void reg_begin(struct mount *m, struct reg *reg) {
        LOCK_SCOPE(&m->lock);
        reg->seq = ++m->seq;
        reg->next = &m->regs;
        reg->prev = m->regs.prev;
        reg->prev->next = m->regs.prev = reg;
}

void reg_end(struct mount *m, struct reg *reg) {
        LOCK_SCOPE(&m->lock);
        bool oldest = m->regs.next == reg;
        reg->prev->next = reg->next;
        reg->next->prev = reg->prev;
        if (oldest && m->note_waits)
                cond_signal(&m->note_more);
}

void call_begin(struct call *c, fuse_req_t req) {
        c->m = req_mount(req);
        c->req = req;
        counter_add(c->m->cfg.counters, fuse_requests, 1);
        reg_begin(c->m, &c->reg);
}

void call_end(struct call *c) {
        reg_end(c->m, &c->reg);
}
