/* SPDX-License-Identifier: Apache-2.0 */
/* args.c: command lines and -o lists from one table, and the units that people write.
 *
 *   --name value  --name=value  -x value  -xvalue  -ab (flags together)  --  (only positionals follow)
 *   flags take no value; a flag given as --no-name is false
 *   ARG_LIST may be repeated; the values are joined by commas
 *
 * A wrong word gives one line on stderr that names the word, says what is expected and, for an unknown option, the nearest known one (edit distance
 * of at most a third of its length). --help prints the table. The -o form is the same with words separated by commas; a backslash takes the next
 * character as it is. Values of ARG_STR point into argv; those of an -o list are copied and stay until the process ends, as argv does
 * (they are parsed once, at start). */
#include "base/args.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/buf.h"

#define LIST_BYTES_MAX 65536u

static bool is_positional(const struct arg *a) {
        return a->type == ARG_POSITIONAL || a->type == ARG_POSITIONAL_OPTIONAL;
}

static const char *value_word(enum arg_type type) {
        switch (type) {
        case ARG_STR:
        case ARG_LIST:
                return "VALUE";
        case ARG_U64:
                return "NUMBER";
        case ARG_BYTES:
                return "SIZE";
        case ARG_DURATION_S:
                return "TIME";
        default:
                return NULL;
        }
}

static int complain(const char *program, const char *fmt, ...) _printf_(2, 3);
static int complain(const char *program, const char *fmt, ...) {
        char line[512];
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(line, sizeof line, fmt, args);
        va_end(args);
        (void)fprintf(stderr, "%s: %s\n", program, line);
        return -EINVAL;
}

static int parse_u64(const char *text, uint64_t *ret, const char **ret_rest) {
        uint64_t v = 0;
        const char *p = text;
        if (!isdigit((unsigned char)*p))
                return -EINVAL;
        for (; isdigit((unsigned char)*p); p++)
                if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
                        return -ERANGE;
        *ret = v;
        *ret_rest = p;
        return 0;
}

int parse_bytes(const char *text, uint64_t *ret) {
        static const char units[] = "KMGTPE";
        const char *rest;
        uint64_t v, fraction = 0, scale = 1;
        int r = parse_u64(text, &v, &rest);
        if (r < 0)
                return r;
        if (*rest == '.') { /* 1.5G */
                for (rest++; isdigit((unsigned char)*rest); rest++)
                        if (scale < 1000000) {
                                fraction = fraction * 10 + (uint64_t)(*rest - '0');
                                scale *= 10;
                        }
                if (scale == 1)
                        return -EINVAL;
        }
        unsigned shift = 0;
        const char *unit = *rest ? strchr(units, toupper((unsigned char)*rest)) : NULL;
        if (unit) {
                shift = 10u * (unsigned)(unit - units + 1);
                rest++;
                if (*rest == 'i')
                        rest++;
                if (*rest == 'B' || *rest == 'b')
                        rest++;
        } else if (*rest == 'B' || *rest == 'b') {
                rest++;
        }
        if (*rest != 0 || (scale > 1 && shift == 0))
                return -EINVAL;
        if (v > UINT64_MAX >> shift)
                return -ERANGE;
        v <<= shift;
        if (shift > 0 && __builtin_add_overflow(v, (uint64_t)((unsigned __int128)fraction * (UINT64_C(1) << shift) / scale), &v))
                return -ERANGE;
        *ret = v;
        return 0;
}

int parse_duration_s(const char *text, uint64_t *ret) {
        const char *rest;
        uint64_t v, unit = 1;
        int r = parse_u64(text, &v, &rest);
        if (r < 0)
                return r;
        switch (*rest) {
        case 'd':
                unit = 86400;
                break;
        case 'h':
                unit = 3600;
                break;
        case 'm':
                unit = 60;
                break;
        case 's':
        case 0:
                break;
        default:
                return -EINVAL;
        }
        if (*rest && rest[1])
                return -EINVAL;
        if (__builtin_mul_overflow(v, unit, &v))
                return -ERANGE;
        *ret = v;
        return 0;
}

void format_bytes(uint64_t n, char ret[24]) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
        unsigned i = 0;
        double v = (double)n;
        while (v >= 1023.95 && i + 1 < ARRAY_SIZE(units)) {
                v /= 1024;
                i++;
        }
        (void)snprintf(ret, 24, i == 0 ? "%.0f %s" : "%.1f %s", v, units[i]);
}

