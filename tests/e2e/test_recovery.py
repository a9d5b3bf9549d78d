# SPDX-License-Identifier: Apache-2.0
"""The client's database is lost while the daemon is dead and work is pending; and what a dead daemon leaves behind in the kernel.

States: everything pending at once (new files small and large, edits of small and large files, saves over files, renames, deletions, files in new directories), sent in part, and
some of it committed without the client knowing. Losses: the file alone, all of SQLite's files, garbage in its place, one page. Whatever is lost: each accepted content is somewhere in
the tree, each file that the server had is there once, under one name, with its old or its new content, and another client sees the same."""
import hashlib
import os
import random
import signal
import subprocess
import threading

import pytest

from support import alive, facts, is_mounted, soon, until

SEED = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
PAGE = 4096


def digest(data):
    return hashlib.sha256(data).hexdigest()


def contents(root):
    """path -> digest of each file; a directory: None."""
    found = {}
    for at, dirs, files in os.walk(root):
        for name in dirs:
            found[os.path.relpath(os.path.join(at, name), root)] = None
        for name in files:
            with open(os.path.join(at, name), "rb") as f:
                found[os.path.relpath(os.path.join(at, name), root)] = digest(f.read())
    return found


def assert_same_tree(a, b):
    """Contents, types and modes, and the times of files; a directory's time depends on the order in which independent operations arrive."""
    x, y = ({p: f if len(f) == 3 else f[:1] for p, f in facts(root).items()} for root in (a, b))
    assert x == y
    assert contents(a) == contents(b)


def lose_file(db, r):
    os.unlink(db)


def lose_all(db, r):
    for part in ("", "-wal", "-shm"):
        (db.parent / (db.name + part)).unlink(missing_ok=True)


def garbage(db, r):
    db.write_bytes(r.randbytes(db.stat().st_size or 65536))


def one_page(db, r):
    """One bit of one page; the log is emptied into the file before, so that the page is not written again."""
    import sqlite3
    c = sqlite3.connect(db)
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    c.close()
    pages = db.stat().st_size // PAGE
    page = r.randrange(1, pages)
    with open(db, "r+b") as f:
        f.seek(page * PAGE)
        kind = f.read(1)[0]
        f.seek(page * PAGE)
        f.write(bytes([kind ^ 0x80]))
    print(f"page {page} of {pages}")


LOSSES = {"the file": lose_file, "all of its files": lose_all, "garbage": garbage, "a page": one_page}


class Work:
    """What one client does: path -> what must be found there or elsewhere."""

    def __init__(self, client, r):
        self.dir, self.r, self.accepted, self.old = client.dir, r, {}, {}

    def put(self, path, data):
        (self.dir / path).write_bytes(data)
        self.accepted[path] = digest(data)

    def base(self):
        (self.dir / "d").mkdir()
        for name, size in (("small", 3000), ("d/small", 5000), ("d/large", 3 << 20), ("d/appended", 200000), ("d/saved", 7000), ("d/kept", 4000), ("d/kept large", 2 << 20), ("d/to rename", 900),
                           ("d/to delete", 1200), ("rewritten", 150000)):
            self.put(name, self.r.randbytes(size))
        self.old, self.accepted = self.accepted, {}

    def pending(self):
        r, d = self.r, self.dir
        self.put("new", r.randbytes(2000))
        self.put("d/new", r.randbytes(30000))
        self.put("d/new large", r.randbytes(2500000))
        self.put("empty at first", b"")
        self.put("empty at first", b"no more")
        (d / "new directory").mkdir()
        self.put("new directory/inside", r.randbytes(1000))
        self.put("small", r.randbytes(3100))
        self.put("rewritten", r.randbytes(140000))
        for path, at, n in (("d/large", 1 << 20, 70000), ("d/appended", 200000, 5000), ("d/small", 100, 50)):
            data = bytearray((d / path).read_bytes())
            piece = r.randbytes(n)
            data[at:at + n] = piece
            with open(d / path, "r+b") as f:
                f.seek(at)
                f.write(piece)
            self.accepted[path] = digest(data)
        self.put("d/.saved.tmp", r.randbytes(7100))
        os.rename(d / "d/.saved.tmp", d / "d/saved")
        self.accepted["d/saved"] = self.accepted.pop("d/.saved.tmp")
        self.put("d/first name", r.randbytes(800))
        os.rename(d / "d/first name", d / "second name")
        self.accepted["second name"] = self.accepted.pop("d/first name")
        os.rename(d / "d/to rename", d / "d/renamed")
        os.unlink(d / "d/to delete")

    def check(self, root, exact):
        """exact: nothing else than what was there and what was made may be there, once each."""
        got = contents(root)
        values = [v for v in got.values() if v]
        lost = [p for p, v in self.accepted.items() if v not in values]
        assert not lost, f"lost: {lost}; there is {sorted(got)}"
        elsewhere = [p for p, v in self.accepted.items() if got.get(p) != v]
        for path in self.old:
            if path in ("d/to rename", "d/to delete"):
                continue
            assert got.get(path) in (self.old[path], self.accepted.get(path)), f"{path} is gone or has foreign bytes"
        twice = [v for v in set(values) if values.count(v) > 1]
        assert not twice, f"twice: {[p for p, v in got.items() if v in twice]}"
        known = set(self.old) | set(self.accepted) | {"d/renamed", "d", "new directory"}
        odd = [p for p in got if p not in known and not p.startswith("lost+found")]
        if exact:
            assert not odd, f"not made by anybody: {odd}"
        return elsewhere, odd


