/* SPDX-License-Identifier: Apache-2.0 */
/* tree_sync.c: what of the tree is durable, and when.
 *
 * Ordinary commits are written to SQLite's log and not synced: they survive the end of the process. tree_sync makes all of them durable. One round serves all callers that came before it began; nothing
 * committed since the last one: no round at all.
 *
 * Rows name bytes that lie in other files (the generations of the outbox: stages). After a power cut a row must not be there without its bytes: a save over a file would show neither the old nor
 * the new content. So a round is
 *
 *   1. under t->lock: which commits there are, and where the log ends         (the place)
 *   2. sync_first: all bytes that these rows name                             (sealed stages: cache.c)
 *   3. the log
 *   4. the mark: up to the place, rows and bytes are on the platter           (db_mark.c)
 *
 * Commits go on meanwhile. What is in the log behind the mark may or may not reach the platter, by itself or by 3; it does not count after a power cut, because the log is cut at the mark
 * (power_cut). So the tree then shows the state at the end of one transaction, complete, not older than any tree_sync that has returned. Generations that were let go since then
 * are still there (file_commit.c lets them go after a round that began after their row had gone), newer ones are found by themselves (tree_recover.c).
 * If sync_first fails (a disk that refuses one file) the round goes on: the rest is worth it. Recovery sees that the bytes of that row are not whole (its stage has no seal that was synced), and what they
 * replaced is still there, because nothing is let go while it may be needed for that (files_flush).
 *
 * Checkpoint. Only what is marked may be moved into the database. When the log has log_pages, the owner is told (log_full) and makes a round soon; a round that finds it so closes the
 * *gate*: no transaction begins, steps 1 to 4 once more for the few commits since, checkpoint, gate open. Should nobody come, the transaction that finds twice as many does it itself. A thread at the
 * gate may hold locks below RANK_STAGE_IO; sync_first takes those from there on only.
 *
 * A sync that failed. The round's callers get the error; what they had written may be gone from the kernel's memory though nothing says so, and another sync would succeed without having written it. So the
 * next round is one with the gate closed: what lies in the log behind the mark is compared with its sums and written once more (db_again), then steps 1 to 4 and the checkpoint, so that the log begins anew.
 * With that all who ask later are served, and what the first ones had written is durable too. The disk that goes on failing goes on telling each of them. If the kernel has dropped a frame that it could
 * not write, there is no copy of it: the error stays until the next start, which shows what the disk has.
 *
 * The file of a program that knew no marks (an older version of the schema in the file itself): it may have written behind the last mark what counted for it, so marks mean nothing for such a file and it is
 * not cut. The first round makes it ours: the version is raised, marked with all the rest, and moved into the file, where such a program finds it and leaves the file alone.
 *
 * Which node is durable: t->touched has the commit that last queued or changed an operation of it. */
#include <assert.h>

#include "base/err.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "tree_priv.h"

static size_t touch_place(uint64_t ino) {
        return (size_t)(ino * 0x9e3779b97f4a7c15u >> 40) % TOUCHED;
}

void tree_touch(struct tree *t, uint64_t ino) {
        lock_assert_held(&t->lock);
        if (!t->content_only)
                atomic_store(&t->touched[touch_place(ino)], atomic_load(&t->commits) + 1);
}

bool tree_synced(struct tree *t, uint64_t ino) {
        return atomic_load(&t->touched[touch_place(ino)]) <= atomic_load(&t->commits_synced) && atomic_load(&t->commits_synced) > 0;
}

/* Steps 1 to 4. With the gate closed nothing is committed behind the mark. */
static int steps(struct tree *t, uint64_t *ret_commits) {
        struct db_mark mark;
        lock_take(&t->lock);
        uint64_t commits = atomic_load(&t->commits);
        db_log_at(t->w, &mark);
        lock_drop(&t->lock);
        int r = 0, first = t->sync_first ? t->sync_first(t->sync_arg) : 0;
        if (first == -EAGAIN)
                return first;
        if (first < 0)
                log_error("tree event=bytes_not_synced error=%s", err_name(first));
        if (r == 0)
                r = FAILPOINT("tree.sync");
        if (r == 0)
                r = db_sync(t->w);
        if (r == 0)
                FAILPOINT_HERE("tree.synced");
        if (r == 0)
                r = db_mark(t->w, &mark);
        if (r == 0) {
                FAILPOINT_HERE("tree.marked");
                *ret_commits = commits;
        }
        return r;
}

