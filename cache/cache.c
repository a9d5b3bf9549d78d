/* SPDX-License-Identifier: Apache-2.0 */
/* cache.c: the cache as a whole: opening, recovery, closing.
 *
 *   DIR/lock            held by the one process that owns DIR
 *   DIR/boot            boot id of the last start: another one means that bytes which were not synced may be gone: the tree goes back to its last mark (tree_sync.c), and nothing cached is
 *                       trusted unhashed
 *   DIR/tree.db         nodes, outbox, cursor (tree.c); a damaged one is moved aside to tree.db.damaged-TIME and made anew
 *   DIR/stages, lent/   logs and bytes of files being written (stage*.c)
 *   DIR/blob, ...       cached blocks (blob*.c)
 *   DIR/lost+found      what could not be matched or is damaged, as plain files
 *
 * Recovery. Stages are rebuilt from their logs (stage_recover.c), then matched with the tree, newest generation of each node first:
 *
 *   DONE in its log                  its files go back to the pools
 *   damaged                          what can be read goes to lost+found/; a row of the outbox that names it is dropped. No room there: it stays as it is until there is (files_rescued)
 *   nothing was ever changed         discarded
 *   a write of it had failed         shown again as it was, not committed, until it is healed or truncated
 *   tree: already in the outbox      KNOWN: kept with its layers
 *   tree: newer than its rows        QUEUED or LOST_FOUND (node made again): sealed, kept
 *   tree: taken back by a power cut  a plain file in lost+found/: its node was made after the last mark, and it was not fsynced
 *   tree: committed or replaced      COMMITTED: becomes a blob if its bytes are those of the row, else discarded
 *   tree: new, its predecessor lost  kept aside (files.late) until the tree is loaded from the server (cache_loaded), then as above: tree_recover.c
 *
 * An outbox row without its stage, or with one that is not whole (no seal), can only come from damage, a sync that failed, or a power cut under a program that had no marks yet: it goes back to what is here
 * of the file (the stage as far as it was synced, if it is the file's own; else an older generation), or is dropped, so that the file shows its last version again. One thread until the flusher starts.
 *
 * A start may be killed itself. Until the boot id is written, last, the next one after a power cut takes the tree back to the same mark; so what this one writes into the stages before its own changes of the tree
 * are marked must not speak of them: no log says which node a stage was given (files_note_moved), and no seal makes a row believed that is longer than what is sealed (doubt_unsealed).
 * What a start does not believe no later one may believe: not a stage on top of one whose last records are gone (a seal of what is left of that would make it whole), nor records behind a gap (a seal
 * would fill it). So the notes that say so are on the platter before the first seal is written (sort_found). */
#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "base/failpoint.h"
#include "base/io.h"
#include "base/log.h"
#include "file_priv.h"

#define OUTBOX_LOOK 65536u
#define LOG_SHARE 64      /* of the limit: the tree's SQLite log between two checkpoints */
#define LOG_PAGES_MIN 64
#define LOG_PAGES_MAX 2000
#define RESERVE_BYTES (UINT64_C(2) << 20)
#define EARLY_BYTES_MAX (UINT64_C(64) << 20)

static bool open_for_write(void *arg, uint64_t ino) {
        return file_is_open_for_write(arg, ino);
}

static bool may_fetch(void *arg) {
        return cache_online(arg);
}

static int new_boot(const char *dir, bool *ret, char now[37]) {
        _cleanup_free_ char *path = path_join(dir, "boot");
        _cleanup_buf_ struct buf b = BUF_INIT(64);
        if (!path)
                return -ENOMEM;
        int r = boot_id(now);
        if (r < 0)
                return r;
        r = file_load(path, 64, &b);
        *ret = r < 0 || b.bytes != 36 || memcmp(b.data, now, 36) != 0;
        return r < 0 && r != -ENOENT ? r : 0;
}

static unsigned log_pages(const struct cache_config *cfg) {
        return (unsigned)MIN(MAX(cfg->limit_bytes / LOG_SHARE / 4096, (uint64_t)LOG_PAGES_MIN), (uint64_t)LOG_PAGES_MAX);
}

/* What the tree's log may grow to (twice what a checkpoint waits for), the index's log, and some rows; on a tiny disk less. */
static uint64_t reserve_bytes(const struct cache_config *cfg) {
        struct statvfs v;
        if (cfg->tree_vfs || statvfs(cfg->dir, &v) < 0)
                return 0;
        return MIN((uint64_t)log_pages(cfg) * 2 * 4096 + RESERVE_BYTES, (uint64_t)v.f_blocks * v.f_frsize / 8);
}

