/* SPDX-License-Identifier: Apache-2.0 */
/* pack.h: extents of 4 KiB pages inside 64 MiB segment files: home of the blocks of small contents. Own lock (RANK_PACK); any thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "room.h"

#define RANK_PACK (RANK_LRU + 4)
#define PACK_PAGE 4096u
#define PACK_SEGMENT_PAGES 16384u
#define PACK_EXTENT_PAGES_MAX 1024u
#define PACK_NOWHERE UINT32_MAX

struct pack;
/* Opens the segments in dir/pack (made if missing). Pages are free until pack_claim says otherwise. */
int pack_open(const char *dir, struct room *room, struct pack **ret) _must_check_;
void pack_close(struct pack *p);
/* At open, before anything else: the index says that this extent is used. false: not inside a segment, or taken already. */
bool pack_claim(struct pack *p, uint32_t place, unsigned pages);
/* After the last claim: finds out which free pages still have bytes on disk and charges all that have. */
int pack_settle(struct pack *p) _must_check_;

/* An extent of pages whose bytes are on disk and free: costs no room. -ENOSPC: none is long enough. */
int pack_reuse(struct pack *p, unsigned pages, uint32_t *ret_place) _must_check_;
/* An extent anywhere; the caller has taken `pages` pages of room, what turns out to be allocated already is given back. May make a segment. */
int pack_alloc(struct pack *p, unsigned pages, uint32_t *ret_place) _must_check_;
/* The extent is free; its bytes stay on disk (and charged) until they are reused or trimmed. */
void pack_free(struct pack *p, uint32_t place, unsigned pages);
/* Punches free pages until `bytes` were given back to the room or none is left; returns what was given back. */
uint64_t pack_trim(struct pack *p, uint64_t bytes);
uint64_t pack_free_bytes(struct pack *p); /* what trim could give */

/* I/O inside an extent that the caller holds. No lock. 0, -EIO on a short segment, -errno. */
int pack_read(struct pack *p, uint32_t place, uint32_t offset, struct iovec *iov, int n) _must_check_;
int pack_write(struct pack *p, uint32_t place, uint32_t offset, struct iovec *iov, int n) _must_check_;
/* Whole vectors at an offset of any file; iov is used up. */
int iov_read_full(int fd, struct iovec *iov, int n, uint64_t off) _must_check_;
int iov_write_full(int fd, struct iovec *iov, int n, uint64_t off) _must_check_;
