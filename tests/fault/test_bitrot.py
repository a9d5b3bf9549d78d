# SPDX-License-Identifier: Apache-2.0
"""Bits flip on the client's disk, while the daemon is down: in blocks, in packs, in SQLite's files. A reader never gets a wrong byte: what is damaged is found by its sums and fetched again, and a tree
file that is damaged is made anew. Everything is on the server, so that everything heals.

Bytes that are nowhere else yet (stages: logs, files, sums): a damaged file is an error, or shows its last version again (a new one: empty), and what is left of it is in lost+found; the server gets none of its bytes.

8 rounds of each here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import errno
import os
import random

from support import SCALE, until
from writer import differences, seen

ROUNDS = max(1, int(8 * SCALE))


def flip(r, path, n):
    """n bits, only where there is data: holes of a sparse file hold none."""
    done = 0
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    for _ in range(n * 20):
        if done == n or size == 0:
            break
        try:
            at = os.lseek(fd, r.randrange(size), os.SEEK_DATA)
        except OSError:
            continue
        byte = os.pread(fd, 1, at)
        os.pwrite(fd, bytes((byte[0] ^ 1 << r.randrange(8),)), at)
        done += 1
    os.close(fd)
    return done


def seeded():
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def read(path):
    """Bytes, None (not there), or the error that a read of damaged bytes gives."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        return e


def test_flipped_bits_in_what_was_not_sent(world):
    r = seeded()
    a = world.client("a")
    d, server = a.dir / "d", {}
    d.mkdir()
    flips = {"stages": 0, "lent": 0}
    told = damaged = clean = 0
    for n in range(ROUNDS):
        for i in range(3):
            server[f"old{n}.{i}"] = r.randbytes(r.choice((10, 5000, 60000, 200000, 1500000)))
            (d / f"old{n}.{i}").write_bytes(server[f"old{n}.{i}"])
        a.wait()
        world.server.stop()
        pending = {name: r.randbytes(r.choice((10, 5000, 60000, 200000, 1500000))) for name in [f"old{n}.{i}" for i in range(3)] + [f"new{n}.{i}" for i in range(3)]}
        for name, data in pending.items():
            (d / name).write_bytes(data)
        a.kill() if n % 2 else a.umount()
        kind = list(flips)[n // 2 % 2]
        for p in (a.cache / kind).iterdir():
            if p.stat().st_blocks:
                flips[kind] += flip(r, p, 1)
        a.mount(signed_in=True)
        for name, data in pending.items():
            got = read(d / name)
            assert got in (data, server.get(name, b"")) or (isinstance(got, OSError) and got.errno in (errno.EIO, errno.EHOSTDOWN)), f"round {n}, {kind}, {name}: {got!r:.100} is neither what was written nor what was there\n{a.log_text()[-3000:]}"
            damaged += got != data
            clean += got == data
        told += a.status()["counters"]["corruptions_found"]
        world.server.start()
        b = world.client(f"b{n}")
        # what is whole arrives; what is not stays as it was
        whole = {name: data for name, data in pending.items() if read(d / name) == data}
        until(lambda: all(read(b.dir / "d" / name) == data for name, data in whole.items()), 60, "what is whole is sent")
        for name, data in pending.items():
            got = read(b.dir / "d" / name)
            assert got in (data, None, server.get(name, b"")), f"round {n}, {kind}, {name}: the server has {got!r:.100}"
        b.umount()
        world.clients.remove(b)
        for name in pending:  # a new start for each round
            if read(d / name) is not None:
                os.unlink(d / name)
        server = {}
        a.wait()
    print(f"flipped {flips}, {damaged} files damaged, {told} errors counted, {clean} whole, 0 wrong bytes here or on the server")
    assert damaged, "void: nothing was damaged"


def test_flipped_bits_reach_no_reader(world):
    r = seeded()
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    model = {f"f{i}": r.randbytes(r.choice((10, 5000, 200000, 3000000))) for i in range(40)}
    for name, data in model.items():
        (d / name).write_bytes(data)
    a.wait()
    assert not differences(model, seen(d))
    flips = {"blob": 0, "pack": 0, "blobs.db": 0, "tree.db": 0}
    found = healed = 0
    for n in range(ROUNDS):
        a.umount()
        kind = list(flips)[n % len(flips)]
        at = a.cache / kind
        files = [p for p in (at.iterdir() if at.is_dir() else [at]) if p.stat().st_blocks]
        for p in files:
            flips[kind] += flip(r, p, 3 if at.is_dir() else 1)
        a.mount(signed_in=True)
        wrong = differences(model, seen(d))
        assert not wrong, f"round {n}, {kind}: {wrong[:10]}\n{a.log_text()[-3000:]}"
        a.wait()
        c = a.status()["counters"]
        found, healed = found + c["corruptions_found"], healed + c["corruptions_healed"]
        (d / f"new{n}").write_bytes(b"still writable")
        model[f"new{n}"] = b"still writable"
        a.wait()
    print(f"flipped {flips}, {found} damaged blocks or rows found, {healed} healed, 0 wrong bytes")
    assert flips["blob"] and flips["pack"] and found, "void: nothing that was read was damaged"
