/* SPDX-License-Identifier: Apache-2.0 */
/* check_stage.c: the logs of stages read without becoming stages: what recovery (stage_recover.c) would believe, and what it would call damage. It changes nothing, opens no data file for
 * writing and may look at logs that a daemon is writing (check.h says what the verdicts are worth then).
 *
 * Records of all logs are sorted by (generation, copy, seq). The highest copy with a header counts; what a CUT made void is left out. Then:
 *
 *   same boot      every record up to the last must be there and verify; only the very last may be torn
 *   another boot   own log: the records that its last SYNC vouches for; shared log: no gap before the segment's sync mark
 *   own log        the file that its header names must be in lent/ and as long as the extents say; if asked for, each of its pages must have its sum (stage_sums.c), as far as recovery
 *                  would compare them: after another boot only those of a stage that was sealed before its last SYNC */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "cache/check.h"
#include "stage_core.h"

#define RECORDS_MAX (16u << 20)

/* Of a copy in a log of its own also where the sums lie. */
struct head { struct stage_header h; uint32_t number; struct id salt; };
struct rec {
        uint64_t gen, seq, pos, order, off, bytes;
        uint16_t copy;
        uint8_t kind;
        bool own, bad, late /* behind the sync mark */, is_void;
        struct head *head;
};
struct reading {
        const char *dir;
        bool new_boot, bytes, own;
        uint64_t order, synced;
        uint32_t number; struct id salt; /* of the log under way */
        struct rec *v; size_t n, room, first; /* first: of the log under way */
        struct check_stages *out;
        size_t out_room;
};

static int take(void *arg, const struct slog_entry *e, uint64_t pos, const uint8_t *payload) {
        struct reading *rd = arg;
        if (e->gen == 0) {
                if (e->kind == LOG_SYNC)
                        rd->synced = MAX(rd->synced, e->off);
                return 0;
        }
        if (rd->n == rd->room) {
                size_t room = rd->room ? rd->room * 2 : 1024;
                struct rec *v = room <= RECORDS_MAX ? reallocarray(rd->v, room, sizeof *v) : NULL;
                if (!v)
                        return -ENOMEM;
                rd->v = v;
                rd->room = room;
        }
        struct rec *r = &rd->v[rd->n];
        *r = (struct rec) { .gen = e->gen, .seq = e->seq, .pos = pos, .order = rd->order, .off = e->off, .bytes = e->bytes, .copy = e->copy, .kind = (uint8_t)e->kind, .own = rd->own,
                            .bad = e->payload_bytes && !payload };
        if (e->kind == LOG_HEADER && payload) {
                r->head = malloc(sizeof *r->head);
                if (!r->head)
                        return -ENOMEM;
                r->head->number = rd->number;
                r->head->salt = rd->salt;
                if (stage_header_decode(payload, e->payload_bytes, &r->head->h) < 0 || r->head->h.gen != e->gen) {
                        free(steal_ptr(r->head));
                        r->bad = true;
                }
        }
        rd->n++;
        return 0;
}

static int by_place(const void *a, const void *b) {
        const struct rec *x = a, *y = b;
#define LESS(f) if (x->f != y->f) return x->f < y->f ? -1 : 1
        LESS(gen);
        LESS(copy);
        LESS(seq);
        LESS(order);
        LESS(pos);
#undef LESS
        return 0;
}

