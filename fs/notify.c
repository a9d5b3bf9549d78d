/* SPDX-License-Identifier: Apache-2.0 */
/* notify.c: the one thread that tells the kernel what changed behind its back. The kernel caches names, absences, attributes, listings and pages for a day;
 * they are true only because of this file.
 *
 *   note      to the kernel
 *   ENTRY     inval_entry(parent, name), then inval_inode(parent, 0, 0) once after a run of them: its cached listing
 *   LIST      inval_inode(directory, 0, 0)
 *   ATTR      inval_inode(node, -1, 0): attributes only; pages stay
 *   CONTENT   inval_inode(node, 0, 0): attributes and pages, of the nodeid with the row's incarnation; a nodeid of an older incarnation keeps its
 *             pages, they are what its open handles read
 *
 * Rules, each learned from a deadlock or a stale cache that was provoked:
 *   1. Calls to the kernel come from this thread only and with no lock held: inval_entry takes the directory's lock, which a lookup, create or unlink in flight
 *      holds; from inside a handler of that directory it would wait for itself.
 *   2. A note is issued after every registered request that may have read the old rows has been answered (seq): otherwise its reply would put
 *      the old state back behind the invalidation. Neither skipped nor early.
 *   3. A note that drops pages waits in the node's own list while requests of that node are parked (the kernel holds pages locked for them), so that it
 *      stalls nobody else's.
 *   4. rmdir and rename name no node. The kernel marks the one that it knows by the name as dead, or moves it to the other name, and that would be for a day; but until it has the note the name may be another
 *      node's here. Such a call gets ESTALE, inside its transaction, upon which the kernel asks for the name and calls again. It holds the directory's lock meanwhile, so the note cannot come between.
 *   5. -ENOENT is success: the kernel did not know it, or no longer does.
 *
 * A note about something that the kernel does not know, and that no reply in flight can tell it about, is dropped at the door: most of a first load. notes() is
 * called with the tree's lock held, so it never waits. If the queue is full (NOTES_MAX) or there is no memory, notes are lost and the *flood* begins: the pages
 * and attributes of everything that the kernel knows are dropped, and the names in the root, with which the kernel drops all names below them. */
#include "fs.h"

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"

static bool drops_pages(enum note_kind kind) {
        return kind == NOTE_CONTENT || kind == NOTE_LIST;
}

/* Cached pages of n's node are doubtful until n is issued. A slot that is made while n waits has no pages yet. */
static void pending_set(struct mount *m, const struct noted *n, bool issued) {
        uint64_t ids[8];
        size_t k = drops_pages(n->kind) ? slots_of_ino_locked(m, n->ino, ids, ARRAY_SIZE(ids)) : 0;
        for (size_t i = 0; i < k; i++) {
                struct slot *s = slot_find_locked(m, ids[i]);
                if (!issued)
                        s->pending = n->number;
                else if (s->pending == n->number)
                        s->pending = 0;
        }
}

void notes_free(struct noted *first) {
        for (struct noted *n = first, *next; n; n = next) {
                next = n->next;
                free(n);
        }
}

void note_requeue_locked(struct mount *m, struct noted *first) {
        struct noted *last = first;
        while (last->next)
                last = last->next;
        last->next = m->queue;
        if (!m->queue)
                m->queue_last = &last->next;
        m->queue = first;
        cond_signal(&m->note_more);
}

