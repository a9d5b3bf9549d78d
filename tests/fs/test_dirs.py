# SPDX-License-Identifier: Apache-2.0
"""Listings: positions (telldir, seekdir, rewinddir) that hold while names come and go, on the mount and on a plain directory; and large directories. TARN_TEST_SCALE 50 is a
directory of 1,000,000 names; TARN_TEST_SEED repeats a run."""
import ctypes
import os
import random
import threading

import pytest

from harness import write

libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.telldir.restype = ctypes.c_long
for name, args in (("readdir", [ctypes.c_void_p]), ("telldir", [ctypes.c_void_p]), ("seekdir", [ctypes.c_void_p, ctypes.c_long]), ("rewinddir", [ctypes.c_void_p]), ("closedir", [ctypes.c_void_p])):
    getattr(libc, name).argtypes = args
SCALE = float(os.environ.get("TARN_TEST_SCALE", "1"))
LARGE = int(20000 * SCALE)
ONE = pytest.mark.parametrize("shared", ["one"], indirect=True)  # whose a file is changes nothing here


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


libc.readdir.restype = ctypes.POINTER(Dirent)


class Listing:
    """A DIR of libc: its own buffer, and positions."""

    def __init__(self, path):
        self.dir = libc.opendir(path.encode())
        assert self.dir

    def __enter__(self):
        return self

    def __exit__(self, *_):
        libc.closedir(self.dir)

    def next(self):
        entry = libc.readdir(self.dir)
        return entry.contents.name.decode() if entry else None

    def rest(self):
        out = []
        while (name := self.next()) is not None:
            out.append(name)
        return out

    def tell(self):
        return libc.telldir(self.dir)

    def seek(self, position):
        libc.seekdir(self.dir, position)

    def rewind(self):
        libc.rewinddir(self.dir)


def fill(path, names):
    for n in names:
        write(os.path.join(path, n), b"")



@ONE
def test_every_position_is_found_again(pair):
    """What follows a position is what followed it when it was told, in any order of asking, and also with another descriptor."""
    rng = random.Random(int(os.environ.get("TARN_TEST_SEED", "1")))
    for d in pair:
        names = [f"name-{i:04}" for i in range(500)]
        fill(d, names)
        with Listing(d) as a, Listing(d) as other:
            told = []
            while True:
                at = a.tell()
                name = a.next()
                told.append((at, name))
                if name is None:
                    break
            assert sorted(n for _, n in told if n) == sorted(names + [".", ".."]), d
            assert len({at for at, _ in told}) == len(told), "each position is another one"
            for at, name in rng.sample(told, len(told)):
                a.seek(at)
                assert a.next() == name and a.tell() >= 0
            for k in rng.sample(range(len(told)), 20):
                a.seek(told[k][0])
                assert a.rest() == [n for _, n in told[k:] if n], d
                other.seek(told[k][0])
                assert other.next() == told[k][1], f"{d}: a position means the same to another descriptor"
            a.rewind()
            assert a.rest() == [n for _, n in told if n]


@ONE
def test_positions_while_names_come_and_go(pair):
    """Each name that is there all the time is listed once, whatever is made, removed and renamed meanwhile, and a position told before leads to what it did."""
    seed = int(os.environ.get("TARN_TEST_SEED", "0")) or random.randrange(1 << 32)
    print(f"TARN_TEST_SEED={seed}")
    for d in pair:
        rng = random.Random(seed)
        stay = [f"stay-{i:04}" for i in range(600)]
        loose = [f"loose-{i:04}" for i in range(600)]
        both = stay + loose
        rng.shuffle(both)
        fill(d, both)
        fresh = 0
        for _ in range(3):
            with Listing(d) as a:
                seen, told = [], []
                while True:
                    at, name = a.tell(), a.next()
                    if name is None:
                        break
                    seen.append(name)
                    if name in stay and rng.random() < 0.1:
                        told.append((at, name))
                    if rng.random() < 0.4:
                        what = rng.randrange(3)
                        if what == 0 and loose:
                            os.unlink(os.path.join(d, loose.pop(rng.randrange(len(loose)))))
                        elif what == 1:
                            fresh += 1
                            loose.append(f"fresh-{fresh:05}")
                            write(os.path.join(d, loose[-1]), b"")
                        elif loose:
                            k = rng.randrange(len(loose))
                            fresh += 1
                            os.rename(os.path.join(d, loose[k]), os.path.join(d, f"moved-{fresh:05}"))
                            loose[k] = f"moved-{fresh:05}"
                    if told and rng.random() < 0.02:  # look back, and come again to where we were
                        here = a.tell()
                        at, name = rng.choice(told)
                        a.seek(at)
                        assert a.next() == name, f"{d}: the position of {name} leads to something else"
                        a.seek(here)
                listed = [n for n in seen if n.startswith("stay")]
                assert sorted(listed) == stay, f"{d}: missing {sorted(set(stay) - set(listed))[:5]}, twice {sorted({n for n in listed if listed.count(n) > 1})[:5]}"
                assert len([n for n in seen if not n.startswith("stay")]) == len({n for n in seen if not n.startswith("stay")}), f"{d}: a name twice"
                a.rewind()
                assert sorted(a.rest()) == sorted(stay + loose + [".", ".."]), f"{d}: after rewinddir everything as it is now"


