/* SPDX-License-Identifier: Apache-2.0 */
/* portable.c: what Windows and macOS can carry, and when two names are one there.
 *
 * The fold is NFC of the Unicode case folding, by utf8proc, which knows one version of Unicode. Normalisation and folding of an assigned character never change in later versions (Unicode's stability
 * policy), so a fold that was stored stays the fold; characters that are not assigned are refused for that reason. Names of ASCII alone, nearly all, need no table. */
#include "base/portable.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/err.h"

/* The part before the first dot is a device's name, whatever follows. */
static bool is_device(const char *name, size_t n) {
        static const char *const names[] = { "con", "prn", "aux", "nul", "conin$", "conout$" };
        size_t stem = 0;
        char low[8];
        while (stem < n && name[stem] != '.')
                stem++;
        while (stem > 0 && name[stem - 1] == ' ')
                stem--;
        if (stem < 3 || stem > 7)
                return false;
        for (size_t i = 0; i < stem; i++)
                low[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] + 32 : name[i]);
        low[stem] = 0;
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                if (strcmp(low, names[i]) == 0)
                        return true;
        if (strncmp(low, "com", 3) != 0 && strncmp(low, "lpt", 3) != 0)
                return false;
        return (stem == 4 && low[3] >= '0' && low[3] <= '9') || strcmp(low + 3, "\xc2\xb9") == 0 || strcmp(low + 3, "\xc2\xb2") == 0 || strcmp(low + 3, "\xc2\xb3") == 0; /* digits in superscript */
}

int name_fold(const char *name, size_t n, char ret[FOLD_BYTES_MAX], size_t *ret_n) {
        bool ascii = true;
        if (n == 0 || n > FOLD_BYTES_MAX / 3 || name[n - 1] == '.' || name[n - 1] == ' ' || is_device(name, n))
                return -EINVAL;
        for (size_t i = 0; i < n; i++) {
                const unsigned char c = (unsigned char)name[i];
                if (c < 32 || c == 127 || strchr("<>:\"\\|?*", c))
                        return -EINVAL;
                ascii = ascii && c < 128;
        }
        if (ascii) {
                for (size_t i = 0; i < n; i++)
                        ret[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] + 32 : name[i]);
                *ret_n = n;
                return 0;
        }
        _cleanup_free_ utf8proc_uint8_t *folded = NULL;
        utf8proc_ssize_t bytes = utf8proc_map((const utf8proc_uint8_t *)name, (utf8proc_ssize_t)n, &folded, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD | UTF8PROC_REJECTNA);
        if (bytes < 0 || bytes > (utf8proc_ssize_t)FOLD_BYTES_MAX)
                return bytes == UTF8PROC_ERROR_NOMEM ? -ENOMEM : -EINVAL;
        memcpy(ret, folded, (size_t)bytes);
        *ret_n = (size_t)bytes;
        return 0;
}

unsigned name_fold_unicode(void) {
        const char *text = utf8proc_unicode_version();
        char *end;
        const unsigned long major = strtoul(text, &end, 10), minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
        return (unsigned)(major * 100 + minor);
}