/* Before each sync of the tree: bytes that rows name. Those of the last life are known only when the stages were found. */
static int sync_first(void *arg) {
        struct cache *c = arg;
        return c->files->found ? stages_sync_sealed(c->stages) : -EAGAIN;
}

static int open_tree(struct cache *c, const struct cache_config *cfg, bool power_cut, bool *ret_lost) {
        _cleanup_free_ char *path = path_join(cfg->dir, "tree.db");
        if (!path)
                return -ENOMEM;
        struct tree_config tc = { .path = path, .vfs = cfg->tree_vfs, .readers = cfg->by_hand ? 1 : 4, .clock = cfg->clock, .rng = cfg->rng, .counters = cfg->counters, .uid = cfg->uid, .gid = cfg->gid,
                                  .power_cut = power_cut, .sync_first = sync_first, .log_full = cfg->by_hand ? NULL : files_log_full, .sync_arg = c, .log_pages = log_pages(cfg) };
        int r = tree_open(&tc, &c->tree);
        if (r != -EBADMSG && r != -EEXIST) /* a constraint that does not hold is damage too */
                return r;
        static const char *const parts[] = { "", "-wal", "-shm", "-mark" };
        int64_t now = clock_real_ns(cfg->clock) / 1000000000;
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                char from[PATH_MAX], to[PATH_MAX];
                if ((size_t)snprintf(from, sizeof from, "%s%s", path, parts[i]) >= sizeof from ||
                    (size_t)snprintf(to, sizeof to, "%s.damaged-%" PRId64 "%s", path, now, parts[i]) >= sizeof to)
                        return -ENAMETOOLONG;
                if (rename(from, to) < 0 && errno != ENOENT)
                        return -errno;
        }
        log_error("cache tree_file=%s damaged, moved aside", path);
        *ret_lost = true;
        return tree_open(&tc, &c->tree);
}

/* ---- matching ---- */

/* Only its header was written. Size and limits do not tell: a stage that was cut to nothing and then moved to a file of its own has a header with the limit 0. */
static bool nothing_changed(struct found_stage *fo) {
        LOCK_SCOPE(&fo->stage->lock);
        return !fo->changed && !fo->stage->error;
}

static int by_ino_and_gen(const void *a, const void *b) {
        const struct found_stage *x = a, *y = b;
        uint64_t i = stage_ino(x->stage), k = stage_ino(y->stage);
        if (i != k)
                return i < k ? -1 : 1;
        return x->stage->gen < y->stage->gen ? 1 : x->stage->gen > y->stage->gen ? -1 : 0; /* newest first */
}
static int by_gen(const void *a, const void *b) {
        const struct found_stage *x = a, *y = b;
        return x->stage->gen < y->stage->gen ? -1 : x->stage->gen > y->stage->gen;
}

static int attach(struct files *fs, struct stage *st) {
        struct node node;
        int r = tree_get(fs->c->tree, stage_ino(st), &node);
        if (r < 0)
                return r;
        if (!stage_error(st) && node.gen != st->gen) { /* not what the node shows: an operation of an inode that it was saved over, handed on */
                files_discard(fs, stage_ref(st));
                return 0;
        }
        struct file *f = file_get_or_new(fs, node.ino, node.incarnation);
        if (!f)
                return -ENOMEM;
        lock_take(&f->lock);
        struct stage *old = f->top, *bottom = st;
        if (old) {
                /* an older generation that the newer one does not stand on (a crash between two steps): under it, if it does not show through */
                while (bottom->below)
                        bottom = bottom->below;
                if (bottom->base_limit == 0)
                        bottom->below = steal_ptr(old);
                else if (outbox_carries(fs->c->tree, old->gen) == 0) /* else the newer one was based on what becomes of it, and the row of that went with a power cut: it is sent first */
                        (void)files_rescued(fs, old, true);
        }
        f->top = stage_ref(st);
        f->content = node.content;
        f->version = node.version;
        f->loaded = true;
        file_update_flags(f);
        lock_drop(&f->lock);
        if (old)
                files_discard(fs, old);
        file_put(f);
        return r;
}

static struct stage_identity identity(struct stage *st) {
        struct stage_identity id = { .ino = stage_ino(st), .gen = st->gen, .below_gen = st->head.below_gen, .node = st->head.node, .parent = st->head.parent, .base_version = st->head.base_version,
                                     .mode = st->head.mode, .mtime_ns = st->mtime_ns, .size = stage_size(st) };
        memcpy(id.name, st->head.name, sizeof id.name);
        return id;
}