@pytest.mark.parametrize("loss", LOSSES)
def test_the_database_is_lost_with_everything_pending(world, loss):
    print(f"seed {SEED}")
    r = random.Random(SEED)
    a = world.client("a")
    w = Work(a, r)
    w.base()
    a.wait()
    world.server.stop()
    w.pending()
    a.kill()
    LOSSES[loss](a.cache / "tree.db", r)
    world.server.start()
    a.mount(signed_in=True)
    elsewhere, odd = w.check(a.dir, True)
    # its directory was in the database alone; the log may have all of a file whose place garbage has taken
    assert elsewhere == ["new directory/inside"] or (loss == "garbage" and not elsewhere), elsewhere
    a.wait()
    s = a.status()
    assert not s["parked"], s["parked"]
    b = world.client("b")
    assert w.check(b.dir, True)[0] == elsewhere
    assert_same_tree(a.dir, b.dir)
    a.restart()
    assert_same_tree(a.dir, b.dir)


@pytest.mark.parametrize("late", range(3))
def test_the_database_is_lost_in_the_middle_of_sending(world, late):
    print(f"seed {SEED}")
    r = random.Random(SEED + late)
    a = world.client("a")
    w = Work(a, r)
    w.base()
    a.wait()
    w.pending()
    for i in range(150):
        w.put(f"d/many {i}", r.randbytes(r.choice((10, 3000, 70000))))
    sent = a.status()["counters"]["ops_sent"] if "ops_sent" in a.status()["counters"] else None
    threading.Event().wait(0.1 * late * r.random())
    a.kill()
    lose_all(a.cache / "tree.db", r)
    print(f"sent before the kill: {sent}")
    a.mount()
    w.check(a.dir, True)
    a.wait()
    assert not a.status()["parked"]
    b = world.client("b")
    w.check(b.dir, True)
    assert_same_tree(a.dir, b.dir)


def test_lost_twice_and_without_a_server(world):
    """Nothing is given up when the tree cannot be loaded yet."""
    r = random.Random(SEED)
    a = world.client("a")
    w = Work(a, r)
    w.base()
    a.wait()
    world.server.stop()
    w.pending()
    a.kill()
    db = a.cache / "tree.db"
    lose_all(db, r)
    p = a.mount(options="net_timeout=1s", check=False, signed_in=True)
    assert p.returncode == 3, p.stderr
    lose_all(db, r)
    assert a.mount(options="net_timeout=1s", check=False, signed_in=True).returncode == 3
    world.server.start()
    a.mount(signed_in=True)
    w.check(a.dir, True)
    a.wait()
    b = world.client("b")
    w.check(b.dir, True)
    assert_same_tree(a.dir, b.dir)


def test_somebody_else_wrote_meanwhile(world):
    """What another client saved after the loss keeps its name; ours is beside it."""
    r = random.Random(SEED)
    a, b = world.client("a"), world.client("b")
    (a.dir / "f").write_bytes(b"first")
    a.wait()
    until(lambda: (b.dir / "f").exists(), what="the file at the other client")
    a_data, b_data = r.randbytes(5000), r.randbytes(6000)
    b.umount()
    world.server.stop()
    (a.dir / "f").write_bytes(a_data)
    a.kill()
    lose_all(a.cache / "tree.db", r)
    world.server.start()
    b.mount()
    (b.dir / "f").write_bytes(b_data)
    b.wait()
    a.mount(signed_in=True)
    a.wait()
    assert (a.dir / "f").read_bytes() == b_data
    copies = [p for p in a.dir.iterdir() if "conflict" in p.name]
    assert len(copies) == 1 and copies[0].read_bytes() == a_data
    world.caught_up(a, b)
    soon(lambda: assert_same_tree(a.dir, b.dir))


# ---- what a dead daemon leaves in the kernel ----

def test_a_stale_mount_point_is_healed(world):
    a = world.client("a")
    (a.dir / "f").write_text("1")
    for _ in range(3):
        a.kill()
        assert is_mounted(a.dir)
        with pytest.raises(OSError):
            os.listdir(a.dir)
        a.mount()
        assert (a.dir / "f").read_text() == "1"
        with open("/proc/self/mountinfo") as f:
            assert sum(line.split()[4] == str(a.dir) for line in f) == 1  # not one on top of the other


def test_a_stale_mount_point_with_somebody_in_it(world):
    a = world.client("a")
    (a.dir / "d").mkdir()
    (a.dir / "d" / "f").write_text("1")
    sitter = subprocess.Popen(["/bin/sh", "-c", "exec 3< f; echo in; read line"], cwd=a.dir / "d", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        sitter.stdout.readline()
        a.kill()
        a.mount()
        assert (a.dir / "d" / "f").read_text() == "1"
        (a.dir / "d" / "f").write_text("2")
        assert alive(sitter.pid)
        assert sitter.poll() is None
        a.wait()
    finally:
        sitter.stdin.close()
        sitter.send_signal(signal.SIGTERM)
        sitter.wait(30)
        sitter.stdout.close()
    a.restart()
    assert (a.dir / "d" / "f").read_text() == "2"
