# SPDX-License-Identifier: Apache-2.0
"""What the server refuses is parked: it says why, blocks nothing else, makes nobody wait for it in vain, gives way to a newer state of the same file, and goes when the reason is gone: at once by `tarn retry`."""
import errno
import os
import sqlite3
import time

import pytest

from support import PATIENCE, until


class Admin:
    """Changes the server's own tables while it is down: what an owner does with quota and roles."""

    def __init__(self, world):
        self.world = world

    def sql(self, text):
        self.world.server.stop()
        db = sqlite3.connect(self.world.server.data / "meta.db")
        db.execute(text)
        db.commit()
        db.close()
        self.world.server.start()
        for c in self.world.clients:
            until(lambda c=c: c.status()["state"] == "online", 60, "online again")


def fails(code, path, data):
    """Writing and closing it fails with this error, and does not take until net_timeout."""
    began = time.monotonic()
    with pytest.raises(OSError) as e:
        with open(path, "wb") as f:
            f.write(data)
    assert e.value.errno == code, e.value
    assert time.monotonic() - began < 15 * PATIENCE
    return e.value


def test_over_quota(world):
    a, admin = world.client("a", options="close=server,net_timeout=60"), Admin(world)
    (a.dir / "first").write_bytes(b"1")
    admin.sql("UPDATE workspace SET quota = used + reserved + 1000")
    small, large, other = os.urandom(5000), os.urandom(500000), os.urandom(7000)  # within the commit; in blocks before it
    fails(errno.EDQUOT, a.dir / "small", small)
    fails(errno.EDQUOT, a.dir / "large", large)
    (a.dir / "dir").mkdir()
    fails(errno.EDQUOT, a.dir / "dir" / "other", other)
    (a.dir / "fits").write_bytes(b"2")  # nothing waits for what does not
    (a.dir / "dir" / "fits").write_bytes(b"3")
    os.rename(a.dir / "first", a.dir / "moved")
    b = world.client("b")
    until(lambda: sorted(os.listdir(b.dir)) == ["dir", "fits", "moved"] and os.listdir(b.dir / "dir") == ["fits"], 30, "the others go on")
    parked = {p["path"]: p for p in a.status()["parked"]}
    assert sorted(parked) == ["dir/other", "large", "small"]
    for p in parked.values():
        assert p["error"] == "EDQUOT" and "quota" in p["reason"] and p["age_s"] >= 0 and 0 <= p["next_try_s"] <= 30, p
    text = a.tarn("status").stdout
    assert "small: EDQUOT, over quota on the server (for " in text and "next try in" in text
    assert (a.dir / "large").read_bytes() == large and (a.dir / "small").read_bytes() == small
    fails(errno.EDQUOT, a.dir / "large", large)  # asked again, and again no
    (a.dir / "small").write_bytes(b"it fits now")  # a newer state of the same file does not wait behind the one that was refused
    until(lambda: (b.dir / "small").exists() and (b.dir / "small").read_bytes() == b"it fits now", 30, "the smaller one")
    os.unlink(a.dir / "dir" / "other")  # and what is gone is not sent
    until(lambda: [p["path"] for p in a.status()["parked"]] == ["large"], 30, "one is left")
    admin.sql("UPDATE workspace SET quota = 0")
    assert "0 parked changes" in a.tarn("retry", a.dir / "dir").stdout
    answer = a.tarn("retry", a.dir / "large").stdout
    until(lambda: (b.dir / "large").exists() and (b.dir / "large").read_bytes() == large, 30, "at once")
    assert "1 parked change tried" in answer or a.status()["pending_items"] == 0, answer
    a.wait()
    assert not a.status()["parked"] and sorted(os.listdir(b.dir / "dir")) == ["fits"]


def test_no_right_any_more(world):
    a, admin = world.client("a", options="close=server,net_timeout=60"), Admin(world)
    (a.dir / "mine").write_bytes(b"1")
    admin.sql("UPDATE member SET role = 1")
    fails(errno.EACCES, a.dir / "mine", b"not any more")
    fails(errno.EACCES, a.dir / "new", b"nor this")
    assert {p["error"] for p in a.status()["parked"]} == {"EACCES"}
    assert (a.dir / "mine").read_bytes() == b"not any more"
    admin.sql("UPDATE member SET role = 3")
    a.tarn("retry")
    a.wait(20)
    b = world.client("b")
    assert (b.dir / "mine").read_bytes() == b"not any more" and (b.dir / "new").read_bytes() == b"nor this"


def test_below_a_directory_that_is_refused(world):
    """What waits for something that is parked says so, too."""
    a, admin = world.client("a", options="close=server,net_timeout=60"), Admin(world)
    admin.sql("UPDATE member SET role = 1")
    os.mkdir(a.dir / "dir")
    fails(errno.EACCES, a.dir / "dir" / "f", b"1")
    admin.sql("UPDATE member SET role = 3")
    a.tarn("retry", a.dir / "dir")
    a.wait(20)


def test_free_space(world):
    """statfs shows the server's quota and what is used of it, with what is not there yet, and asks nobody for it."""
    MiB = 1 << 20
    Admin(world).sql(f"UPDATE workspace SET quota = {100 * MiB}")  # of a running mount a new quota is heard with the next answer to its poll
    a, b = world.client("a"), world.client("b")

    def space(c):
        v = os.statvfs(c.dir)
        return v.f_blocks * v.f_frsize, (v.f_blocks - v.f_bavail) * v.f_frsize
    until(lambda: space(a)[0] == space(b)[0] == 100 * MiB, 60, "the quota is heard of")
    data = os.urandom(10 * MiB)
    (a.dir / "f").write_bytes(data)
    assert 10 * MiB <= space(a)[1] <= 21 * MiB  # at once; twice while its own event is on its way
    a.wait()
    for c in (a, b):
        until(lambda: 10 * MiB <= space(c)[1] < 10 * MiB + 65536, 60, "used, once")
    (a.dir / "f").write_bytes(data[: 5 * MiB] + os.urandom(5 * MiB))  # what is kept of the old version counts too
    a.wait()
    until(lambda: 15 * MiB <= space(b)[1] < 18 * MiB, 60, "the new version")
    before = b.status()["counters"]
    for _ in range(200):
        space(b)
    after = b.status()["counters"]
    assert after["fuse_requests"] - before["fuse_requests"] >= 200
    assert after["http_requests"] - before["http_requests"] <= 1 and after["sql_transactions"] - before["sql_transactions"] <= 2
    world.server.stop()
    until(lambda: b.status()["state"] == "offline", 60, "offline")
    assert space(b)[0] == 100 * MiB and 15 * MiB <= space(b)[1] < 18 * MiB
    world.server.start()
