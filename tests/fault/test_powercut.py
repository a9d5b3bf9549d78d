# SPDX-License-Identifier: Apache-2.0
"""The client's machine loses power: the cache directory lies on a file system of its own (ext4, XFS, on a loop device), which is shut down without flushing its log (FS_IOC_SHUTDOWN, flag 2:
what was synced is there, what was not is really lost), then the daemon is killed, the file system mounted again and the client started as after a boot (another boot id).

Two writers keep a history: which file each name was, and every state of each file that an acknowledged call made, with their times. After the cut each name must show a state that it had, not older than the
last durable one:

  fsync            the state at that moment            0 lost
  fsync of the directory   what was removed stays away   0 back
  accepted for more than 1 s (and what a loaded machine takes to sync; printed)   0 lost
  younger          any state since: nothing in between, no other bytes            0 torn

A name shows the file that it was at some moment, and a file one of its states: it may have had another name then, as with any file system that does not sync a rename.

A third of the cuts hits a start: the daemon is killed (-9) first, and the power goes while the next one opens the cache, held at some named place of its start or at a random moment of it, or just after.
Nothing is promised then that was not at the moment of the kill.

The server is away in two of three rounds; at the end everything is sent, and a client with an empty cache shows the same. A run in which most cuts lost nothing at all would not show that the
cut works: it is void if fewer than a fifth of the cuts took something away.

25 cuts on each file system here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import fcntl
import os
import random
import signal
import struct
import subprocess
import threading
import time

import pytest
from support import PATIENCE, SCALE, run, until
from writer import differences, overlay, seen

CUTS = max(2, int(25 * SCALE / (4 if PATIENCE > 1 else 1)))
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
# where a start may be held: what it reads, brings back and makes durable before it serves, and the first moments after that
PLACES = ["tree.opened", "recover.found", "recover.match", "recover.flush", "segment.sync", "segment.synced", "stage.sync", "stage.sync.log", "tree.commit", "tree.committed", "tree.sync", "tree.synced", "tree.marked",
          "mount.visible"]
NAMES = [f"f{i}" for i in range(12)]


class Node:
    """A file under whatever names: all its states, [moment of the acknowledgement or None, bytes, part]. part: (offset, data) of a write: the kernel may ask for it in several pieces."""

    def __init__(self, moment, content):
        self.states, self.synced = [[moment, content, None]], []  # synced: (moment at which it had returned, state)

    def now(self):
        return self.states[-1][1]


class History(threading.Thread):
    """Changes in one directory, and all that each name ever was: [moment of the acknowledgement or None, Node or None]."""

    def __init__(self, at, seed, files):
        super().__init__()
        self.at, self.random, self.stop, self.error = str(at), random.Random(seed), threading.Event(), None
        self.names = {n: [[0, Node(0, c)]] for n, c in files.items()}
        self.syncs = []  # (moment at which it had returned, name, index in names)
        self.acknowledged = self.synced = 0

    def node(self, name):
        return self.names.setdefault(name, [[0, None]])[-1][1]

    def change(self, entries, f, *args):
        """One call. entries: lists that get an entry whose moment is filled in when it has returned."""
        for where, entry in entries:
            where.append(entry)
        value = f(*args)
        for _, entry in entries:
            entry[0] = time.monotonic()
        self.acknowledged += 1
        return value

    def path(self, name):
        return os.path.join(self.at, name)

    def write(self, fd, node, off, data):
        done = self.change([(node.states, [None, overlay(node.now(), off, data), (off, data)])], os.pwrite, fd, data, off)
        assert done == len(data)

    def data(self):
        return self.random.randbytes(self.random.choice((3, 500, 4096, 20000, 70000, 250000)))

    def open_empty(self, name):
        node, flags = self.node(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        if node:
            entries = [(node.states, [None, b"", None])]
        else:
            node = Node(None, b"")
            entries = [(self.names[name], [None, node]), ([], node.states[0])]
        return self.change(entries, os.open, self.path(name), flags, 0o644), node

    def step(self):
        r = self.random
        name = r.choice(NAMES)
        kind = r.choice(("save", "save", "create", "change", "change", "append", "unlink", "truncate", "sync dir"))
        node = self.node(name)
        if kind == "sync dir":
            fd = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
            try:
                before = {n: len(p) - 1 for n, p in self.names.items()}
                os.fsync(fd)
                now = time.monotonic()
                self.syncs += [(now, n, i) for n, i in before.items()]
                self.synced += 1
            finally:
                os.close(fd)
            return
        if kind in ("unlink", "truncate", "change", "append") and not node:
            return
        if kind == "unlink":
            self.change([(self.names[name], [None, None])], os.unlink, self.path(name))
            return
        if kind == "truncate":
            to = r.randrange(0, len(node.now()) + 100)
            self.change([(node.states, [None, node.now()[:to].ljust(to, b"\0"), None])], os.truncate, self.path(name), to)
            return
        temp = f".{name}.tmp" if kind == "save" else name
        fd, node = self.open_empty(temp) if kind in ("save", "create") else (os.open(self.path(temp), os.O_WRONLY), node)
        try:
            for _ in range(r.choice((1, 1, 3))):
                size = len(node.now())
                self.write(fd, node, r.randrange(0, size + 1) if kind == "change" else size, self.data())
            if r.random() < 0.4:
                state, place = len(node.states) - 1, len(self.names[temp]) - 1
                os.fsync(fd)
                now = time.monotonic()
                node.synced.append((now, state))
                self.syncs.append((now, temp, place))
                self.synced += 1
        finally:
            os.close(fd)
        if kind == "save":
            self.change([(self.names[name], [None, node]), (self.names[temp], [None, None])], os.rename, self.path(temp), self.path(name))

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
            if when <= cut:  # a sync that returns while the power goes proves nothing
                durable[name] = max(i, durable.get(name, 0))
        for name in sorted(set(self.names) | set(got)):
            if "(conflict " in name:  # the server had taken what the power cut took from here
                count["conflict copies"] += 1
                wrong.append(f"{name}: a conflict copy, and nobody else is there")
                continue
            places, have = self.names.get(name, [[0, None]]), got.get(name)
            found = [(p, k) for p in range(len(places)) for k in matches(places[p][1], have)]
            kept = [(p, k) for p, k in found if p >= durable.get(name, 0) and k >= floor(places[p][1], cut)]
            young = [(p, k) for p, k in kept if p >= long_ago(places, cut) and (k is True or k >= long_ago(places[p][1].states, cut))]
            if not found:
                count["torn"] += 1
                wrong.append(f"{name}: torn, {None if have is None else len(have)} bytes are no state of what it was: {like(have or b'', places)}")
            elif not kept:
                count["lost after fsync"] += 1
                wrong.append(f"{name}: {found}, but place {durable.get(name, 0)} was fsynced, of the files {[n and (len(n.states) - 1, n.synced) for _, n in places]}")
            elif not young:
                count["lost after 1 s"] += 1
                wrong.append(f"{name}: {kept}, and a later one was accepted {OLD:.1f} s before the cut or longer")
            else:
                p, k = max(young)
                later = [e[0] for e in places[p + 1:] + (places[p][1].states[k + 1:] if k is not True else []) if e[0]]
                if later:
                    count["given up"] += 1
                    count["oldest given up ms"] = max(count["oldest given up ms"], int((cut - min(later)) * 1000))
        return wrong


OLD = 1 + 1.5 * PATIENCE


def long_ago(entries, cut):
    """The last of them that had been accepted so long ago that it must be there."""
    return max((i for i, e in enumerate(entries) if e[0] is not None and cut - e[0] > OLD), default=0)


def floor(node, cut):
    return max((k for when, k in node.synced if when <= cut), default=0) if node else True


def matches(node, have):
    """The states of a node that have is: numbers, or [True] if neither exists."""
    if node is None or have is None:
        return [True] if node is None and have is None else []
    s = node.states
    return [i for i in range(len(s)) if s[i][1] == have or (s[i][2] and is_part(s[i - 1][1], *s[i][2], have))]


def is_part(old, off, data, have):
    """Is have what the first bytes of a write of data made of old?"""
    n = next((i for i, (x, y) in enumerate(zip(have[off:], data)) if x != y), min(max(len(have) - off, 0), len(data)))
    return have == overlay(old, off, data[:n]) if n else have == old


def like(have, places):
    """For people: for each state its length and in which pages it is different."""
    out = []
    for p, (_, node) in enumerate(places):
        for i, s in enumerate(node.states if node else []):
            bad = [at // 4096 for at in range(0, max(len(have), len(s[1])), 4096) if have[at:at + 4096] != s[1][at:at + 4096]]
            out.append(f"{p}.{i}: {len(s[1])} bytes, {len(bad)} pages differ, {bad[:3]}..{bad[-3:]}")
    return out[-12:]


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


def start_again(a, r, options):
    """kill -9 and a start, which has come to some point when this returns: (moment of the kill, the daemon, was it still starting)."""
    killed = time.monotonic()
    a.kill()
    place = r.choice(PLACES) if r.random() < 0.7 else None
    daemon = a.mount_in_foreground(f"{place}=hold@{r.choice((1, 1, 2, 3))}" if place else None, options, signed_in=True)
    threading.Event().wait(PATIENCE * (0.3 + 0.3 * r.random() if place else 0.5 * r.random()))
    assert daemon.poll() is None, f"the start failed: {a.log_text()[-2000:]}"
    return killed, daemon, a.pid() != daemon.pid


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
    count = {"lost after fsync": 0, "lost after 1 s": 0, "torn": 0, "conflict copies": 0, "given up": 0, "oldest given up ms": 0}
    cuts = felt = acknowledged = synced = starts = unfinished = 0
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
            if cuts % 3 == 2:
                cut, daemon, early = start_again(a, r, options)
                daemon.send_signal(signal.SIGSTOP)
                disk.cut()
                daemon.kill()
                daemon.wait()
                starts, unfinished = starts + 1, unfinished + early
            else:
                cut = time.monotonic()
                os.kill(a.pid(), signal.SIGSTOP)  # nothing computes on a machine without power
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
        print(f"{kind}: {cuts} cuts, {starts} of them in a start ({unfinished} before it served), {felt} took something, {acknowledged} acknowledged calls, {synced} syncs, {count}")
        assert felt >= cuts / 5, f"void: only {felt} of {cuts} cuts took anything away"
    finally:
        a.close()
        disk.umount()
