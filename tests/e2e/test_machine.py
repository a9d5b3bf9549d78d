# SPDX-License-Identifier: Apache-2.0
"""A state machine over three mounts of one real server: hypothesis chooses what is done where, in sequences that mix every operation with periods without the network, kill -9 and
remounts; each example has a directory of its own in one world.

What must be true. While it goes on: what a mount shows without the network is the same before and after kill -9, and a handle reads what was written through it. At the end of an example,
when all are connected: within 30 s nothing is pending or parked, all mounts stand at the server's last event and show the same tree, attributes and bytes; every content in it is one that
somebody wrote; every content that was closed is one of the server's versions, unless its own writer wrote other bytes to the same inode later, or took its last name away. At the end of
all a client with an empty cache shows the same in every example's directory.

100 examples of 50 steps here (hypothesis begins with a few that are nearly empty, which do not count); TARN_TEST_SCALE multiplies the examples, TARN_TEST_SEED repeats the choices (the timing differs, of course), TARN_TEST_STEPS sets the steps, and
TARN_TEST_SHRINK=1 looks for a shorter sequence (each attempt takes its time). A failure prints the steps and the blob for @reproduce_failure."""
import ctypes
import errno
import hashlib
import mmap
import os
import stat
import threading
import time

from hypothesis import HealthCheck, Phase, seed as with_seed, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from support import PATIENCE, facts, seed_of_run, share, soon, until
from closed import Closed, taken
from test_network import Behind
from test_storm import versions

EXAMPLES = share(100, slow=10)
STEPS = int(os.environ.get("TARN_TEST_STEPS", 50))
HEALED_S = 30
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ESTALE, errno.ENODATA, errno.EPERM, errno.ELOOP}
PATHS = ("a", "b.txt", "d/a", "d/b.txt", "e/a", "d/e/a", "d", "e", "d/e", "f")  # few, so that the mounts meet
AWAY = {errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EIO}  # of a read of what is not in the cache

mounts = st.integers(0, 2)
paths = st.sampled_from(PATHS)
sizes = st.sampled_from((0, 10, 3000, 60000, 200000))  # the last one is sent as a block, not inline; all are one block
SIZE_MAX = 500000  # of what grows
world_of_this_run = None
libc = ctypes.CDLL(None, use_errno=True)


def digest(b):
    return hashlib.sha256(b).hexdigest() if b else "0" * 64


def call(f, *args):
    """A system call that Python does not have."""
    if f(*args) < 0:
        raise OSError(ctypes.get_errno(), f.__name__)


class Scene:
    """What the examples share: the world, and what is counted."""

    def __init__(self, world, seed):
        self.world = world
        self.clients = [Behind(world, name, seed + i) for i, name in enumerate("abc")]
        self.begun = self.examples = self.full = self.steps = self.kills = self.away = self.closed = self.handles = self.failed = 0
        self.must, self.slowest, self.errors = [], 0.0, 0

    def last_seq(self):
        return self.world.server.rows("SELECT seq FROM workspace")[0][0]

    def roots(self):
        return {row[0].hex() for t in ("node", "revision") for row in self.world.server.rows(f"SELECT root FROM {t} WHERE kind = 1 AND root IS NOT NULL")} | {digest(b"")}

    def calm(self):
        self.at = [{k: v for k, v in c.ask(cmd="status").items() if k in ("state", "reason", "pending_items", "pending_files", "parked", "cursor")} for c in self.clients]
        return all(s["pending_items"] == 0 and s["pending_files"] == 0 and not s["parked"] and s["cursor"]["seq"] == self.last_seq() for s in self.at)

    def converge(self):
        began = time.monotonic()
        while not self.calm():
            assert time.monotonic() - began < HEALED_S * PATIENCE, f"not converged {HEALED_S * PATIENCE:g} s after healing: {self.at}"
            threading.Event().wait(0.02)
        self.slowest = max(self.slowest, time.monotonic() - began)


def shown(root):
    """facts, and what they leave out; contents as digests."""
    tree = {}
    for path, fact in facts(root, dir_times=False).items():
        full = os.path.join(root, path)
        s = os.lstat(full)
        extra = ()
        if stat.S_ISREG(s.st_mode):
            with open(full, "rb") as f:
                extra = (s.st_nlink, digest(f.read()))
        if not stat.S_ISLNK(s.st_mode):
            extra += tuple((x, os.getxattr(full, x)) for x in sorted(os.listxattr(full)) if x.startswith("user.") and not x.startswith("user.tarn."))
        tree[path] = fact + extra
    return tree


