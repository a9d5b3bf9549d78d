/* SPDX-License-Identifier: Apache-2.0 */
/* admin.h: administration: the commands themselves, and the Unix socket through which they reach a server that is running. */
#pragma once
#include "base/buf.h"
#include "server/service.h"

#define ADMIN_WORDS_MAX 16u

/* Runs one command; see service_admin. */
int admin_run(struct service *s, const char *const *words, size_t n, const char *password, struct buf *ret_text) _must_check_;

/* The socket DATA/admin.sock, 0600, one thread. A socket file that is there is replaced: the caller holds the directory's lock. */
struct admin;
int admin_open(struct service *s, const char *data_dir, struct admin **ret) _must_check_;
void admin_close(struct admin *a);       /* ends the thread after the command under way, removes the socket; NULL fine */
/* Asks the server that runs on data_dir. Its result, as admin_run; -ECONNREFUSED nobody listens, -ETIMEDOUT, -EPROTO. */
int admin_ask(const char *data_dir, const char *const *words, size_t n, const char *password, struct buf *ret_text) _must_check_;
