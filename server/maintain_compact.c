/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_compact.c: `tarn-server gc --compact`: what is left of objects that are mostly empty is put together in new ones.
 *
 * An object is the bytes of one upload, and goes when its last block does; one small block that many versions share holds back 8 MiB. Objects that are less than --compact-below (50 %) full
 * of live blocks, older than --min-age and not written just now are read; block by block, each compared with its hash:
 *
 *   1. blocks are collected, as they are stored, up to BATCH_BYTES_MAX           killed: nothing has happened
 *   2. the new object is put and durable                                         killed: an object that no row names; the next gc removes it
 *   3. one transaction: its row; each block that still lies where it was read    killed: the same, or all of it, and step 4 is left: objects that no row names
 *      points to it; the rows of objects that hold no block any more go
 *   4. those objects are removed from the store
 *
 * What may happen beside it:
 *   a commit            names blocks by hash; where they lie is nothing to it
 *   an upload, a live   its object is known as being written until its last transaction (service_object_busy): it is neither read nor removed. What it claims is kept by the claim, wherever it lies
 *   session
 *   new bytes for a     the row is not where it was read: step 3 leaves it, and the copy is a gap in the new object
 *   block
 *   a reader            who has asked for a place before step 3 and comes after step 4 finds no object, and asks again (api_content.c)
 *   a backup, fsck,     wait: one maintenance at a time
 *   scrub
 * A damaged block is marked and stays with its object. Dead blocks that gc has not forgotten yet keep their object, too; both are bytes that the next runs give back. */
#include <stdio.h>
#include <string.h>

#include "api/wire.h"
#include "api_content.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "maintain.h"

#define OBJECTS_PER_STEP 500u
#define BLOCKS_MAX 2000u         /* of one transaction */

struct compact {
        struct maintain *m;
        int64_t before_ns;
        uint8_t *raw, *stored;
        struct buf bytes;                /* of the new object */
        struct meta_moved moved[BLOCKS_MAX];
        size_t n;
        int64_t created_ns;              /* of the newest that a block comes from: nothing in the new one counts as older */
        meta_object_name removed[BLOCKS_MAX + 1];
        uint64_t objects, new_objects, blocks, moved_bytes, freed_bytes;
};

static int removed_now(struct compact *c, size_t n) {
        struct store *store = c->m->s->store;
        int r = 0;

        for (size_t i = 0; r == 0 && i < n; i++) {
                r = FAILPOINT("gc.compact.remove");
                if (r == 0)
                        r = store->remove(store, c->removed[i]);
                if (r == -ENOENT)
                        r = 0;
        }
        return r;
}

/* Steps 2 to 4. */
static int flush(struct compact *c) {
        struct service *s = c->m->s;
        char name[STORE_NAME_BYTES + 1];
        struct service_object busy;
        struct meta_move move = {.object = name, .bytes = c->bytes.bytes, .created_ns = c->created_ns, .blocks = c->moved, .n = c->n, .busy = service_object_busy, .busy_arg = s, .removed = c->removed};
        int r;

        if (c->n == 0)
                return 0;
        if (reserve_tight(s->reserve))
                return -ENOSPC;
        store_name_new(s->rng, name);
        service_object_begin(s, &busy, name);
        r = s->store->put(s->store, name, c->bytes.data, c->bytes.bytes);
        if (r < 0) {
                service_object_end(s, &busy);
                return r;
        }
        FAILPOINT_HERE("gc.compact.durable");
        r = meta_blocks_move(s->meta, &move);
        if (r < 0 && r != -EIO) { /* as in content_writer_flush: after a failed sync nobody knows */
                int q = s->store->remove(s->store, name);

                if (q < 0)
                        log_warn("event=object_left object=%s error=%s", name, err_name(q));
        }
        service_object_end(s, &busy);
        if (r < 0)
                return r;
        FAILPOINT_HERE("gc.compact.moved");
        c->new_objects++;
        c->objects += move.n_removed;
        c->blocks += move.n_moved;
        c->moved_bytes += c->bytes.bytes;
        c->freed_bytes += move.removed_bytes;
        c->n = 0;
        c->created_ns = INT64_MIN;
        buf_reset(&c->bytes);
        return removed_now(c, move.n_removed);
}

