# SPDX-License-Identifier: Apache-2.0
"""Two mounts change the same few names at random at the same time. Afterwards both show the same tree and bytes, nothing is pending or parked, and no content that was ever closed is
lost: it is there, or somebody who had seen it (or its own writer) wrote over it or removed it.

10 s here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats (the timing differs, of course)."""
import os
import random
import threading
import time

from support import SCALE, assert_same_tree, until

NAMES = ["a.txt", "b.txt", "c", "d.bin"]
DIRS = ["", "x/", "y/"]
IGNORED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class Writer(threading.Thread):
    def __init__(self, name, at, seed, until_s):
        super().__init__()
        self.who, self.at, self.random, self.until_s, self.n = name, str(at), random.Random(seed), until_s, 0
        self.closed, self.removed, self.error = {}, set(), None  # text -> path; texts that this one saw and took away

    def path(self):
        return os.path.join(self.at, self.random.choice(DIRS) + self.random.choice(NAMES))

    def see(self, path):
        """What is about to go: read through a handle, so that it is one version."""
        try:
            with open(path) as f:
                return set(f.read().split("\n")) - {""}
        except (*IGNORED, OSError):
            return set()

    def text(self):
        self.n += 1
        return f"{self.who} {self.n} {self.random.randrange(1 << 40):x}"

    def step(self):
        r, p = self.random, self.path()
        kind = r.choice(("write", "write", "write", "save", "save", "append", "rename", "unlink", "mkdir", "rmdir", "rename dir"))
        if kind in ("write", "save"):
            t, gone = self.text(), self.see(p)
            temp = p if kind == "write" else os.path.join(os.path.dirname(p), f".{self.who}.tmp")
            with open(temp, "w") as f:
                f.write(t + "\n" + "x" * r.randrange(0, 3) * 30000)
            if temp != p:
                os.rename(temp, p)
            self.closed[t] = p
            self.removed |= gone
        elif kind == "append":
            t = self.text()
            with open(p, "a") as f:
                f.write("\n" + t + "\n")
            self.closed[t] = p
        elif kind == "rename":
            q = self.path()
            gone = self.see(q)
            os.rename(p, q)
            self.removed |= gone if p != q else set()
        elif kind == "unlink":
            gone = self.see(p)
            os.unlink(p)
            self.removed |= gone
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


def test_two_mounts_in_each_others_way(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    a, b = world.client("a"), world.client("b")
    for d in ("x", "y"):
        (a.dir / d).mkdir()
    a.wait()
    until(lambda: (b.dir / "y").is_dir(), what="the directories")
    end = time.monotonic() + 10 * SCALE
    writers = [Writer(c.name, c.dir, seed + i, end) for i, c in enumerate((a, b))]
    for w in writers:
        w.start()
    for w in writers:
        w.join(10 * SCALE + 30)
        assert not w.is_alive() and w.error is None, w.error
    for c in (a, b, a, b):
        c.wait(60)

    def calm():
        x, y = a.status(), b.status()
        return all(s["pending_items"] == 0 and s["pending_files"] == 0 and not s["parked"] for s in (x, y)) and x["cursor"] == y["cursor"]
    until(calm, 30, "both are at the same event")
    assert_same_tree(a.dir, b.dir)
    there = set()
    for at, _, files in os.walk(a.dir):
        for f in files:
            with open(os.path.join(at, f)) as h:
                there |= set(h.read().split("\n"))
    removed = set.union(*(w.removed for w in writers))
    closed = {t: p for w in writers for t, p in w.closed.items()}
    lost = [f"{t.split()[0]} {t.split()[1]}" for t in closed if t not in there and t not in removed]
    copies = sum("(conflict " in f for _, _, files in os.walk(a.dir) for f in files)
    print(f"{len(closed)} contents, {len(there & set(closed))} there, {len(lost)} without a trace, {copies} conflict copies")
    assert not lost, f"lost: {lost[:20]}"
