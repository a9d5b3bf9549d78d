# SPDX-License-Identifier: Apache-2.0
"""copy_file_range: what is shared without a byte being moved, what is copied, and that nobody can tell the two apart but by the counters."""
import os
import random

import pytest

from harness import filled, read, wait_for, write

SIZE = 6 << 20


X = filled(SIZE, b"x")


def pattern(seed, n):
    return random.Random(seed).randbytes(n)


class Cost:
    NAMES = "fuse_read", "fuse_write", "stage_bytes_written", "blocks_fetched", "cache_misses"

    def __init__(self, mount):
        self.mount, self.before = mount, {n: mount.counter(n) for n in self.NAMES}

    def now(self):
        return {n: self.mount.counter(n) - v for n, v in self.before.items() if self.mount.counter(n) != v}


def copy(src, dst, n=1 << 40, off_in=0, off_out=0, flags=os.O_CREAT | os.O_WRONLY):
    a, b = os.open(src, os.O_RDONLY), os.open(dst, flags, 0o644)
    try:
        done = 0
        while done < n:
            got = os.copy_file_range(a, b, n - done, off_in + done, off_out + done)
            if got == 0:
                break
            done += got
        return done
    finally:
        os.close(a)
        os.close(b)


def on_server(mount, name="src", byte="x", n=SIZE):
    mount.do("create", name, "/", name, f"@{n}:{byte}")
    wait_for(lambda: os.path.exists(mount / name), "the file is here")
    return mount / name


def test_whole_file_moves_no_byte(mount):
    src = on_server(mount)
    cost = Cost(mount)
    assert copy(src, mount / "dst") == SIZE
    assert cost.now() == {}, "neither read nor fetched nor written"
    a, b = os.stat(src), os.stat(mount / "dst")
    assert b.st_size == SIZE and b.st_ino != a.st_ino and b.st_mtime_ns > a.st_mtime_ns and b.st_mode & 0o777 == 0o644
    assert os.getxattr(mount / "dst", "user.tarn.state") in (b"accepted", b"local")
    assert mount.do("pending") == "1"
    assert read(mount / "dst") == X
    assert mount.counter("blocks_fetched") > 0  # now they were needed
    cost = Cost(mount)
    assert read(src) == X
    assert "blocks_fetched" not in cost.now(), "both have the same blocks"


@pytest.mark.parametrize("how", ("clean", "kill"))
def test_survives_the_daemon(mount, how):
    src = on_server(mount)
    assert copy(src, mount / "dst") == SIZE
    write(mount / "old", b"o" * 300000)
    assert copy(src, mount / "old", flags=os.O_WRONLY | os.O_TRUNC) == SIZE
    fd = os.open(mount / "open", os.O_CREAT | os.O_RDWR)
    a = os.open(src, os.O_RDONLY)
    assert os.copy_file_range(a, fd, SIZE, 0, 0) == SIZE
    os.pwrite(fd, b"here", 1000000)
    os.ftruncate(fd, 4 << 20)
    want = {"dst": X, "old": X, "open": X[:1000000] + b"here" + X[1000004 : 4 << 20]}
    assert {n: read(mount / n) for n in want} == want
    if how == "kill":
        mount.kill()
        for x in (a, fd):
            try:
                os.close(x)
            except OSError:
                pass
    else:
        os.close(a)
        os.close(fd)
        assert mount.stop() == "ok"
    assert mount.start().startswith("ready"), mount.first
    on_server(mount, "again")  # the new server has the blocks again, and only these
    assert {n: read(mount / n) for n in want} == want
    assert {n: os.stat(mount / n).st_size for n in want} == {n: len(v) for n, v in want.items()}


def test_both_go_their_own_ways(mount):
    """A write to one of the two is not seen in the other, nor is a new version from the server."""
    src = on_server(mount)
    assert copy(src, mount / "a") == copy(src, mount / "b") == SIZE
    with open(mount / "a", "r+b") as f:
        f.seek(777777)
        f.write(b"changed")
    with open(src, "r+b") as f:
        f.truncate(10)
    assert read(mount / "a") == X[:777777] + b"changed" + X[777784:]
    assert read(src) == X[:10]
    assert read(mount / "b") == X
    mount.do("create", "other", "/", "other", f"@{SIZE}:y")
    wait_for(lambda: os.path.exists(mount / "other"), "the file is here")
    assert copy(mount / "other", mount / "c") == SIZE
    mount.do("content", "other", "@1000:z")
    wait_for(lambda: read(mount / "other") == filled(1000, b"z"), "the new version")
    assert read(mount / "c") == filled(SIZE, b"y")
    os.unlink(mount / "other")
    assert read(mount / "c") == filled(SIZE, b"y")


