/* SPDX-License-Identifier: Apache-2.0 */
/* vfs.h: a SQLite VFS in memory whose files forget, at a power cut, what was written after their last sync. */
#pragma once
#include "base/clock.h"

#define MEMORY_VFS "tarn-sim"
int memory_vfs_register(void);
/* Every file whose path begins with prefix: writes since its last sync are undone, but for each page of them that the drive had taken by itself (chance: per mille). No
 * connection may be open. */
void memory_vfs_power_cut(const char *prefix, struct rng *rng, unsigned per_mille);
void memory_vfs_rename(const char *prefix, const char *to);
/* A second life of the same files as they are now, under another prefix. */
void memory_vfs_copy(const char *prefix, const char *to);
void memory_vfs_remove(const char *prefix);