static int read_log(struct reading *rd, int dir_fd, const char *name) {
        _cleanup_close_ int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
        uint8_t first[LOG_UNIT];
        struct slog_file f;
        if (fd < 0)
                return errno == ENOENT ? 0 : -errno; /* a daemon has taken it away meanwhile */
        ssize_t got = pread_some(fd, first, sizeof first, 0);
        int r = got < 0 ? (int)got : got < LOG_UNIT ? -ENODATA : slog_file_decode(first, &f);
        rd->out->logs++;
        if (r == -EBADMSG) {
                rd->out->logs_bad++;
                (void)snprintf(rd->out->bad_log, sizeof rd->out->bad_log, "%.31s", name);
        }
        if (r < 0)
                return r == -EBADMSG || r == -ENODATA ? 0 : r;
        rd->own = f.kind == LOG_OWN;
        rd->order = f.order;
        rd->salt = f.salt;
        rd->number = (uint32_t)strtoul(name + 4, NULL, 10);
        rd->synced = 0;
        rd->first = rd->n;
        uint64_t end;
        struct slog_scan scan = { take, rd };
        r = slog_scan(fd, &f, &scan, &end);
        for (size_t i = rd->first; i < rd->n; i++)
                rd->v[i].late = rd->v[i].pos >= rd->synced;
        return r;
}

static int damaged(struct check_stage *s, const char *why) {
        s->damaged = true;
        (void)snprintf(s->why, sizeof s->why, "%s", why);
        return 0;
}

static size_t without_void(struct rec *v, size_t n) {
        size_t kept = 0;
        for (size_t k = 0; k < n; k++)
                for (size_t i = 0; v[k].kind == LOG_CUT && i < n; i++)
                        v[i].is_void |= i != k && v[i].seq >= v[k].seq && (v[i].order < v[k].order || (v[i].order == v[k].order && v[i].pos < v[k].pos));
        for (size_t i = 0; i < n; i++)
                if (!v[i].is_void) {
                        struct rec x = v[i];
                        v[i].head = NULL; /* moves, so that it is freed once */
                        v[kept++] = x;
                } else {
                        free(steal_ptr(v[i].head));
                }
        for (size_t i = kept; i < n; i++)
                v[i].head = NULL;
        return kept;
}

static void judge_data_file(struct reading *rd, struct check_stage *s, const struct stage_header *h, uint64_t end) {
        char path[PATH_MAX];
        struct stat st;
        if ((size_t)snprintf(path, sizeof path, "%s/lent/%s", rd->dir, h->data_name) >= sizeof path)
                return;
        if (stat(path, &st) < 0)
                (void)damaged(s, "the file with its bytes is gone");
        else if ((uint64_t)st.st_size < end)
                (void)damaged(s, "the file with its bytes is too short");
        for (size_t i = 0; i < rd->out->n_orphans; i++)
                if (strcmp(rd->out->orphan[i].name, h->data_name) == 0)
                        rd->out->orphan[i].name[0] = 0; /* not one */
}

/* The file's pages that its records speak of: those are in the map. */
static int replay(const struct rec *v, size_t n, struct extents *map) {
        for (size_t i = 0; i < n; i++) {
                int r = extents_reserve(map);
                if (r < 0)
                        return r;
                if (v[i].kind == LOG_DATA && v[i].bytes)
                        extents_put(map, &(struct extent) { .off = v[i].off, .bytes = v[i].bytes, .kind = EXTENT_DATA, .at = v[i].off });
                else if ((v[i].kind == LOG_ZERO || v[i].kind == LOG_SENT) && v[i].bytes)
                        extents_cut(map, v[i].off, v[i].bytes);
                else if (v[i].kind == LOG_SIZE)
                        extents_cut(map, v[i].bytes, UINT64_MAX - v[i].bytes);
        }
        return 0;
}