/* It belongs to another node, or stands on something else, than its header says. Its log says so later (files_note_moved). */
static void reassign(struct files *fs, struct stage *st, const struct stage_identity *id) {
        atomic_store(&st->ino, id->ino);
        LOCK_SCOPE(&st->io);
        st->head.ino = id->ino;
        st->head.node = id->node;
        st->head.base_version = id->base_version;
        if (!st->moved) {
                st->moved = true;
                st->moved_next = fs->moved;
                fs->moved = stage_ref(st);
        }
}

/* Seals what was open, asks the tree, keeps or drops. ret_keep: somebody shows it. */
static int match(struct files *fs, struct found_stage *fo, bool *ret_keep, bool *ret_recovered, unsigned *ret_lost) {
        struct stage *st = fo->stage;
        *ret_keep = false;
        if (stage_error(st)) {
                int newer = tree_queued_after(fs->c->tree, stage_ino(st), st->gen);
                if (newer != 0) /* spoiled, and the file was saved anew since: it goes, whether the newer one is still to be sent or not */
                        return MIN(newer, 0);
                struct stage_identity id = identity(st);
                int r = tree_recover_base(fs->c->tree, &id, &id.base_version);
                if (r > 0) /* what is saved in its place is not a conflict with the file itself */
                        reassign(fs, st, &id);
                *ret_keep = r >= 0 && attach(fs, st) == 0;
                if (!*ret_keep)
                        (void)files_rescued(fs, st, true);
                return 0;
        }
        if (!fo->sealed) {
                lock_take(&st->io);
                int r = stage_seal(st);
                lock_drop(&st->io);
                if (r < 0)
                        return r;
                fo->sealed = true;
        }
        struct stage_identity id = identity(st);
        enum recover_result how = RECOVER_BEHIND;
        int r = FAILPOINT("recover.match");
        if (r == 0 && id.ino != STAGE_NOBODY)
                r = tree_recover_stage(fs->c->tree, &id, &how);
        if (r < 0)
                return r;
        if (how == RECOVER_KNOWN)
                log_debug("cache recover gen=%" PRIu64 " ino=%" PRIu64 " known", st->gen, id.ino);
        else
                log_info("cache recover gen=%" PRIu64 " ino=%" PRIu64 " result=%d", st->gen, id.ino, (int)how);
        if (how == RECOVER_BEHIND) {
                for (struct stage *x = id.size ? st : NULL; x; x = x->below)
                        (void)files_rescued(fs, x, true);
                *ret_lost += id.size > 0;
                return 0;
        }
        if (how == RECOVER_COMMITTED) {
                /* the server has it: if these are the bytes that the row shows, they need not come from there again */
                struct node node;
                if (tree_get(fs->c->tree, stage_ino(st), &node) == 0 && node.gen == 0 && !node.unlinked && node.content.size == id.size && id.size > 0) {
                        files_retire_add(fs, stage_ref(st), &node.content, &node.version);
                        *ret_keep = true;
                }
                return 0;
        }
        *ret_recovered = how != RECOVER_KNOWN;
        for (struct stage *x = id.ino != stage_ino(st) ? st : NULL; x; x = x->below) {
                struct stage_identity now = identity(x);
                now.ino = id.ino;
                now.node = id.node;
                reassign(fs, x, &now);
        }
        for (struct stage *x = st; x; x = x->below) {
                LOCK_SCOPE(&x->lock);
                x->queued = true;
        }
        r = attach(fs, st);
        *ret_keep = r == 0;
        return r;
}

static int drop_rows_without_stage(struct files *fs, unsigned *ret_dropped) {
        _cleanup_arena_ struct arena *a = NULL;
        int r = arena_new(256u << 20, &a);
        if (r < 0)
                return r;
        _cleanup_free_ struct outbox_item *items = malloc(OUTBOX_LOOK * sizeof *items); /* not cleared: there are few */
        if (!items)
                return -ENOMEM;
        size_t n = 0;
        r = outbox_list(fs->c->tree, a, false, items, OUTBOX_LOOK, &n);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct stage *st;
                if (!items[i].gen)
                        continue;
                if (stage_get(fs->c->stages, items[i].gen, &st) == 0) {
                        bool dead = st->dead;
                        stage_put(st);
                        if (!dead)
                                continue;
                }
                _cleanup_arena_ struct arena *b = NULL;
                r = arena_new(16u << 20, &b);
                if (r < 0)
                        return r;
                struct op_result res = { .op = items[i].op.id, .code = RES_STALE };
                struct resolve how = { .kind = RESOLVE_DROP };
                struct tree_applied applied = { 0 };
                int k = items[i].op.kind == OP_CREATE ? tree_lost_content(fs->c->tree, &items[i].op.id) : tree_resolve(fs->c->tree, &res, &how, NULL, NULL, b, &applied);
                log_warn("cache recover outbox_row gen=%" PRIu64 " ino=%" PRIu64 " without_stage dropped=%s", items[i].gen, items[i].ino, k < 0 ? err_name(k) : "yes");
                if (k == 0)
                        (*ret_dropped)++;
        }
        return r;
}

