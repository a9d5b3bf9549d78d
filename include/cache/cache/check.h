/* SPDX-License-Identifier: Apache-2.0 */
/* check.h: what can be said about a cache directory while no daemon has it, and about the stages of one that runs. Nothing here changes a byte, unless `repair` is asked for, and then
 * nothing is deleted: files are moved aside. */
#pragma once
#include "base/clock.h"
#include "base/model.h"
#include "cache/tree.h"

enum check_grade { CHECK_OK = 0, CHECK_WARN = 1 /* something to know or to do, nothing is wrong yet */, CHECK_BAD = 2 };
/* Gets one line per finding. check: its name ("tree", "stages", ...); todo: what the user does about it, or "". */
struct check_report { void (*line)(void *arg, enum check_grade grade, const char *check, const char *text, const char *todo); void *arg; };

/* What to do about a pending file of which some pages are damaged. */
#define CHECK_SAVE_AGAIN "save the file again, or copy what can be read of it: the damaged part gives an error and is not sent"

/* One stage as its log tells it. */
struct check_stage {
        uint64_t gen, ino, bytes;
        char name[NAME_BYTES_MAX + 1];
        bool sealed, done, own;
        bool damaged;            /* something that was promised does not verify */
        uint64_t pages_bad;      /* that is all which is: so many pages differ from their sums. It is kept, and reading them is an error */
        char why[80];
};
struct check_stages {
        struct check_stage *v; size_t n;          /* one for each generation, in that order */
        unsigned logs, logs_bad;
        char bad_log[32];                         /* one of those */
        struct { char name[32]; } *orphan; size_t n_orphans; /* in lent/ */
};
/* Reads every log in DIR/stages. With a running daemon the verdict on a stage counts only if it was sealed before and is still there after: others change meanwhile.
 * bytes: also the data file of each large stage, against the sums of its pages; only without a daemon, which changes one after the other (it has stage_verify). */
int check_stages_read(const char *dir, bool bytes, struct check_stages *ret) _must_check_;
void check_stages_free(struct check_stages *s);

/* The checks "tree" (SQLite's integrity, schema, every rule between the tables), "outbox" (each operation's bytes are there), "stages" (each header, log and page verifies; what
 * belongs to nobody is named), "index" (of the cached blocks), "time". The caller holds DIR/lock. repair: a damaged tree.db or blobs.db is moved aside (the next mount makes a new one, from the
 * server and from the stages), files in lent/ that no log names go to lost+found/. ret_stages: what was seen of the stages, or NULL. */
int check_cache(const char *dir, struct clock *clock, bool repair, const struct check_report *report, struct check_stages *ret_stages) _must_check_;

/* The rules between the tables of an open tree, and SQLite's own integrity: lines of the check "tree". Reads through a connection of its own, seconds for a large tree. 1: something was wrong. */
int check_tree_open(struct tree *t, const struct check_report *report) _must_check_;
