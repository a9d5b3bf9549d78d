/* SPDX-License-Identifier: Apache-2.0 */
/* json.c: jansson with bounds. Input comes from the network and from files that anybody may have edited, so: at most JSON_BYTES_MAX bytes, nested at
 * most JSON_DEPTH_MAX deep (checked by a scan of brackets before jansson sees it, which recurses), no duplicate keys, no NUL inside strings,
 * nothing after the value. Getters tell absence (-ENOENT) from a wrong type or range (-EINVAL). No state. */
#include "base/json.h"

#include <errno.h>

#define JSON_BYTES_MAX (64u << 20)
#define JSON_DEPTH_MAX 64u

static bool depth_fits(const char *p, size_t n) {
        size_t depth = 0;
        bool inside = false;
        for (size_t i = 0; i < n; i++) {
                char c = p[i];
                if (inside) {
                        if (c == '\\')
                                i++;
                        else if (c == '"')
                                inside = false;
                } else if (c == '"') {
                        inside = true;
                } else if (c == '[' || c == '{') {
                        if (++depth > JSON_DEPTH_MAX)
                                return false;
                } else if ((c == ']' || c == '}') && depth > 0) {
                        depth--;
                }
        }
        return true;
}

int json_parse(const void *p, size_t n, json_t **ret) {
        if (n == 0 || n > JSON_BYTES_MAX || !depth_fits(p, n))
                return -EINVAL;
        json_error_t error;
        json_t *j = json_loadb(p, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
        if (!j)
                return json_error_code(&error) == json_error_out_of_memory ? -ENOMEM : -EINVAL;
        *ret = j;
        return 0;
}

int json_get_str(const json_t *o, const char *key, const char **ret) {
        const json_t *v = json_object_get(o, key);
        if (!v)
                return -ENOENT;
        if (!json_is_string(v))
                return -EINVAL;
        *ret = json_string_value(v);
        return 0;
}

int json_get_int(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *ret) {
        const json_t *v = json_object_get(o, key);
        if (!v)
                return -ENOENT;
        if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
                return -EINVAL;
        *ret = json_integer_value(v);
        return 0;
}

int json_get_bool(const json_t *o, const char *key, bool *ret) {
        const json_t *v = json_object_get(o, key);
        if (!v)
                return -ENOENT;
        if (!json_is_boolean(v))
                return -EINVAL;
        *ret = json_is_true(v);
        return 0;
}

struct dump { struct buf *buf; int error; };

static int dump_to_buf(const char *p, size_t n, void *arg) {
        struct dump *d = arg;
        d->error = buf_add(d->buf, p, n);
        return d->error;
}

int json_to_buf(const json_t *j, struct buf *b) {
        struct dump d = { b, 0 };
        size_t before = b->bytes;
        if (json_dump_callback(j, dump_to_buf, &d, JSON_COMPACT | JSON_ENCODE_ANY) < 0) {
                b->bytes = before;
                return d.error < 0 ? d.error : -ENOMEM;
        }
        return 0;
}
