/* SPDX-License-Identifier: Apache-2.0 */
/* wire_dump.c: writes random payloads, one file each, DIR/NNNN.MESSAGE, for protoc_test.py. */
#include <fcntl.h>
#include <stdio.h>

#include "base/io.h"
#include "rows.h"

int main(int argc, char **argv) {
        struct rng_seeded rng;
        struct gen g = { .rng = &rng.rng };
        struct buf b = BUF_INIT(1u << 20);
        if (argc != 3 || arena_new(8u << 20, &g.a) < 0)
                return 2;
        rng_seed(&rng, strtoull(argv[2], NULL, 0));
        for (unsigned i = 0; i < ROW_KINDS * 6; i++) {
                char path[4096];
                struct wire_reader in;
                struct frame f;
                arena_reset(g.a);
                buf_reset(&b);
                if (row_add(&g, i % ROW_KINDS, &b) < 0)
                        return 2;
                in = (struct wire_reader){ b.data, b.bytes, 0 };
                if (wire_next(&in, &f) != 1)
                        return 2;
                snprintf(path, sizeof path, "%s/%04u.%s", argv[1], i, row_names[i % ROW_KINDS]);
                if (file_replace(path, f.payload, f.bytes, 0600) < 0)
                        return 2;
        }
        buf_free(&b);
        arena_free(g.a);
        return 0;
}