def differences(x, y):
    return [f"{p}: {x.get(p)} != {y.get(p)}" for p in sorted(set(x) | set(y)) if x.get(p) != y.get(p)][:10]


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.s = world_of_this_run
        self.n = self.s.begun = self.s.begun + 1
        self.name, self.log, self.count, self.made = f"e{self.n}", [], 0, 0
        self.online = [True] * 3
        self.last = [Closed() for _ in range(3)]  # per client: (digest, what) of the newest bytes closed on each inode
        self.whole_here = [set() for _ in range(3)]  # inodes whose bytes were all written here
        self.known = {digest(b"")}           # every content that somebody wrote, at any moment
        self.blind = False                   # something was changed whose other bytes could not be read
        self.kept = {}                       # (client, number) -> [handle, bytes written through it, whether this mount took the file's last name away]
        self.ok = True
        self.idle = self.s.full >= EXAMPLES  # there were enough

    def at(self, m, path):
        return os.path.join(self.s.clients[m].dir, self.name, path)

    def fail(self, text):
        self.ok = False
        self.s.failed += 1
        print(f"example {self.n}: {text}\nsteps:\n  " + "\n  ".join(self.log))
        raise AssertionError(text)

    def do(self, m, what, act):
        """act(), which may be refused as POSIX has it."""
        if self.idle:
            return None
        self.s.steps += 1
        self.log.append(f"{'abc'[m]}{'' if self.online[m] else ' (away)'}: {what}")
        try:
            return act()
        except OSError as e:
            self.log[-1] += f" -> {errno.errorcode.get(e.errno, e.errno)}"
            self.s.errors += 1
            if e.errno not in EXPECTED:
                self.fail(f"{self.log[-1]}: no error that this may give")

    def text(self, size):
        self.count += 1
        head = f"{self.name} {self.count}\n".encode()
        return (head + b"x" * size)[:max(size, len(head))]

    def note(self, m, fd, data, closes=True):
        """The file of this handle holds these bytes now. closes: they will be a version, unless another handle of the file is open here: then they are on the way to what that one leaves."""
        self.known.add(digest(data))
        if closes and not self.kept_too(m, fd):
            self.s.closed += 1
            self.last[m].note(fd, (digest(data), f"example {self.n}: {self.log[-1]}"))
        else:
            self.last[m].forget(fd)

    def kept_too(self, m, fd):
        return any(k[0] == m and h[0] != fd and os.fstat(h[0]).st_ino == os.fstat(fd).st_ino for k, h in self.kept.items())

    def whole(self, m, fd):
        """All bytes behind a handle, or None if they are elsewhere."""
        try:
            return os.pread(fd, 1 << 20, 0)
        except OSError as e:
            if e.errno not in AWAY:
                raise
            self.blind = True
            return None

    def change(self, m, path, flags, act):
        """Opens, changes, reads it all back through the same handle, closes."""
        fd = os.open(self.at(m, path), flags | os.O_CLOEXEC | os.O_RDWR, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "a pipe")
            ino = os.fstat(fd).st_ino
            (self.whole_here[m].add if flags & os.O_TRUNC else self.whole_here[m].discard)(ino)
            act(fd)
            data = self.whole(m, fd)
            if data is None:
                self.last[m].forget(fd)
            else:
                self.note(m, fd, data)
        finally:
            os.close(fd)

    def take_away(self, m, act, path, source=None):
        def both():
            for k in taken({k: h[0] for k, h in self.kept.items() if k[0] == m}, act, path, source):
                self.kept[k][2] = True
        self.last[m].take_away(both, path, source)

    def replace(self, m, path, to, flags=0):
        path, to = self.at(m, path), self.at(m, to)
        self.take_away(m, lambda: call(libc.renameat2, -100, os.fsencode(path), -100, os.fsencode(to), flags), None if flags else to, path)

    @initialize()
    def begin(self):
        """Files for the steps to meet, everywhere."""
        if self.idle:
            return
        for path in ("d/e", "e"):
            os.makedirs(self.at(0, path))
        for path in ("a", "b.txt", "d/a", "d/b.txt", "e/a", "d/e/a"):
            self.log.append(f"a: made {path}")
            self.change(0, path, os.O_CREAT, lambda fd: os.write(fd, self.text(100)))
        self.made = len(self.log)
        try:
            self.s.converge()
        except AssertionError as e:
            self.fail(str(e))

    # ---- files ----
    @rule(m=mounts, path=paths, size=sizes)
    def write(self, m, path, size):
        data = self.text(size)
        self.do(m, f"write {path} {size}", lambda: self.change(m, path, os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, data)))

    @rule(m=mounts, path=paths)
    def create_empty(self, m, path):
        self.do(m, f"create {path}", lambda: os.close(os.open(self.at(m, path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC)))

    @rule(m=mounts, path=paths, size=sizes)
    def append(self, m, path, size):
        data = self.text(size)
        self.do(m, f"append {path} {size}", lambda: self.change(m, path, os.O_APPEND, lambda fd: os.fstat(fd).st_size < SIZE_MAX and os.write(fd, data)))

    @rule(m=mounts, path=paths, size=sizes)
    def truncate(self, m, path, size):
        self.do(m, f"truncate {path} {size}", lambda: self.change(m, path, 0, lambda fd: os.ftruncate(fd, size)))

    @rule(m=mounts, path=paths, at=st.sampled_from((0, 5, 4096, 70000)), size=sizes)
    def patch(self, m, path, at, size):
        data = self.text(size)
        self.do(m, f"write {path} {at}+{size}", lambda: self.change(m, path, 0, lambda fd: os.pwrite(fd, data, at)))

    @rule(m=mounts, path=paths, size=sizes)
    def mapped(self, m, path, size):
        """A new content, written in part through a mapping."""
        data, over = self.text(size), self.text(0)

        def act(fd):
            os.write(fd, data)
            with mmap.mmap(fd, 0) as pages:
                pages[len(data) - min(len(over), len(data)):] = over[:len(data)]
                pages.flush()
        self.do(m, f"map {path} {size}", lambda: self.change(m, path, os.O_CREAT | os.O_TRUNC, act))

    @rule(m=mounts, path=paths, how=st.sampled_from((0, 1, 3, 0x10)), at=st.sampled_from((0, 10, 5000)))
    def allocate(self, m, path, how, at):
        self.do(m, f"fallocate {how:#x} {path} {at}", lambda: self.change(m, path, 0, lambda fd: call(libc.fallocate, fd, how, ctypes.c_long(at), ctypes.c_long(3000))))

    @rule(m=mounts, path=paths, size=sizes)
    def save(self, m, path, size):
        data, temp = self.text(size), os.path.join(os.path.dirname(path), f".{'abc'[m]}.tmp")

        def act():
            self.change(m, temp, os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, data))
            self.replace(m, temp, path)
        self.do(m, f"save {path} {size}", act)

    @rule(m=mounts, path=paths, size=sizes, number=st.integers(0, 1))
    def open_keep(self, m, path, size, number):
        if (m, number) in self.kept:
            return self.close_kept(m, number)
        data = self.text(size)

        def act():
            fd = os.open(self.at(m, path), os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o644)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise OSError(errno.EINVAL, "a pipe")
            self.kept[m, number] = [fd, b"", False]
            self.note(m, fd, b"", closes=False)
            self.through(m, number, data)
        self.do(m, f"open {path} as {number}, write {size}", act)

    def through(self, m, number, data):
        """Writes through a kept handle, if it is the only one of its file (two would write over each other)."""
        fd, before, _ = self.kept[m, number]
        if self.kept_too(m, fd):
            self.blind = True
        self.s.handles += 1
        os.pwrite(fd, data, len(before) if len(before) < SIZE_MAX else 0)
        now = self.whole(m, fd)
        if now is not None:
            self.known.add(digest(now))
            self.kept[m, number][1] = now

    def some_kept(self, which):
        return sorted(self.kept)[which % len(self.kept)]

    @rule(which=st.integers(0, 5), size=sizes)
    @precondition(lambda self: self.kept)
    def write_kept(self, which, size):
        m, number = self.some_kept(which)
        self.do(m, f"write to {number}, {size}", lambda: self.through(m, number, self.text(size)))

    @rule(which=st.integers(0, 5))
    @precondition(lambda self: self.kept)
    def fsync_kept(self, which):
        m, number = self.some_kept(which)
        self.do(m, f"fsync {number}", lambda: os.fsync(self.kept[m, number][0]))

    @rule(which=st.integers(0, 5))
    @precondition(lambda self: self.kept)
    def close_some_kept(self, which):
        self.close_kept(*self.some_kept(which))

    def close_kept(self, m, number):
        def act():
            fd, _, taken = self.kept.pop((m, number))
            try:
                data = self.whole(m, fd)
                if data is not None:
                    self.note(m, fd, data, closes=not taken)
            finally:
                os.close(fd)
        self.do(m, f"close {number}", act)

    # ---- names ----
    @rule(m=mounts, path=paths, to=paths, flags=st.sampled_from((0, 0, 0, 1, 2)))
    def rename(self, m, path, to, flags):
        self.do(m, f"{('rename', 'rename without replacing', 'exchange')[flags]} {path} {to}", lambda: self.replace(m, path, to, flags))

    @rule(m=mounts, path=paths, to=paths)
    def link(self, m, path, to):
        self.do(m, f"link {path} {to}", lambda: os.link(self.at(m, path), self.at(m, to), follow_symlinks=False))

    @rule(m=mounts, path=paths)
    def symlink(self, m, path):
        self.do(m, f"symlink {path}", lambda: os.symlink(f"nowhere {self.count}", self.at(m, path)))

    @rule(m=mounts, path=paths)
    def pipe(self, m, path):
        self.do(m, f"mkfifo {path}", lambda: os.mkfifo(self.at(m, path)))

    @rule(m=mounts, path=paths)
    def unlink(self, m, path):
        self.do(m, f"unlink {path}", lambda: self.take_away(m, lambda: os.unlink(self.at(m, path)), self.at(m, path)))

    @rule(m=mounts, path=paths)
    def mkdir(self, m, path):
        self.do(m, f"mkdir {path}", lambda: os.mkdir(self.at(m, path)))

    @rule(m=mounts, path=paths)
    def rmdir(self, m, path):
        self.do(m, f"rmdir {path}", lambda: os.rmdir(self.at(m, path)))

    # ---- attributes ----
    @rule(m=mounts, path=paths, mode=st.sampled_from((0o600, 0o640, 0o755, 0o4711)))
    def chmod(self, m, path, mode):
        self.do(m, f"chmod {path} {mode:o}", lambda: os.chmod(self.at(m, path), mode))

    @rule(m=mounts, path=paths, name=st.sampled_from(("user.x", "user.y")), value=st.sampled_from((None, b"", b"one", b"2" * 300)))
    def xattr(self, m, path, name, value):
        if value is None:
            self.do(m, f"removexattr {path} {name}", lambda: os.removexattr(self.at(m, path), name, follow_symlinks=False))
        else:
            self.do(m, f"setxattr {path} {name} {len(value)}", lambda: os.setxattr(self.at(m, path), name, value, follow_symlinks=False))

    @rule(m=mounts, path=paths, when=st.integers(1, 1 << 31))
    def mtime(self, m, path, when):
        self.do(m, f"utime {path} {when}", lambda: os.utime(self.at(m, path), ns=(when * 10**9, when * 10**9 + 7), follow_symlinks=False))

    # ---- the world ----
    def connect(self, m, on):
        if self.idle:
            return
        line = self.s.clients[m].line
        line.command("refuse off" if on else "refuse on")
        if not on:
            line.command("cut")
            self.s.away += 1
        self.online[m] = on
        if on:
            self.s.clients[m].ask(cmd="nudge")  # the network's own waiting is test_network.py's
        self.log.append(f"{'abc'[m]}: {'connected' if on else 'cut off'}")

    @rule(m=mounts)
    def offline(self, m):
        self.connect(m, not self.online[m])

    @rule(which=st.integers(0, 2))
    @precondition(lambda self: not all(self.online))
    def online_again(self, which):
        away = [m for m in range(3) if not self.online[m]]
        self.connect(away[which % len(away)], True)

    @rule(m=mounts, luck=st.integers(0, 2))
    def kill(self, m, luck):
        """kill -9 and a remount. What was written through open handles was accepted."""
        if luck or self.idle:
            return
        c = self.s.clients[m]
        self.log.append(f"{'abc'[m]}{'' if self.online[m] else ' (away)'}: kill -9, remount")
        self.s.kills += 1
        away = not self.online[m]
        if away:
            c.ask(cmd="nudge")
            until(lambda: c.ask(cmd="status")["state"] == "offline", 40, "offline")
            before = soon(lambda: self.rested(m))
        handles = {k: self.kept.pop(k) for k in list(self.kept) if k[0] == m}
        c.kill()
        for h in handles.values():
            try:
                os.close(h[0])
            except OSError:
                pass
        c.mount()
        self.last[m].killed(self.at(m, ""))
        if away:
            after = soon(lambda: self.look(m))
            written = {digest(h[1]) for h in handles.values() if not h[2]}
            for path in [p for p in after if p not in before and "(conflict recovered " in p]:
                with open(self.at(m, path), "rb") as f:  # what was in a handle of a file that others deleted
                    if digest(f.read()) in written or self.blind:
                        del after[path]
            wrong = differences(before, after)
            if wrong:
                self.fail(f"{'abc'[m]} shows something else after kill -9: {wrong}")

    def rested(self, m):
        tree = self.look(m)
        threading.Event().wait(0.05)
        assert tree == self.look(m), "it still changes"
        return tree

    def look(self, m):
        """The tree of one that is away, with the contents that only it has, whole. A copy of the server's bytes that came a moment before a kill may have to be fetched again."""
        tree, there = facts(self.at(m, ""), dir_times=False), self.s.roots()
        for path in tree:
            full = self.at(m, path)
            s = os.lstat(full)
            if stat.S_ISREG(s.st_mode) and s.st_ino in self.whole_here[m] and self.last[m].last.get(s.st_ino, ("0" * 64,))[0] not in there:
                try:
                    with open(full, "rb") as f:
                        tree[path] += (digest(f.read()),)
                except OSError as e:  # others' bytes came in their place, and those from here are beside them
                    if e.errno not in AWAY:
                        raise
        return tree

    def waiting(self):
        """Who can have sent all: what is open for writing is pending until it has been quiet for long."""
        return [m for m in range(3) if self.online[m] and not any(k[0] == m for k in self.kept)]

    @rule(which=st.integers(0, 2))
    @precondition(lambda self: not self.idle and self.waiting())
    def wait(self, which):
        m = self.waiting()[which % len(self.waiting())]
        self.log.append(f"{'abc'[m]}: wait")
        self.s.clients[m].wait(60)

    # ---- the end of an example ----
    def same(self, m):
        tree, other = shown(self.at(0, "")), shown(self.at(m, ""))
        assert tree == other, f"a and {'abc'[m]} differ: {differences(tree, other)}"
        return tree

    def teardown(self):
        if self.idle:
            return
        self.s.examples += 1
        self.s.full += len(self.log) - self.made >= 0.8 * STEPS
        for m, number in list(self.kept):
            if self.ok:
                self.close_kept(m, number)
            else:
                os.close(self.kept.pop((m, number))[0])
        for m in range(3):
            self.connect(m, True)
            self.last[m].close()
        if not self.ok:
            return
        try:
            self.s.converge()
        except AssertionError as e:
            self.fail(str(e))
        for m in (1, 2):
            try:
                tree = soon(lambda: self.same(m))
            except (AssertionError, FileNotFoundError) as e:
                self.fail(str(e))
        if not self.blind:
            strange = [p for p, f in tree.items() if f[0].startswith("0o100") and f[4] not in self.known]
            if strange:
                self.fail(f"contents that nobody wrote: {[(p, tree[p]) for p in strange]}")
        there = self.s.roots()
        lost = [what for last in self.last for d, what in last.last.values() if d not in there]
        if lost:
            self.fail(f"lost: {lost}")
        self.s.must += [x for last in self.last for x in last.last.values()]


