/* SPDX-License-Identifier: Apache-2.0 */
/* outbox_parked.c: rows that failed and wait for their next try, and who asks about them.
 *
 *   refused    the server said no (quota, no right, a bad name). A refusal is not stored there, so nothing has happened under the row's id: it gets a new one and is soft again. So a smaller
 *              content, another name or an unlink takes its place as if it had never been sent, instead of waiting behind it for ever
 *   failed     anything else (a local disk, blocks that are gone): as it was
 *
 * What a node waits for is found through table dep: its own rows and what must go before them. A parked row is tried again by time, by outbox_unpark (a person: `tarn retry`), or because
 * somebody waits for the node (outbox_retry: a close with close=server asks the server again rather than repeating an old answer). */
#include "tree_priv.h"

#include <stdio.h>

#define NEEDS_MAX "1000" /* rows looked at for one node */
#define NEEDS "WITH RECURSIVE need(ord) AS (SELECT ord FROM outbox WHERE ino=?1 UNION SELECT d.pred FROM need n JOIN dep d ON d.succ=n.ord LIMIT " NEEDS_MAX ")"

static int park(struct tree *t, const struct id *op, bool refused, int error, const char *reason, int64_t next_try_ns) {
        struct orow o;
        int r = tree_begin(t);
        if (r == 0)
                r = outbox_find(t, t->w, t->scratch, op, &o);
        if (r == 0 && refused)
                r = outbox_reidentify(t, &o);
        if (r == 0) {
                o.error = error;
                o.next_try_ns = next_try_ns;
                (void)snprintf(o.reason, sizeof(o.reason), "%s", reason ? reason : "");
                r = outbox_state_set(t, &o, OUT_PARKED, false);
        }
        return tree_end(t, r);
}

int outbox_park(struct tree *t, const struct id *op, int error, const char *reason, int64_t next_try_ns) {
        return park(t, op, false, error, reason, next_try_ns);
}

int outbox_park_refused(struct tree *t, const struct id *op, int error, const char *reason, int64_t next_try_ns) {
        return park(t, op, true, error, reason, next_try_ns);
}

int outbox_unpark(struct tree *t, const struct id *op) {
        int r = tree_begin(t);
        if (r == 0)
                r = id_is_zero(op) ? db_run(t->w, "UPDATE outbox SET state=0, next_try_ns=0 WHERE state = 2", "")
                                   : db_run(t->w, "UPDATE outbox SET state=0, next_try_ns=0 WHERE state = 2 AND id=?", "I", op);
        t->wake = true;
        return tree_end(t, r);
}

int outbox_parked_error(struct tree *t, uint64_t ino, int *ret_error) {
        TREE_READ(rd, t);
        int64_t v;
        int r = db_int(rd.db, &v, "SELECT error FROM outbox WHERE state = 2 AND ord IN (" NEEDS " SELECT ord FROM need) LIMIT 1", "i", (int64_t)ino);
        if (r < 0)
                return r == -ENOENT ? 0 : r;
        *ret_error = (int)v;
        return 1;
}

int outbox_retry(struct tree *t, uint64_t ino) {
        int error;
        int r = outbox_parked_error(t, ino, &error);
        if (r <= 0)
                return r;
        r = tree_begin(t);
        if (r == 0)
                r = db_run(t->w, "UPDATE outbox SET state=0, next_try_ns=0 WHERE state = 2 AND ord IN (" NEEDS " SELECT ord FROM need)", "i", (int64_t)ino);
        t->wake = true;
        return tree_end(t, r);
}
