/* SPDX-License-Identifier: Apache-2.0 */
/* maintain.c: what fsck, scrub, gc and backup share: their words, that only one of them runs, that it can be stopped and slowed down.
 *
 * One at a time: gc deletes what backup copies and fsck counts, so the service has one slot (job_lock); a second command is refused, not queued. The gc that a server runs by
 * itself (upkeep.c) gives the slot up at its next step when a command wants it. Commits and reads go on meanwhile; how each of the four bears that is in its own file.
 *
 * A report is lines "name: number" for people, or one JSON object with the same names. */
#include "maintain.h"

#include <errno.h>
#include <string.h>

#include "base/args.h"
#include "base/log.h"

#define DAY_S 86400u

static const struct { const char *word; int (*run)(struct maintain *m); } commands[] = {
        {"fsck", maintain_fsck}, {"scrub", maintain_scrub}, {"gc", maintain_gc}, {"backup", maintain_backup},
};

bool maintain_knows(const char *word) {
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (strcmp(word, commands[i].word) == 0)
                        return true;
        return false;
}

void maintain_stop(struct service *s) {
        LOCK_SCOPE(&s->job_lock);
        s->job_stop = true;
        cond_broadcast(&s->job_changed);
}

bool maintain_stopped(struct maintain *m) {
        LOCK_SCOPE(&m->s->job_lock);
        return m->s->job_stop || (m->s->job_yields && m->s->job_wanted);
}

int maintain_pace(struct maintain *m, uint64_t bytes) {
        struct service *s = m->s;
        int64_t now = clock_mono_ms(clock_system());

        if (m->rate_bytes > 0) {
                m->paced_ms = MAX(m->paced_ms, now - 100) + (int64_t)(bytes * 1000 / m->rate_bytes);
                LOCK_SCOPE(&s->job_lock);
                while (!s->job_stop && cond_wait_until(&s->job_changed, &s->job_lock, m->paced_ms) != -ETIMEDOUT)
                        ;
        }
        return maintain_stopped(m) ? -ECANCELED : 0;
}

int maintain_say(struct maintain *m, const char *name, uint64_t value) {
        if (m->json)
                return json_object_set_new(m->report, name, json_integer((json_int_t)value)) < 0 ? -ENOMEM : 0;
        return buf_printf(m->out, "%s: %llu\n", name, (unsigned long long)value);
}

static int percent(const char *value, unsigned *ret) {
        uint64_t v;
        int r = parse_bytes(value, &v);

        if (r < 0 || v < 1 || v > 99)
                return r < 0 ? r : -EINVAL;
        *ret = (unsigned)v;
        return 0;
}

static int options(struct maintain *m, const char *const *words, size_t n) {
        for (size_t i = 1; i < n; i++) {
                const char *w = words[i], *value = i + 1 < n ? words[i + 1] : NULL;
                int r = 0;

                if (strcmp(w, "--json") == 0) {
                        m->json = true;
                        continue;
                }
                if (strcmp(w, "--repair") == 0) {
                        m->repair = true;
                        continue;
                }
                if (strcmp(w, "--dry-run") == 0) {
                        m->dry_run = true;
                        continue;
                }
                if (strcmp(w, "--compact") == 0) {
                        m->compact = true;
                        continue;
                }
                if (!value)
                        return -EINVAL;
                if (strcmp(w, "--to") == 0)
                        m->to = value;
                else if (strcmp(w, "--file") == 0)
                        m->file = value;
                else if (strcmp(w, "--min-age") == 0)
                        r = parse_duration_s(value, &m->min_age_s);
                else if (strcmp(w, "--trash-age") == 0)
                        r = parse_duration_s(value, &m->trash_age_s);
                else if (strcmp(w, "--keep-events") == 0)
                        r = parse_bytes(value, &m->keep_events);
                else if (strcmp(w, "--compact-below") == 0)
                        r = percent(value, &m->compact_below);
                else if (strcmp(w, "--rate") == 0)
                        r = parse_bytes(value, &m->rate_bytes);
                else
                        r = -EINVAL;
                if (r < 0)
                        return r;
                i++;
        }
        return 0;
}

/* The slot. Whoever runs by himself (yields) makes room for a command that somebody gave, and is not started beside one. */
static int slot_take(struct service *s, const char *word, bool yields, struct buf *ret_text) {
        LOCK_SCOPE(&s->job_lock);
        while (s->job && s->job_yields && !yields && !s->job_stop) {
                s->job_wanted = true;
                cond_wait(&s->job_changed, &s->job_lock);
        }
        if (s->job) {
                int r = buf_printf(ret_text, "%s is under way; only one of fsck, scrub, gc and backup runs at a time", s->job);

                return r < 0 ? r : -EBUSY;
        }
        s->job = word;
        s->job_yields = yields;
        s->job_wanted = false;
        return 0;
}

static void slot_give(struct service *s) {
        LOCK_SCOPE(&s->job_lock);
        s->job = NULL;
        cond_broadcast(&s->job_changed);
}

int maintain_run(struct service *s, const char *const *words, size_t n, bool yields, struct buf *ret_text) {
        struct maintain m = {.s = s, .min_age_s = DAY_S, .compact_below = 50, .out = ret_text, .paced_ms = clock_mono_ms(clock_system())};
        _cleanup_json_ json_t *report = json_object();
        int (*run)(struct maintain *m) = NULL;
        const char *word = NULL;
        int r;

        for (size_t i = 0; n > 0 && i < ARRAY_SIZE(commands); i++)
                if (strcmp(words[0], commands[i].word) == 0) {
                        word = commands[i].word;
                        run = commands[i].run;
                }
        r = run ? options(&m, words, n) : -EINVAL;
        if (r < 0)
                return buf_add_str(ret_text, "unknown option; see tarn-server --help") < 0 ? -ENOMEM : -EINVAL;
        if (!report)
                return -ENOMEM;
        m.report = report;
        r = slot_take(s, word, yields, ret_text);
        if (r < 0)
                return r;
        r = run(&m);
        slot_give(s);
        if (r == -ECANCELED) {
                buf_reset(ret_text);
                return buf_printf(ret_text, "%s was stopped before its end; run it again", word) < 0 ? -ENOMEM : r;
        }
        if (r < 0 && r != -EUCLEAN) {
                if (ret_text->bytes > 0 && r == -EBUSY)
                        return r;
                log_warn("event=%s error=%s", word, err_name(r));
                return buf_printf(ret_text, "%s failed: %s", word, strerror(-r)) < 0 ? -ENOMEM : r;
        }
        if (m.json) {
                buf_reset(ret_text);
                if (json_to_buf(report, ret_text) < 0)
                        return -ENOMEM;
        } else if (ret_text->bytes > 0 && ret_text->data[ret_text->bytes - 1] == '\n') {
                ret_text->bytes--;
        }
        return r;
}
