# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon at random moments under writers: nothing accepted is lost or torn, nothing deleted comes back.

Each writer has a directory and a model of it: what every call that returned has made. The call that the kill interrupted may have happened or not, and a write may have happened
up to any byte. After the remount the mount must show the model; after `tarn wait` a client with an empty cache must show it as well, without a conflict copy. Some rounds kill
again while the mount recovers, and some do not wait, so that work of several lives is pending. A run in which too few kills met pending work proves nothing and fails.

25 kills here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import json
import os
import random
import shutil
import signal
import subprocess
import threading

from support import SCALE, TARN, alive, facts, until

KILLS = int(25 * SCALE)
NAMES = [f"f{i}" for i in range(7)]
DIRS = ["d0", "d1", "d2"]


class Writer(threading.Thread):
    """Random changes in one directory until the daemon is gone. model: path -> bytes, or None for a directory."""

    def __init__(self, at, seed, model):
        super().__init__()
        self.at, self.random, self.model, self.stop = at, random.Random(seed), model, threading.Event()
        self.may, self.part, self.log, self.error, self.fd = None, None, [], None, -1

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
        return int(4096 * 2 ** (11 * self.random.random())) if self.random.random() < 0.7 else self.random.randrange(0, 4096)

    def fill(self, name, off, data):
        """In one or several writes."""
        n = self.random.choice((1, 1, 2, 5))
        step = max(1, len(data) // n)
        for at in range(0, len(data), step):
            self.write(name, off + at, data[at:at + step])

    def finish(self, name):
        if self.random.random() < 0.4:
            self.call(f"fsync {name}", lambda m: None, os.fsync, self.fd)
        fd, self.fd = self.fd, -1
        self.call(f"close {name}", lambda m: None, os.close, fd)

    def open(self, name, flags):
        def change(m):
            if flags & os.O_TRUNC or name not in m:
                m[name] = b""
        self.fd = self.call(f"open {name} {flags:o}", change, os.open, self.path(name), flags | os.O_WRONLY | os.O_CREAT, 0o644)

    def step(self):
        r = self.random
        files, dirs = [n for n, c in self.model.items() if c is not None], [n for n, c in self.model.items() if c is None]
        name = r.choice([""] + [d + "/" for d in dirs]) + r.choice(NAMES)
        kind = r.choice(("create", "create", "replace", "replace", "append", "change", "truncate", "unlink", "rename", "mkdir", "rmdir", "rename dir"))
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


def test_kill_9_under_writers(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    r = random.Random(seed)
    a = world.client("a", options="cache_size=256M")
    models, pending, kills = {"w0": {}, "w1": {}}, 0, 0
    for w in models:
        (a.dir / w).mkdir()

    def compare_through_an_empty_cache():
        a.wait(30)
        s = a.status()
        assert s["pending_files"] == 0 and s["pending_items"] == 0 and not s.get("parked"), s
        b = world.client(f"b{kills}")
        for w, model in models.items():
            wrong = differences(model, seen(b.dir / w))
            assert not wrong, f"kill {kills}, {w}, through another client: {wrong[:10]}"
        x, y = facts(a.dir), facts(b.dir)
        wrong = [f"{p}: {x.get(p)} != {y.get(p)}" for p in sorted(set(x) | set(y)) if (x.get(p) != y.get(p) if len(x.get(p, ())) == 3 else x.get(p, ("",))[0] != y.get(p, ("",))[0])]
        assert not wrong, f"kill {kills}: {wrong[:10]}"
        b.close()
        until(lambda: not b.pid() or not os.path.ismount(b.dir), what="the end of the other client")
        world.clients.remove(b)
        for d in (b.state, b.cache):
            shutil.rmtree(d)

    while kills < KILLS:
        writers = [Writer(str(a.dir / w), r.randrange(1 << 32), models[w]) for w in models]
        for w in writers:
            w.start()
        alive_for = r.choice((0.05, 0.2, 0.5, 1.0)) * r.random()
        idle_for = r.choice((0, 0, 0.05, 0.3)) * r.random()
        threading.Event().wait(alive_for)
        if idle_for:  # all is closed, and on its way
            for w in writers:
                w.stop.set()
            for w in writers:
                w.join()
                assert w.error is None, w.error
            threading.Event().wait(idle_for)
        s = a.status()
        pending += s["pending_files"] + s["pending_items"] > 0
        a.kill()
        kills += 1
        for w in writers:
            w.join(60)
            assert not w.is_alive(), f"a call hangs after the kill: {w.log[-1]}"
        while r.random() < 0.3 and kills < KILLS:  # again, while it recovers or starts to send what is left
            p = subprocess.Popen([str(TARN), "mount", f"{world.server.url}/work", str(a.dir), "-o", f"cache_dir={a.cache},cache_size=256M"], env=a.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            threading.Event().wait(0.3 * r.random())
            p.kill()
            p.wait()
            while n := end_daemons(a):  # one may have begun another meanwhile
                kills += n
        a.mount(options="cache_size=256M")
        for w, name in zip(writers, models):
            model, wrong = settle(w, seen(w.at))
            assert model is not None, f"kill {kills}, {name}, after the remount: {wrong[:10]}\nlast calls: {w.log[-30:]}\nin flight: {w.may is not None or w.part and w.part[0]}"
            models[name] = model
        if r.random() < 0.6 or kills >= KILLS:
            compare_through_an_empty_cache()
    print(f"{kills} kills, {pending} with work pending")
    assert pending >= 0.3 * kills, f"only {pending} of {kills} kills met pending work"
