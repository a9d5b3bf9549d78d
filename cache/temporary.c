/* SPDX-License-Identifier: Apache-2.0 */
/* temporary.c: which new files are most likely made for a moment, by their names alone, so that nothing depends on how fast a program is.
 *
 *   by pattern     names that programs give such files, whatever is beside them: one table for all
 *   by neighbour   [.#~_] NAME rest, where a file NAME is in the same directory: how mkstemp, QSaveFile, glib, Go and npm name what they will rename over NAME, and how SQLite names
 *                  its journals. `rest` has six bytes at least, letters, digits, - and _, and one of .~#+ at most before them, so that prog.c beside prog,
 *                  a.tar.gz beside a, or the copies that people and file managers make ("a (copy)"), are nobody's temporary
 *
 * A file that is taken for one by mistake gets to the server two seconds later, which is all that the answer means (outbox_next.c); one that is saved over NAME after it was sent becomes
 * NAME's new version all the same (tree_rename.c).
 *
 * The neighbour is found through the index of names without a look at each shorter name: of the names up to a prefix of ours the greatest either is itself a prefix, or says how long one could be. */
#include "tree_priv.h"

#include <ctype.h>
#include <fnmatch.h>

#define REST_MIN 6u
#define STEPS_MAX 8u /* looks at the index; a directory that needs more has names such that nobody can say */
#define SIX "?" "?" "?" "?" "?" "?" /* in one piece the compiler sees a trigraph */

static const char *const patterns[] = {
        ".#*", "#*#", "*~", "*.swp", "*.swpx", "*.swx", "*.tmp", "*.TMP", "*.temp", ".~lock.*#", "~$*", "4913", "*.crdownload", "*.part", "*.partial", "*.download", ".goutputstream-*", "sed" SIX,
        ".*." SIX, "*.lock", "*.bak~", ".nfs*", ".fuse_hidden*", "*.kate-swp", "*.sb-*-" SIX, "*___jb_tmp___", "*___jb_old___", "*.dpkg-new", "*.dpkg-tmp",
};

bool temporary_name(const char *name, size_t n) {
        char text[NAME_BYTES_MAX + 1];
        if (n > NAME_BYTES_MAX)
                return false;
        memcpy(text, name, n);
        text[n] = 0;
        for (size_t i = 0; i < ARRAY_SIZE(patterns); i++)
                if (fnmatch(patterns[i], text, 0) == 0)
                        return true;
        return false;
}

/* The first byte that a program may have put in front of the neighbour's name. */
static bool has_mark(const char *name, size_t n) {
        return n > 0 && strchr(".#~_", name[0]);
}

static bool is_rest(const char *rest, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (!isalnum((unsigned char)rest[i]) && rest[i] != '-' && rest[i] != '_' && (i > 0 || !strchr(".~#+", rest[i])))
                        return false;
        return n >= REST_MIN;
}

bool temporary_of(const char *name, size_t n, const char *document, size_t document_n) {
        for (unsigned mark = 0; mark <= (unsigned)has_mark(name, n); mark++)
                if (document_n > 0 && n - mark > document_n && memcmp(name + mark, document, document_n) == 0 && is_rest(name + mark + document_n, n - mark - document_n))
                        return true;
        return false;
}

/* 1: a file in dir whose name is a prefix of this one, with a rest behind it. */
static int prefix_in(struct tree *t, uint64_t dir, const char *name, size_t n) {
        size_t longest = n > REST_MIN ? n - REST_MIN : 0;
        for (unsigned step = 0; step < STEPS_MAX && longest > 0 && is_rest(name + longest, n - longest); step++) {
                struct db_stmt *s;
                int r = db_query(t->w, &s, "SELECT e.name, n.mode FROM entry e JOIN node n ON n.ino=e.node WHERE e.parent=? AND e.name<=? ORDER BY e.name DESC LIMIT 1", "it",
                                 (int64_t)dir, name, longest);
                if (r <= 0)
                        return r;
                size_t bytes, same = 0;
                const char *found = db_col_text(s, 0, &bytes);
                bool file = db_col_int(s, 1) >> 12 == NODE_FILE;
                while (found && same < bytes && same < longest && found[same] == name[same])
                        same++;
                bool prefix = found && same == bytes;
                db_reset(s);
                if (prefix && file)
                        return is_rest(name + same, n - same); /* of a shorter name the rest would have the same bytes, and more */
                longest = prefix ? same - 1 : same;
        }
        return 0;
}

int temporary_here(struct tree *t, uint64_t dir, const char *name, size_t n) {
        if (temporary_name(name, n))
                return 1;
        int r = prefix_in(t, dir, name, n);
        return r == 0 && has_mark(name, n) ? prefix_in(t, dir, name + 1, n - 1) : r;
}
