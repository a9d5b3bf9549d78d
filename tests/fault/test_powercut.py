# SPDX-License-Identifier: Apache-2.0
"""The client's machine loses power: the cache directory lies on a file system of its own (ext4, XFS, on a loop device), which is shut down without flushing its log (FS_IOC_SHUTDOWN, flag 2:
what was synced is there, what was not is really lost), then the daemon is killed, the file system mounted again and the client started as after a boot (another boot id).

Two writers keep a history for each name: every state that an acknowledged call made, with its time. After the cut each name must show one of its states, not older than the last durable one:

  fsync            the state at that moment            0 lost
  fsync of the directory   what was removed stays away   0 back
  accepted for more than 1 s (and what a loaded machine takes to sync; printed)   0 lost
  younger          any state since: nothing in between, no other bytes            0 torn

A name to which a temporary was renamed without an fsync may show an earlier state of that temporary (docs/sync.md); these are counted apart.

The server is away in two of three rounds; at the end everything is sent, and a client with an empty cache shows the same. A run in which most cuts lost nothing at all would not show that the
cut works: it is void if fewer than a fifth of the cuts took something away.

20 cuts on each file system here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import fcntl
import os
import random
import struct
import subprocess
import threading
import time

import pytest
from support import PATIENCE, SCALE, run, until
from writer import differences, overlay, seen

CUTS = max(2, int(20 * SCALE / (4 if PATIENCE > 1 else 1)))
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
NAMES = [f"f{i}" for i in range(12)]


class History(threading.Thread):
    """Changes in one directory, and all states of each name: [moment of the acknowledgement or None, bytes or None]."""

    def __init__(self, at, seed, states):
        super().__init__()
        self.at, self.random, self.stop, self.error = str(at), random.Random(seed), threading.Event(), None
        self.states = {n: [[0, c]] for n, c in states.items()}
        self.renamed = {}  # name -> states of the temporaries that were renamed to it
        self.syncs = []  # (moment at which it had returned, name, state)
        self.acknowledged = self.synced = 0

    def now(self, name):
        return self.states.setdefault(name, [[0, None]])[-1][1]

    def change(self, new, f, *args, part=None):
        """One call. new: name -> state that it makes. part: (offset, data) of a write: the kernel may ask for it in several pieces."""
        for n, c in new.items():
            self.now(n)
            self.states[n].append([None, c, part])
        value = f(*args)
        for n in new:
            self.states[n][-1][0] = time.monotonic()
        self.acknowledged += 1
        return value

    def path(self, name):
        return os.path.join(self.at, name)

    def write(self, fd, name, off, data):
        done = self.change({name: overlay(self.now(name) or b"", off, data)}, os.pwrite, fd, data, off, part=(off, data))
        assert done == len(data)

    def data(self):
        return self.random.randbytes(self.random.choice((3, 500, 4096, 20000, 70000, 250000)))

    def step(self):
        r = self.random
        name = r.choice(NAMES)
        kind = r.choice(("save", "save", "create", "change", "change", "append", "unlink", "truncate", "sync dir"))
        old = self.now(name)
        if kind == "sync dir":
            fd = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
            try:
                before = {n: len(s) - 1 for n, s in self.states.items() if s[-1][1] is None}
                os.fsync(fd)
                now = time.monotonic()
                self.syncs += [(now, n, i) for n, i in before.items()]
                self.synced += 1
            finally:
                os.close(fd)
            return
        if kind in ("unlink", "truncate", "change", "append") and old is None:
            return
        if kind == "unlink":
            self.change({name: None}, os.unlink, self.path(name))
            return
        if kind == "truncate":
            to = r.randrange(0, len(old) + 100)
            self.change({name: old[:to].ljust(to, b"\0")}, os.truncate, self.path(name), to)
            return
        temp = f".{name}.tmp" if kind == "save" else name
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if kind in ("save", "create") else 0)
        fd = self.change({temp: b""}, os.open, self.path(temp), flags, 0o644) if kind in ("save", "create") else os.open(self.path(temp), flags)
        try:
            for _ in range(r.choice((1, 1, 3))):
                size = len(self.now(temp))
                self.write(fd, temp, r.randrange(0, size + 1) if kind == "change" else size, self.data())
            if r.random() < 0.4:
                n = len(self.states[temp]) - 1
                os.fsync(fd)
                self.syncs.append((time.monotonic(), temp, n))
                self.synced += 1
        finally:
            os.close(fd)
        if kind == "save":
            self.renamed.setdefault(name, []).append(list(self.states[temp]))
            self.change({name: self.now(temp), temp: None}, os.rename, self.path(temp), self.path(name))

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
        except OSError as e:
            self.error = e
        except BaseException as e:
            self.error = e
            raise

    def judge(self, cut, got, count):
        """Compares what is there with the history; returns what is wrong."""
        wrong, durable = [], {}
        for when, name, i in self.syncs:
            if when <= cut:  # a sync that returns while the file system is being shut down proves nothing
                durable[name] = max(i, durable.get(name, 0))
        for name in sorted(set(self.states) | set(got)):
            if "(conflict " in name:  # the server had taken what the power cut took from here
                count["conflict copies"] += 1
                continue
            states, have = self.states.get(name, [[0, None]]), got.get(name)
            match = max((i for i, s in enumerate(states) if s[1] == have), default=None)
            last = max((i for i, s in enumerate(states) if s[0] is not None), default=0)
            if match is None and have is not None:
                match = max((i - 1 for i, s in enumerate(states) if len(s) > 2 and s[2] and is_part(states[i - 1][1] or b"", *s[2], have)), default=None)
            if (match is None or match < durable.get(name, 0)) and any(have == t[i][1] or (t[i][2:] and t[i][2] and is_part(t[i - 1][1] or b"", *t[i][2], have)) for t in self.renamed.get(name, []) for i in range(1, len(t))):
                count["rename before its bytes"] += 1
                continue
            if match is None:
                count["torn"] += 1
                wrong.append(f"{name}: torn, {None if have is None else len(have)} bytes are none of its {len(states)} states: {differences({name: states[last][1]}, got)}")
                continue
            if match < durable.get(name, 0):
                count["lost after fsync"] += 1
                wrong.append(f"{name}: state {match} of {len(states) - 1}, but {durable[name]} was fsynced; lengths {[None if s[1] is None else len(s[1]) for s in states[match:]]}")
            if match < last:
                count["given up"] += 1
                age = cut - states[match + 1][0]
                count["oldest given up ms"] = max(count["oldest given up ms"], int(age * 1000))
                if age > 1 + 1.5 * PATIENCE:
                    count["lost after 1 s"] += 1
                    wrong.append(f"{name}: state {match} of {last}, the next one had been accepted {age:.1f} s before the cut")
        return wrong


def is_part(old, off, data, have):
    """Is have what the first bytes of a write of data made of old?"""
    n = next((i for i, (x, y) in enumerate(zip(have[off:], data)) if x != y), min(max(len(have) - off, 0), len(data)))
    return have == overlay(old, off, data[:n]) if n else have == old


class Disk:
    def __init__(self, base, kind):
        self.image, self.dir, self.kind = base / "disk.img", base / "disk", kind
        self.dir.mkdir()
        with open(self.image, "wb") as f:
            f.truncate(400 << 20)
        run(f"mkfs.{kind}", "-q", self.image)
        self.mount()

    def mount(self):
        run("mount", "-o", "loop,nosuid,nodev", self.image, self.dir)

    def cut(self):
        fd = os.open(self.dir, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def umount(self):
        until(lambda: subprocess.run(["umount", str(self.dir)], stderr=subprocess.DEVNULL).returncode == 0, 20, "the disk is let go")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cut_of_the_client(world, kind):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    r = random.Random(seed)
    if os.geteuid() != 0:
        pytest.skip("needs root for loop mounts")
    disk = Disk(world.base, kind)
    a = world.client("a", mount=False)
    a.cache = disk.dir / "cache"
    options = "cache_size=200M,free_floor=1,drain_timeout=0"
    count = {"lost after fsync": 0, "lost after 1 s": 0, "torn": 0, "rename before its bytes": 0, "conflict copies": 0, "given up": 0, "oldest given up ms": 0}
    cuts = felt = acknowledged = synced = 0
    states = {"w0": {}, "w1": {}}
    try:
        a.mount(options=options)
        for w in states:
            (a.dir / w).mkdir()
        a.wait()
        while cuts < CUTS:
            if r.random() < 0.66:
                world.server.stop()
            writers = [History(a.dir / w, r.randrange(1 << 32), s) for w, s in states.items()]
            for w in writers:
                w.start()
            threading.Event().wait(r.choice((0.1, 0.5, 1.5, 3)) * r.random())
            cut = time.monotonic()
            disk.cut()
            a.kill()
            cuts += 1
            for w in writers:
                w.stop.set()
                w.join(60)
                assert not w.is_alive(), "a call hangs after the cut"
                assert w.error is None or isinstance(w.error, OSError), repr(w.error)
            disk.umount()
            disk.mount()
            (a.cache / "boot").write_text("00000000-0000-0000-0000-%012d" % cuts)  # the machine has booted since
            if world.server.process is None:
                world.server.start()  # clean blocks may be gone: they come from there
            a.mount(options=options, signed_in=True)
            before, wrong = count["given up"], []
            for w, name in zip(writers, states):
                got = seen(w.at)
                wrong += w.judge(cut, got, count)
                acknowledged, synced = acknowledged + w.acknowledged, synced + w.synced
                states[name] = got
            felt += count["given up"] > before
            assert not wrong, f"{kind}, cut {cuts}: {wrong[:10]}\n{count}"
            if cuts % 10 == 0 or cuts == CUTS:
                a.wait(60)
                b = world.client(f"b{cuts}")
                for name, model in states.items():
                    wrong = differences(model, seen(b.dir / name))
                    assert not wrong, f"{kind}, cut {cuts}, through another client: {wrong[:10]}"
                b.umount()
                world.clients.remove(b)
        print(f"{kind}: {cuts} cuts, {felt} took something, {acknowledged} acknowledged calls, {synced} syncs, {count}")
        assert felt >= cuts / 5, f"void: only {felt} of {cuts} cuts took anything away"
    finally:
        a.close()
        disk.umount()