/* Which stages stand for themselves, which lie under those; damaged ones go to lost+found/. */
static int sort_found(struct files *fs, struct stages_found *found, unsigned *ret_lost) {
        bool noted = false;
        if (found->n)
                qsort(found->v, found->n, sizeof *found->v, by_ino_and_gen);
        /* newest per node first: lower ones that it stands on are its layers */
        for (size_t i = 0; i < found->n; i++) {
                struct found_stage *fo = &found->v[i];
                struct stage *st = fo->stage;
                fo->keep = false;
                bool held = false, newer = false;
                for (size_t k = i; !held && k > 0 && stage_ino(found->v[k - 1].stage) == stage_ino(st); k--) {
                        newer = newer || found->v[k - 1].top || found->v[k - 1].done;
                        if (found->v[k - 1].top) /* one that is dropped holds nothing */
                                for (struct stage *x = found->v[k - 1].stage; x && !held; x = x->below)
                                        held = x == st;
                }
                if (!newer) /* what replaced it is not here: a power cut took it (the note was on the platter before it was), or it is on the server, which the tree knows */
                        fo->layer = st->layer = false;
                fo->top = !held && !fo->done && !fo->damaged && !fo->layer && (fo->sealed || !nothing_changed(fo));
                fo->held = held;
                if (fo->damaged) { /* no note where records are missing: it would stand in their place */
                        (*ret_lost)++;
                        st->dead = true;
                        int r = files_rescued(fs, st, !fo->incomplete) ? stage_void(st) : 0;
                        if (r < 0)
                                return r;
                        noted = true;
                }
        }
        for (size_t i = 0; i < found->n; i++) {
                struct stage *st = found->v[i].stage;
                if (!found->v[i].incomplete || found->v[i].done || found->v[i].damaged)
                        continue;
                /* what was not believed must never be, whatever is written from now on */
                LOCK_SCOPE(&st->io);
                int r = st->large ? 0 : stage_note(st, LOG_CUT, 0, 0, 0, 0, NULL, 0);
                if (r < 0)
                        return r;
                noted |= !st->large;
        }
        return noted ? segments_sync(fs->c->stages->segs) : 0; /* before a seal makes whole what they stood on, or comes in the place of what is missing */
}

static int by_address(const void *a, const void *b) {
        uintptr_t x = (uintptr_t)*(struct stage *const *)a, y = (uintptr_t)*(struct stage *const *)b;
        return x < y ? -1 : x > y;
}

/* What nobody keeps goes, unless an operation carries it (file_commit.c). */
static int drop_unkept(struct files *fs, struct stages_found *found) {
        size_t n = 0, room = found->n;
        for (size_t i = 0; i < found->n; i++)
                for (struct stage *x = found->v[i].keep ? found->v[i].stage->below : NULL; x; x = x->below)
                        room++;
        _cleanup_free_ struct stage **kept = calloc(MAX(room, 1u), sizeof *kept);
        if (!kept)
                return -ENOMEM;
        for (size_t i = 0; i < found->n; i++)
                for (struct stage *x = found->v[i].keep ? found->v[i].stage : NULL; x && n < room; x = x->below)
                        kept[n++] = x;
        qsort(kept, n, sizeof *kept, by_address);
        for (size_t i = 0; i < found->n; i++) {
                struct stage *st = found->v[i].stage;
                if (bsearch(&st, kept, n, sizeof *kept, by_address))
                        continue;
                lock_take(&st->lock);
                st->below_shared = st->below && bsearch(&st->below, kept, n, sizeof *kept, by_address); /* a file lets that go: it is in its stack */
                lock_drop(&st->lock);
                files_discard(fs, stage_ref(st));
        }
        return 0;
}

static int match_found(struct files *fs, struct stages_found *found, unsigned *ret_recovered, unsigned *ret_lost) {
        /* in the order in which they were written */
        if (found->n)
                qsort(found->v, found->n, sizeof *found->v, by_gen);
        for (size_t i = 0; i < found->n; i++) {
                struct found_stage *fo = &found->v[i];
                bool recovered = false;
                if (!fo->top)
                        continue;
                int r = match(fs, fo, &fo->keep, &recovered, ret_lost);
                if (r < 0)
                        return r;
                *ret_recovered += recovered;
        }
        int r = drop_unkept(fs, found);
        return r < 0 ? r : drop_rows_without_stage(fs, ret_lost);
}

