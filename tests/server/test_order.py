# SPDX-License-Identifier: Apache-2.0
"""The order of events: sixteen writers, live cursors, and a server that is killed under them; races that the transaction has to decide; the horizon; a snapshot that is cut.

Writers repeat what was not answered with the same operation ids. Readers poll from the beginning, each with its own cursor, and see every number once, in order, with
the same marks, and never an event whose row is not there.
"""
import hashlib
import json
import os
import random
import sqlite3
import struct
import subprocess
import threading
import time

import frames
import pytest
from support import SCALE, SERVER, Server, deadline, run, seed_of

WRITERS, READERS, BATCH = 16, 3, 64
HEAD = {"Content-Type": frames.TYPE}


def workspace(s, name="w"):
    return json.loads(s.call("GET", "/v1/workspaces/" + name)[2])


def fsck(s):
    done = run("fsck", "--json", data=s.data, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Client(threading.Thread):
    """A thread with a connection of its own that comes back after a crash."""

    def __init__(self, server):
        super().__init__()
        self.server, self.connection, self.error = server, None, None

    def run(self):
        try:
            self.work()
        except BaseException as e:  # shown by the test
            self.error = e

    def ask(self, method, path, body=None, headers=None, timeout=90):
        """The answer, however often the server dies meanwhile."""
        for _ in deadline(timeout):
            try:
                if self.connection is None:
                    self.connection = self.server.connection(30)
                self.connection.request(method, path, body=body, headers={"Authorization": "Bearer " + self.server.token, **(headers or {})})
                answer = self.connection.getresponse()
                got = answer.status, answer.read()
                if got[0] != 503:
                    return got
            except Exception:
                if self.connection:
                    self.connection.close()
                self.connection = None
        raise AssertionError(f"no answer to {method} {path}")


class Writer(Client):
    def __init__(self, server, number, batches):
        super().__init__(server)
        self.number, self.batches, self.acked, self.daemon = number, batches, {}, True

    def work(self):
        rng = random.Random(self.number)
        for b in range(self.batches):
            ops = [frames.create(f"{self.number}-{b}-{i}".encode(), data=rng.randbytes(rng.choice([0, 10, 300])) if i % 4 else None) for i in range(BATCH)]
            while ops:
                status, body = self.ask("POST", "/v1/workspaces/w/commit", b"".join(o[2] for o in ops), HEAD)
                assert status == 200, (status, body[:300])
                again = []
                for op, (id, code, seq) in zip(ops, frames.results(body)):
                    assert op[0] == id and code in (frames.OK, frames.BUSY), code
                    if code == frames.OK:
                        assert self.acked.setdefault(id, seq) == seq
                    else:
                        again.append(op)
                ops = again


class Reader(Client):
    def __init__(self, server, epoch, number):
        super().__init__(server)
        self.cursor, self.seen, self.goal, self.number, self.daemon = (epoch, 0, "0" * 16), [], None, number, True

    def work(self):
        checked = 0
        while self.goal is None or self.cursor[1] < self.goal:
            epoch, seq, mark = self.cursor
            status, body = self.ask("GET", f"/v1/events?cursor=w:{epoch}:{seq}:{mark}&wait=1&limit={[1000, 37, 333][self.number % 3]}")
            assert status == 200, (status, body[:300])
            upto, events = frames.events(body)
            for i, e in enumerate(events):
                assert e[0] == seq + 1 + i, f"after {seq} comes {e[0]} at {i}"  # none missed, none twice
            self.seen += events
            assert upto[0].hex() == epoch and upto[1] == (events[-1][0] if events else seq)
            if events:
                assert upto[2] == events[-1][1]
                self.cursor = (epoch, upto[1], upto[2].hex())
                if self.number == 0 and checked < 400:  # no event before its row
                    checked += 1
                    status, body = self.ask("GET", f"/v1/workspaces/w/nodes/{events[-1][3][-1].hex()}/versions")
                    assert status in (200, 400), (status, body[:200])  # 400: a directory has no versions


def test_order_of_events_under_kills():
    total = max(2000, int(50_000 * SCALE))
    kills = max(3, int(6 * SCALE))
    rng = random.Random(seed_of())
    with Server() as s:
        epoch = workspace(s)["epoch"]
        writers = [Writer(s, n, -(-total // (WRITERS * BATCH))) for n in range(WRITERS)]
        readers = [Reader(s, epoch, n) for n in range(READERS)]
        [t.start() for t in writers + readers]
        busy = 0
        for k in range(kills):
            goal = total * (k + rng.random()) / (kills + 1)
            for _ in deadline(240):
                if len(readers[0].seen) >= goal or not any(w.is_alive() for w in writers):
                    break
            busy += any(w.is_alive() for w in writers)
            s.kill()
            port = s.port
            s.options = ["--listen", f"127.0.0.1:{port}"]
            s.start()
        [w.join(300) for w in writers]
        assert not any(w.is_alive() for w in writers) and not [w.error for w in writers if w.error], [w.error for w in writers if w.error]
        seq = workspace(s)["seq"]
        for r in readers:
            r.goal = seq
        [r.join(120) for r in readers]
        assert not any(r.is_alive() for r in readers) and not [r.error for r in readers if r.error], [r.error for r in readers if r.error]
        acked = {op: n for w in writers for op, n in w.acked.items()}
        assert len(acked) == WRITERS * BATCH * writers[0].batches == seq
        for r in readers:
            assert [e[0] for e in r.seen] == list(range(1, seq + 1))
            assert [(e[1], e[2]) for e in r.seen] == [(e[1], e[2]) for e in readers[0].seen]
            assert {e[2]: e[0] for e in r.seen} == acked  # each operation once, where its answer said
        fsck(s)
        print(f"events {seq} kills {kills} ({busy} under writers) missed 0 twice 0")
        assert busy >= 0.8 * kills, "void: the writers were through"


# ---- races ----

def together(n, work):
    """n threads at the same moment; their results."""
    barrier, out = threading.Barrier(n), [None] * n

    def one(i):
        barrier.wait(30)
        try:
            out[i] = work(i)
        except Exception as e:
            out[i] = e

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    return out


def commit(s, *ops):
    status, _, body = s.call("POST", "/v1/workspaces/w/commit", body=b"".join(ops), headers=HEAD)
    assert status == 200, body
    return [code for _, code, _ in frames.results(body)]


def test_races_are_decided_once():
    with Server() as s:
        for k in range(int(15 * SCALE) or 1):
            # two directories each into the other
            (pa, a, fa), (pb, b, fb) = frames.create(b"a%d" % k), frames.create(b"b%d" % k)
            assert commit(s, fa, fb) == [0, 0]
            moves = [frames.rename(a, frames.ROOT, b"a%d" % k, pa, b, b"in")[1], frames.rename(b, frames.ROOT, b"b%d" % k, pb, a, b"in")[1]]
            codes = together(2, lambda i: commit(s, moves[i])[0])
            assert sorted(codes) == [frames.OK, frames.CYCLE], codes
            # sixteen files of one name
            codes = together(16, lambda i: commit(s, frames.create(b"name%d" % k, data=b"content %d" % i)[2])[0])
            assert sorted(codes) == [frames.OK] + [frames.EXISTS] * 15, codes
            # one directory goes while something comes into it
            pd, d, fd = frames.create(b"d%d" % k)
            commit(s, fd)
            codes = together(2, lambda i: commit(s, frames.unlink(d, frames.ROOT, b"d%d" % k, pd)[1] if i else frames.create(b"child", parent=d, data=b"x")[2])[0])
            assert sorted(codes) in ([frames.OK, frames.NOT_EMPTY], [frames.OK, 19]), codes
            # one operation sixteen times
            op = frames.create(b"same%d" % k, data=b"same")
            assert together(16, lambda i: commit(s, op[2])[0]) == [frames.OK] * 16
        s.call("POST", "/v1/workspaces", body=json.dumps({"name": "tiny", "quota_bytes": 1_000_000}))
        got = together(16, lambda i: s.call("PUT", s.file(f"f{i}", "tiny"), body=os.urandom(150_000))[0])
        assert sorted(got) == [201] * 6 + [507] * 10 and workspace(s, "tiny")["used_bytes"] == 900_000, got
        # a second server on the same directory
        second = subprocess.run([SERVER, "serve", "--data", s.data, "--listen", "127.0.0.1:0"], capture_output=True, timeout=30)
        assert second.returncode == 5 and b"in use" in second.stderr
        fsck(s)


# ---- the horizon, the snapshot ----

def test_horizon():
    with Server() as s:
        for i in range(40):
            s.put(f"f{i}", b"%d" % i)
        w = workspace(s)
        _, events = frames.events(s.call("GET", f"/v1/events?cursor=w:{w['epoch']}:0:{'0' * 16}")[2])
        poll = lambda e: s.call("GET", f"/v1/events?cursor=w:{w['epoch']}:{e[0]}:{e[1].hex()}&wait=0")
        assert poll(events[9])[0] == 200
        done = json.loads(run("gc", "--keep-events", "10", "--json", data=s.data).stdout)
        assert done["events_forgotten"] == 30
        status, _, body = poll(events[9])
        assert status == 410 and not {"predecessor", "fork_seq"} & set(json.loads(body))  # forgotten; nothing says that the lines part
        at = events[29]
        status, _, body = poll(at)
        assert status == 200 and [e[0] for e in frames.events(body)[1]] == list(range(31, 41))
        assert poll((at[0], b"\1" * 8))[0] == 410
        assert poll(events[39])[0] == 200
        s.put("more", b"x")
        assert [e[0] for e in frames.events(poll(events[39])[2])[1]] == [41]
        for i in range(0, 40, 7):
            assert s.get(f"f{i}")[2] == b"%d" % i
            assert len(json.loads(s.call("GET", f"/v1/workspaces/w/versions?path=f{i}")[2])["versions"]) == 1
        fsck(s)


def pages(s, what, limit, key, after=None, digest=None, stop=None):
    """Pages as frames, each verified: (rows, last key, last digest, end)."""
    rows, end = [], False
    while not end and stop != 0:
        query = f"limit={limit}" + (f"&after={after}" if after else "") + (f"&previous={digest.hex()}" if digest else "")
        status, _, body = s.call("GET", f"/v1/workspaces/w/snapshot/{what}?{query}")
        assert status == 200
        parts = list(frames.frames(body))
        assert parts[-1][0] == 3
        trailer = frames.parse(parts[-1][1])
        row_bytes = body[:len(body) - 5 - len(parts[-1][1])]
        assert frames.one(trailer, 7) == hashlib.sha256(row_bytes).digest() and frames.one(trailer, 2, 0) == len(parts) - 1
        assert frames.one(trailer, 8, b"") == (digest or b"")
        rows += [frames.parse(p) for _, p in parts[:-1]]
        digest, end = frames.one(trailer, 7), bool(frames.one(trailer, 1, 0))
        after = frames.one(trailer, 4, b"").hex() if key == "id" else frames.one(trailer, 6, 0)
        stop = None if stop is None else stop - 1
    return rows, after, digest, end


def test_a_cut_snapshot_is_resumed_while_everything_changes():
    with Server() as s:
        for i in range(300):
            commit(s, frames.create(b"n%d" % i, data=b"x%d" % i)[2])
        stop = threading.Event()

        def busy():
            i = 0
            while not stop.is_set():
                s.put(f"n{i % 300}", os.urandom(8))
                s.put(f"new{i}", b"y")
                s.call("DELETE", s.file(f"new{i - 3}"))
                i += 1

        before = workspace(s)
        t = threading.Thread(target=busy)
        t.start()
        try:
            first, after, digest, _ = pages(s, "nodes", 40, "id", stop=3)
            s_port = s.port
            rest, _, _, end = pages(s, "nodes", 40, "id", after=after, digest=digest)  # another connection, later
            names, _, _, end2 = pages(s, "entries", 50, "entry")
            assert end and end2 and s_port == s.port
        finally:
            stop.set()
            t.join()
        upto, events = [], []
        cursor = (before["epoch"], before["seq"], before["mark"])
        while True:
            c, more = frames.events(s.call("GET", f"/v1/events?cursor=w:{cursor[0]}:{cursor[1]}:{cursor[2]}&wait=0")[2])
            if not more:
                break
            events += more
            cursor = (c[0].hex(), c[1], c[2].hex())
        ids = [frames.one(r, 1) for r in first + rest]
        assert ids == sorted(set(ids))  # by key, each once
        touched = {n for e in events for n in e[3]}
        # what did not change is in the pages exactly once, and its name too
        now = {frames.one(r, 1): frames.one(r, 14, 0) for r in pages(s, "nodes", 1000, "id")[0]}
        assert {n for n in now if n not in touched} == {n for n in ids if n not in touched}
        assert len({frames.one(r, 1, 0) for r in names}) == len(names) and upto == []


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-rs", __file__]))