static void listener_notes(struct listener *l, const struct note *notes, size_t n) {
        struct mount *m = container_of(l, struct mount, listener);
        LOCK_SCOPE(&m->lock);
        for (size_t i = 0; i < n && !m->note_stop; i++) {
                uint64_t id;
                size_t name_bytes = notes[i].kind == NOTE_ENTRY ? notes[i].name_bytes : 0;
                assert(name_bytes <= NAME_BYTES_MAX);
                if (notes[i].kind == NOTE_ENTRY)
                        m->n_entry_notes++;
                if (m->regs.next == &m->regs && slots_of_ino_locked(m, notes[i].ino, &id, 1) == 0)
                        continue; /* the kernel does not know it, and no reply is on its way that would tell it of the old row */
                struct noted *q = m->n_queued < m->notes_max ? malloc(sizeof *q + name_bytes + 1) : NULL;
                if (!q) {
                        m->flood = true;
                        m->flood_seq = m->seq;
                        cond_signal(&m->note_more);
                        continue;
                }
                if (++m->note_number == 0)
                        m->note_number = 1;
                *q = (struct noted){ .seq = m->seq, .number = m->note_number, .kind = notes[i].kind, .ino = notes[i].ino, .name_bytes = name_bytes };
                if (name_bytes > 0)
                        memcpy(q->name, notes[i].name, name_bytes);
                q->name[name_bytes] = 0;
                pending_set(m, q, false);
                *m->queue_last = q;
                m->queue_last = &q->next;
                m->n_queued++;
                cond_signal(&m->note_more);
        }
}

static void listener_wake(struct listener *l) {
}

static bool doubt(struct noted *first, uint64_t dir, const char *name, size_t n) {
        bool found = false;
        for (struct noted *x = first; x; x = x->next)
                if (x->kind == NOTE_ENTRY && x->ino == dir && x->name_bytes == n && !x->doubted && memcmp(x->name, name, n) == 0)
                        found = x->doubted = true;
        return found;
}

static bool listener_doubts(struct listener *l, uint64_t dir, const char *name, size_t n) {
        struct mount *m = container_of(l, struct mount, listener);
        uint64_t ids[8];
        LOCK_SCOPE(&m->lock);
        bool found = doubt(m->queue, dir, name, n);
        if (m->issued)
                found |= doubt(m->issued, dir, name, n);
        size_t k = slots_of_ino_locked(m, dir, ids, ARRAY_SIZE(ids));
        for (size_t i = 0; i < k; i++) {
                struct slot *s = slot_find_locked(m, ids[i]);
                found |= s->hot && doubt(s->hot->waiting, dir, name, n);
        }
        return found;
}

void notify_init(struct mount *m) {
        m->listener = (struct listener){ listener_notes, listener_wake, listener_doubts };
        m->queue_last = &m->queue;
        m->notes_max = NOTES_MAX;
        cond_init(&m->note_more);
}

static void inval_inode(struct mount *m, uint64_t nodeid, bool pages) {
        lock_assert_none();
        counter_add(m->cfg.counters, fuse_notifications, 1);
        int r = fuse_lowlevel_notify_inval_inode(m->se, nodeid, pages ? 0 : -1, 0);
        if (r < 0 && r != -ENOENT)
                log_debug("event=notify kind=inode nodeid=%llx error=%s", (unsigned long long)nodeid, err_name(r));
}

static void inval_entry(struct mount *m, uint64_t nodeid, const char *name, size_t n) {
        lock_assert_none();
        counter_add(m->cfg.counters, fuse_notifications, 1);
        int r = fuse_lowlevel_notify_inval_entry(m->se, nodeid, name, n);
        if (r < 0 && r != -ENOENT)
                log_debug("event=notify kind=entry nodeid=%llx error=%s", (unsigned long long)nodeid, err_name(r));
}

/* No lock held. ids: nodeids of n->ino that the kernel knew a moment ago. */
static void issue(struct mount *m, const struct noted *n, const uint64_t *ids, size_t n_ids) {
        struct node row;
        bool have_row = n->kind == NOTE_CONTENT && tree_get(m->cfg.cache->tree, n->ino, &row) == 0;
        for (size_t i = 0; i < n_ids; i++) {
                switch (n->kind) {
                case NOTE_ENTRY:
                        inval_entry(m, ids[i], n->name, n->name_bytes);
                        break;
                case NOTE_LIST:
                        inval_inode(m, ids[i], true);
                        break;
                case NOTE_ATTR:
                        inval_inode(m, ids[i], false);
                        break;
                case NOTE_CONTENT:
                        inval_inode(m, ids[i], !have_row || nodeid_incarnation(ids[i]) == row.incarnation);
                        break;
                }
        }
}

