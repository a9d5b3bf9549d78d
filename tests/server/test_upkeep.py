# SPDX-License-Identifier: Apache-2.0
"""What a serving server does by itself (server/upkeep.c), and that gc takes nothing from anybody: not from live upload sessions, not from commits that go on, not earlier than it says.

TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import glob
import hashlib
import json
import os
import random
import sqlite3
import threading

import frames
import pytest
from support import SCALE, Server, deadline, run, seed_of, sha

WS = "/v1/workspaces/w"
HEAD = {"Content-Type": frames.TYPE}


def report(command, *options, data):
    return json.loads(run(command, "--json", *options, data=data).stdout)


def orphan(data):
    """An object that no row names, as old as the hills."""
    name = os.urandom(16).hex()
    path = os.path.join(data, "objects", name[0], name[1:3])
    os.makedirs(path, mode=0o700, exist_ok=True)
    with open(os.path.join(path, name), "wb") as f:
        f.write(b"left by a crash")
    os.utime(os.path.join(path, name), (1, 1))
    return os.path.join(path, name)


def workspace(s):
    return json.loads(s.call("GET", WS)[2])


def trash(s):
    return json.loads(s.call("GET", WS + "/trash?limit=1000")[2])["items"]


def objects(data):
    return glob.glob(os.path.join(data, "objects", "?", "??", "*"))


def until(condition, what, seconds=60):
    for _ in deadline(seconds):
        if condition():
            return
    raise AssertionError(what)


def test_it_cleans_up_by_itself():
    with Server("--gc-every", "1", "--gc-min-age", "0", "--trash-age", "1", "--keep-events", "10") as s:
        left = orphan(s.data)
        kept = os.urandom(300_000)
        s.put("kept", kept)
        used = workspace(s)["used_bytes"]  # with the page that lists its blocks, if it has several
        for i in range(20):
            s.put(f"f{i}", os.urandom(150_000))
        for i in range(20):
            assert s.call("DELETE", s.file(f"f{i}"))[0] == 204
        until(lambda: not os.path.exists(left), "the orphan is still there")
        until(lambda: not trash(s), "the trash is still there")
        until(lambda: workspace(s)["used_bytes"] == used, "the quota is not given back")
        until(lambda: len(objects(s.data)) == 1, "the objects are still there")
        w = workspace(s)
        assert s.call("GET", f"/v1/events?cursor=w:{w['epoch']}:{w['seq'] - 30}:{'0' * 16}&wait=0")[0] == 410
        assert s.get("kept")[2] == kept
        assert report("fsck", data=s.data)["problems"] == []
        assert s.log_text().count("event=gc ") >= 2
        for _ in range(30):  # whoever gives a command is not refused because of it
            assert run("fsck", data=s.data, check=False).returncode == 0


def test_it_can_be_turned_off_and_does_not_hold_up_the_end():
    with Server("--gc-every", "0") as s:
        left = orphan(s.data)
        s.put("f", b"x")
        s.stop()
        assert os.path.exists(left) and "event=gc" not in s.log_text()
        s.options = []  # the defaults: the first run is a quarter of an hour away
        s.start()
        s.put("f", b"y")
        assert s.stop(timeout=20) == 0
        s.start()


def test_forgotten_events_do_not_make_the_trash_older():
    with Server() as s:
        for i in range(30):
            s.put(f"f{i}", b"%d" % i)
        s.call("DELETE", s.file("f3"))
        for i in range(30):
            s.put(f"g{i}", b"%d" % i)
        assert report("gc", "--keep-events", "5", data=s.data)["events_forgotten"] == 56
        assert report("gc", "--trash-age", "1h", data=s.data)["trash_purged"] == 0
        assert [t["path"] for t in trash(s)] == ["f3"]
        assert s.call("POST", WS + "/trash/restore", body=json.dumps({"path": "f3"}))[0] == 200
        assert s.get("f3")[2] == b"3"


class Busy(threading.Thread):
    def __init__(self, run):
        super().__init__(daemon=True)
        self.work, self.error = run, None

    def run(self):
        try:
            self.work()
        except BaseException as e:  # shown by the test
            self.error = e


def test_gc_takes_nothing_from_sessions_and_commits():
    """gc without any grace runs again and again. Uploads under a session wait through whole runs of it and then commit; others put, replace and delete the same contents by path, and purge."""
    seed = seed_of()
    rng = random.Random(seed)
    shared = [rng.randbytes(n) for n in (3000, 150_000, 400_000)]
    rounds, stop, known, done = max(3, int(12 * SCALE)), threading.Event(), {}, {"runs": 0, "forgotten": 0, "sessions": 0, "commits": 0, "objects": 0}
    with Server() as s:
        def collect():
            while not stop.is_set():
                got = report("gc", "--min-age", "0", "--trash-age", "1", data=s.data)
                done["forgotten"] += got["blocks_forgotten"]
                done["objects"] += got["objects_removed"]
                done["runs"] += 1

        def session(n):
            r = random.Random(seed * 100 + n)
            for k in range(rounds):
                data = r.choice(shared) if r.random() < 0.5 else r.randbytes(200_000)
                id, name = os.urandom(16).hex(), f"s{n}-{k}"
                block = frames.frame(11, frames.message((1, hashlib.sha256(data).digest()), (3, len(data)), (5, data)))
                assert s.call("POST", f"{WS}/blocks?session={id}", body=block, headers=HEAD)[0] == 200
                seen = done["runs"]
                until(lambda: done["runs"] >= seen + 2 or collector.error, "gc does not run", 240)
                content = frames.message((1, hashlib.sha256(data).digest()), (2, len(data)), (4, 1))
                op = os.urandom(16)
                body = frames.frame(7, frames.message((1, op), (2, frames.CREATE), (5, os.urandom(16)), (6, frames.ROOT), (7, name.encode()), (17, frames.message((2, 1), (3, 0o644))), (18, content)))
                status, _, answer = s.call("POST", WS + "/commit", body=body, headers=HEAD)
                assert status == 200 and frames.results(answer)[0][1] == frames.OK, frames.results(answer)
                known[name] = data
                done["sessions"] += 1

        def by_path(n):
            r, i = random.Random(seed * 100 + 50 + n), 0
            while not stop.is_set():
                name, data, i = f"p{n}-{i % 5}", r.choice(shared) if r.random() < 0.7 else r.randbytes(r.choice((10, 140_000, 700_000))), i + 1
                assert s.put(name, data)[0] in (200, 201)
                known[name] = data
                done["commits"] += 1
                if r.random() < 0.4:
                    assert s.call("DELETE", s.file(name))[0] == 204
                    del known[name]

        collector = Busy(collect)
        sessions, writers = [Busy(lambda n=n: session(n)) for n in range(4)], [Busy(lambda n=n: by_path(n)) for n in range(3)]
        [t.start() for t in [collector, *writers, *sessions]]
        [t.join(280) for t in sessions]
        try:
            until(lambda: collector.error or (done["forgotten"] > 0 and done["objects"] > 0), "void: there was nothing to take", 120)  # the writers by path go on until then
        finally:
            stop.set()
        [t.join(120) for t in [collector, *writers]]
        assert not any(t.is_alive() for t in [collector, *writers, *sessions])
        assert not [t.error for t in [collector, *writers, *sessions] if t.error], [t.error for t in [collector, *writers, *sessions] if t.error]
        for name, data in known.items():
            status, _, body = s.get(name)
            assert (status, sha(body)) == (200, sha(data)), name
        assert report("fsck", data=s.data)["problems"] == []
        print(f"{done}, {len(known)} files, 0 lost")


def test_what_is_young_stays():
    """Orphans go when they are older than a day by the server's clock, not before; claims only when they have expired."""
    with Server() as s:
        block = frames.frame(11, frames.message((1, hashlib.sha256(b"claimed").digest()), (3, 7), (5, b"claimed")))
        assert s.call("POST", f"{WS}/blocks?session={'1' * 32}", body=block, headers=HEAD)[0] == 200
        young, old = orphan(s.data), orphan(s.data)
        now = os.stat(os.path.join(s.data, "meta.db")).st_mtime
        os.utime(young, (now - 86000, now - 86000))
        os.utime(old, (now - 86800, now - 86800))
        got = report("gc", data=s.data)
        assert got["orphans_removed"] == 1 and os.path.exists(young) and not os.path.exists(old)
        db = sqlite3.connect(os.path.join(s.data, "meta.db"))
        expires = db.execute("SELECT expires_ns FROM upload_session").fetchone()[0]
        db.close()
        assert 29.9 * 86400 < expires / 1e9 - now < 30.1 * 86400
        assert report("gc", "--min-age", "0", data=s.data)["blocks_marked"] == 0


def test_what_half_empty_objects_hold_back_is_told():
    with Server() as s:
        big = random.Random(5).randbytes(5_000_000)
        s.put("big", big)
        s.put("small", big[:900_000])  # its first blocks are the big one's
        assert report("gc", "--min-age", "0", data=s.data)["objects_half_empty"] == 0
        s.call("DELETE", s.file("big"))
        assert json.loads(s.call("DELETE", WS + "/trash")[2])["purged"] == 1
        got = report("gc", "--min-age", "0", data=s.data)
        assert got["blocks_forgotten"] > 0 and got["objects_half_empty"] == 1 and 4_000_000 < got["bytes_in_half_empty"] < 5_000_000, got
        assert s.get("small")[2] == big[:900_000]


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-rs", __file__]))
