/* SPDX-License-Identifier: Apache-2.0 */
/* schema.h: the tables of the server and their version. */
#pragma once
#include "sql.h"

/* Makes the tables in an empty database, accepts those of this version. -EPROTONOSUPPORT: newer, untouched. -EBADMSG: another program's database. */
int schema_open(struct sql *db) _must_check_;
