/* SPDX-License-Identifier: Apache-2.0 */
/* api_auth.c: logging in, renewing, logging out, and the list of devices.
 *
 * A login makes a device with an access token (an hour) and a refresh token (90 days from its last use). Tokens are random, shown once and stored
 * hashed; revoking the device kills both at once. A wrong name and a wrong password give the same answer after the same time.
 *
 * A password check takes 60 ms and 64 MiB: at most LOGINS_AT_ONCE run, more are told to come back (429), so that guessing cannot
 * take the server's memory. Passwords and tokens never reach the log. */
#include "api_call.h"

#include <string.h>

#include "base/log.h"

static int answer_tokens(struct call *c, const struct meta_tokens *t, const char *user) {
        json_t *j = json_pack("{s:s, s:I, s:s, s:o}", "token", t->access, "expires_in", (json_int_t)t->access_expires_s, "refresh_token", t->refresh,
                              "device_id", json_hex(t->device.b, ID_BYTES));

        if (j && user && json_object_set_new(j, "user", json_string(user)) < 0)
                j = (json_decref(j), NULL);
        return call_answer_json(c, 200, j);
}

int api_login(struct call *c) {
        _cleanup_json_ json_t *body = NULL;
        const char *user, *password, *device = "unnamed";
        struct meta_tokens t;
        int r;

        if (call_json(c, &body) < 0 || json_get_str(body, "user", &user) < 0 || json_get_str(body, "password", &password) < 0)
                return call_fail(c, "INVALID", "the body must be {\"user\": ..., \"password\": ..., \"device\": ...}");
        r = json_get_str(body, "device", &device);
        if ((r < 0 && r != -ENOENT) || !*device || strlen(device) > META_NAME_MAX)
                return call_fail(c, "INVALID", "device must be a name of 1 to %u bytes", META_NAME_MAX);
        if (strlen(user) > META_NAME_MAX || strlen(password) > 1024)
                return call_fail(c, "UNAUTHORIZED", "wrong user name or password");
        if (atomic_fetch_add(&c->s->logins, 1) >= LOGINS_AT_ONCE) {
                (void)atomic_fetch_sub(&c->s->logins, 1);
                return call_fail(c, "RATE_LIMITED", "too many logins at the same moment; try again");
        }
        r = meta_login(c->s->meta, user, password, device, &t);
        (void)atomic_fetch_sub(&c->s->logins, 1);
        if (r == -EKEYREJECTED) {
                log_info("request=%s event=login_refused peer=%s", c->ans->request_id, c->req->peer ? c->req->peer : "-");
                return call_fail(c, "UNAUTHORIZED", "wrong user name or password");
        }
        if (r == -EINVAL)
                return call_fail(c, "INVALID", "the name of the device is not allowed");
        if (r < 0)
                return r;
        return answer_tokens(c, &t, user);
}

int api_refresh(struct call *c) {
        _cleanup_json_ json_t *body = NULL;
        const char *token;
        struct meta_tokens t;
        int r;

        if (call_json(c, &body) < 0 || json_get_str(body, "refresh_token", &token) < 0)
                return call_fail(c, "INVALID", "the body must be {\"refresh_token\": ...}");
        r = meta_refresh(c->s->meta, token, &t);
        if (r == -EKEYREJECTED)
                return call_fail(c, "UNAUTHORIZED", "this sign-in has expired or was revoked; log in again");
        if (r < 0)
                return r;
        return answer_tokens(c, &t, NULL);
}

int api_logout(struct call *c) {
        int r = meta_device_revoke(c->s->meta, c->who.account, &c->who.device);

        if (r < 0 && r != -ENOENT)
                return r;
        return call_answer_empty(c, 204);
}

int api_devices(struct call *c) {
        _cleanup_json_ json_t *list = json_array();
        struct meta_device *devices;
        size_t n;
        int r = meta_devices(c->s->meta, c->who.account, c->arena, &devices, &n);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                const struct meta_device *d = &devices[i];
                json_t *j = json_pack("{s:o, s:s, s:b, s:I, s:I, s:b}", "id", json_hex(d->id.b, ID_BYTES), "name", d->name, "script", d->script, "created_ns",
                                      (json_int_t)d->created_ns, "seen_ns", (json_int_t)d->seen_ns, "current", id_equal(&d->id, &c->who.device));

                if (json_array_append_new(list, j) < 0)
                        return -ENOMEM;
        }
        return call_answer_json(c, 200, json_pack("{s:O}", "devices", list));
}

int api_device_revoke(struct call *c) {
        struct id id;
        int r;

        if (hex_decode(c->param[0], id.b, sizeof id.b) < 0)
                return call_fail(c, "INVALID", "a device is named by 32 hex digits");
        r = meta_device_revoke(c->s->meta, c->who.account, &id);
        if (r == -ENOENT)
                return call_fail(c, "NOT_FOUND", "you have no such device");
        if (r < 0)
                return r;
        return call_answer_empty(c, 204);
}