/* found is sorted by generation */
static struct found_stage *found_of(const struct stages_found *found, uint64_t gen) {
        size_t low = 0, high = found->n;
        while (low < high) {
                size_t at = (low + high) / 2;
                if (found->v[at].stage->gen < gen)
                        low = at + 1;
                else
                        high = at;
        }
        return low < found->n && found->v[low].stage->gen == gen ? &found->v[low] : NULL;
}

static bool is_here(const struct stages_found *found, uint64_t gen) {
        const struct found_stage *fo = found_of(found, gen);
        return fo && !fo->damaged && !fo->done;
}

/* Was the stage pending with the same server's version below it as the operation? Else it was superseded by what the server has. */
static bool same_base(const struct stage *st, const struct op *op) {
        const struct id *base = &st->head.base_version;
        return id_equal(base, &op->version) || id_equal(base, &op->id) || (op->kind == OP_CREATE && id_is_zero(base));
}

/* What a new file was saved over before the server had either: it had this name, and its node is gone. */
static bool was_saved_over(struct files *fs, const struct stage *st, const struct op *op) {
        struct node node;
        return op->kind == OP_CREATE && id_equal(&st->head.parent, &op->parent) && strlen(st->head.name) == op->name_bytes &&
               memcmp(st->head.name, op->name, op->name_bytes) == 0 && tree_get(fs->c->tree, stage_ino(st), &node) == -ENOENT;
}

/* A row is queued with a sealed generation. In the boot in which it was, one whose log has no seal, and that is not as long as its row says, has lost records: a log that cannot be read any more, while an
 * older home of the stage (before it grew) still can. After a power cut its last sync failed, or there was none (no marks yet): as far as it was synced it is a state that its own file had, and the row
 * becomes that of this state. A save over another file has no such state: the name shows all of it or nothing. 1: settled. */
static int doubt_unsealed(struct files *fs, struct stages_found *found, const struct outbox_item *item, bool new_boot) {
        struct found_stage *fo = found_of(found, item->gen);
        if (!fo || fo->damaged || fo->done || fo->stage->error)
                return 0;
        if (fo->sealed && (!new_boot || stage_size(fo->stage) == item->op.content.size)) /* another size: sealed by a start after the power cut that was killed before the row had it */
                return 0;
        if (!new_boot && stage_size(fo->stage) == item->op.content.size)
                return 0;
        bool over = item->op.kind == OP_REPLACE;
        for (size_t k = 0; !over && k < found->n && found->v[k].stage->gen < item->gen; k++)
                over = !found->v[k].done && was_saved_over(fs, found->v[k].stage, &item->op);
        if (new_boot && !over) {
                struct stage_identity id = { .gen = item->gen, .size = stage_size(fo->stage), .mtime_ns = fo->stage->mtime_ns };
                int r = tree_content_lost(fs->c->tree, item->gen, &id);
                if (r != -EINVAL)
                        return r < 0 ? r : 1;
        }
        log_warn("cache recover gen=%" PRIu64 " ino=%" PRIu64 " bytes=%" PRIu64 " of=%" PRIu64 " records_lost", item->gen, item->ino, stage_size(fo->stage), item->op.content.size);
        fo->damaged = true;
        return 0;
}

/* Rows whose bytes a power cut took: they go back to what is here of the file. Its stage may be marked as a layer of the one that is lost. */
static int rows_go_back(struct files *fs, struct stages_found *found, bool new_boot) {
        _cleanup_arena_ struct arena *a = NULL;
        size_t n = 0;
        int r = arena_new(256u << 20, &a);
        if (r < 0)
                return r;
        _cleanup_free_ struct outbox_item *items = malloc(OUTBOX_LOOK * sizeof *items); /* not cleared: there are few */
        if (!items)
                return -ENOMEM;
        r = outbox_list(fs->c->tree, a, false, items, OUTBOX_LOOK, &n);
        if (found->n)
                qsort(found->v, found->n, sizeof *found->v, by_gen);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct found_stage *older = NULL;
                if (items[i].gen && (r = doubt_unsealed(fs, found, &items[i], new_boot)) != 0) {
                        r = MIN(r, 0);
                        continue;
                }
                if (!items[i].gen || is_here(found, items[i].gen))
                        continue;
                for (size_t k = 0; k < found->n && found->v[k].stage->gen < items[i].gen; k++) {
                        struct found_stage *fo = &found->v[k];
                        if (fo->damaged || fo->done)
                                continue;
                        if (((stage_ino(fo->stage) == items[i].ino || id_equal(&fo->stage->head.node, &items[i].op.node)) && same_base(fo->stage, &items[i].op)) ||
                            was_saved_over(fs, fo->stage, &items[i].op))
                                older = fo; /* the newest */
                }
                struct stage_identity id = { 0 };
                if (older)
                        id = (struct stage_identity){ .gen = older->stage->gen, .size = stage_size(older->stage), .mtime_ns = older->stage->mtime_ns };
                int k = tree_content_lost(fs->c->tree, items[i].gen, older ? &id : NULL);
                log_warn("cache recover outbox_row gen=%" PRIu64 " ino=%" PRIu64 " without_stage back_to=%" PRIu64 " result=%s", items[i].gen, items[i].ino, id.gen, k < 0 ? err_name(k) : "ok");
                if (k == 0 && older)
                        older->layer = older->stage->layer = false;
                r = k == -EINVAL ? 0 : k; /* those are dropped in the end */
        }
        return r;
}

