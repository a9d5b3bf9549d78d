/* SPDX-License-Identifier: Apache-2.0 */
/* io.h: files without surprises: whole reads and writes, durable replacement. Any thread; no state. Every fd is O_CLOEXEC. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/cleanup.h"

int pread_full(int fd, void *p, size_t n, uint64_t off) _must_check_;        /* 0, or -EIO on a short file, -errno */
ssize_t pread_some(int fd, void *p, size_t n, uint64_t off) _must_check_;    /* up to n, short only at the end */
int pwrite_full(int fd, const void *p, size_t n, uint64_t off) _must_check_;
int write_full(int fd, const void *p, size_t n) _must_check_;
int mkdir_p(const char *path, mode_t mode) _must_check_;
int fsync_dir(int dir_fd) _must_check_;
int fsync_parent(const char *path) _must_check_;
/* temp + fsync + rename + fsync of the directory; mode of the new file. */
int file_replace(const char *path, const void *p, size_t n, mode_t mode) _must_check_;
int file_load(const char *path, size_t max_bytes, struct buf *ret) _must_check_; /* -EMSGSIZE over max */
/* Advisory whole-file lock (flock) on path, created 0600; ret_fd keeps it. -EBUSY if somebody holds it. */
int file_lock(const char *path, int *ret_fd) _must_check_;
/* Joins with '/', newly allocated; NULL without memory. */
char *path_join(const char *a, const char *b);
/* Bytes that a non-superuser may still use on the file system of fd. */
int disk_free(int fd, uint64_t *ret_bytes) _must_check_;
/* This boot's id (/proc/sys/kernel/random/boot_id), 36 characters and NUL. */
int boot_id(char ret[37]) _must_check_;
