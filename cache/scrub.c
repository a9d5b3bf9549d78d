/* SPDX-License-Identifier: Apache-2.0 */
/* scrub.c: everything that the cache holds is read and compared with what it should be.
 *
 *   what             compared with                         when it is wrong
 *   cached blocks    SHA-256                               dropped, and fetched again if there is a server
 *   stages           the sums of their logs (check.h),     told, by path: nobody else has these bytes
 *                    and of their bytes (stage_sums.c)
 *   tree.db          SQLite's integrity, rules             told: the next start makes a new one
 *
 * With a daemon: reads beside everybody else, takes no lock for long; a log counts as damaged only if two looks say so and its stage was sealed all the time, because logs change under the
 * eye of who reads them. Bytes are read as a reader reads them, so open stages count too. Without: the caller holds DIR/lock, and the blobs are opened as a mount would open them. */
#include <inttypes.h>
#include <stdio.h>

#include "base/io.h"
#include "base/log.h"
#include "cache/scrub.h"
#include "file_priv.h"

#define HEAL_MS 10000

static bool is_sealed(struct cache *c, uint64_t gen) {
        struct stage *st;
        if (stage_get(c->stages, gen, &st) < 0)
                return false;
        lock_take(&st->lock);
        bool sealed = st->state == STAGE_SEALED;
        lock_drop(&st->lock);
        stage_put(st);
        return sealed;
}

static void tell_stage(struct cache *c, const struct check_stage *s, bool bytes, const struct check_report *rep) {
        _cleanup_buf_ struct buf path = BUF_INIT(65536);
        char text[700];
        const char *name = tree_path(c->tree, s->ino, &path) == 0 ? buf_text(&path) : NULL;
        (void)snprintf(text, sizeof text, "the pending bytes of '%.500s' are damaged on this disk: %s", name ? name : s->name[0] ? s->name : "?", bytes ? "some differ from their sums" : s->why);
        rep->line(rep->arg, CHECK_BAD, "stages", text, bytes ? CHECK_SAVE_AGAIN : "save the file again if a program still has it; after the next mount what can be read of it is in lost+found/");
}

/* 1: damaged. */
static int bytes_of(struct cache *c, uint64_t gen, _Atomic bool *stop) {
        struct stage *st;
        if (stage_get(c->stages, gen, &st) < 0)
                return 0;
        int r = stage_verify(st, stop);
        stage_put(st);
        return r == -EIO ? 1 : r == -ENOENT ? 0 : r;
}

static int stages(struct cache *c, _Atomic bool *stop, const struct check_report *rep, struct scrubbed *ret) {
        struct check_stages first, second = { 0 };
        int r = check_stages_read(c->files->dir, false, &first);
        if (r < 0)
                return r;
        uint64_t suspect = 0;
        for (size_t i = 0; i < first.n; i++) {
                if (first.v[i].done)
                        continue;
                ret->stages++;
                ret->stage_bytes += first.v[i].bytes;
                suspect += first.v[i].damaged &= is_sealed(c, first.v[i].gen);
        }
        if (suspect)
                r = check_stages_read(c->files->dir, false, &second);
        for (size_t i = 0, k = 0; r >= 0 && i < first.n; i++) {
                while (k < second.n && second.v[k].gen < first.v[i].gen)
                        k++;
                if (first.v[i].damaged && k < second.n && second.v[k].gen == first.v[i].gen && second.v[k].damaged && is_sealed(c, first.v[i].gen)) {
                        ret->stages_bad++;
                        tell_stage(c, &second.v[k], false, rep);
                } else if (!first.v[i].done && (r = bytes_of(c, first.v[i].gen, stop)) > 0) {
                        ret->stages_bad++;
                        tell_stage(c, &first.v[i], true, rep);
                }
        }
        check_stages_free(&first);
        check_stages_free(&second);
        return MIN(r, 0);
}

static void tell_log(void *arg, enum check_grade grade, const char *check, const char *text, const char *todo) {
        log_warn("scrub %s: %s", check, text);
}

int cache_scrub_stages(struct cache *c, _Atomic bool *stop, uint64_t *ret_bad) {
        struct scrubbed s = { 0 };
        struct check_report rep = { .line = tell_log };
        int r = stages(c, stop, &rep, &s);
        if (r == 0)
                *ret_bad = s.stages_bad;
        return r;
}

static void tell_blocks(const struct blobs_scrub *b, const struct check_report *rep, struct scrubbed *ret) {
        char text[200];
        ret->blocks = atomic_load(&b->checked);
        ret->blocks_bad = atomic_load(&b->bad);
        ret->blocks_healed = atomic_load(&b->healed);
        if (!ret->blocks_bad)
                return;
        (void)snprintf(text, sizeof text, "%" PRIu64 " of %" PRIu64 " cached blocks were damaged and dropped, %" PRIu64 " of them were fetched again", ret->blocks_bad, ret->blocks, ret->blocks_healed);
        rep->line(rep->arg, CHECK_WARN, "blocks", text, ret->blocks_healed == ret->blocks_bad ? "" : "nothing: the others are fetched when they are read");
}

int cache_scrub(struct cache *c, _Atomic bool *stop, const struct check_report *rep, struct scrubbed *ret) {
        *ret = (struct scrubbed) { 0 };
        struct blobs_scrub b = { .heal_ms = HEAL_MS, .stop = stop };
        int r = stages(c, stop, rep, ret);
        if (r == 0)
                r = check_tree_open(c->tree, rep);
        if (r >= 0)
                r = atomic_load(stop) ? -ECANCELED : blobs_scrub(c->blobs, &b);
        tell_blocks(&b, rep, ret);
        return r;
}

int cache_scrub_dir(const char *dir, struct clock *clock, struct executor *workers, const struct check_report *rep, struct scrubbed *ret) {
        *ret = (struct scrubbed) { 0 };
        struct check_stages st = { 0 };
        int r = check_cache(dir, clock, false, rep, &st);
        for (size_t i = 0; i < st.n; i++)
                if (!st.v[i].done) {
                        ret->stages++;
                        ret->stage_bytes += st.v[i].bytes;
                        ret->stages_bad += st.v[i].damaged;
                }
        check_stages_free(&st);
        if (r < 0)
                return r;
        char now[37];
        _cleanup_free_ char *boot = path_join(dir, "boot"), *index = path_join(dir, "blobs.db");
        _cleanup_buf_ struct buf before = BUF_INIT(64);
        struct counters counters = { 0 };
        struct blobs *blobs = NULL;
        if (!boot || !index)
                return -ENOMEM;
        if (access(index, F_OK) < 0)
                return 0;
        bool other = boot_id(now) < 0 || file_load(boot, 64, &before) < 0 || before.bytes != 36 || memcmp(before.data, now, 36) != 0;
        struct blobs_config bc = { .dir = dir, .limit_bytes = UINT64_MAX / 4, .clock = clock, .counters = &counters, .workers = workers, .new_boot = other };
        r = blobs_open(&bc, &blobs);
        if (r < 0)
                return r;
        struct blobs_scrub b = { .heal_ms = 0 };
        r = blobs_scrub(blobs, &b);
        tell_blocks(&b, rep, ret);
        int k = blobs_sync(blobs);
        blobs_close(blobs);
        return r < 0 ? r : k;
}