static int take(struct compact *c, const struct meta_object *o, const struct meta_place *p) {
        struct wire_block wire;
        int r;

        if (p->bad || (p->block.encoding != ENC_RAW && p->block.encoding != ENC_ZSTD))
                return 0;
        if (c->n == BLOCKS_MAX || (c->n > 0 && c->bytes.bytes + p->block.stored_bytes > BATCH_BYTES_MAX)) {
                r = flush(c);
                if (r < 0)
                        return r;
        }
        r = content_block_read(c->m->s, p, c->raw, c->stored, &wire);
        if (r == -EBADMSG) /* marked, and said, by who has read it */
                return 0;
        if (r == 0)
                r = buf_add(&c->bytes, wire.bytes, wire.n);
        if (r < 0)
                return r;
        c->moved[c->n++] = (struct meta_moved){.hash = p->block.hash, .from_object = o->id, .from_offset = p->block.offset, .to_offset = c->bytes.bytes - wire.n};
        c->created_ns = MAX(c->created_ns, o->created_ns);
        return maintain_pace(c->m, wire.n);
}

static int take_object(struct compact *c, const struct meta_object *o) {
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_place *blocks;
        size_t n = 0;
        int r;

        if (o->created_ns > c->before_ns || service_object_busy(c->m->s, o->name))
                return 0;
        r = arena_new(8u << 20, &a);
        if (r == 0)
                r = meta_object_blocks(c->m->s->meta, o, a, &blocks, &n);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = take(c, o, &blocks[i]);
        return r;
}

static int run_compact(struct compact *c) {
        _cleanup_free_ struct meta_object *list = calloc(OBJECTS_PER_STEP, sizeof *list);
        struct meta_gc_step s = {.end = false};
        int r = list ? 0 : -ENOMEM;

        while (r == 0 && !s.end) {
                size_t n = 0;

                r = meta_gc_sparse(c->m->s->meta, c->m->compact_below, OBJECTS_PER_STEP, &s, list, &n);
                for (size_t i = 0; r == 0 && i < n; i++)
                        r = take_object(c, &list[i]);
                if (r == 0)
                        r = maintain_pace(c->m, 0);
        }
        return r < 0 ? r : flush(c);
}

int maintain_compact(struct maintain *m, int64_t before_ns) {
        _cleanup_free_ uint8_t *raw = malloc(BLOCK_BYTES_MAX), *stored = malloc(BLOCK_BYTES_MAX);
        _cleanup_free_ struct compact *c = calloc(1, sizeof *c);
        int r;

        if (!raw || !stored || !c)
                return -ENOMEM;
        c->m = m;
        c->before_ns = before_ns;
        c->raw = raw;
        c->stored = stored;
        c->created_ns = INT64_MIN;
        c->bytes = (struct buf)BUF_INIT(STORE_OBJECT_BYTES_MAX);
        r = run_compact(c);
        buf_free(&c->bytes);
        const struct { const char *name; uint64_t value; } lines[] = {
                {"objects_compacted", c->objects}, {"objects_made", c->new_objects}, {"blocks_moved", c->blocks}, {"bytes_moved", c->moved_bytes}, {"bytes_of_compacted", c->freed_bytes},
        };
        log_info("event=compact objects=%llu made=%llu blocks=%llu bytes=%llu freed=%llu", (unsigned long long)c->objects, (unsigned long long)c->new_objects, (unsigned long long)c->blocks,
                 (unsigned long long)c->moved_bytes, (unsigned long long)c->freed_bytes);
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(lines); i++)
                r = maintain_say(m, lines[i].name, lines[i].value);
        return r;
}
