/* SPDX-License-Identifier: Apache-2.0 */
/* maintain_scrub.c: `tarn-server scrub`: reads every block that is stored and compares it with its hash.
 *
 * Object by object, in the order in which they were made; within one by offset, so that the disk reads forward. What does not match is marked (and logged, and
 * counted) by the same function that serves readers; a marked block that reads well loses its mark. Nothing is deleted. A marked block is asked for again
 * by "missing?" and by commits: the next client that sends a content with these bytes heals it (meta_block.c).
 *
 * --rate bounds the bytes per second. Objects that come while it runs are read too; one that gc removes meanwhile cannot be, gc waits its turn (maintain.c). */
#include "api_content.h"
#include "maintain.h"

#define LISTED_MAX 200u

struct scrub { struct maintain *m; uint8_t *raw, *stored; uint64_t objects, blocks, bytes, damaged, healed; json_t *list; };

static int scrub_damaged(struct scrub *c, const struct meta_place *place) {
        char hex[2 * DIGEST_BYTES + 1];

        c->damaged++;
        if (c->damaged > LISTED_MAX)
                return 0;
        hex_encode(place->block.hash.b, DIGEST_BYTES, hex);
        if (c->m->json)
                return json_array_append_new(c->list, json_pack("{s:s, s:s, s:I}", "block", hex, "object", place->object, "offset", (json_int_t)place->block.offset)) < 0 ? -ENOMEM : 0;
        return buf_printf(c->m->out, "damaged: block %s in object %s at %llu\n", hex, place->object, (unsigned long long)place->block.offset);
}

static int scrub_object(struct scrub *c, const struct meta_object *o) {
        _cleanup_arena_ struct arena *a = NULL;
        struct meta_place *blocks;
        size_t n;
        int r = arena_new(8u << 20, &a);

        if (r == 0)
                r = meta_object_blocks(c->m->s->meta, o, a, &blocks, &n);
        for (size_t i = 0; r >= 0 && i < n; i++) {
                r = content_block_read(c->m->s, &blocks[i], c->raw, c->stored, NULL);
                if (r == -EBADMSG) {
                        r = scrub_damaged(c, &blocks[i]);
                } else if (r >= 0 && blocks[i].bad) {
                        r = meta_block_mark(c->m->s->meta, &blocks[i], false);
                        c->healed++;
                }
                c->blocks++;
                c->bytes += blocks[i].block.stored_bytes;
                if (r >= 0)
                        r = maintain_pace(c->m, blocks[i].block.stored_bytes);
        }
        c->objects++;
        return r < 0 ? r : 0;
}

int maintain_scrub(struct maintain *m) {
        _cleanup_free_ uint8_t *raw = malloc(BLOCK_BYTES_MAX), *stored = malloc(BLOCK_BYTES_MAX);
        struct scrub c = {.m = m, .raw = raw, .stored = stored, .list = json_array()};
        struct meta_object o = {.id = 0};
        size_t n = 1;
        int r = raw && stored && c.list && json_object_set_new(m->report, "damaged", c.list) == 0 ? 0 : -ENOMEM;

        while (r == 0) {
                r = meta_objects(m->s->meta, o.id, 1, &o, &n);
                if (r < 0 || n == 0)
                        break;
                r = scrub_object(&c, &o);
        }
        const struct { const char *name; uint64_t value; } lines[] = {
                {"objects_read", c.objects}, {"blocks_read", c.blocks}, {"bytes_read", c.bytes}, {"blocks_damaged", c.damaged}, {"blocks_well_again", c.healed},
        };
        for (size_t i = 0; r == 0 && i < ARRAY_SIZE(lines); i++)
                r = maintain_say(m, lines[i].name, lines[i].value);
        return r < 0 ? r : c.damaged > 0 ? -EUCLEAN : 0;
}
