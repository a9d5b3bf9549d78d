# SPDX-License-Identifier: Apache-2.0
"""Two mounts change the same few names at random at the same time. Afterwards both show the same tree and bytes, nothing is pending or parked, and no content that was ever closed is lost.

What "lost" means, exactly. A writer knows the bytes of each file that it closes (of an append it reads them through the same handle) and the inode that it closed. A content must be one of the
server's versions, of whatever node (its own, a conflict copy, one that was deleted since), unless the same writer went on from it before it had to be sent: closed other bytes on the
same inode later, or took its last name away. Versions that only existed on the way may be skipped; the last ones may not. What the other writer does is never an excuse: to
take something away it must have got it, from the server.

20 s here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats (the timing differs, of course)."""
import hashlib
import json
import os
import random
import sqlite3
import threading
import time
import urllib.request

from closed import Closed
from support import SCALE, assert_same_tree, soon, until

NAMES = ["a.txt", "b.txt", "c", "d.bin"]
DIRS = ["", "x/", "y/"]
IGNORED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
SECONDS = 20


def digest(b):
    return hashlib.sha256(b).hexdigest() if b else "0" * 64


class Writer(threading.Thread):
    unreadable = ()          # errors that a read may have: what is not in the cache while the line is down

    def __init__(self, name, at, seed, until_s):
        super().__init__()
        self.who, self.at, self.random, self.until_s, self.n = name, str(at), random.Random(seed), until_s, 0
        self.closed = 0
        self.mine = Closed() # (digest, step, path) of the newest bytes that this one closed on each inode
        self.error = None

    def path(self):
        return os.path.join(self.at, self.random.choice(DIRS) + self.random.choice(NAMES))

    def note(self, fd, data, path, over=None):
        self.closed += 1
        self.mine.note(fd, (digest(data), self.n, path, os.fstat(fd).st_ino), over)

    def must(self):
        return [(d, f"{self.who} step {n}: {path}, inode {ino}") for d, n, path, ino in self.mine.must()]

    def take_away(self, path, act, source=None):
        """act() takes the name from a file, maybe its last one; sometimes from one that is open."""
        try:
            fd = os.open(path, os.O_RDONLY) if self.random.random() < 0.5 else -1
        except OSError:
            fd = -1
        try:
            return self.mine.take_away(act, path, source)
        finally:
            if fd >= 0:
                os.close(fd)

    def bytes(self, fd):
        """All that this handle shows; None if it is elsewhere."""
        try:
            return os.pread(fd, 1 << 20, 0)
        except OSError as e:
            if e.errno not in self.unreadable:
                raise
            return None

    def shown(self, fd):
        data = self.bytes(fd)
        return None if data is None else digest(data)

    def step(self):
        r, p = self.random, self.path()
        kind = r.choice(("write", "write", "write", "save", "save", "append", "rename", "unlink", "mkdir", "rmdir", "rename dir"))
        self.n += 1
        text = f"{self.who} {self.n} {r.randrange(1 << 40):x}\n".encode()
        if kind in ("write", "save"):
            data = text + b"x" * r.randrange(0, 3) * 30000
            temp = p if kind == "write" else os.path.join(os.path.dirname(p), f".{self.who}.tmp")
            look = kind == "write" and r.random() < 0.5 and os.path.isfile(temp)
            with open(temp, "r+b" if look else "wb", buffering=0) as f:
                over = self.shown(f.fileno()) if look else None
                f.truncate(0)
                f.write(data)
                self.note(f.fileno(), data, p, over)
            if temp != p:
                self.take_away(p, lambda: os.rename(temp, p), temp)
        elif kind == "append":
            fd = os.open(p, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                self.mine.covers(fd, self.shown(fd))
                os.write(fd, text)
                self.mine.forget(fd)  # what is closed now is known if it can be read
                data = self.bytes(fd)
                if data is not None:
                    self.note(fd, data, p)
            finally:
                os.close(fd)
        elif kind == "rename":
            q = self.path()
            if p != q:
                self.take_away(q, lambda: os.rename(p, q), p)
        elif kind == "unlink":
            self.take_away(p, lambda: os.unlink(p))
        elif kind == "mkdir":
            os.mkdir(os.path.join(self.at, r.choice(DIRS[1:])))
        elif kind == "rmdir":
            os.rmdir(os.path.join(self.at, r.choice(DIRS[1:])))
        else:
            os.rename(os.path.join(self.at, "x"), os.path.join(self.at, "y"))

    def run(self):
        try:
            while time.monotonic() < self.until_s:
                try:
                    self.step()
                except IGNORED:
                    pass
                except OSError as e:
                    if e.errno not in (39, 116):  # ENOTEMPTY, ESTALE
                        raise
                threading.Event().wait(self.random.random() * 0.02)
        except BaseException as e:
            self.error = e
            raise
        finally:
            self.mine.close()


def versions(server):
    """The roots of all versions of all files that the server ever had; a file of one block has the digest of its bytes as its root. Node ids of deleted files are in no list of the API."""
    token = server.token("anna")
    db = sqlite3.connect(f"file:{server.data}/meta.db?mode=ro", uri=True)
    ids = {row[0].hex() for table in ("node", "revision") for row in db.execute(f"SELECT DISTINCT id FROM {table} WHERE kind = 1")}
    db.close()
    roots = set()
    for node in ids:
        url = f"{server.url}/v1/workspaces/work/nodes/{node}/versions?limit=1000"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=30) as f:
            roots |= {v["root"] for v in json.load(f)["versions"]}
    return roots


def test_two_mounts_in_each_others_way(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    a, b = world.client("a"), world.client("b")
    for d in ("x", "y"):
        (a.dir / d).mkdir()
    a.wait()
    until(lambda: (b.dir / "y").is_dir(), what="the directories")
    end = time.monotonic() + SECONDS * SCALE
    writers = [Writer(c.name, c.dir, seed + i, end) for i, c in enumerate((a, b))]
    for w in writers:
        w.start()
    for w in writers:
        w.join(SECONDS * SCALE + 60)
        assert not w.is_alive() and w.error is None, w.error
    world.caught_up(a, b)
    assert not a.status()["parked"] and not b.status()["parked"]
    soon(lambda: assert_same_tree(a.dir, b.dir, dir_times=False))
    there = versions(world.server)
    must = [x for w in writers for x in w.must()]
    lost = [how for d, how in must if d not in there]
    copies = sum("(conflict " in f for _, _, files in os.walk(a.dir) for f in files)
    print(f"{sum(w.closed for w in writers)} contents closed, {len(must)} of them last ones, {len(there)} versions, {len(lost)} lost, {copies} conflict copies")
    assert len(must) > 20 and copies > 0, "the writers were not in each other's way"
    assert not lost, f"lost: {lost[:20]}"
