/* SPDX-License-Identifier: Apache-2.0 */
/* blob_file.h: the numbered sparse files of large contents, each with a file of sums beside it, and the pool of empty ones. Own lock (RANK_BLOB_FILES); any thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/lock.h"

#define RANK_BLOB_FILES (RANK_LRU + 6)

struct blob_files;
/* Lists dir/blob (made if missing). Every file found is free until blob_files_claim. */
int blob_files_open(const char *dir, struct blob_files **ret) _must_check_;
void blob_files_close(struct blob_files *f);
/* At open: the index says that this number is a blob. false: there is no such file, or it is claimed already. */
bool blob_files_claim(struct blob_files *f, uint32_t number);
/* After the last claim: all others are emptied and pooled. */
int blob_files_settle(struct blob_files *f) _must_check_;

/* An empty pair of files of logical size `bytes`. *ret_recycled: from the pool. */
int blob_files_take(struct blob_files *f, uint64_t bytes, uint32_t *ret_number, int *ret_data_fd, int *ret_sums_fd, bool *ret_recycled) _must_check_;
int blob_files_fds(struct blob_files *f, uint32_t number, int *ret_data_fd, int *ret_sums_fd) _must_check_;
/* Emptied and pooled; both descriptors are closed (-1: none). */
void blob_files_return(struct blob_files *f, uint32_t number, int data_fd, int sums_fd);

/* An empty file for somebody else, moved to dir/lent where nothing is ever reclaimed. */
int blob_files_lend(struct blob_files *f, int *ret_fd, char *ret_path, size_t n) _must_check_;
/* The file at path comes back: emptied and pooled. */
int blob_files_unlend(struct blob_files *f, const char *path) _must_check_;
/* The file at path becomes the data file of a new pair, bytes and all, cut to `bytes`. */
int blob_files_adopt(struct blob_files *f, const char *path, uint64_t bytes, uint32_t *ret_number, int *ret_data_fd, int *ret_sums_fd) _must_check_;