@ONE
def test_listing_beside_writers(pair):
    """The same with the changes in other threads, so that they fall into the middle of a request."""
    for d in pair:
        stay = [f"stay-{i:04}" for i in range(400)]
        fill(d, stay)
        stop = threading.Event()

        def churn(k):
            rng, mine = random.Random(k), []
            n = 0
            while not stop.is_set():
                n += 1
                mine.append(f"loose-{k}-{n}")
                write(os.path.join(d, mine[-1]), b"")
                if len(mine) > 100:
                    os.unlink(os.path.join(d, mine.pop(rng.randrange(len(mine)))))
        threads = [threading.Thread(target=churn, args=(k,)) for k in range(2)]
        for t in threads:
            t.start()
        try:
            with Listing(d) as a:
                for _ in range(20):
                    seen = a.rest()
                    assert sorted(n for n in seen if n.startswith("stay")) == stay, d
                    assert len(seen) == len(set(seen)), f"{d}: a name twice"
                    a.rewind()
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert sorted(n for n in os.listdir(d) if n.startswith("stay")) == stay


@ONE
def test_removed_position(pair):
    """The entry before a position may go: the listing goes on behind it."""
    for d in pair:
        fill(d, [f"name-{i:03}" for i in range(50)])
        with Listing(d) as a:
            order = a.rest()
            a.rewind()
            for _ in range(20):
                last = a.next()
            at = a.tell()
            if last not in (".", ".."):
                os.unlink(os.path.join(d, last))
            a.seek(at)
            assert a.rest() == order[20:], d


def test_large_directory(mount):
    """Costs grow with what is listed, not with its square; nothing is lost over a remount; and it can be taken away again."""
    d = mount / "large"
    os.mkdir(d)
    for i in range(LARGE):
        os.close(os.open(f"{d}/entry-{i:07}", os.O_CREAT | os.O_WRONLY, 0o600))
    want = {f"entry-{i:07}" for i in range(LARGE)}
    before = mount.counter("fuse_readdir")
    assert set(os.listdir(d)) == want
    asked = mount.counter("fuse_readdir") - before
    assert asked <= LARGE * 200 / 32768 + 3, f"{asked} requests for {LARGE} names"
    before = mount.counter("fuse_readdir"), mount.counter("fuse_lookup")
    assert sum(1 for e in os.scandir(d) if e.stat(follow_symlinks=False).st_size == 0) == LARGE
    assert mount.counter("fuse_lookup") - before[1] <= 2 and mount.counter("fuse_readdir") - before[0] <= asked, "attributes come with the listing"
    with Listing(d) as a:  # from the middle
        for _ in range(LARGE // 2):
            a.next()
        at, name = a.tell(), a.next()
        a.seek(at)
        assert a.next() == name
    assert os.path.exists(f"{d}/entry-{LARGE - 1:07}") and not os.path.exists(f"{d}/entry-{LARGE:07}")
    assert mount.stop() == "ok"
    assert mount.start().startswith("ready")
    assert set(os.listdir(d)) == want
    for name in os.listdir(d):
        os.unlink(f"{d}/{name}")
    os.rmdir(d)
