/* SPDX-License-Identifier: Apache-2.0 */
/* disk.h: what happens to files at a power cut, and a disk that is full. One for the process: worlds come one after the other. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/* From now on (on) writes to files of the file system of dir are remembered until they are synced. What was remembered is forgotten. */
/* Before everything else: SQLite without what only several processes or threads need (locks in files, mutexes). */
void disk_start(void);
void disk_watch(const char *dir, bool on);
/* copy_fd is a copy of the file with that inode number: becomes what a power cut leaves of it. */
int disk_lose(ino_t from, int copy_fd, uint64_t seed, uint64_t *io_pages);
/* No file below dir gets longer; "": there is room again. */
void disk_full(const char *dir);
uint64_t disk_refused(void);