/* Edit distance, for suggestions; words longer than the table are not worth one. */
static size_t distance(const char *a, size_t n, const char *b) {
        size_t row[48], m = strlen(b);
        if (n >= ARRAY_SIZE(row) || m >= ARRAY_SIZE(row))
                return SIZE_MAX;
        for (size_t j = 0; j <= m; j++)
                row[j] = j;
        for (size_t i = 1; i <= n; i++) {
                size_t diagonal = row[0];
                row[0] = i;
                for (size_t j = 1; j <= m; j++) {
                        size_t above = row[j];
                        row[j] = MIN(MIN(above, row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
                        diagonal = above;
                }
        }
        return row[m];
}

static const struct arg *nearest(const struct arg *table, const char *word, size_t n) {
        const struct arg *best = NULL;
        size_t best_distance = MAX(n / 3, (size_t)1) + 1;
        for (const struct arg *a = table; a->name; a++) {
                size_t d = is_positional(a) ? SIZE_MAX : distance(word, n, a->name);
                if (d < best_distance) {
                        best = a;
                        best_distance = d;
                }
        }
        return best;
}

static const struct arg *by_name(const struct arg *table, const char *name, size_t n) {
        for (const struct arg *a = table; a->name; a++)
                if (!is_positional(a) && strlen(a->name) == n && memcmp(a->name, name, n) == 0)
                        return a;
        return NULL;
}

static const struct arg *by_letter(const struct arg *table, char letter) {
        for (const struct arg *a = table; a->name; a++)
                if (!is_positional(a) && a->letter == letter)
                        return a;
        return NULL;
}

/* dashes: how the option is shown in messages, "--" or "-o ". */
static int set_value(const char *program, const char *dashes, const struct arg *a, const char *value) {
        int r = 0;
        const char *rest = "";
        switch (a->type) {
        case ARG_FLAG:
                *(bool *)a->ret = value == NULL;
                return 0;
        case ARG_STR:
                *(const char **)a->ret = value;
                return 0;
        case ARG_LIST: {
                struct buf *list = a->ret;
                if (list->max_bytes == 0)
                        list->max_bytes = LIST_BYTES_MAX;
                r = list->bytes > 0 ? buf_add_str(list, ",") : 0;
                if (r == 0)
                        r = buf_add_str(list, value);
                return r < 0 || !buf_text(list) ? complain(program, "%s%s: the list is too long", dashes, a->name) : 0;
        }
        case ARG_U64:
                r = parse_u64(value, a->ret, &rest);
                if (r < 0 || *rest)
                        return complain(program, "%s%s: '%s' is not a number (expected digits, such as 8)", dashes, a->name, value);
                return 0;
        case ARG_BYTES:
                r = parse_bytes(value, a->ret);
                if (r < 0)
                        return complain(program, "%s%s: '%s' is not a size (expected something like 512M or 20G)", dashes, a->name, value);
                return 0;
        case ARG_DURATION_S:
                r = parse_duration_s(value, a->ret);
                if (r < 0)
                        return complain(program, "%s%s: '%s' is not a time (expected something like 30s, 5m, 2h or 1d)", dashes, a->name, value);
                return 0;
        case ARG_POSITIONAL:
        case ARG_POSITIONAL_OPTIONAL:
                break;
        }
        assert(false);
        return -EINVAL;
}

static int print_help(const char *program, const struct arg *table) {
        (void)printf("Usage: %s", program);
        bool options = false;
        for (const struct arg *a = table; a->name; a++)
                options |= !is_positional(a);
        if (options)
                (void)printf(" [OPTION]...");
        for (const struct arg *a = table; a->name; a++)
                if (is_positional(a))
                        (void)printf(a->type == ARG_POSITIONAL ? " %s" : " [%s]", a->name);
        (void)printf("\n\n");
        for (int pass = 0; pass < 2; pass++)
                for (const struct arg *a = table; a->name; a++) {
                        char left[64], letter[8] = "    ";
                        const char *word = value_word(a->type);
                        if (is_positional(a) != (pass == 0))
                                continue;
                        if (a->letter)
                                (void)snprintf(letter, sizeof letter, "-%c, ", a->letter);
                        if (pass == 0)
                                (void)snprintf(left, sizeof left, "%s", a->name);
                        else
                                (void)snprintf(left, sizeof left, "%s--%s%s%s", letter, a->name, word ? "=" : "", word ? word : "");
                        (void)printf("  %-28s %s\n", left, a->help ? a->help : "");
                }
        (void)printf("  %-28s %s\n", "    --help", "show this text");
        (void)fflush(stdout);
        return -ECANCELED;
}

static int unknown(const char *program, const struct arg *table, const char *word, size_t n) {
        const struct arg *a = nearest(table, word, n);
        if (a)
                return complain(program, "unknown option '--%.*s' (did you mean --%s?); see --help", (int)MIN(n, (size_t)100), word, a->name);
        return complain(program, "unknown option '--%.*s'; see --help", (int)MIN(n, (size_t)100), word);
}

/* One word that begins with "--". May take argv[*i + 1]. */
static int parse_long(const char *program, const struct arg *table, int argc, char **argv, int *i) {
        const char *word = argv[*i] + 2, *equals = strchr(word, '=');
        size_t n = equals ? (size_t)(equals - word) : strlen(word);
        const struct arg *a = by_name(table, word, n);
        if (!a && n > 3 && memcmp(word, "no-", 3) == 0 && !equals) {
                a = by_name(table, word + 3, n - 3);
                if (a && a->type == ARG_FLAG)
                        return set_value(program, "--", a, "no");
                a = NULL;
        }
        if (!a)
                return unknown(program, table, word, n);
        if (a->type == ARG_FLAG)
                return equals ? complain(program, "--%s takes no value", a->name) : set_value(program, "--", a, NULL);
        if (equals)
                return set_value(program, "--", a, equals + 1);
        if (*i + 1 >= argc)
                return complain(program, "--%s needs a value (%s)", a->name, value_word(a->type));
        return set_value(program, "--", a, argv[++*i]);
}

static int parse_short(const char *program, const struct arg *table, int argc, char **argv, int *i) {
        for (const char *p = argv[*i] + 1; *p; p++) {
                const struct arg *a = by_letter(table, *p);
                if (!a && *p == 'h')
                        return print_help(program, table);
                if (!a)
                        return complain(program, "unknown option '-%c'; see --help", *p);
                if (a->type == ARG_FLAG) {
                        int r = set_value(program, "--", a, NULL);
                        if (r < 0)
                                return r;
                        continue;
                }
                if (p[1])
                        return set_value(program, "--", a, p + 1);
                if (*i + 1 >= argc)
                        return complain(program, "-%c needs a value (%s)", a->letter, value_word(a->type));
                return set_value(program, "--", a, argv[++*i]);
        }
        return 0;
}

int args_parse(const char *program, const struct arg *table, int argc, char **argv) {
        bool only_words = false;
        const struct arg *place = table; /* next positional */
        for (int i = 1; i < argc; i++) {
                const char *word = argv[i];
                int r = 0;
                if (!only_words && strcmp(word, "--") == 0) {
                        only_words = true;
                } else if (!only_words && strcmp(word, "--help") == 0) {
                        return print_help(program, table);
                } else if (!only_words && word[0] == '-' && word[1] == '-') {
                        r = parse_long(program, table, argc, argv, &i);
                } else if (!only_words && word[0] == '-' && word[1]) {
                        r = parse_short(program, table, argc, argv, &i);
                } else {
                        while (place->name && !is_positional(place))
                                place++;
                        if (!place->name)
                                return complain(program, "'%s' is one word too many; see --help", word);
                        *(const char **)place->ret = word;
                        place++;
                }
                if (r < 0)
                        return r;
        }
        for (; place->name; place++)
                if (place->type == ARG_POSITIONAL)
                        return complain(program, "%s is missing; see --help", place->name);
        return 0;
}

static bool is_ignored(const char *const *ignored, const char *name) {
        for (; ignored && *ignored; ignored++) {
                size_t n = strlen(*ignored);
                if (n > 0 && (*ignored)[n - 1] == '*' ? strncmp(*ignored, name, n - 1) == 0 : strcmp(*ignored, name) == 0)
                        return true;
        }
        return false;
}

/* One word of an -o list, already without backslashes. */
static int parse_o_word(const char *program, const struct arg *table, const char *const *ignored, const char *word) {
        const char *equals = strchr(word, '=');
        size_t n = equals ? (size_t)(equals - word) : strlen(word);
        char name[64];
        if (n == 0 || n >= sizeof name)
                return complain(program, "-o: '%.100s' is not an option", word);
        memcpy(name, word, n);
        name[n] = 0;
        const struct arg *a = by_name(table, name, n);
        if (!a) {
                if (is_ignored(ignored, name))
                        return 0;
                const struct arg *near = nearest(table, name, n);
                if (near)
                        return complain(program, "-o: unknown option '%s' (did you mean %s?)", name, near->name);
                return complain(program, "-o: unknown option '%s'", name);
        }
        if (a->type == ARG_FLAG)
                return equals ? complain(program, "-o %s takes no value", name) : set_value(program, "-o ", a, NULL);
        if (!equals)
                return complain(program, "-o %s needs a value (%s=%s)", name, name, value_word(a->type));
        if (a->type != ARG_STR)
                return set_value(program, "-o ", a, equals + 1);
        char *copy = strdup(equals + 1);
        if (!copy)
                return -ENOMEM;
        return set_value(program, "-o ", a, copy);
}

int args_parse_o(const char *program, const struct arg *table, const char *const *ignored, const char *list) {
        size_t n = strlen(list);
        if (n > LIST_BYTES_MAX)
                return complain(program, "-o: the list is too long");
        _cleanup_free_ char *word = malloc(n + 1);
        if (!word)
                return -ENOMEM;
        size_t k = 0;
        for (const char *p = list;; p++) {
                if (*p == '\\' && p[1]) {
                        word[k++] = *++p;
                } else if (*p == ',' || *p == 0) {
                        word[k] = 0;
                        int r = k > 0 ? parse_o_word(program, table, ignored, word) : 0;
                        if (r < 0)
                                return r;
                        k = 0;
                        if (*p == 0)
                                return 0;
                } else {
                        word[k++] = *p;
                }
        }
}