def test_state_machine(world):
    global world_of_this_run
    seed = seed_of_run()
    s = world_of_this_run = Scene(world, seed)
    began = time.monotonic()
    phases = [Phase.generate] + [Phase.shrink] * bool(os.environ.get("TARN_TEST_SHRINK"))
    run_state_machine_as_test(with_seed(seed)(Machine), settings=settings(max_examples=EXAMPLES + max(EXAMPLES // 2, 50), stateful_step_count=STEPS, deadline=None, database=None, print_blob=True, phases=phases,
                                                                         suppress_health_check=list(HealthCheck), report_multiple_bugs=False))
    there = versions(world.server) | {digest(b"")}
    lost = [what for d, what in s.must if d not in there]
    fresh = world.client("fresh")
    until(lambda: fresh.status()["cursor"]["seq"] == s.last_seq(), HEALED_S, "a client with an empty cache has seen all")
    tree = shown(s.clients[0].dir)
    wrong = differences(tree, shown(fresh.dir))
    print(f"{s.full} examples (and {s.examples - s.full} that are nearly empty), {s.steps} operations ({s.errors} refused), {s.handles} writes through kept handles, {s.away} periods away, {s.kills} kills, {s.closed} contents closed, {len(s.must)} last "
          f"ones, {len(lost)} lost, converged after {s.slowest:.1f} s at most, {time.monotonic() - began:.0f} s in all")
    assert not lost, f"seed {seed}: lost: {lost[:20]}"
    assert not wrong, f"seed {seed}: a client with an empty cache shows something else: {wrong}"
    assert EXAMPLES < 50 or (s.kills and s.away and s.handles), "void: no kill, or nobody was ever away"
    assert s.full >= EXAMPLES, "void: too many examples were nearly empty"
