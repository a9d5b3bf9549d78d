/* SPDX-License-Identifier: Apache-2.0 */
/* url.c: the addresses that people type: "https://host[:port]" for login, "https://host[:port]/workspace" for a mount. libcurl's own parser reads
 * them, so that what we accept is what will be dialled. Refused with one line that says what to do: another scheme, a password inside
 * (it would end up in shell histories and /proc/mounts), a query or fragment, a path with more than one part. */
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#include "api/client.h"

struct url_parts { char *scheme, *host, *port, *path; };

static void url_parts_free(struct url_parts *p) {
        curl_free(p->scheme);
        curl_free(p->host);
        curl_free(p->port);
        curl_free(p->path);
}

static void cleanup_curlu_p(CURLU **u) {
        curl_url_cleanup(*u);
}

/* 0, -ENOMEM or -EINVAL with *ret_why. */
static int parse(const char *url, struct url_parts *p, const char **ret_why) {
        _cleanup_(cleanup_curlu_p) CURLU *u = curl_url();
        char *extra = NULL;
        if (!u)
                return -ENOMEM;
        if (!strstr(url, "://")) {
                *ret_why = "the URL must begin with https:// or http://";
                return -EINVAL;
        }
        if (curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK) {
                *ret_why = "that is not a URL: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        if (curl_url_get(u, CURLUPART_SCHEME, &p->scheme, 0) != CURLUE_OK || (strcmp(p->scheme, "https") != 0 && strcmp(p->scheme, "http") != 0)) {
                *ret_why = "the URL must begin with https:// or http://";
                return -EINVAL;
        }
        if (curl_url_get(u, CURLUPART_USER, &extra, 0) == CURLUE_OK || curl_url_get(u, CURLUPART_PASSWORD, &extra, 0) == CURLUE_OK) {
                curl_free(extra);
                *ret_why = "leave user and password out of the URL: sign in with `tarn login URL --user NAME`";
                return -EINVAL;
        }
        if (curl_url_get(u, CURLUPART_QUERY, &extra, 0) == CURLUE_OK || curl_url_get(u, CURLUPART_FRAGMENT, &extra, 0) == CURLUE_OK) {
                curl_free(extra);
                *ret_why = "the URL has a query or fragment: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        if (curl_url_get(u, CURLUPART_HOST, &p->host, 0) != CURLUE_OK || p->host[0] == 0) {
                *ret_why = "the URL names no host: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        if (curl_url_get(u, CURLUPART_PORT, &p->port, 0) != CURLUE_OK)
                p->port = NULL; /* the scheme's own */
        if (curl_url_get(u, CURLUPART_PATH, &p->path, CURLU_URLDECODE) != CURLUE_OK) {
                *ret_why = "the URL's path is not readable: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        return 0;
}

static char *base_of(const struct url_parts *p) {
        char *s = NULL;
        if (asprintf(&s, "%s://%s%s%s", p->scheme, p->host, p->port ? ":" : "", p->port ? p->port : "") < 0)
                return NULL;
        return s;
}

int url_split(const char *url, char **ret_base, char **ret_workspace, const char **ret_why) {
        _cleanup_(url_parts_free) struct url_parts p = { 0 };
        int r = parse(url, &p, ret_why);
        if (r < 0)
                return r;
        const char *name = p.path + (p.path[0] == '/');
        size_t n = strlen(name);
        while (n > 0 && name[n - 1] == '/')
                n--;
        if (n == 0) {
                *ret_why = "the URL names no workspace: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        if (memchr(name, '/', n)) {
                *ret_why = "one workspace is one name: expected https://HOST[:PORT]/WORKSPACE";
                return -EINVAL;
        }
        _cleanup_free_ char *base = base_of(&p);
        char *workspace = strndup(name, n);
        if (!base || !workspace) {
                free(workspace);
                return -ENOMEM;
        }
        *ret_base = steal_ptr(base);
        *ret_workspace = workspace;
        return 0;
}

int url_base(const char *url, char **ret_base, const char **ret_why) {
        _cleanup_(url_parts_free) struct url_parts p = { 0 };
        int r = parse(url, &p, ret_why);
        if (r < 0)
                return r;
        char *base = base_of(&p);
        if (!base)
                return -ENOMEM;
        *ret_base = base;
        return 0;
}

int url_escape(const char *s, struct buf *b) {
        static const char digits[] = "0123456789ABCDEF";
        for (; *s; s++) {
                uint8_t c = (uint8_t)*s;
                bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("-._~", c));
                const char escaped[3] = { '%', digits[c >> 4], digits[c & 15] };
                int r = plain ? buf_add(b, &c, 1) : buf_add(b, escaped, sizeof escaped);
                if (r < 0)
                        return r;
        }
        return 0;
}
