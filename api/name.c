/* SPDX-License-Identifier: Apache-2.0 */
/* name.c: which bytes may be a name. The same function at every door: the mount (EILSEQ to the program), the decoder, the server.
 *
 * UTF-8 as RFC 3629 has it: shortest form only, no surrogates, nothing above U+10FFFF. So that two spellings of one character's bytes never meet
 * in one directory, and every name can travel in JSON. Control characters are allowed: POSIX programs make them. */
#include <string.h>

#include "api/wire.h"

/* Length of the UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_sequence(const uint8_t *p, size_t n) {
        if (p[0] < 0x80)
                return 1;
        size_t k;
        uint8_t low = 0x80, high = 0xbf;
        if (p[0] >= 0xc2 && p[0] <= 0xdf)
                k = 2;
        else if (p[0] >= 0xe0 && p[0] <= 0xef) {
                k = 3;
                if (p[0] == 0xe0)
                        low = 0xa0; /* overlong */
                if (p[0] == 0xed)
                        high = 0x9f; /* surrogates */
        } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
                k = 4;
                if (p[0] == 0xf0)
                        low = 0x90;
                if (p[0] == 0xf4)
                        high = 0x8f;
        } else
                return 0;
        if (n < k || p[1] < low || p[1] > high)
                return 0;
        for (size_t i = 2; i < k; i++)
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
        return k;
}

int name_check(const char *name, size_t n) {
        const uint8_t *p = (const uint8_t *)name;
        if (n == 0)
                return -EINVAL;
        if (n > NAME_BYTES_MAX)
                return -ENAMETOOLONG;
        if ((n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
                return -EINVAL;
        for (size_t i = 0; i < n;) {
                if (p[i] == 0 || p[i] == '/')
                        return -EINVAL;
                size_t k = utf8_sequence(p + i, n - i);
                if (k == 0)
                        return -EILSEQ;
                i += k;
        }
        return 0;
}
