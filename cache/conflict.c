/* SPDX-License-Identifier: Apache-2.0 */
/* conflict.c: the names of conflict copies.
 *
 *   NAME (conflict HOST N).EXT      EXT: what follows the last dot, up to 16 bytes
 *
 * A conflict name is made from the name that the first one was made from: what is left when such suffixes are taken away. So a copy of a copy has one suffix, and
 * the numbers of one NAME.EXT in one directory and on one HOST are one sequence. The result has 1 to 255 bytes: NAME is cut, never inside a UTF-8 sequence; what is not
 * ASCII in HOST becomes '-' unless all of it is UTF-8, and so do '/', parentheses and control characters.
 *
 * Why giving new names ends. An operation that is refused because its name is taken gets the next number after the one that it has (free_name in tree_resolve.c), so
 * no name is offered twice; each refusal is one more name that somebody else has, of which there are finitely many. It holds only if the name was the reason:
 * tree_resolve.c makes sure of that for a rename, which can also be refused because of what it starts from. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "conflict.h"

#define HOST_BYTES_MAX 64u
#define EXT_BYTES_MAX 17u /* with its dot */
#define WORD " (conflict "

static bool continues(char c) {
        return ((unsigned char)c & 0xc0) == 0x80;
}

/* Where the extension starts; n if there is none. */
static size_t ext_at(const char *name, size_t n) {
        for (size_t i = n; i-- > 1;)
                if (name[i] == '.')
                        return n - i <= EXT_BYTES_MAX && i + 1 < n ? i : n;
        return n;
}

/* Bytes of name without a suffix at its end; n if there is none. */
static size_t suffix_at(const char *name, size_t n, struct conflict_suffix *ret) {
        const size_t word = sizeof(WORD) - 1;
        size_t digits = 0, i = n;
        unsigned number = 0, unit = 1;
        if (n < word + 5 || name[n - 1] != ')')
                return n;
        for (i = n - 1; i > 0 && name[i - 1] >= '0' && name[i - 1] <= '9' && digits < 9; i--, digits++, unit *= 10)
                number += unit * (unsigned)(name[i - 1] - '0');
        if (digits == 0 || number == 0 || i == 0 || name[i - 1] != ' ')
                return n;
        for (size_t host_end = i - 1, at = host_end; at-- > 1 && name[at] != ')';)
                if (at + word < host_end && memcmp(name + at, WORD, word) == 0) {
                        *ret = (struct conflict_suffix){ .host = name + at + word, .host_bytes = host_end - at - word, .number = number };
                        return at;
                }
        return n;
}

bool conflict_parse(const char *name, size_t n, struct conflict_suffix *ret) {
        size_t ext = ext_at(name, n);
        return suffix_at(name, n, ret) < n || suffix_at(name, ext, ret) < ext;
}

/* Length of a well-formed sequence (its first byte and the right number of others), 0 if there is none. */
static size_t sequence(const char *p, size_t n) {
        const unsigned char c = (unsigned char)*p;
        size_t len = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
        for (size_t i = 1; i < len; i++)
                if (i >= n || !continues(p[i]))
                        return 0;
        return len;
}

size_t conflict_host(const char *host, char ret[CONFLICT_HOST_MAX + 1]) {
        size_t n = strnlen(host, HOST_BYTES_MAX);
        bool text = true;
        while (n > 0 && host[n] && continues(host[n])) /* not inside a character */
                n--;
        for (size_t i = 0, len; i < n && text; i += len)
                text = (len = sequence(host + i, n - i)) > 0;
        for (size_t i = 0; i < n; i++) {
                const unsigned char c = (unsigned char)host[i];
                ret[i] = c == '/' || c == '(' || c == ')' || c < 0x20 || c == 0x7f || (c >= 0x80 && !text) ? '-' : (char)c;
        }
        if (n == 0)
                ret[n++] = '-';
        ret[n] = 0;
        return n;
}

void conflict_name(const char *name, size_t n, const char *host, unsigned number, char ret[NAME_BYTES_MAX + 1]) {
        char mark[CONFLICT_HOST_MAX + 40], who[CONFLICT_HOST_MAX + 1];
        struct conflict_suffix old;
        assert(n > 0 && n <= NAME_BYTES_MAX);
        (void)conflict_host(host, who);
        const size_t mark_bytes = (size_t)snprintf(mark, sizeof(mark), WORD "%s %u)", who, number);
        size_t whole = suffix_at(name, n, &old), ext = whole < n ? whole : ext_at(name, n), ext_bytes = whole < n ? 0 : n - ext, stem = ext;
        for (size_t less; (less = suffix_at(name, stem, &old)) < stem;)
                stem = less;
        const size_t room = NAME_BYTES_MAX - mark_bytes - ext_bytes;
        if (stem > room) {
                stem = room;
                while (stem > 0 && continues(name[stem]))
                        stem--;
        }
        memcpy(ret, name, stem);
        memcpy(ret + stem, mark, mark_bytes);
        memcpy(ret + stem + mark_bytes, name + ext, ext_bytes);
        ret[stem + mark_bytes + ext_bytes] = 0;
}

void conflict_plain(const char *name, size_t n, char ret[NAME_BYTES_MAX + 1]) {
        struct conflict_suffix old;
        const size_t whole = suffix_at(name, n, &old), ext = whole < n ? n : ext_at(name, n);
        size_t stem = ext;
        for (size_t less; (less = suffix_at(name, stem, &old)) < stem;)
                stem = less;
        memcpy(ret, name, stem);
        memcpy(ret + stem, name + ext, n - ext);
        ret[stem + n - ext] = 0;
}

unsigned conflict_next(const char *name, size_t n, const char *host) {
        char who[CONFLICT_HOST_MAX + 1];
        struct conflict_suffix old;
        size_t bytes = conflict_host(host, who);
        return conflict_parse(name, n, &old) && old.host_bytes == bytes && memcmp(old.host, who, bytes) == 0 ? old.number + 1 : 1;
}
