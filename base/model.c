/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: the few functions of the vocabulary: hex text of ids and digests, and node kinds as file type bits.
 * Pure; any thread. Hex is written in lower case and read in either. */
#include "base/model.h"

#include <errno.h>
#include <sys/stat.h>

const struct id id_root = { .b = { [ID_BYTES - 1] = 1 } };

void hex_encode(const void *bytes, size_t n, char *ret) {
        static const char digits[] = "0123456789abcdef";
        const uint8_t *p = bytes;
        for (size_t i = 0; i < n; i++) {
                ret[2 * i] = digits[p[i] >> 4];
                ret[2 * i + 1] = digits[p[i] & 15];
        }
        ret[2 * n] = 0;
}

static int hex_digit(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        if (c >= 'A' && c <= 'F')
                return c - 'A' + 10;
        return -1;
}

int hex_decode(const char *text, void *ret_bytes, size_t n) {
        for (size_t i = 0; i < 2 * n; i++) /* stops at an early NUL, which is no digit */
                if (hex_digit(text[i]) < 0)
                        return -EINVAL;
        if (text[2 * n] != 0)
                return -EINVAL;
        uint8_t *p = ret_bytes;
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
        return 0;
}

uint32_t node_kind_to_mode(enum node_kind kind) {
        switch (kind) {
        case NODE_FILE:
                return S_IFREG;
        case NODE_DIR:
                return S_IFDIR;
        case NODE_SYMLINK:
                return S_IFLNK;
        case NODE_FIFO:
                return S_IFIFO;
        case NODE_SOCKET:
                return S_IFSOCK;
        case NODE_CHAR:
                return S_IFCHR;
        case NODE_BLOCK:
                return S_IFBLK;
        case NODE_GRAFT:
        case NODE_RESERVED:
                break;
        }
        return 0;
}

int node_kind_from_mode(uint32_t mode, enum node_kind *ret) {
        switch (mode & S_IFMT) {
        case S_IFREG:
                *ret = NODE_FILE;
                return 0;
        case S_IFDIR:
                *ret = NODE_DIR;
                return 0;
        case S_IFLNK:
                *ret = NODE_SYMLINK;
                return 0;
        case S_IFIFO:
                *ret = NODE_FIFO;
                return 0;
        case S_IFSOCK:
                *ret = NODE_SOCKET;
                return 0;
        case S_IFCHR:
                *ret = NODE_CHAR;
                return 0;
        case S_IFBLK:
                *ret = NODE_BLOCK;
                return 0;
        default:
                return -EINVAL;
        }
}