static bool log_is_long(struct tree *t, unsigned times) {
        return db_log_pages(t->w) >= (uint64_t)t->log_pages * times;
}

/* The gate is closed: says in the file that marks count. An older program does not open it from then on. */
static int raise_version(struct tree *t) {
        LOCK_SCOPE(&t->lock);
        int r = db_begin(t->w);
        if (r == 0)
                r = db_exec(t->w, "PRAGMA user_version=" TREE_SCHEMA_TEXT);
        if (r == 0)
                r = meta_set(t->w, "schema", TREE_SCHEMA_VERSION);
        if (r == 0)
                r = db_commit(t->w);
        if (r == 0)
                tree_count_commit(t);
        else
                db_rollback(t->w);
        return r;
}

static int checkpoint(struct tree *t, uint64_t *ret_commits) {
        lock_take(&t->lock);
        assert(!t->gate);
        t->gate = true;
        lock_drop(&t->lock);
        int r = db_again(t->w);
        if (r == -EBADMSG) {
                if (!t->dropped)
                        log_error("tree event=log_dropped: the kernel has dropped what the disk refused; what was changed since then is not safe, and gone after the next start");
                t->dropped = true;
                r = -EIO;
        }
        const bool raised = r == 0 && (!t->raise || raise_version(t) == 0);
        if (r == 0)
                r = steps(t, ret_commits);
        lock_take(&t->lock);
        if (r == 0) {
                int c = db_checkpoint(t->w);
                if (c < 0)
                        log_debug("tree event=checkpoint error=%s", err_name(c));
                else if (raised)
                        t->raise = false;
        }
        t->gate = false;
        cond_broadcast(&t->gcond);
        lock_drop(&t->lock);
        return r;
}

/* slock held, nobody is syncing. */
static void round_locked(struct tree *t, int (*what)(struct tree *t, uint64_t *ret_commits)) {
        t->syncing = true;
        uint64_t number = ++t->sync_started, commits = 0;
        lock_drop(&t->slock);
        int r = what(t, &commits);
        lock_take(&t->slock);
        t->syncing = false;
        t->sync_done = number;
        if (r == 0 && t->sync_result < 0 && t->sync_result != -EAGAIN)
                log_info("tree event=synced_again after=%s", err_name(t->sync_result));
        t->sync_result = r;
        if (r == 0)
                atomic_store(&t->commits_synced, commits);
        cond_broadcast(&t->scond);
}

/* wait: not beside a round that goes on, but after it. A disk that fails is asked again by those who sync, not by each transaction. */
static void checkpoint_if_due(struct tree *t, unsigned times, bool wait) {
        LOCK_SCOPE(&t->slock);
        while (wait && t->syncing)
                cond_wait(&t->scond, &t->slock);
        const bool asks = t->sync_result == 0 || t->sync_result == -EAGAIN || t->sync_result == -ENOSPC;
        if (!t->syncing && asks && (log_is_long(t, times) || (t->raise && !wait)))
                round_locked(t, checkpoint);
}

int tree_sync(struct tree *t) {
        lock_assert_below(RANK_STAGE_IO);
        lock_take(&t->slock);
        if (atomic_load(&t->commits) != atomic_load(&t->commits_synced) || t->syncing || t->sync_result < 0) { /* what failed may have been a checkpoint, after all was synced */
                uint64_t mine = t->sync_started + 1; /* the first round that begins from now on covers all commits until now */
                while (t->sync_done < mine)
                        if (t->syncing)
                                cond_wait(&t->scond, &t->slock);
                        else
                                round_locked(t, db_sync_failed(t->w) ? checkpoint : steps);
        }
        int r = t->sync_result;
        lock_drop(&t->slock);
        if (r == 0)
                checkpoint_if_due(t, 1, false);
        return r;
}

void tree_log_grown(struct tree *t) {
        if (!log_is_long(t, 1))
                return;
        if (t->log_full)
                t->log_full(t->sync_arg);
        if (!t->log_full || log_is_long(t, 2))
                checkpoint_if_due(t, t->log_full ? 2 : 1, true);
}
