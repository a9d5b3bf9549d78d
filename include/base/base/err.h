/* SPDX-License-Identifier: Apache-2.0 */
/* err.h: the domain codes. Everything in tarn returns 0 or a positive value for success and a negative errno for
 * failure; these names give the few errnos that carry a meaning of their own in tarn. The wire's symbolic codes map to
 * them one to one (api/code.h). */
#pragma once
#include <errno.h>

#define ERR_OFFLINE EHOSTDOWN    /* the server cannot be reached and the answer is not here */
#define ERR_STALE ESTALE         /* the base that a mutation named is not the current one */
#define ERR_CORRUPT EBADMSG      /* bytes do not match their hash or checksum */
#define ERR_SIGNED_OUT EKEYREJECTED /* the server no longer accepts our token */
#define ERR_BLOCKS_MISSING ENODATA /* a commit named blocks that the server does not have */
#define ERR_UPGRADE EPROTONOSUPPORT /* the other side speaks something newer than we know */
#define ERR_GONE EIDRM           /* cursor unknown: a new snapshot is needed (HTTP 410) */
#define ERR_PROTOCOL EPROTO      /* the other side broke the contract */
#define ERR_BUSY EBUSY           /* somebody else owns it (lock file, mount point) */
#define ERR_RETRY EAGAIN         /* server asked to come back later (429, 503) */
#define ERR_TLS ENOKEY           /* the server could not prove who it is (certificate) */

/* Name of an errno, e.g. "ESTALE"; "E?" for an unknown one. Takes either sign. Static string, any thread. */
const char *err_name(int err);
