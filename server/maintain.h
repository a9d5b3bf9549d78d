/* SPDX-License-Identifier: Apache-2.0 */
/* maintain.h: looking after a data directory: fsck, scrub, gc, backup. Each runs on the directory itself or inside the server that has it; one at a time. */
#pragma once
#include "api_call.h"
#include "meta_maintain.h"

/* Whether `word` names one of these commands (they may take hours). */
bool maintain_knows(const char *word);
/* words: {"fsck", "--repair", "--json"}, {"scrub", "--rate", BYTES, "--json"}, {"gc", "--dry-run", "--min-age", SECONDS, "--trash-age", SECONDS, "--compact", "--compact-below", PERCENT, "--json"}, {"backup", "--to", DIR or "--file", FILE, "--json"}.
 * yields: nobody asked for it; it ends (-ECANCELED) at its next step when another one wants to run.
 * 0; -EUCLEAN: done, and something is wrong (ret_text is the report); -EBUSY: another one is under way, or needs a stopped server; -ECANCELED: the server is stopping; -EINVAL. */
int maintain_run(struct service *s, const char *const *words, size_t n, bool yields, struct buf *ret_text) _must_check_;
/* Asks the one under way to end soon. Any thread. */
void maintain_stop(struct service *s);

/* ---- among the files of maintain ---- */

struct maintain {
        struct service *s;
        bool json, repair, dry_run;
        uint64_t min_age_s, rate_bytes, trash_age_s, keep_events; /* keep_events 0: all; trash_age_s 0: the trash is left alone */
        bool compact;
        unsigned compact_below;          /* percent */
        const char *to, *file;           /* of the backup: a directory, or one file */
        struct buf *out;                 /* text for people */
        json_t *report;                  /* with json: filled instead */
        int64_t paced_ms;                /* when the bytes of maintain_pace are through */
};
bool maintain_stopped(struct maintain *m);
/* Takes as long as `bytes` may take at rate_bytes. -ECANCELED. */
int maintain_pace(struct maintain *m, uint64_t bytes) _must_check_;
/* A number of the report: "name: value" or a member. */
int maintain_say(struct maintain *m, const char *name, uint64_t value) _must_check_;

int maintain_fsck(struct maintain *m) _must_check_;
int maintain_scrub(struct maintain *m) _must_check_;
int maintain_gc(struct maintain *m) _must_check_;
int maintain_compact(struct maintain *m, int64_t before_ns) _must_check_; /* a part of gc */
int maintain_backup(struct maintain *m) _must_check_;
int maintain_backup_file(struct maintain *m) _must_check_;
int backup_manifest(struct meta *db, struct buf *ret) _must_check_;
int backup_db_remove(const char *db) _must_check_;       /* with what SQLite keeps beside it; 0 if there is none */
bool backup_is_file(const char *path);
int backup_file_check(const char *path) _must_check_;    /* reads all of it. -EBADMSG: no backup, cut, damaged */
int backup_file_unpack(const char *path, struct store *store, const char *db_path) _must_check_; /* db_path must not exist */

/* A new data directory from a backup. No service: nobody may use either. ret_text: what was done, or why not. */
int maintain_restore(const char *from, const char *data_dir, struct buf *ret_text) _must_check_;
