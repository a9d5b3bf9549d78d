/* SPDX-License-Identifier: Apache-2.0 */
/* api_health.c: is the process there (health), can it do its work (ready), what has it done (metrics, Prometheus text format 0.0.4).
 *
 * ready makes one read and one writing transaction and asks the store for an object that cannot exist: a full or read-only disk shows here, before a user
 * meets it. Metrics need a token: counts tell about people. All are totals of this process but the gauges, which the database counts. */
#include "api_call.h"

#include <inttypes.h>
#include <string.h>

int api_health(struct call *c) {
        return call_answer_json(c, 200, json_pack("{s:s, s:s}", "status", "ok", "version", TARN_VERSION));
}

int api_ready(struct call *c) {
        uint64_t bytes;
        int r = meta_ready(c->s->meta);

        if (r < 0)
                return call_fail(c, "UNAVAILABLE", "the database does not answer: %s", err_name(r));
        r = c->s->store->stat(c->s->store, "00000000000000000000000000000000", &bytes);
        if (r < 0 && r != -ENOENT)
                return call_fail(c, "UNAVAILABLE", "the object store does not answer: %s", err_name(r));
        return call_answer_json(c, 200, json_pack("{s:s}", "status", "ready"));
}

static int metric(struct buf *b, const char *name, const char *type, const char *help, uint64_t value) {
        return buf_printf(b, "# HELP tarn_%s %s\n# TYPE tarn_%s %s\ntarn_%s %" PRIu64 "\n", name, help, name, type, name, value);
}

static int metric_label(struct buf *b, const char *name, const char *label, const char *value, uint64_t n) {
        return buf_printf(b, "tarn_%s{%s=\"%s\"} %" PRIu64 "\n", name, label, value, n);
}

static uint64_t parked(struct service *s) {
        uint64_t n = 0;

        LOCK_SCOPE(&s->waiters_lock);
        for (const struct service_waiter *w = s->waiters; w; w = w->next)
                n++;
        return n;
}

int api_metrics(struct call *c) {
        static const char *const classes[] = {"control", "metadata", "events", "upload", "download"};
        static const char *const answers[] = {"other", "1xx", "2xx", "3xx", "4xx", "5xx"};
        struct service *s = c->s;
        struct buf *b = &c->ans->body;
        struct leases_count locks;
        struct meta_stats st;
        int r = meta_stats(s->meta, &st);

        if (r < 0)
                return r;
        leases_count(s->leases, &locks);
        const struct { const char *name, *type, *help; uint64_t value; } list[] = {
                {"commit_operations_total", "counter", "operations that came in batches", atomic_load(&s->stats.commits_ops)},
                {"commit_transactions_total", "counter", "writing transactions of the database", st.transactions},
                {"commit_steps_total", "counter", "steps in them", st.steps},
                {"commit_rollbacks_total", "counter", "groups that were rolled back and tried one by one", st.rollbacks},
                {"commit_largest_group", "gauge", "most steps in one transaction", st.largest_group},
                {"upload_body_bytes_total", "counter", "bytes of whole files put by path", atomic_load(&s->stats.body_bytes_received)},
                {"store_puts_total", "counter", "objects written", atomic_load(&s->store_counts.puts)},
                {"store_put_bytes_total", "counter", "bytes written", atomic_load(&s->store_counts.put_bytes)},
                {"store_gets_total", "counter", "ranges read", atomic_load(&s->store_counts.gets)},
                {"store_get_bytes_total", "counter", "bytes read", atomic_load(&s->store_counts.get_bytes)},
                {"store_errors_total", "counter", "calls that failed", atomic_load(&s->store_counts.errors)},
                {"damaged_blocks_total", "counter", "blocks whose bytes did not match their hash", atomic_load(&s->stats.corrupt_blocks)},
                {"blocks_deduplicated_total", "counter", "blocks put by path that were here already", counter_get(s->counters, blocks_deduplicated)},
                {"polls_parked", "gauge", "long polls that wait", parked(s)},
                {"leases", "gauge", "clients that may hold locks", locks.leases},
                {"locks", "gauge", "ranges that are locked", locks.locks},
                {"lock_waits", "gauge", "requests that wait for a lock", locks.waits},
                {"users", "gauge", "accounts", st.users},
                {"workspaces", "gauge", "workspaces", st.workspaces},
                {"nodes", "gauge", "live nodes", st.nodes},
                {"events", "gauge", "events kept", st.events},
                {"operations", "gauge", "operation ids kept", st.operations},
                {"blocks", "gauge", "blocks mapped", st.blocks},
                {"block_bytes", "gauge", "their bytes expanded", st.block_bytes},
                {"stored_bytes", "gauge", "their bytes as stored", st.stored_bytes},
                {"objects", "gauge", "objects mapped", st.objects},
                {"claims", "gauge", "upload claims", st.claims},
        };
        r = buf_add_str(b, "# HELP tarn_requests_total requests by class\n# TYPE tarn_requests_total counter\n");
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(classes); i++)
                r = metric_label(b, "requests_total", "class", classes[i], atomic_load(&s->stats.requests[i]));
        if (r >= 0)
                r = buf_add_str(b, "# HELP tarn_answers_total answers by status\n# TYPE tarn_answers_total counter\n");
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(answers); i++)
                r = metric_label(b, "answers_total", "status", answers[i], atomic_load(&s->stats.answers[i]));
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(list); i++)
                r = metric(b, list[i].name, list[i].type, list[i].help, list[i].value);
        if (r < 0)
                return r;
        c->ans->content_type = "text/plain; version=0.0.4";
        c->ans->status = 200;
        return 0;
}
