/* SPDX-License-Identifier: Apache-2.0 */
/* api_json.c: rows as people see them: the JSON forms of nodes, names, cursors and versions. The binary rows of api/wire.h are what clients use; these
 * have the same fields under the same names. Ids, marks and digests are lower-case hex; times are nanoseconds since the epoch (as
 * JSON integers, exact); extended attribute values, which may be any bytes, are hex too. A function returns NULL without memory. */
#include "api_call.h"

#include <inttypes.h>
#include <string.h>

json_t *json_hex(const void *p, size_t n) {
        char text[2 * DIGEST_BYTES + 1];

        if (n > DIGEST_BYTES)
                return NULL;
        hex_encode(p, n, text);
        return json_string(text);
}

const char *node_kind_name(enum node_kind kind) {
        switch (kind) {
        case NODE_FILE:
                return "file";
        case NODE_DIR:
                return "dir";
        case NODE_SYMLINK:
                return "symlink";
        case NODE_FIFO:
                return "fifo";
        case NODE_SOCKET:
                return "socket";
        case NODE_CHAR:
                return "char";
        case NODE_BLOCK:
                return "block";
        case NODE_GRAFT:
                return "graft";
        case NODE_RESERVED:
                break;
        }
        return "reserved";
}

void etag_of(const struct content *content, char ret[80]) {
        char hex[2 * DIGEST_BYTES + 1];

        hex_encode(content->root.b, DIGEST_BYTES, hex);
        (void)snprintf(ret, 80, "\"%s\"", hex);
}

/* Adds v under key; takes v over. */
static int set(json_t *o, const char *key, json_t *v) {
        return v ? json_object_set_new(o, key, v) : -1;
}

static json_t *json_xattrs(const struct node_row *row) {
        json_t *o = json_object();

        for (size_t i = 0; o && i < row->n_xattrs; i++) {
                const struct xattr *x = &row->xattrs[i];
                char *hex = malloc(2 * (size_t)x->value_bytes + 1);

                if (!hex)
                        return json_decref(o), NULL;
                hex_encode(x->value, x->value_bytes, hex);
                if (set(o, x->name, json_string(hex)) < 0) {
                        free(hex);
                        return json_decref(o), NULL;
                }
                free(hex);
        }
        return o;
}

json_t *json_node(const struct node_row *row) {
        json_t *o = json_object();
        int r;

        if (!o)
                return NULL;
        r = set(o, "id", json_hex(row->id.b, ID_BYTES)) | set(o, "seq", json_integer((json_int_t)row->seq));
        if (row->deleted) {
                r |= set(o, "deleted", json_true());
                return r < 0 ? json_decref(o), NULL : o;
        }
        r |= set(o, "kind", json_string(node_kind_name(row->kind))) | set(o, "mode", json_integer(row->mode)) | set(o, "uid", json_integer(row->uid)) |
             set(o, "gid", json_integer(row->gid)) | set(o, "mtime_ns", json_integer(row->mtime_ns)) | set(o, "ctime_ns", json_integer(row->ctime_ns)) |
             set(o, "btime_ns", json_integer(row->btime_ns));
        if (row->kind == NODE_FILE)
                r |= set(o, "size", json_integer((json_int_t)row->content.size)) | set(o, "root", json_hex(row->content.root.b, DIGEST_BYTES)) |
                     set(o, "depth", json_integer(row->content.depth)) | set(o, "param", json_integer(row->content.param)) |
                     set(o, "version", json_hex(row->version.b, ID_BYTES));
        if (row->kind == NODE_CHAR || row->kind == NODE_BLOCK)
                r |= set(o, "rdev", json_integer((json_int_t)row->rdev));
        if (row->target)
                r |= set(o, "target", json_string(row->target));
        if (row->n_xattrs > 0)
                r |= set(o, "xattrs", json_xattrs(row));
        return r < 0 ? json_decref(o), NULL : o;
}

json_t *json_entry(const struct entry_row *row) {
        json_t *o = json_object();
        int r;

        if (!o)
                return NULL;
        r = set(o, "entry_id", json_integer((json_int_t)row->entry_id)) | set(o, "parent", json_hex(row->parent.b, ID_BYTES)) |
            set(o, "node", json_hex(row->node.b, ID_BYTES)) | set(o, "name", json_stringn(row->name, row->name_bytes)) |
            set(o, "placement", json_hex(row->placement.b, ID_BYTES)) | set(o, "seq", json_integer((json_int_t)row->seq));
        return r < 0 ? json_decref(o), NULL : o;
}

json_t *json_cursor(const struct cursor *cursor) {
        json_t *o = json_object();
        int r;

        if (!o)
                return NULL;
        r = set(o, "epoch", json_hex(cursor->epoch.b, ID_BYTES)) | set(o, "seq", json_integer((json_int_t)cursor->seq)) |
            set(o, "mark", json_hex(cursor->mark, sizeof cursor->mark));
        return r < 0 ? json_decref(o), NULL : o;
}

json_t *json_version(const struct meta_version *v) {
        json_t *o = json_object();
        int r;

        if (!o)
                return NULL;
        r = set(o, "version", json_hex(v->version.b, ID_BYTES)) | set(o, "size", json_integer((json_int_t)v->content.size)) |
            set(o, "root", json_hex(v->content.root.b, DIGEST_BYTES)) | set(o, "mtime_ns", json_integer(v->mtime_ns)) |
            set(o, "seq", json_integer((json_int_t)v->seq)) | set(o, "time_ns", json_integer(v->time_ns)) | set(o, "latest", json_boolean(v->latest)) |
            set(o, "actor", v->actor ? json_string(v->actor) : json_null()) | set(o, "device", v->device ? json_string(v->device) : json_null());
        return r < 0 ? json_decref(o), NULL : o;
}