static int flood_name(void *arg, const struct tree_entry *e) {
        inval_entry(arg, FUSE_ROOT_ID, e->name, e->name_bytes);
        return 0;
}

/* Called and left with m->lock. False: no memory for the list now. */
static bool flood_issue(struct mount *m) {
        uint64_t *ids = reallocarray(NULL, m->n_slots, sizeof *ids);
        size_t n = 0;
        if (!ids)
                return false;
        for (size_t i = 0; i < m->slots_room; i++)
                if (m->slots[i].nodeid != 0)
                        ids[n++] = m->slots[i].nodeid;
        m->flood = false;
        lock_drop(&m->lock);
        log_debug("event=flood nodes=%zu", n);
        for (size_t i = 0; i < n; i++) {
                struct noted note = { .kind = NOTE_CONTENT, .ino = nodeid_ino(ids[i]) };
                issue(m, &note, &ids[i], 1);
        }
        (void)!tree_list(m->cfg.cache->tree, INO_ROOT, 0, flood_name, m);
        free(ids);
        lock_take(&m->lock);
        return true;
}

static void *notifier(void *arg) {
        struct mount *m = arg;
        uint64_t list_dir = 0; /* a listing that the entries issued last have made doubtful */
        lock_take(&m->lock);
        while (!m->note_stop) {
                struct noted *n = m->queue;
                uint64_t ids[8];
                if (list_dir && (!n || n->kind != NOTE_ENTRY || n->ino != list_dir)) {
                        size_t k = slots_of_ino_locked(m, list_dir, ids, ARRAY_SIZE(ids));
                        list_dir = 0;
                        lock_drop(&m->lock);
                        for (size_t i = 0; i < k; i++)
                                inval_inode(m, ids[i], true);
                        lock_take(&m->lock);
                        continue;
                }
                bool old = m->regs.next != &m->regs && m->regs.next->seq <= (m->flood ? m->flood_seq : n ? n->seq : 0);
                if (m->flood && !old) {
                        if (!flood_issue(m))
                                (void)!cond_wait_until(&m->note_more, &m->lock, clock_mono_ms(clock_system()) + 1000);
                        continue;
                }
                if (!n || old) {
                        m->note_waits = true;
                        cond_wait(&m->note_more, &m->lock);
                        m->note_waits = false;
                        continue;
                }
                m->queue = n->next;
                if (!m->queue)
                        m->queue_last = &m->queue;
                n->next = NULL;
                size_t k = slots_of_ino_locked(m, n->ino, ids, ARRAY_SIZE(ids));
                struct hot *parked = NULL;
                for (size_t i = 0; i < k && (drops_pages(n->kind) || n->kind == NOTE_ENTRY) && !parked; i++) {
                        struct slot *s = slot_find_locked(m, ids[i]);
                        parked = s->hot && s->hot->parked > 0 ? s->hot : NULL;
                }
                if (parked) {
                        *parked->waiting_last = n;
                        parked->waiting_last = &n->next;
                        continue;
                }
                m->issued = n;
                lock_drop(&m->lock);
                issue(m, n, ids, k);
                lock_take(&m->lock);
                m->issued = NULL;
                if (n->kind == NOTE_ENTRY)
                        list_dir = n->ino;
                pending_set(m, n, true);
                m->n_queued--;
                free(n);
        }
        lock_drop(&m->lock);
        return NULL;
}

int notify_start(struct mount *m) {
        int r = thread_start(&m->notifier, "fuse-notify", notifier, m);
        m->notifier_started = r == 0;
        return r;
}

void notify_stop(struct mount *m) {
        lock_take(&m->lock);
        m->note_stop = true;
        cond_broadcast(&m->note_more);
        lock_drop(&m->lock);
        if (m->notifier_started)
                (void)pthread_join(m->notifier, NULL);
        m->notifier_started = false;
        notes_free(m->queue);
        m->queue = NULL;
        m->queue_last = &m->queue;
}