def test_growing_shows_zeros(mount):
    """What lies behind the copied part is never the rest of the source."""
    src = on_server(mount)
    half = SIZE // 2
    cost = Cost(mount)
    assert copy(src, mount / "dst", half) == half
    assert cost.now() == {}
    os.truncate(mount / "dst", SIZE)
    assert read(mount / "dst") == X[:half] + bytes(SIZE - half)
    assert copy(src, mount / "cut") == SIZE
    os.truncate(mount / "cut", 1000)
    os.truncate(mount / "cut", SIZE)
    assert read(mount / "cut") == X[:1000] + bytes(SIZE - 1000)


def test_in_pieces(mount):
    """One piece behind the other is shared, too (the kernel hands on a very long one like that); any other order is copied."""
    src = on_server(mount)
    cost = Cost(mount)
    a, b = os.open(src, os.O_RDONLY), os.open(mount / "dst", os.O_CREAT | os.O_WRONLY)
    for off in range(0, SIZE, 1 << 20):
        assert os.copy_file_range(a, b, 1 << 20, off, off) == 1 << 20
    assert cost.now() == {}
    os.close(b)
    b = os.open(mount / "back", os.O_CREAT | os.O_WRONLY)
    for off in range(SIZE - (1 << 20), -1, -(1 << 20)):
        assert os.copy_file_range(a, b, 1 << 20, off, off) == 1 << 20
    os.close(b)
    os.close(a)
    assert cost.now()["stage_bytes_written"] == SIZE
    assert read(mount / "dst") == read(mount / "back") == X


def test_offline(mount):
    """A copy needs nobody: it is made at once, and read when the bytes can be had."""
    src = on_server(mount)
    mount.do("offline")
    assert copy(src, mount / "dst") == SIZE
    with pytest.raises(OSError):
        read(mount / "dst")
    mount.do("online")
    assert wait_for(lambda: read(mount / "dst") == X, "the bytes")


def test_anything_else_is_copied(shared, pair):
    """Ranges, the same file, files that are being written, small and empty ones: as in a plain directory."""
    def steps(d):
        os.chdir(d)
        out = []
        data = pattern(1, 700000)
        write("src", data)
        write("small", b"0123456789" * 10)
        write("empty", b"")
        out.append((copy("src", "whole"), copy("small", "s2"), copy("empty", "e2")))
        out.append((copy("src", "range", 5000, 100, 0), copy("src", "range", 300000, 200000, 1000, flags=os.O_WRONLY), copy("src", "late", 1000, 0, 50000)))
        fd = os.open("src", os.O_RDWR)
        os.pwrite(fd, b"dirty", 10)
        out.append(copy("src", "of-dirty"))
        out.append(os.copy_file_range(fd, fd, 1000, 0, 500000))
        try:
            out.append(os.copy_file_range(fd, fd, 1000, 0, 500))
        except OSError as e:
            out.append(e.errno)
        os.close(fd)
        out.append((copy("src", "short", 10, 0, 0), copy("small", "short", 10, 95, 95, flags=os.O_WRONLY), copy("small", "short", 10, 200, 0, flags=os.O_WRONLY)))
        write("append", b"a")
        fd, a = os.open("append", os.O_WRONLY | os.O_APPEND), os.open("src", os.O_RDONLY)
        try:
            out.append(os.copy_file_range(a, fd, 10))
        except OSError as e:
            out.append(e.errno)
        os.close(fd)
        os.close(a)
        os.chdir("/")
        return out, {n: read(os.path.join(d, n)) for n in sorted(os.listdir(d))}
    assert steps(pair[0]) == steps(pair[1])


@pytest.mark.options("allow_other")
def test_set_id_goes_with_a_copy(mount):
    """As with a write."""
    src = on_server(mount)
    os.chmod(src, 0o644)
    write(mount / "dst", b"")
    os.chmod(mount / "dst", 0o6777)
    os.chmod(mount.top, 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            os._exit(0 if copy(src, mount / "dst", flags=os.O_WRONLY) == SIZE else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert oct(os.stat(mount / "dst").st_mode & 0o7777) == "0o777"
