/* SPDX-License-Identifier: Apache-2.0 */
/* tree_portable.c: a workspace of portable names: what a program may call something here.
 *
 * The server decides (it has the rule and an index of folds). Here the same is asked first of every name that a program gives, so that it hears at once what would otherwise become a conflict name or a
 * parked change: -EINVAL for what Windows or macOS cannot carry, -EEXIST if the directory has another name that is the same one there. What another client did meanwhile is for the server to find: the
 * second one gets a conflict name, as with any two that want one name.
 *
 * The rule of a workspace never changes; the setting 'names' has it (tree_portable_names, before the first load). Names are compared one by one with those of the directory: no index to keep for what few
 * workspaces have, and a microsecond or less for each of them. */
#include "tree_priv.h"

#include "base/portable.h"

int portable_open(struct tree *t) {
        int64_t is;
        int r = db_int(t->w, &is, "SELECT EXISTS(SELECT 1 FROM setting WHERE key='names' AND value=CAST('portable' AS BLOB))", "");
        t->portable = r == 0 && is;
        return r;
}

int tree_portable_names(struct tree *t) {
        int r = tree_setting_set(t, "names", "portable", 8);
        if (r < 0)
                return r;
        LOCK_SCOPE(&t->lock);
        t->portable = true;
        return 0;
}

int portable_name(struct tree *t, uint64_t dir, const char *name, size_t n, uint64_t not_ino) {
        char fold[FOLD_BYTES_MAX], other[FOLD_BYTES_MAX];
        size_t bytes, other_bytes;
        struct db_stmt *s;
        if (!t->portable)
                return 0;
        int r = name_fold(name, n, fold, &bytes);
        if (r == 0)
                r = db_query(t->w, &s, "SELECT name,node FROM entry WHERE parent=?", "i", (int64_t)dir);
        for (; r > 0; r = db_step(s)) {
                size_t k;
                const char *there = db_col_text(s, 0, &k);
                if ((uint64_t)db_col_int(s, 1) != not_ino && name_fold(there, k, other, &other_bytes) == 0 && other_bytes == bytes && memcmp(other, fold, bytes) == 0) {
                        db_reset(s);
                        return -EEXIST;
                }
        }
        return r;
}