/* Records up to n count. digest: 0, or what the last of them vouches for. */
static int judge_bytes(struct reading *rd, struct check_stage *s, const struct rec *v, size_t n, uint64_t digest) {
        const struct head *h = v[0].head;
        char data[PATH_MAX], sums[PATH_MAX], name[STAGE_DATA_NAME];
        struct extents map = { 0 };
        uint64_t pages = 0, now = 0;
        sums_name(h->number, name);
        if ((size_t)snprintf(data, sizeof data, "%s/lent/%s", rd->dir, h->h.data_name) >= sizeof data || (size_t)snprintf(sums, sizeof sums, "%s/stages/%s", rd->dir, name) >= sizeof sums)
                return 0;
        _cleanup_close_ int fd = open(data, O_RDONLY | O_CLOEXEC), sums_fd = open(sums, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        bool counts = !rd->new_boot;
        int r = replay(v, n, &map);
        if (r == 0 && rd->new_boot && s->sealed && digest && sums_fd >= 0) {
                r = sums_digest(&map, sums_fd, &now);
                counts = now == digest;
        }
        if (r == 0 && counts && sums_fd < 0 && map.n)
                (void)damaged(s, "the file with the sums of its bytes is gone");
        else if (r == 0 && counts && sums_fd >= 0)
                r = sums_check(&map, fd, sums_fd, &h->salt, s->gen, n, &s->pages_bad, &pages);
        extents_free(&map);
        if (r == 0 && s->pages_bad) {
                s->damaged = true;
                (void)snprintf(s->why, sizeof s->why, "%" PRIu64 " of %" PRIu64 " pages of its bytes differ from their sums", s->pages_bad, pages);
        }
        return r;
}

/* 1: this copy counts; 0: it has no header. */
static int judge(struct reading *rd, struct rec *v, size_t n, struct check_stage *s) {
        n = without_void(v, n);
        if (n == 0 || v[0].kind != LOG_HEADER || v[0].seq != 0)
                return 0;
        if (v[0].bad || !v[0].head)
                return damaged(s, "its header does not verify"), 1;
        const struct stage_header *h = &v[0].head->h;
        s->ino = h->ino;
        s->own = v[0].own;
        (void)snprintf(s->name, sizeof s->name, "%s", h->name);
        size_t good = 0, need = n, counts;
        uint64_t digest = 0;
        while (good < n && v[good].seq == good && !v[good].bad)
                good++;
        counts = good;
        if (rd->new_boot && s->own) {
                need = counts = 0;
                for (size_t i = 0; i < n; i++)
                        if (v[i].kind == LOG_SYNC) { /* records with a lower seq are on the platter */
                                need = MAX(need, (size_t)MIN(v[i].off, (uint64_t)n));
                                if (i < good && v[i].off >= counts) {
                                        counts = (size_t)MIN(v[i].off, (uint64_t)i);
                                        digest = v[i].bytes;
                                }
                        }
        } else if (rd->new_boot) {
                need = good;
                for (size_t i = good; i < n; i++)
                        if (!v[i].late)
                                need = n;
        } else if (good == n - 1 && v[good].bad && v[good].seq == good) {
                need = good;
        }
        uint64_t end = 0;
        for (size_t i = 0; i < good; i++) {
                if (v[i].kind == LOG_DATA) {
                        s->bytes += v[i].bytes;
                        end = MAX(end, v[i].off + v[i].bytes);
                }
                s->sealed |= v[i].kind == LOG_SEAL;
                s->done |= v[i].kind == LOG_DONE;
        }
        if (good < need) {
                char why[80];
                (void)snprintf(why, sizeof why, "record %zu of %zu of its log does not verify", good + 1, n);
                return damaged(s, why), 1;
        }
        if (s->own && !s->done)
                judge_data_file(rd, s, h, end);
        if (s->own && !s->done && !s->damaged && rd->bytes) {
                int r = judge_bytes(rd, s, v, counts, digest);
                if (r < 0)
                        return r;
        }
        return 1;
}

/* All records of one generation. */
static int judge_best(struct reading *rd, struct rec *v, size_t n) {
        struct check_stages *out = rd->out;
        struct check_stage s = { .gen = v[0].gen };
        bool done = false;
        int counts = 0;
        for (; n > 0 && v[n - 1].copy == LOG_COPY_ALL; n--)
                done |= v[n - 1].kind == LOG_DONE;
        while (n > 0 && !counts) {
                size_t a = n - 1;
                while (a > 0 && v[a - 1].copy == v[n - 1].copy)
                        a--;
                counts = judge(rd, v + a, n - a, &s);
                n = a;
        }
        if (counts < 0)
                return counts;
        s.done |= done;
        if (!counts && !s.done) /* records, and nobody says whose */
                (void)damaged(&s, "its header is gone");
        s.damaged &= !s.done;
        if (out->n == rd->out_room) {
                size_t room = rd->out_room ? rd->out_room * 2 : 64;
                struct check_stage *p = reallocarray(out->v, room, sizeof *p);
                if (!p)
                        return -ENOMEM;
                out->v = p;
                rd->out_room = room;
        }
        out->v[out->n++] = s;
        return 0;
}

static int list_lent(struct reading *rd) {
        char path[PATH_MAX];
        size_t room = 0;
        if ((size_t)snprintf(path, sizeof path, "%s/lent", rd->dir) >= sizeof path)
                return -ENAMETOOLONG;
        DIR *d = opendir(path);
        if (!d)
                return errno == ENOENT ? 0 : -errno;
        int r = 0;
        for (struct dirent *e; r == 0 && (e = readdir(d));) {
                struct stat st;
                if (e->d_name[0] == '.' || strlen(e->d_name) >= STAGE_DATA_NAME || fstatat(dirfd(d), e->d_name, &st, 0) < 0 || st.st_blocks == 0) /* an empty one goes back to the pool */
                        continue;
                if (rd->out->n_orphans == room) {
                        room = room ? room * 2 : 64;
                        void *p = reallocarray(rd->out->orphan, room, sizeof *rd->out->orphan);
                        if (!p)
                                r = -ENOMEM;
                        else
                                rd->out->orphan = p;
                }
                if (r == 0)
                        (void)snprintf(rd->out->orphan[rd->out->n_orphans++].name, 32, "%.31s", e->d_name);
        }
        (void)closedir(d);
        return r;
}

static bool other_boot(const char *dir) {
        char now[37];
        _cleanup_free_ char *path = path_join(dir, "boot");
        _cleanup_buf_ struct buf b = BUF_INIT(64);
        return path && boot_id(now) == 0 && (file_load(path, 64, &b) < 0 || b.bytes != 36 || memcmp(b.data, now, 36) != 0);
}

int check_stages_read(const char *dir, bool bytes, struct check_stages *ret) {
        *ret = (struct check_stages) { 0 };
        struct reading rd = { .dir = dir, .new_boot = other_boot(dir), .bytes = bytes, .out = ret };
        _cleanup_free_ char *path = path_join(dir, "stages");
        if (!path)
                return -ENOMEM;
        int r = list_lent(&rd);
        DIR *d = r == 0 ? opendir(path) : NULL;
        if (!d && r == 0)
                r = errno == ENOENT ? 0 : -errno;
        for (struct dirent *e; d && r == 0 && (e = readdir(d));)
                if (strncmp(e->d_name, "log-", 4) == 0)
                        r = read_log(&rd, dirfd(d), e->d_name);
        if (d)
                (void)closedir(d);
        if (rd.n)
                qsort(rd.v, rd.n, sizeof *rd.v, by_place);
        for (size_t i = 0, k; r == 0 && i < rd.n; i = k) {
                for (k = i; k < rd.n && rd.v[k].gen == rd.v[i].gen; k++)
                        ;
                r = judge_best(&rd, rd.v + i, k - i);
        }
        for (size_t i = 0; i < rd.n; i++)
                free(rd.v[i].head);
        free(rd.v);
        size_t kept = 0;
        for (size_t i = 0; i < ret->n_orphans; i++)
                if (ret->orphan[i].name[0])
                        ret->orphan[kept++] = ret->orphan[i];
        ret->n_orphans = kept;
        if (r < 0)
                check_stages_free(ret);
        return r;
}

void check_stages_free(struct check_stages *s) {
        free(s->v);
        free(s->orphan);
        *s = (struct check_stages) { 0 };
}
