# SPDX-License-Identifier: Apache-2.0
"""Random reads and writes of one file in every way that a program has, checked byte by byte against a copy in memory: pread and pwrite, O_APPEND, O_DIRECT, mmap, truncate, fallocate,
copy_file_range inside it and from a file whose blocks it then shares, several descriptors at once; between phases the file is closed and opened, or the daemon ends or is killed and starts again. Stops after TARN_TEST_SCALE times twenty seconds;
TARN_TEST_SEED repeats a run."""
import ctypes
import errno
import mmap
import os
import random
import time

from harness import filled, read, wait_for

libc = ctypes.CDLL(None, use_errno=True)
SIZE_MAX = 1 << 21
PAGE = 4096
PUNCH, ZERO, KEEP = 2 | 1, 0x10, 1
SOURCE = filled(700001, b"s")


class Checked:
    def __init__(self, mount, rng):
        self.mount, self.rng, self.model, self.fds, self.direct, self.log, self.n = mount, rng, bytearray(), [], -1, [], 0
        self.path, self.sources, self.shared = mount / "data", 0, 0
        self.open()
        self.new_source()

    # ---- the file ----
    def open(self):
        flags = os.O_RDWR | os.O_CREAT
        self.fds = [os.open(self.path, flags, 0o600) for _ in range(self.rng.choice((1, 1, 2, 3)))]
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def close(self):
        for fd in (*self.fds, self.direct):
            os.close(fd)
        self.fds = []

    def new_source(self):
        """A file of the server's. Each start of the harness is a server without contents: what shares its blocks needs them there again."""
        self.sources += 1
        self.mount.do("create", f"s{self.sources}", "/", f"s{self.sources}", f"@{len(SOURCE)}:s")
        wait_for(lambda: os.path.exists(self.mount / f"s{self.sources}"), "the source is here")

    def say(self, *what):
        self.log.append(what)
        del self.log[:-30]

    def same(self, got, want, off, how):
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            raise AssertionError(f"{how} at {off}+{at} (step {self.n}): {len(got)} bytes of {len(want)}, {got[at:at + 16].hex()} instead of {want[at:at + 16].hex()}\n" + "\n".join(map(str, self.log)))

    def whole(self, how):
        assert os.stat(self.path).st_size == len(self.model), (how, os.stat(self.path).st_size, len(self.model), self.log)
        self.same(read(self.path), bytes(self.model), 0, how)

    # ---- places ----
    def place(self, room=SIZE_MAX):
        r = self.rng
        off = r.choice((r.randrange(len(self.model) + 1), r.randrange(room), len(self.model)))
        if r.random() < 0.3:
            off &= ~(PAGE - 1)
        n = r.choice((1, 10, 511, PAGE, 5000, 65536, 65537, r.randrange(1, 300000)))
        return min(off, room - 1), max(1, min(n, room - off))

    def put(self, off, data):
        if off > len(self.model):
            self.model.extend(bytes(off - len(self.model)))
        self.model[off:off + len(data)] = data

    def resize(self, n):
        if n < len(self.model):
            del self.model[n:]
        else:
            self.model.extend(bytes(n - len(self.model)))

    def some_fd(self):
        return self.rng.choice(self.fds)

    # ---- steps ----
    def do_write(self):
        off, n = self.place()
        data = self.rng.randbytes(n)
        self.say("pwrite", off, n)
        assert os.pwrite(self.some_fd(), data, off) == n
        self.put(off, data)

    def do_append(self):
        n = min(self.rng.choice((1, 100, 5000)), SIZE_MAX - len(self.model))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        data = self.rng.randbytes(n)
        self.say("append", len(self.model), n)
        assert os.write(fd, data) == n
        os.close(fd)
        self.put(len(self.model), data)

    def do_read(self):
        off, n = self.place()
        self.say("pread", off, n)
        self.same(os.pread(self.some_fd(), n, off), bytes(self.model[off:off + n]), off, "read")

    def do_direct_read(self):
        off, n = (x // PAGE * PAGE for x in self.place())
        n = max(PAGE, n)
        with mmap.mmap(-1, n) as buf:
            got = os.preadv(self.direct, [buf], off)
            self.say("O_DIRECT read", off, n)
            self.same(buf[:got], bytes(self.model[off:off + n]), off, "O_DIRECT read")

    def do_direct_write(self):
        off, n = (x // PAGE * PAGE for x in self.place(SIZE_MAX - PAGE))
        n = max(PAGE, n)
        data = self.rng.randbytes(n)
        with mmap.mmap(-1, n) as buf:
            buf[:] = data
            self.say("O_DIRECT write", off, n)
            assert os.pwritev(self.direct, [buf], off) == n
        self.put(off, data)

    def do_map(self):
        off, n = self.place()
        off, n = min(off, max(0, len(self.model) - 1)), n
        n = min(n, len(self.model) - off)
        if n <= 0:
            return
        start = off // PAGE * PAGE
        with mmap.mmap(self.some_fd(), off + n - start, offset=start) as m:
            self.same(m[off - start:], bytes(self.model[off:off + n]), off, "mapped read")
            if self.rng.random() < 0.6:
                data = self.rng.randbytes(n)
                self.say("mapped write", off, n)
                m[off - start:] = data
                self.put(off, data)
                if self.rng.random() < 0.5:
                    m.flush()

    def do_truncate(self):
        n = self.rng.choice((0, self.rng.randrange(SIZE_MAX), self.rng.randrange(len(self.model) + 1), len(self.model) // PAGE * PAGE))
        self.say("truncate", n)
        if self.rng.random() < 0.5:
            os.ftruncate(self.some_fd(), n)
        else:
            os.truncate(self.path, n)
        self.resize(n)

    def do_allocate(self):
        off, n = self.place()
        mode = self.rng.choice((0, KEEP, PUNCH, ZERO, ZERO | KEEP))
        self.say("fallocate", mode, off, n)
        if libc.fallocate(self.some_fd(), mode, ctypes.c_long(off), ctypes.c_long(n)) != 0:
            raise OSError(ctypes.get_errno(), f"fallocate {mode}")
        if mode in (0, ZERO) and off + n > len(self.model):
            self.resize(off + n)
        if mode in (PUNCH, ZERO, ZERO | KEEP):
            end = min(off + n, len(self.model))
            if off < end:
                self.model[off:end] = bytes(end - off)

    def do_copy(self):
        a, n = self.place()
        b = self.rng.randrange(SIZE_MAX)
        n = min(n, max(0, len(self.model) - a), SIZE_MAX - b)
        if n <= 0 or (a < b + n and b < a + n):
            return
        self.say("copy_file_range", a, b, n)
        data, fd = bytes(self.model[a:a + n]), self.some_fd()
        done = 0
        while done < n:
            k = os.copy_file_range(fd, fd, n - done, a + done, b + done)
            assert k > 0
            done += k
        self.put(b, data)

    def do_share(self):
        """A new file in the place of this one, filled from another: with its blocks if nothing was written before, else with its bytes."""
        self.close()
        os.unlink(self.path)
        self.model = bytearray()
        self.open()
        fd, n, at = self.some_fd(), self.rng.choice((len(SOURCE), len(SOURCE), self.rng.randrange(1, len(SOURCE)))), 0
        self.say("share", n)
        source, written = os.open(self.mount / f"s{self.sources}", os.O_RDONLY), self.mount.counter("stage_bytes_written")
        while at < n:
            k = os.copy_file_range(source, fd, self.rng.choice((n - at, self.rng.randrange(1, n - at + 1))), at, at)
            assert k > 0
            at += k
        os.close(source)
        self.put(0, SOURCE[:n])
        self.shared += self.mount.counter("stage_bytes_written") == written

    def do_seek(self):
        """Every byte that is not zero lies in what SEEK_DATA finds."""
        fd, at, size = self.some_fd(), 0, len(self.model)
        while at < size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                assert e.errno == errno.ENXIO
                data = size
            assert not any(self.model[at:data]), (at, data, self.log)
            at = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size
            assert at > data or data == size

    def do_sync(self):
        self.say("fsync")
        (os.fsync if self.rng.random() < 0.5 else os.fdatasync)(self.some_fd())

    def do_reopen(self):
        self.close()
        self.say("reopen")
        self.open()

    def do_restart(self):
        self.close()
        if self.rng.random() < 0.5:
            self.say("restart")
            assert self.mount.stop() == "ok"
        else:
            self.say("kill")
            self.mount.kill()
        assert self.mount.start().startswith("ready")
        self.new_source()
        self.whole("after a restart")
        self.open()

    STEPS = ((do_write, 24), (do_read, 18), (do_append, 6), (do_direct_read, 6), (do_direct_write, 6), (do_map, 14), (do_truncate, 5), (do_allocate, 8), (do_copy, 5), (do_share, 2), (do_seek, 2), (do_sync, 2),
             (do_reopen, 3), (do_restart, 1))

    def step(self):
        self.n += 1
        do = self.rng.choices([s for s, _ in self.STEPS], [w for _, w in self.STEPS])[0]
        do(self)


def test_data(mount):
    seed = int(os.environ.get("TARN_TEST_SEED", "0"), 0) or random.randrange(1 << 32)
    print(f"TARN_TEST_SEED={seed}")
    checked = Checked(mount, random.Random(seed))
    end = time.monotonic() + 20 * float(os.environ.get("TARN_TEST_SCALE", "1"))
    while time.monotonic() < end:
        checked.step()
    checked.whole("at the end")
    checked.close()
    print(f"steps={checked.n} shared={checked.shared}")
    assert mount.stop() == "ok"
    assert mount.start().startswith("ready")
    checked.new_source()
    checked.whole("after the last restart")
