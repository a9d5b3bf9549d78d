# SPDX-License-Identifier: Apache-2.0
"""Random operations on the mount and on a plain directory; results and, now and then, the whole trees must be equal. Stops after TARN_TEST_SCALE times
ten seconds; TARN_TEST_SEED repeats a run."""
import os
import random
import stat
import time

from harness import name_of, read


class Both:
    def __init__(self, inside, plain, rng):
        self.roots, self.rng, self.fds, self.log = (inside, plain), rng, [], []

    def run(self, what, *paths, call):
        results = []
        for root in self.roots:
            try:
                results.append(call(*[os.path.join(root, p) for p in paths]))
            except OSError as e:
                results.append(name_of(e.errno))
        self.log.append((what, *paths, results[0] if not isinstance(results[0], bytes) else len(results[0])))
        assert results[0] == results[1], f"{self.log[-15:]}\nmount {str(results[0])[:300]}\nplain {str(results[1])[:300]}"
        return results[0]

    def name(self):
        r = self.rng
        depth = r.choice((1, 1, 1, 2, 2, 3))
        return "/".join(r.choice("abcdef") for _ in range(depth))

    def tree(self, root):
        out = {}
        for base, dirs, files in os.walk(root):
            for n in dirs + files:
                p = os.path.join(base, n)
                st = os.lstat(p)
                k = stat.S_IFMT(st.st_mode)
                out[os.path.relpath(p, root)] = (oct(st.st_mode), None if k == stat.S_IFDIR else (st.st_nlink, st.st_size),
                                                 read(p) if k == stat.S_IFREG else os.readlink(p) if k == stat.S_IFLNK else None)
        return out

    def compare(self):
        a, b = (self.tree(r) for r in self.roots)
        assert a.keys() == b.keys(), f"{self.log[-15:]}\nonly mount {a.keys() - b.keys()}, only plain {b.keys() - a.keys()}"
        for k in a:
            assert a[k][:2] == b[k][:2], f"{self.log[-15:]}\n{k}: mount {a[k][:2]} plain {b[k][:2]}"
            assert a[k] == b[k], f"{self.log[-15:]}\n{k}: contents differ"

    def data(self):
        r = self.rng
        return r.randbytes(r.choice((1, 100, 4096, 5000, 70000, 200000)))

    # ---- handles, the same in both places ----
    def on_open(self, what, call):
        if not self.fds:
            return
        pair = self.rng.choice(self.fds)
        results = []
        for fd in pair[0]:
            try:
                results.append(call(fd))
            except OSError as e:
                results.append(name_of(e.errno))
        self.log.append((what, pair[1]))
        assert results[0] == results[1], f"{self.log[-15:]}\nmount {str(results[0])[:200]} plain {str(results[1])[:200]}"

    def open(self):
        r, p = self.rng, self.name()
        flags = r.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_WRONLY | os.O_APPEND))
        fds = []

        def call(path):
            fd = os.open(path, flags | os.O_NOFOLLOW, 0o644)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.close(fd)
                return "dir"
            fds.append(fd)
            return "open"
        if self.run(f"open {flags:o}", p, call=call) == "open":
            self.fds.append((fds, p))
        if len(self.fds) > 12:
            for fd in self.fds.pop(r.randrange(12))[0]:
                os.close(fd)

    def step(self):
        r, a, b = self.rng, self.name(), self.name()
        k = r.randrange(100)
        if k < 12:
            data, off = self.data(), r.choice((None, 0, 1000, 65536, 300000))

            def put(p):
                with open(p, "wb" if off is None else "r+b", buffering=0) as f:
                    f.seek(off or 0)
                    f.write(data)
            self.run(f"write {off} {len(data)}", a, call=put)
        elif k < 20:
            self.run("mkdir", a, call=os.mkdir)
        elif k < 24:
            self.run("rmdir", a, call=os.rmdir)
        elif k < 32:
            self.run("unlink", a, call=os.unlink)
        elif k < 44:
            self.run("rename", a, b, call=os.rename)
        elif k < 48:
            self.run("link", a, b, call=lambda x, y: os.link(x, y, follow_symlinks=False))
        elif k < 50:
            self.run("symlink", a, call=lambda p: os.symlink("b", p))
        elif k < 54:
            n = r.choice((0, 10, 5000, 100000, 400000))
            self.run(f"truncate {n}", a, call=lambda p: os.truncate(p, n))
        elif k < 57:
            mode = r.choice((0o600, 0o644, 0o755))
            self.run("chmod", a, call=lambda p: os.chmod(p, mode))
        elif k < 63:
            self.run("read", a, call=read)
        elif k < 64:
            n, off, at = r.choice((1, 5000, 1 << 30)), r.choice((0, 0, 100)), r.choice((0, 0, 3000))

            def copy(x, y):
                fd = os.open(x, os.O_RDONLY)
                try:
                    to = os.open(y, os.O_WRONLY | os.O_CREAT, 0o644)
                    try:
                        done = 0
                        while k := os.copy_file_range(fd, to, n - done, off + done, at + done) if done < n else 0:
                            done += k
                        return done
                    finally:
                        os.close(to)
                finally:
                    os.close(fd)
            if a != b:  # inside one file a long one may meet what it has written
                self.run(f"copy {n} {off} {at}", a, b, call=copy)
        elif k < 66:
            self.run("list", a, call=lambda p: sorted(os.listdir(p)))
        elif k < 69:
            self.run("stat", a, call=lambda p: (os.lstat(p).st_mode, os.lstat(p).st_size if not stat.S_ISDIR(os.lstat(p).st_mode) else 0))
        elif k < 75:
            self.open()
        elif k < 83:
            data, off = self.data(), r.choice((0, 100, 65536, 250000))
            self.on_open(f"pwrite {off} {len(data)}", lambda fd: os.pwrite(fd, data, off))
        elif k < 90:
            off = r.choice((0, 50, 60000, 240000))
            self.on_open("pread", lambda fd: os.pread(fd, 100000, off))
        elif k < 93:
            n = r.choice((0, 77, 70000))
            self.on_open(f"ftruncate {n}", lambda fd: os.ftruncate(fd, n))
        elif k < 96:
            self.on_open("fstat", lambda fd: (os.fstat(fd).st_size, os.fstat(fd).st_nlink))
        elif k < 97:
            self.on_open("fsync", os.fsync)
        elif self.fds:
            for fd in self.fds.pop(r.randrange(len(self.fds)))[0]:
                os.close(fd)


def test_random(mount, tmp_path):
    seed = int(os.environ.get("TARN_TEST_SEED", "0"), 0) or random.randrange(1 << 32)
    print(f"TARN_TEST_SEED={seed}")
    both = Both(mount.path, str(tmp_path), random.Random(seed))
    end, n = time.monotonic() + 10 * float(os.environ.get("TARN_TEST_SCALE", "1")), 0
    try:
        while time.monotonic() < end:
            both.step()
            n += 1
            if n % 300 == 0:
                both.compare()
        both.compare()
    finally:
        for pair, _ in both.fds:
            for fd in pair:
                os.close(fd)
        print(f"steps={n}")
    tree = both.tree(mount.path)
    assert mount.stop() == "ok"
    assert mount.start().startswith("ready")
    assert both.tree(mount.path) == tree, "the same after a remount"