int files_recover(struct files *fs, struct stages_found *found, bool new_boot, unsigned *ret_recovered, unsigned *ret_lost) {
        uint64_t newest = 0, ino = 0;
        bool later = false;
        for (size_t i = 0; i < found->n; i++) {
                newest = MAX(newest, found->v[i].stage->gen);
                if (stage_ino(found->v[i].stage) != STAGE_NOBODY)
                        ino = MAX(ino, stage_ino(found->v[i].stage));
        }
        int r = tree_birth(fs->c->tree, newest);
        if (r == 0)
                r = tree_inos_above(fs->c->tree, ino);
        if (r == 0)
                r = rows_go_back(fs, found, new_boot);
        if (r == 0)
                r = sort_found(fs, found, ret_lost);
        for (size_t i = 0; i < found->n && !later; i++)
                later = found->v[i].top && tree_recovers_later(fs->c->tree, found->v[i].stage->gen);
        if (r < 0 || !later)
                return r < 0 ? r : match_found(fs, found, ret_recovered, ret_lost);
        log_warn("cache recover stages=%zu older than the tree file: they wait for the tree", found->n);
        fs->late = *found;
        *found = (struct stages_found) { 0 };
        return 0;
}

static int by_node_and_gen(const void *a, const void *b) {
        const struct found_stage *x = a, *y = b;
        int r = memcmp(x->stage->head.node.b, y->stage->head.node.b, ID_BYTES);
        return r ? r : x->stage->gen < y->stage->gen ? 1 : x->stage->gen > y->stage->gen ? -1 : 0; /* newest first */
}

/* By node, not by inode: a save over a file has another inode than what it replaced. Older than the tree file. One that stands on the version that the server has now proves that those before it got there: only their DONE was not written any more. */
static void drop_arrived(struct files *fs, struct stages_found *found) {
        const struct id *arrived = NULL;
        uint64_t ino;
        qsort(found->v, found->n, sizeof *found->v, by_node_and_gen);
        for (size_t i = 0; i < found->n; i++) {
                struct found_stage *fo = &found->v[i];
                const struct stage_header *h = &fo->stage->head;
                struct node node;
                if (arrived && id_equal(arrived, &h->node)) {
                        fo->top = false;
                        continue;
                }
                arrived = NULL;
                if (fo->top && !id_is_zero(&h->base_version) && tree_find_id(fs->c->tree, &h->node, &ino) == 0 && tree_get(fs->c->tree, ino, &node) == 0 && id_equal(&node.version, &h->base_version))
                        arrived = &h->node;
        }
}

int cache_loaded(struct cache *c) {
        struct files *fs = c->files;
        unsigned recovered = 0, lost = 0;
        if (!fs->late.n)
                return 0;
        struct stages_found late = fs->late;
        fs->late = (struct stages_found) { 0 };
        drop_arrived(fs, &late);
        int r = match_found(fs, &late, &recovered, &lost);
        stages_found_free(&late);
        if (r == 0)
                r = files_flush(fs);
        if (r == 0)
                files_note_moved(fs);
        if (r < 0) { /* what was not matched is found again at the next start */
                log_error("cache recover after_load error=%s", err_name(r));
                return r;
        }
        log_warn("cache recovered: %u file%s from before the tree file was lost", recovered, recovered == 1 ? "" : "s");
        return 0;
}

/* ---- what the brake holds ---- */

struct roots { uint64_t *v; size_t n, room; };
static int add_root(void *arg, const struct node *node) {
        struct roots *s = arg;
        if (node->kind != NODE_FILE || node->content.size == 0)
                return 0;
        if (s->n == s->room) {
                size_t room = s->room ? s->room * 2 : 1024;
                uint64_t *v = reallocarray(s->v, room, sizeof *v);
                if (!v)
                        return -ENOMEM;
                s->v = v;
                s->room = room;
        }
        memcpy(&s->v[s->n++], node->content.root.b, sizeof *s->v);
        return 0;
}

