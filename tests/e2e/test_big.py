# SPDX-License-Identifier: Apache-2.0
"""A file larger than both caches. 512 MiB with caches of 64 MiB here; TARN_TEST_SCALE=4 is 2 GiB with caches of 256 MiB."""
import hashlib
import os
import threading

from support import SCALE, disk_usage, until

MIB = 1 << 20


class Sampler(threading.Thread):
    """The largest that each directory ever was, seen about a hundred times a second."""
    def __init__(self, *dirs):
        super().__init__()
        self.most, self.stop, self.samples = {d: 0 for d in dirs}, threading.Event(), 0

    def run(self):
        while not self.stop.wait(0.01):
            for d in self.most:
                self.most[d] = max(self.most[d], disk_usage(d))
            self.samples += 1


def pieces(seed, total):
    """Noise that does not repeat, in pieces of 1 MiB."""
    for i in range(total // MIB):
        yield hashlib.shake_128(f"{seed} {i}".encode()).digest(MIB)


def test_large_file_with_small_caches(world):
    size, limit = int(512 * SCALE) * MIB, int(max(64 * SCALE, 64)) * MIB
    options = f"cache_size={limit}"
    a, b = world.client("a", options=options), world.client("b", options=options)
    sampler = Sampler(a.cache, b.cache)
    sampler.start()
    try:
        seed = os.urandom(8).hex()
        print(f"seed {seed}")
        sent, got = hashlib.sha256(), hashlib.sha256()
        with open(a.dir / "big", "wb", buffering=0) as f:
            for p in pieces(seed, size):
                assert f.write(p) == len(p)
                sent.update(p)
        a.wait(600)
        until(lambda: (b.dir / "big").exists() and (b.dir / "big").stat().st_size == size, 30)
        with open(b.dir / "big", "rb", buffering=0) as f:
            while p := f.read(MIB):
                got.update(p)
        assert sent.hexdigest() == got.hexdigest()
        # and in the middle of the one that wrote it, most of which has left its cache
        with open(a.dir / "big", "rb", buffering=0) as f:
            want = list(pieces(seed, 8 * MIB))
            for i in (0, 5):
                f.seek(i * MIB)
                assert f.read(MIB) == want[i]
    finally:
        sampler.stop.set()
        sampler.join()
    assert sampler.samples > 20
    for d, most in sampler.most.items():
        assert most <= limit, f"{d.name} was {most / MIB:.1f} MiB, its limit is {limit / MIB:.0f} MiB"
    for c in (a, b):
        s = c.status()
        assert s["cache_limit_bytes"] == limit and s["cache_bytes"] <= limit


def test_sparse_file(world):
    """20 GiB with a few bytes at its end, changed in the middle, and one of 8 TiB that nobody wants: neither the disk, the line nor the end of the daemon knows how long they are."""
    size, limit = 20 << 30, 64 * MIB
    a, b = world.client("a", options=f"cache_size={limit}"), world.client("b", options=f"cache_size={limit}")
    with open(a.dir / "kept", "wb") as f:
        f.write(b"k" * MIB)
    before = disk_usage(world.server.data)
    with open(a.dir / "sparse", "wb", buffering=0) as f:
        f.truncate(size)
        f.seek(size - 4)
        f.write(b"tail")
    with open(a.dir / "longest", "wb") as f:
        f.truncate(8 << 40)
    os.unlink(a.dir / "longest")
    a.wait(120)
    with open(a.dir / "sparse", "r+b", buffering=0) as f:
        f.seek(size // 2 + 1)
        f.write(b"middle")
    a.wait(120)
    until(lambda: (b.dir / "sparse").exists() and (b.dir / "sparse").stat().st_size == size, 30)
    for c in (a, b):
        with open(c.dir / "sparse", "rb", buffering=0) as f:
            for at, want in ((0, b"\0\0\0\0"), (size - 6, b"\0\0tail"), (size // 2 - 2, b"\0\0\0middle\0")):
                f.seek(at)
                assert f.read(len(want)) == want
        assert c.status()["cache_bytes"] <= limit
        assert disk_usage(c.cache) <= limit + 32 * MIB  # the list of its blocks lies beside them
    assert (a.dir / "kept").read_bytes() == b"k" * MIB
    assert disk_usage(world.server.data) - before < 64 * MIB
    a.umount()
