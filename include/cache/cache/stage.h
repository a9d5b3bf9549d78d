/* SPDX-License-Identifier: Apache-2.0 */
/* stage.h: bytes of a file being written: an overlay of dirty extents over a base (a blob, or the sealed stage before it). One open stage per node; a sealed stage never changes.
 *
 * On disk a stage alone is enough to recover: a header (node id, ino, generation, parent, name, base content and version, mode) and an extent log of
 * {offset, bytes, time, kind, checksum}, appended after the data and before the reply; a sparse file's holes are never mistaken for data. Extents are DATA (bytes in the stage's file), SIZE (truncate), ZERO (punched),
 * SENT (bytes are a block on the server under our claim; they may leave the disk: read by hash). Each 4 KiB has an XXH3-64 that is checked on every read:
 * damage of this disk is -EIO, in a read, a cut or an upload, and never somebody's version.
 * After its commit a stage becomes the blob of the new version without a download. */
#pragma once
#include "base/blocklist.h"
#include "cache/blob.h"
#include "cache/tree.h"

struct stages;
struct stage;
struct stages_config {
        const char *dir; struct blobs *blobs; struct clock *clock; struct counters *counters; struct executor *workers;
        uint64_t dirty_limit_bytes;   /* share of the cache limit that dirty bytes may take; beyond it writers wait */
        uint64_t early_bytes;         /* a stage with more dirty bytes than this wants to go up while it is written */
};
/* ---- for the engine: sealed and early stages by generation ---- */
/* Reference to the stage of a generation. -ENOENT. */
int stage_get(struct stages *s, uint64_t gen, struct stage **ret) _must_check_;
/* The bytes of these generations (0 and unknown ones are passed over) survive a power cut on return: before their operation is marked as sent, which is durable too. No lock held; one fdatasync
 * for all small ones and one or two for each large one, none for what is synced already. One whose sync failed is an error once; later it is passed over, because it will never be better than that here. */
int stages_sync_some(struct stages *s, const uint64_t *gens, size_t n) _must_check_;
void stage_put(struct stage *stage);
bool stage_left(const struct stage *stage); /* of an open one: no file shows it any more, and none will. It goes when whoever works on it ends. Any thread, no lock */
uint64_t stage_ino(const struct stage *stage);
uint64_t stage_size(const struct stage *stage);
/* Cuts a sealed stage into blocks and names them; runs on the caller's thread (a worker), reads what it must (base blocks that touch dirty extents may be fetched: blocking, deadline). Only the neighbourhood
 * of dirty extents is cut again if the base's list is known. Result kept in the stage: asking twice costs nothing. pages: as blocklist_content's sink.
 * -EHOSTDOWN, -ETIMEDOUT: base bytes needed and not to be had; -EIO/-EBADMSG: local damage. */
int stage_chunk(struct stage *stage, int64_t deadline_ms, const struct blocklist **ret_list, struct content *ret_content) _must_check_;
void stage_chunk_stop(struct stage *stage); /* nobody wants the list any more: one that is being made ends with -ECANCELED soon; a later call begins anew */
/* Bytes of the sealed stage's view (stack and base together). Blocking like blob_pread. */
ssize_t stage_pread(struct stage *stage, uint64_t off, void *buf, size_t n, int64_t deadline_ms) _must_check_;
/* True if block i of the list is known to be on the server (base block, or SENT under our claim). */
bool stage_block_sent(struct stage *stage, size_t i);
void stage_block_mark_sent(struct stage *stage, size_t i); /* an upload of the sealed list went on; in memory */

/* Early upload: open stages that hold more than early_bytes of dirty data (or whose writer waits for room). next: generation > after that wants it, -ENOENT: none. */
int stages_early_next(struct stages *s, uint64_t after_gen, uint64_t *ret_gen) _must_check_;
struct early_block { uint64_t off; struct blockref ref; };
/* Next blocks whose cuts are certain and that are quiet: copies up to max descriptors; bytes come from stage_pread_frozen (-ESTALE: overwritten since, forget it). */
int stage_early_blocks(struct stage *stage, struct early_block *ret, size_t max, size_t *ret_n) _must_check_;
int stage_pread_frozen(struct stage *stage, const struct early_block *b, void *buf) _must_check_;
/* The server stored it durably under our upload session: logged (durable), the bytes become evictable. -ESTALE: overwritten since; nothing happened. */
int stage_early_sent(struct stage *stage, const struct early_block *b) _must_check_;
/* Upload session's id of this node's stages (random, in the header). */
struct id stage_session(const struct stage *stage);
struct stages_totals { uint64_t open, sealed, dirty_bytes; int64_t oldest_write_ns; };
void stages_totals(struct stages *s, struct stages_totals *ret);