static int add_newer(void *arg, uint64_t ino, const struct content *content) {
        return add_root(arg, &(struct node){ .ino = ino, .kind = NODE_FILE, .content = *content });
}

int cache_keep_held(struct cache *c) {
        struct roots s = { 0 };
        int r = tree_held(c->tree) ? tree_held_list(c->tree, 0, add_root, &s) : 0;
        if (r == 0)
                r = tree_newer_list(c->tree, false, add_newer, &s);
        if (r == 0)
                r = blobs_keep(c->blobs, s.v, s.n);
        free(s.v);
        return r;
}

struct answers { struct cache *c; bool wait; struct { uint64_t ino; bool here; } v[64]; size_t n; };
static int newer_here(void *arg, uint64_t ino, const struct content *content) {
        struct answers *a = arg;
        struct blob *blob;
        int r = blob_get(a->c->blobs, content, &blob);
        if (r < 0)
                return r;
        bool moves = a->wait && files_retiring(a->c->files, content); /* asked first: what has moved meanwhile is in the blob */
        a->v[a->n].ino = ino;
        a->v[a->n++].here = blob_complete(blob);
        blob_put(blob);
        if (moves && !a->v[a->n - 1].here)
                return -EAGAIN;
        return a->n == ARRAY_SIZE(a->v);
}

static int newer_any(void *arg, uint64_t ino, const struct content *content) {
        struct answers *a = arg;
        a->n = 1;
        return 1;
}

int cache_newer(struct cache *c, bool wait) {
        for (bool kept = false;; kept = true) {
                struct answers a = { .c = c, .wait = wait };
                int r = tree_newer_list(c->tree, true, kept ? newer_here : newer_any, &a);
                if (r == 0 && !kept && a.n) {
                        r = cache_keep_held(c); /* before anybody looks what is here */
                        if (r == 0)
                                continue;
                }
                for (size_t i = 0; i < a.n && r == 0; i++)
                        r = tree_newer_answer(c->tree, a.v[i].ino, a.v[i].here);
                if (r < 0 || a.n < ARRAY_SIZE(a.v))
                        return r;
        }
}

/* ---- open, close ---- */

static void raise_descriptors(void) {
        struct rlimit l;
        if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
                l.rlim_cur = l.rlim_max; /* a large stage keeps one open */
                (void)setrlimit(RLIMIT_NOFILE, &l);
        }
}

int cache_open(const struct cache_config *cfg, struct cache **ret, char *ret_note, size_t n) {
        struct cache *c = calloc(1, sizeof *c);
        if (!c)
                return -ENOMEM;
        bool fresh_boot = false, tree_lost = false;
        char boot[37] = "";
        unsigned recovered = 0, lost = 0;
        c->clock = cfg->clock;
        c->rng = cfg->rng;
        c->counters = cfg->counters;
        if (n)
                ret_note[0] = 0;
        raise_descriptors();
        int r = files_new(c, cfg, &c->files);
        if (r == 0)
                r = mkdir_p(cfg->dir, 0700);
        _cleanup_free_ char *lock_path = path_join(cfg->dir, "lock"), *boot_path = path_join(cfg->dir, "boot");
        if (r == 0 && (!lock_path || !boot_path))
                r = -ENOMEM;
        if (r == 0)
                r = file_lock(lock_path, &c->files->lock_fd);
        if (r == 0)
                r = new_boot(cfg->dir, &fresh_boot, boot);
        if (r == 0)
                r = open_tree(c, cfg, fresh_boot, &tree_lost);
        if (r == 0) {
                struct blobs_config bc = { .dir = cfg->dir, .limit_bytes = cfg->limit_bytes, .free_floor_bytes = cfg->free_floor_bytes, .reserve_bytes = reserve_bytes(cfg), .clock = cfg->clock, .counters = cfg->counters,
                                           .workers = cfg->workers, .new_boot = fresh_boot, .by_hand = cfg->by_hand };
                r = blobs_open(&bc, &c->blobs);
        }
        if (r == 0) {
                c->files->dirty_limit = cfg->limit_bytes / 2;
                struct stages_config sc = { .dir = cfg->dir, .blobs = c->blobs, .clock = cfg->clock, .counters = cfg->counters, .workers = cfg->workers,
                                            .dirty_limit_bytes = cfg->limit_bytes / 2, .early_bytes = MIN(cfg->limit_bytes / 8, EARLY_BYTES_MAX) };
                r = stages_open(&sc, cfg->rng, &c->stages);
        }
        if (r == 0) {
                /* never one that was used before, even if the tree and all stages are lost */
                stages_gen_above(c->stages, (uint64_t)(clock_real_ns(cfg->clock) / 1000));
                stages_gen_above(c->stages, tree_gens(c->tree)); /* the clock may have gone back */
                stages_set_kick(c->stages, files_dirty, c->files);
                blobs_on_room(c->blobs, files_room, c->files);
                outbox_set_open_check(c->tree, open_for_write, c);
                tree_on_named(c->tree, files_named, c->files);
                blobs_set_needs(c->blobs, &(struct blobs_needs) { stages_needs_look, stages_need, stages_needs_end, may_fetch, c->stages, c });
                struct stages_found found;
                r = stages_recover(c->stages, fresh_boot, c->files->lost_dir, &found);
                c->files->found = r == 0;
                if (r == 0)
                        FAILPOINT_HERE("recover.found");
                if (r == 0) {
                        lost = found.lost;
                        r = segments_prepare(c->stages->segs, LOG_UNIT); /* for the control records that follow; by itself a note evicts nothing to get room */
                        if (r == 0)
                                r = files_recover(c->files, &found, fresh_boot, &recovered, &lost);
                        stages_found_free(&found);
                }
        }
        if (r == 0)
                r = FAILPOINT("recover.flush");
        if (r == 0)
                r = cache_keep_held(c);
        if (r == 0)
                r = files_flush(c->files); /* what was found is durable before anything builds on it */
        if (r == 0)
                files_note_moved(c->files);
        c->new_boot = fresh_boot;
        if (r == 0 && fresh_boot)
                r = file_replace(boot_path, boot, 36, 0600);
        if (r == 0)
                r = files_start(c->files);
        if (r < 0) {
                cache_close(c);
                return r;
        }
        if (n && (recovered || lost || tree_lost))
                (void)snprintf(ret_note, n, "recovered %u unsaved file%s%s%s", recovered, recovered == 1 ? "" : "s", lost ? ", damaged or unmatched data kept in lost+found" : "",
                               tree_lost ? ", the tree file was damaged and is loaded again" : "");
        *ret = c;
        return 0;
}

