/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h: the binary framing and the rows inside it. Encoders and decoders are the same code on both sides.
 *
 * A body of type application/vnd.tarn.frames is a sequence of frames: u8 kind, u32 LE payload bytes, payload. Payloads of rows are
 * Protocol Buffers wire format (docs/tarn.proto is the schema; a test holds our codec against protoc); decoding borrows from the payload and
 * puts arrays and NUL-terminated strings into a bounded arena. Unknown fields are skipped; an unknown frame kind, event kind or
 * node kind is -EPROTONOSUPPORT ("upgrade needed"). Any irregularity (length, UTF-8, range) is -EPROTO. Nothing read is trusted.
 *
 * Requests and answers, by frame kinds in order (all integers in queries decimal, ids and marks lower-case hex):
 *   GET  /v1/workspaces/W/snapshot/nodes?after=ID&limit=N      -> NODE* PAGE     (key order; after absent = from the start)
 *   GET  /v1/workspaces/W/snapshot/entries?after=ENTRYID&limit=N -> ENTRY* PAGE
 *   GET  /v1/workspaces/W/dirs/ID                              -> NODE (the directory) { NODE ENTRY }* LISTED
 *   GET  /v1/events?cursor=W:EPOCH:SEQ:MARK[&cursor=...]&wait=S&limit=N -> { CURSOR EVENT* } per workspace that has news (CURSOR = where these events
 *        lead to: `upto`); nothing new by the end of wait: every CURSOR, no EVENT. 410 CURSOR_GONE with JSON {workspace, epoch, predecessor?, fork_seq?}.
 *   POST /v1/workspaces/W/commit   { OP [DATA] }*              -> RESULT per OP, in order
 *   POST /v1/workspaces/W/missing  HASHES                      -> HASHES (those missing); records a claim on all of them
 *   POST /v1/workspaces/W/blocks   BLOCK*                      -> HASHES (stored, durable); 422 HASH_MISMATCH names the first wrong one. ?session=ID puts
 *        the claims under an upload session (30 days).
 *   POST /v1/workspaces/W/read     READ*                       -> BLOCK* STATUS: for each READ the list pages (if asked) and the blocks of the range, each hash once, in order;
 *        an item that does not fit any more (BATCH_BYTES_MAX) or does not exist is named in STATUS.
 * JSON is given instead for `Accept: application/json` on snapshot, dirs and events.
 *
 * Accounts, JSON both ways (session.c is the client's side):
 *   POST /v1/login    {"user", "password", "device"}  -> {"token", "expires_in" (seconds), "refresh_token", "device_id", "user"}; 401 UNAUTHORIZED
 *   POST /v1/refresh  {"refresh_token"}               -> the same (the refresh token may stay as it was: a lost answer signs nobody out); 401 UNAUTHORIZED: revoked or expired
 *   GET  /v1/workspaces/W                             -> {"name", "id", "role", "epoch", "seq", "quota_bytes", "used_bytes"}; 404 NOT_FOUND, 403 FORBIDDEN
 *   GET  /v1                                          -> {"name": "tarn", "version", "features": [...], "limits": {...}} (no token needed) */
#pragma once
#include "base/buf.h"
#include "base/model.h"

#define WIRE_TYPE "application/vnd.tarn.frames"
#define FRAME_HEADER_BYTES 5u
#define FRAME_BYTES_MAX (BATCH_BYTES_MAX + 4096u)

enum frame_kind {
        FRAME_NODE = 1, FRAME_ENTRY = 2, FRAME_PAGE = 3, FRAME_LISTED = 4, FRAME_CURSOR = 5, FRAME_EVENT = 6,
        FRAME_OP = 7, FRAME_DATA = 8, FRAME_RESULT = 9, FRAME_HASHES = 10, FRAME_BLOCK = 11, FRAME_READ = 12, FRAME_STATUS = 13,
};
enum block_encoding { ENC_RAW = 0, ENC_ZSTD = 1, ENC_ZSTD_PATCH = 2 };

/* Trailer of a snapshot page. `digest` covers every byte of the page's NODE or ENTRY frames; `previous` chains it to the page before. */
struct wire_page {
        bool end;                 /* last page of this scan */
        uint64_t count;           /* rows in this page */
        struct id after_id, last_id;         /* node scan */
        uint64_t after_entry, last_entry;    /* entry scan */
        struct digest digest, previous;      /* previous: zero on the first page; sent by the client as ?previous=HEX */
        struct cursor upto;       /* the counter E at that moment (on every page; the one with `end` counts) */
};
struct wire_listed { struct id dir; struct cursor at; uint64_t count; };
struct wire_cursor { const char *workspace; struct cursor cursor; uint64_t quota_bytes, used_bytes; /* of the workspace, at that moment; quota 0: none */ };
struct wire_read {
        struct content content;   /* range of a content ... */
        uint64_t offset, bytes;   /* bytes 0: to the end */
        bool pages;               /* also all its list pages */
        bool by_hash; struct digest hash; /* ... or one block or page by its hash */
};
struct wire_block { struct digest hash; enum block_encoding encoding; uint32_t raw_bytes; struct digest base; const void *bytes; uint32_t n; };
struct wire_status { const uint32_t *not_sent; size_t n_not_sent; const uint32_t *not_found; size_t n_not_found; /* indexes of READ items */ };

/* Encoders append one whole frame. 0, -EMSGSIZE (buffer's maximum), -ENOMEM. */
int wire_add_node(struct buf *b, const struct node_row *row) _must_check_;
int wire_add_entry(struct buf *b, const struct entry_row *row) _must_check_;
int wire_add_page(struct buf *b, const struct wire_page *page) _must_check_;
int wire_add_listed(struct buf *b, const struct wire_listed *l) _must_check_;
int wire_add_cursor(struct buf *b, const struct wire_cursor *c) _must_check_;
int wire_add_event(struct buf *b, const struct event *e) _must_check_;
int wire_add_op(struct buf *b, const struct op *op) _must_check_;      /* adds the DATA frame too if OPF_INLINE */
int wire_add_result(struct buf *b, const struct op_result *r) _must_check_;
int wire_add_hashes(struct buf *b, const struct digest *hashes, size_t n) _must_check_;
int wire_add_block(struct buf *b, const struct wire_block *block) _must_check_;
int wire_add_read(struct buf *b, const struct wire_read *r) _must_check_;
int wire_add_status(struct buf *b, const struct wire_status *s) _must_check_;

/* A payload without its frame, for storing rows in a column (the server's event log, the client's shadow rows). Same bytes as in the frame. */
int wire_pack_change(struct buf *b, const struct change *c) _must_check_;
int wire_unpack_change(const void *p, size_t n, struct arena *a, struct change *ret) _must_check_;
int wire_pack_event(struct buf *b, const struct event *e) _must_check_;
int wire_unpack_event(const void *p, size_t n, struct arena *a, struct event *ret) _must_check_;
int wire_pack_result(struct buf *b, const struct op_result *r) _must_check_;
int wire_unpack_result(const void *p, size_t n, struct arena *a, struct op_result *ret) _must_check_;
/* SHA-256 over the operation's canonical encoding: the digest stored with an operation id. Without `after` (an order of delivery, which shrinks as predecessors are
 * answered) and without OPF_INLINE (a retry may send the bytes as blocks; content.root covers them and the server checks it). */
int wire_op_digest(const struct op *op, struct digest *ret) _must_check_;

/* Reads a body frame by frame. Returns 1 and the frame, 0 at the clean end, -EPROTO (truncated, oversized), -EPROTONOSUPPORT (kind). */
struct wire_reader { const uint8_t *p; size_t n, at; };
struct frame { enum frame_kind kind; const uint8_t *payload; size_t bytes; };
int wire_next(struct wire_reader *r, struct frame *ret) _must_check_;
int wire_get_node(const struct frame *f, struct arena *a, struct node_row *ret) _must_check_;
int wire_get_entry(const struct frame *f, struct arena *a, struct entry_row *ret) _must_check_;
int wire_get_page(const struct frame *f, struct wire_page *ret) _must_check_;
int wire_get_listed(const struct frame *f, struct wire_listed *ret) _must_check_;
int wire_get_cursor(const struct frame *f, struct arena *a, struct wire_cursor *ret) _must_check_;
int wire_get_event(const struct frame *f, struct arena *a, struct event *ret) _must_check_;
int wire_get_op(const struct frame *f, struct arena *a, struct op *ret) _must_check_;   /* inline bytes: the DATA frame after it, set by the caller; names are bounded, not checked: name_check them */
int wire_get_result(const struct frame *f, struct arena *a, struct op_result *ret) _must_check_;
int wire_get_hashes(const struct frame *f, const struct digest **ret, size_t *ret_n) _must_check_; /* borrowed from the payload */
int wire_get_block(const struct frame *f, struct wire_block *ret) _must_check_;
int wire_get_read(const struct frame *f, struct wire_read *ret) _must_check_;
int wire_get_status(const struct frame *f, struct arena *a, struct wire_status *ret) _must_check_;

/* Expands a block's bytes (raw, zstd; base needed for a patch) into out (raw_bytes <= BLOCK_BYTES_MAX, bounded before memory is
 * spent) and checks the SHA-256: -EBADMSG. */
int wire_block_expand(const struct wire_block *block, const void *base, size_t base_bytes, void *out) _must_check_;
/* zstd level 1 if a sample of it shrinks by at least 1/16, else raw. scratch holds the compressed bytes and must outlive ret. */
int wire_block_compress(const struct digest *hash, const void *p, uint32_t n, struct buf *scratch, struct wire_block *ret) _must_check_;

/* A body's sum goes with it in both directions, in the header X-Tarn-Sum: 16 hex digits of XXH3-64 over the body, and for an answer over its status too. Against a network that changes bytes
 * and tells nobody (without TLS a TCP checksum lets one damaged segment in 65,536 pass), not against people. Whoever gets a body with a wrong sum treats it as a transfer that broke off:
 * the server answers 503, the client -EHOSTDOWN; both mean "again". Without the header nothing is checked (scripts; answers that are streamed, whose blocks have hashes). */
#define WIRE_SUM_HEADER "X-Tarn-Sum"
#define WIRE_SUM_CHARS 16u
/* status: 0 for a request. */
void wire_sum(int status, const void *body, size_t n, char ret[WIRE_SUM_CHARS + 1]);

/* Names: 1..255 bytes, UTF-8, no NUL, no '/', not "." or "..". -EILSEQ, -ENAMETOOLONG, -EINVAL. */
int name_check(const char *name, size_t n) _must_check_;
