/* SPDX-License-Identifier: Apache-2.0 */
/* reserve.h: room for those operations that give room back. Any thread. */
#pragma once
#include <stdbool.h>

#include "base/cleanup.h"

struct reserve;
/* data_dir NULL (in memory): a reserve that is never tight. */
int reserve_open(const char *data_dir, struct reserve **ret) _must_check_;
void reserve_close(struct reserve *r); /* NULL fine; what is kept stays on disk */
/* The disk is full or nearly: nothing may be stored but what gives room back. Cost: one statvfs. */
bool reserve_tight(struct reserve *r);
/* A transaction failed with -ENOSPC: gives the reserve to the database. True: it was there, try again. */
bool reserve_release(struct reserve *r);