static void freeze_all(struct cache *c) {
        struct files *fs = c->files;
        for (uint64_t round = 0; round < UINT32_MAX; round++) {
                lock_take(&fs->lock);
                struct file *f = fs->open_first;
                while (f && f->closing)
                        f = f->open_next;
                if (f) {
                        f->refs++;
                        f->closing = true;
                }
                lock_drop(&fs->lock);
                if (!f)
                        return;
                uint64_t gen;
                lock_take(&f->lock);
                int r = file_seal(f, &gen);
                lock_drop(&f->lock);
                if (r < 0)
                        log_warn("cache close ino=%" PRIu64 " error=%s", file_ino(f), err_name(r));
                file_put(f);
        }
}

void cache_close(struct cache *c) {
        if (!c)
                return;
        struct files *fs = c->files;
        if (fs && fs->running) {
                freeze_all(c);
                files_stop(fs);
                int r = files_flush(fs);
                if (r < 0)
                        log_error("cache close sync error=%s", err_name(r));
        }
        if (fs) {
                lock_take(&fs->lock);
                while (fs->jobs > 0)
                        cond_wait(&fs->idle, &fs->lock);
                struct retire *re = steal_ptr(fs->retire_first);
                fs->retire_last = NULL;
                struct stage *st = steal_ptr(fs->loose);
                lock_drop(&fs->lock);
                /* what is left in the lists is found again at the next start */
                while (re) {
                        struct retire *next = re->next;
                        stage_put(re->stage);
                        free(re);
                        re = next;
                }
                while (st) {
                        struct stage *next = st->chain;
                        stage_put(st);
                        st = next;
                }
                files_forget_moved(fs);
        }
        if (c->blobs) {
                int r = blobs_sync(c->blobs);
                if (r < 0)
                        log_warn("cache close blobs error=%s", err_name(r));
        }
        if (fs)
                stages_found_free(&fs->late); /* likewise */
        int lock_fd = fs ? steal_fd(&fs->lock_fd) : -1;
        files_free(fs); /* the last references to stages */
        stages_close(c->stages);
        blobs_close(c->blobs);
        tree_close(c->tree);
        if (lock_fd >= 0)
                (void)close(lock_fd);
        free(c);
}

void cache_set_source(struct cache *c, struct source *s) {
        blobs_set_source(c->blobs, s);
}

void cache_set_listener(struct cache *c, struct listener *l) {
        struct files *fs = c->files;
        assert(fs->n_listeners < LISTENERS_MAX);
        fs->listener[fs->n_listeners++] = l;
        tree_add_listener(c->tree, l);
}
