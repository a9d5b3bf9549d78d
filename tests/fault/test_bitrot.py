# SPDX-License-Identifier: Apache-2.0
"""Bits flip on the client's disk, while the daemon is down: in blocks, in packs, in SQLite's files. A reader never gets a wrong byte: what is damaged is found by its sums and fetched again, and a tree
file that is damaged is made anew. Everything is on the server, so that everything heals.

Not here: stages (bytes that are nowhere else).

8 rounds here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import os
import random

from support import SCALE
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


def test_flipped_bits_reach_no_reader(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    r = random.Random(seed)
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
