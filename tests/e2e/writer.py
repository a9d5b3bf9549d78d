# SPDX-License-Identifier: Apache-2.0
"""A program that changes files at random and knows what must be there afterwards: the oracle of the crash tests.

Each Writer has a directory and a model of it: what every call that returned has made. The call that a crash interrupted may have happened or not, and a write may have happened up to any
byte. settle() says which of these the mount shows."""
import os
import random
import shutil
import signal
import threading

from support import TARN, alive, facts, until

NAMES = [f"f{i}" for i in range(7)]
DIRS = ["d0", "d1", "d2"]


class Writer(threading.Thread):
    """Random changes in one directory until the daemon is gone. model: path -> bytes, or None for a directory."""

    def __init__(self, at, seed, model, size_max=8 << 20, reads=False):
        super().__init__()
        self.at, self.random, self.model, self.stop = at, random.Random(seed), model, threading.Event()
        self.size_bits, self.reads = (size_max // 4096).bit_length() - 1, reads
        self.may, self.part, self.log, self.error, self.fd = None, None, [], None, -1
        self.calls = self.closed = self.synced = 0  # that returned

    def path(self, name):
        return os.path.join(self.at, name)

    def call(self, what, change, f, *args):
        """One system call: change(model) is what it makes."""
        after = dict(self.model)
        change(after)
        self.may, self.part = after, None
        self.log.append(what)
        value = f(*args)
        self.model, self.may = after, None
        self.calls += 1
        return value

    def write(self, name, off, data):
        before = self.model[name]

        def f():
            done = 0
            while done < len(data):
                self.may, self.part = None, (name, before, off, data)
                done += os.pwrite(self.fd, data[done:], off + done)

        self.call(f"write {name} {off}+{len(data)}", lambda m: m.__setitem__(name, overlay(before, off, data)), f)
        self.part = None

    def size(self):
        return int(4096 * 2 ** (self.size_bits * self.random.random())) if self.random.random() < 0.7 else self.random.randrange(0, 4096)

    def fill(self, name, off, data):
        """In one or several writes."""
        n = self.random.choice((1, 1, 2, 5))
        step = max(1, len(data) // n)
        for at in range(0, len(data), step):
            self.write(name, off + at, data[at:at + step])

    def finish(self, name):
        if self.random.random() < 0.4:
            self.call(f"fsync {name}", lambda m: None, os.fsync, self.fd)
            self.synced += 1
        fd, self.fd = self.fd, -1
        self.call(f"close {name}", lambda m: None, os.close, fd)
        self.closed += 1

    def open(self, name, flags):
        def change(m):
            if flags & os.O_TRUNC or name not in m:
                m[name] = b""
        self.fd = self.call(f"open {name} {flags:o}", change, os.open, self.path(name), flags | os.O_WRONLY | os.O_CREAT, 0o644)

    def step(self):
        r = self.random
        files, dirs = [n for n, c in self.model.items() if c is not None], [n for n, c in self.model.items() if c is None]
        name = r.choice([""] + [d + "/" for d in dirs]) + r.choice(NAMES)
        kind = r.choice(("create", "create", "replace", "replace", "append", "change", "truncate", "unlink", "rename", "mkdir", "rmdir", "rename dir") + ("read",) * (3 * self.reads))
        if kind == "create":
            self.open(name, os.O_TRUNC)
            self.fill(name, 0, r.randbytes(self.size()))
            self.finish(name)
        elif kind == "replace":
            temp = os.path.join(os.path.dirname(name), r.choice((".tmp", "new", ".#x.swp")) + str(r.randrange(9)))
            self.open(temp, os.O_TRUNC)
            self.fill(temp, 0, r.randbytes(self.size()))
            self.finish(temp)
            self.rename(temp, name)
        elif kind in ("append", "change") and files:
            name = r.choice(files)
            self.open(name, 0)
            for _ in range(r.choice((1, 1, 3))):
                length = len(self.model[name])
                self.fill(name, length if kind == "append" else r.randrange(0, length + 1), r.randbytes(r.randrange(1, 200000)))
            self.finish(name)
        elif kind == "truncate" and files:
            name = r.choice(files)
            to = r.randrange(0, len(self.model[name]) + 5000)
            self.call(f"truncate {name} {to}", lambda m: m.__setitem__(name, m[name][:to].ljust(to, b"\0")), os.truncate, self.path(name), to)
        elif kind == "unlink" and files:
            name = r.choice(files)
            self.call(f"unlink {name}", lambda m: m.pop(name), os.unlink, self.path(name))
        elif kind == "rename" and files:
            self.rename(r.choice(files), name)
        elif kind == "read" and files:
            name = r.choice(files)
            with open(self.path(name), "rb") as f:
                got = f.read()
            if got != self.model[name]:
                raise AssertionError(f"read: {differences({name: self.model[name]}, {name: got})}; last calls {self.log[-20:]}")
        elif kind == "mkdir":
            name = r.choice(DIRS)
            if name not in self.model:
                self.call(f"mkdir {name}", lambda m: m.__setitem__(name, None), os.mkdir, self.path(name))
        elif kind == "rmdir" and dirs:
            name = r.choice(dirs)
            for f in [f for f in files if f.startswith(name + "/")]:
                self.call(f"unlink {f}", lambda m: m.pop(f), os.unlink, self.path(f))
            self.call(f"rmdir {name}", lambda m: m.pop(name), os.rmdir, self.path(name))
        elif kind == "rename dir" and dirs:
            old, new = r.choice(dirs), r.choice(DIRS)
            if new not in self.model:
                def change(m):
                    for k in [k for k in m if k == old or k.startswith(old + "/")]:
                        m[new + k[len(old):]] = m.pop(k)
                self.call(f"rename {old} {new}", change, os.rename, self.path(old), self.path(new))

    def rename(self, old, new):
        if old != new:
            self.call(f"rename {old} {new}", lambda m: m.__setitem__(new, m.pop(old)), os.rename, self.path(old), self.path(new))

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
        except OSError as e:
            self.error = e
        except BaseException as e:  # a mistake of the test
            self.error = e
            raise
        finally:
            if self.fd >= 0:
                try:
                    os.close(self.fd)
                except OSError:
                    pass


def overlay(old, off, data):
    return old[:off].ljust(off, b"\0") + data + old[off + len(data):]


def seen(root):
    tree = {}
    for at, dirs, files in os.walk(root):
        rel = os.path.relpath(at, root)
        for d in dirs:
            tree[os.path.normpath(os.path.join(rel, d))] = None
        for f in files:
            with open(os.path.join(at, f), "rb") as h:
                tree[os.path.normpath(os.path.join(rel, f))] = h.read()
    return tree


def differences(want, got):
    out = []
    for n in sorted(set(want) | set(got)):
        if n not in got:
            out.append(f"{n}: lost")
        elif n not in want:
            out.append(f"{n}: should not be there")
        elif want[n] != got[n]:
            w, g = want[n] or b"", got[n] or b""
            at = next((i for i, (x, y) in enumerate(zip(w, g)) if x != y), min(len(w), len(g)))
            out.append(f"{n}: {len(g)} bytes instead of {len(w)}, differs from {at}, there {g[at:at + 8].hex()} instead of {w[at:at + 8].hex()}")
    return out


def settle(writer, got):
    """The model that the mount shows after the kill, or the differences."""
    best = differences(writer.model, got)
    if not best:
        return writer.model, []
    if writer.may is not None and not differences(writer.may, got):
        return writer.may, []
    if writer.part:
        name, before, off, data = writer.part
        have = got.get(name) or b""
        n = next((i for i, (x, y) in enumerate(zip(have[off:], data)) if x != y), min(max(len(have) - off, 0), len(data)))
        model = dict(writer.model)
        model[name] = overlay(before, off, data[:n]) if n else before
        best = differences(model, got)
        if not best:
            return model, []
    return None, best


def end_daemons(client):
    """kill -9 of every tarn of this client, also of one that has not told its pid yet."""
    killed = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            if words[0] == os.fsencode(TARN) and os.fsencode(client.dir) in words:
                os.kill(int(pid), signal.SIGKILL)
                until(lambda: not alive(pid), what="the daemon's death")
                killed += 1
        except (FileNotFoundError, ProcessLookupError):
            pass
    return killed


class Scene:
    """One client under writers that is killed again and again, and what was counted. Any difference is an AssertionError that says which kind it is."""

    def __init__(self, world, seed, options="", writers=2, size_max=8 << 20, reads=False):
        self.world, self.options, self.size_max, self.reads = world, options, size_max, reads
        self.random = random.Random(seed)
        self.client = world.client("a", options=options)
        self.models = {f"w{i}": {} for i in range(writers)}
        self.kills = self.dirty_kills = self.calls = self.closed = self.synced = self.compared = 0
        self.writers = []
        for w in self.models:
            (self.client.dir / w).mkdir()

    def start(self):
        self.writers = [Writer(str(self.client.dir / w), self.random.randrange(1 << 32), m, self.size_max, self.reads) for w, m in self.models.items()]
        for w in self.writers:
            w.start()

    def stop(self):
        """The writers finish what they are at, without a kill."""
        for w in self.writers:
            w.stop.set()
        for w in self.writers:
            w.join(60)
            assert not w.is_alive(), f"a call hangs: {w.log[-1]}"
            assert w.error is None, repr(w.error)

    def died(self):
        """After the kill: the writers' calls must fail, not hang."""
        self.kills += 1
        for w in self.writers:
            w.stop.set()
        for w in self.writers:
            w.join(60)
            assert not w.is_alive(), f"a call hangs after the kill: {w.log[-1]}"
            assert w.error is None or isinstance(w.error, OSError), repr(w.error)

    def mount(self):
        self.client.mount(options=self.options, signed_in=True)

    def settle(self, what):
        """What the mount shows must be what the calls made."""
        for w, name in zip(self.writers, self.models):
            model, wrong = settle(w, seen(w.at))
            assert model is not None, f"{what}, {name}, after the remount: {wrong[:10]}\nlast calls: {w.log[-30:]}\nin flight: {w.may is not None or w.part and w.part[0]}\n{self.report(wrong)}"
            self.models[name] = model
            self.calls, self.closed, self.synced = self.calls + w.calls, self.closed + w.closed, self.synced + w.synced
        self.writers = []

    def pending(self):
        s = self.client.status()
        return s["pending_files"] + s["pending_items"]

    def compare(self, what, seconds=60, last=False):
        """Drain, and look through a client with an empty cache. last: something changes in each directory before, so that their times must agree too."""
        if last:
            self.client.wait(seconds)
            for at, _, _ in list(os.walk(self.client.dir)):
                open(os.path.join(at, "last"), "wb").close()
                rel = os.path.relpath(at, self.client.dir).split("/", 1)
                if rel[0] in self.models:
                    self.models[rel[0]][os.path.join(*rel[1:], "last")] = b""
        self.client.wait(seconds)
        s = self.client.status()
        assert s["pending_files"] == 0 and s["pending_items"] == 0 and not s.get("parked"), f"{what}: {s}"
        self.compared += 1
        b = self.world.client(f"b{self.compared}", mount=False)
        b.state.mkdir(mode=0o700, parents=True)
        for session in self.client.state.glob("session-*.json"):
            shutil.copy2(session, b.state)
        b.mount(signed_in=True)
        for w, model in self.models.items():
            wrong = differences(model, seen(b.dir / w))
            assert not wrong, f"{what}, {w}, through another client: {wrong[:10]}\n{self.report(wrong)}"
        self.compare_facts(what, b, exact=last)
        b.close()
        until(lambda: not b.pid() or not os.path.ismount(b.dir), what="the end of the other client")
        self.world.clients.remove(b)
        for d in (b.state, b.cache):
            shutil.rmtree(d)

    def compare_facts(self, what, b, exact=False):
        """Everything but the times of directories is equal. A directory's mtime is raised here by each change in it; one that was never sent (a temporary that was made and removed at once) raises
        it nowhere else, so that here it may be later; the next change that is sent makes them agree: exact."""
        x, y = facts(self.client.dir), facts(b.dir)

        def differ(f, g):
            if not f or not g or len(f) != 2 or not isinstance(f[1], int):
                return f != g
            return f[0] != g[0] or (f[1] != g[1] if exact else f[1] < g[1])
        wrong = [f"{p}: {x.get(p)} != {y.get(p)}" for p in sorted(set(x) | set(y)) if differ(x.get(p), y.get(p))]
        assert not wrong, f"{what}: {wrong[:10]}"

    def report(self, wrong=()):
        kind = lambda words: sum(any(x in line for x in words) for line in wrong)
        return (f"{self.kills} kills, {self.calls} acknowledged calls, {self.closed} acknowledged files ({self.synced} fsynced), "
                f"{kind([': lost'])} lost, {kind([' bytes instead of '])} torn, {kind(['should not be there'])} resurrected")
