/* SPDX-License-Identifier: Apache-2.0 */
/* blob_index.h: blobs.db, the losable index: which content has which blocks where, and the LRU order. Not locked: the owner's index lock (RANK_INDEX) guards every call. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/blocklist.h"
#include "lru.h"

struct blob_index;

enum { ROW_PRESENT = 1, ROW_CHECKED = 2 };
/* One blob. Loaded rows own what they point to (blob_row_free); rows to be saved borrow it. */
struct blob_row {
        uint32_t id;
        struct content content;
        uint32_t file;            /* number of the sparse file; 0: blocks are in the pack */
        struct blocklist list;
        uint8_t *state;           /* list.n bytes of ROW_* */
        uint32_t *place;          /* pack: list.n places; else NULL */
        bool list_saved;          /* to be saved: the list is in the index already */
};
void blob_row_free(struct blob_row *row);
static inline void cleanup_blob_row_p(struct blob_row *row) { blob_row_free(row); }
#define _cleanup_blob_row_ _cleanup_(cleanup_blob_row_p)

/* Opens or creates dir/blobs.db. Damaged or of an unknown make: moved aside, a new one is made, *ret_lost. A newer schema counts as such: the cache may be lost.
 * new_boot: CHECKED of every row saved so far is void from now on (durable). */
int blob_index_open(const char *dir, bool new_boot, struct blob_index **ret, bool *ret_lost) _must_check_;
void blob_index_close(struct blob_index *ix);
/* Closes and moves the file aside: after -EBADMSG. ix is freed. */
void blob_index_abandon(struct blob_index *ix);
/* Every row in order of id; rows that make no sense are dropped and not shown. keep: false = drop it (it contradicts the disk). */
int blob_index_scan(struct blob_index *ix, bool (*keep)(void *arg, struct blob_row *row), void *arg, uint32_t *ret_id_max) _must_check_;
/* -ENOENT: not there. 1 SELECT. */
int blob_index_find(struct blob_index *ix, const struct content *content, struct blob_row *ret) _must_check_;
int blob_index_get(struct blob_index *ix, uint32_t id, struct blob_row *ret) _must_check_;
int blob_index_begin(struct blob_index *ix) _must_check_;
int blob_index_save(struct blob_index *ix, const struct blob_row *row) _must_check_;
int blob_index_remove(struct blob_index *ix, uint32_t id) _must_check_;
int blob_index_commit(struct blob_index *ix) _must_check_;
/* Gives free pages of the file back to the disk, if there are many. Outside a transaction. */
int blob_index_trim(struct blob_index *ix) _must_check_;
void blob_index_rollback(struct blob_index *ix);
/* The LRU order, the first to go first. Save: inside a transaction. */
int blob_index_save_order(struct blob_index *ix, const struct lru_block *order, const bool *is_protected, size_t n) _must_check_;
/* Gives the saved order from the last to go to the first. */
int blob_index_load_order(struct blob_index *ix, void (*each)(void *arg, struct lru_block b, bool is_protected), void *arg) _must_check_;
