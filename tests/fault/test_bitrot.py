# SPDX-License-Identifier: Apache-2.0
"""Bits flip, on the client's disk and on the server's, while the programs run and while they do not. Counted for each run:

  flips       bits, by place. *Content* flips lie in bytes of a file: each is in another block, so that each must be found for itself
  detected    content flips that were found: by a reader (an error, or the bytes are fetched again), by `tarn scrub`, by `tarn-server scrub`. All of them must be
  healed      of those, the ones of which somebody else has the bytes, and that read well afterwards. All of them must
  wrong       bytes that a reader, or the server, got and that never were the file's. None may

What else a flip may hit (sums, padding, the heads of records, SQLite's pages) may be found or not, as long as nothing is wrong.

  cache       blocks of what is on the server: read and scrubbed, the daemon down or running
  anything    any bit of the cache directory that holds no pending bytes; both SQLite files among them
  pending     bytes that are nowhere else: killed, unmounted, rebooted or running clients, sealed stages and open ones, in shared logs and in files of their own
  objects     the server's store

TARN_TEST_SCALE multiplies the rounds, TARN_TEST_SEED repeats."""
import errno
import json
import os
import random
import sqlite3

from support import SCALE, SERVER, run, until
from writer import differences, seen

ROUNDS = max(1, int(8 * SCALE))
SIZES = (10, 5000, 60000, 200000, 900000, 1500000)


def seeded():
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def flip_at(r, path, at):
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, at)
    os.pwrite(fd, bytes((byte[0] ^ 1 << r.randrange(8),)), at)
    os.close(fd)


def flip(r, path, n):
    """n bits, only where there is data: holes of a sparse file hold none. A running daemon may have taken the file away, or cut it."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    data, at = [], 0
    try:
        while True:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            data.append((begin, at - begin))
    except OSError:  # no more
        pass
    for _ in range(n if data else 0):
        begin, length = r.choices(data, [x[1] for x in data])[0]
        at = begin + r.randrange(length)
        byte = os.pread(fd, 1, at)
        if byte:
            os.pwrite(fd, bytes((byte[0] ^ 1 << r.randrange(8),)), at)
    os.close(fd)
    return n if data else 0


def flip_content(r, dirs, model):
    """One bit of each of these contents (random bytes, so that they can be looked for), wherever it lies below dirs. The names that were found: all but what is not there (on the server already, evicted)."""
    wanted = {}
    for name, data in model.items():
        at = r.randrange(max(1, len(data) - 8))
        wanted[name] = (at, data[at:at + 8])
    hit = set()
    for p in [p for d in dirs for p in sorted(d.rglob("*")) if p.is_file()]:
        try:
            text = p.read_bytes()
        except FileNotFoundError:  # of what was deleted a moment ago
            continue
        for name, (at, some) in wanted.items():
            k = text.find(some)
            while k >= 0:  # also where a copy lay before: only one of them is in use
                flip_at(r, p, k + r.randrange(len(some)))
                hit.add(name)
                k = text.find(some, k + 1)
    return hit


def read(path):
    """Bytes (from the daemon, not from the kernel's pages), None (not there), or the error that a read of damaged bytes gives."""
    try:
        with open(path, "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return f.readall()
    except FileNotFoundError:
        return None
    except OSError as e:
        return e


def scrub(a):
    return json.loads(a.tarn("scrub", a.dir, "--json", check=False, timeout=300).stdout)


def counted(a):
    c = a.status()["counters"]
    return c["corruptions_found"], c["corruptions_healed"]


def test_cache(world):
    r = seeded()
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    model = {f"f{i}": r.randbytes(SIZES[i % len(SIZES)]) for i in range(36)}
    for name, data in model.items():
        (d / name).write_bytes(data)
    a.wait()
    until(lambda: a.status()["dirty_bytes"] == 0, what="the cache takes over what was sent")
    places = [a.cache / "blob", a.cache / "pack"]
    flips = detected = healed = 0
    for n in range(ROUNDS + 2):
        down, by_scrub = n % 2 == 0, n // 2 % 2 == 1
        if down:
            a.umount()
        hit = flip_content(r, places, {name: model[name] for name in r.sample(sorted(model), 12)})
        assert len(hit) == 12, f"round {n}: not in the cache"
        flips += len(hit)
        found = 0
        if by_scrub:
            j = scrub(a)
            found = j["blocks_bad"]
            assert j["blocks_healed"] == (0 if down else found), j
        if down:
            a.mount(signed_in=True)
        before = (0, 0) if down else counted(a) if not by_scrub else None
        wrong = [name for name, data in model.items() if read(d / name) != data]
        assert not wrong, f"round {n}: {wrong}\n{a.log_text()[-3000:]}"
        if not by_scrub:
            after = counted(a)
            found = after[0] - before[0]
            healed += after[1] - before[1]
        elif scrub(a)["blocks_bad"] == 0:
            healed += found
        detected += found
        assert found == len(hit), f"round {n}: {found} of {len(hit)}"
    print(f"cache: {flips} content flips, {detected} detected, {healed} healed, 0 wrong")
    assert flips == detected == healed


def test_anything(world):
    r = seeded()
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    model = {f"f{i}": r.randbytes(r.choice((10, 5000, 200000, 3000000))) for i in range(30)}
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
        more = counted(a)
        found, healed = found + more[0], healed + more[1]
        (d / f"new{n}").write_bytes(b"still writable")
        model[f"new{n}"] = b"still writable"
        a.wait()
    print(f"anything: flips {flips}, {found} damaged blocks or files found, {healed} healed, 0 wrong")
    assert flips["blob"] and flips["pack"] and found, "void: nothing that was read was damaged"


WAYS = ("killed", "running", "unmounted", "rebooted")


def test_pending(world):
    r = seeded()
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    server, flips, found_by_scrub, errors, before, whole = {}, {"content": 0, "anything": 0, "index": 0}, 0, 0, 0, 0
    content_hit = 0
    for n in range(ROUNDS + 2):
        way, kind = WAYS[n % 4], "index" if n >= ROUNDS else ("content", "anything")[n // 4 % 2]
        for i in range(3):
            server[f"old{n}.{i}"] = r.randbytes(r.choice(SIZES))
            (d / f"old{n}.{i}").write_bytes(server[f"old{n}.{i}"])
        a.wait()
        world.server.stop()
        pending = {name: r.randbytes(SIZES[i]) for i, name in enumerate([f"old{n}.{i}" for i in range(3)] + [f"new{n}.{i}" for i in range(3)])}
        for name, data in pending.items():
            (d / name).write_bytes(data)
        c = sqlite3.connect(f"file:{a.cache}/tree.db?mode=ro", uri=True)
        until(lambda: c.execute("SELECT count(*) FROM outbox WHERE gen > 0").fetchone()[0] == len(pending), what="all are closed")  # a release comes after close
        c.close()
        still = None
        if way == "running":  # an open stage among them
            still = open(d / f"open{n}", "w+b", buffering=0)
            pending[f"open{n}"] = r.randbytes(r.choice(SIZES[1:]))
            still.write(pending[f"open{n}"])
        elif way == "killed":
            a.kill()
        else:
            a.umount()
        if way == "rebooted":
            (a.cache / "boot").write_text("0" * 36)
        hit = set()
        if kind == "content":
            hit = flip_content(r, [a.cache / "stages", a.cache / "lent"], {name: data for name, data in pending.items() if r.random() < .95})
            flips[kind] += len(hit)
            j = scrub(a)
            named = {name for name in pending if any(f["check"] in ("stages", "outbox") and f"{name}'" in f["text"] for f in j["findings"])}  # what was deleted in the rounds before may still be there
            assert named == hit and j["stages_bad"] >= len(hit), f"round {n}, {way}: {j}, not {sorted(hit)}"
            found_by_scrub += len(named)
        elif kind == "index":
            flips[kind] += flip(r, a.cache / "blobs.db", 1)
        else:
            # a reboot makes sums that are damaged anew from the bytes (docs/stage-format.md): not both of one file then
            for p in [p for part in (("stages", "lent") if way != "rebooted" else (r.choice(("stages", "lent")),)) for p in (a.cache / part).iterdir()]:
                flips[kind] += flip(r, p, 1)
        if f"open{n}" in hit:  # writes into its pages: damage never gets a fresh sum
            try:
                for at in range(1, len(pending[f"open{n}"]), 4096):
                    os.pwrite(still.fileno(), b"x", at)
                    pending[f"open{n}"] = pending[f"open{n}"][:at] + b"x" + pending[f"open{n}"][at + 1:]
            except OSError as e:
                assert e.errno == errno.EIO
        if way != "running":
            a.mount(signed_in=True)
        for name, data in pending.items():
            got = read(d / name)
            error = isinstance(got, OSError) and got.errno in (errno.EIO, errno.EHOSTDOWN)
            assert error or got in (data, server.get(name, b"")), f"round {n}, {way}, {kind}, {name}: {got!r:.100} is neither what was written nor what was there\n{a.log_text()[-3000:]}"
            if kind != "anything":
                assert (got == data) == (name not in hit), f"round {n}, {way}, {kind}, {name}: {got!r:.100}, {'hit' if name in hit else 'not hit'}\n{a.log_text()[-3000:]}"
            content_hit += name in hit
            errors, before, whole = errors + error, before + (not error and got != data), whole + (got == data)
        try:
            if still:
                still.close()
        except OSError as e:
            assert e.errno == errno.EIO and f"open{n}" in hit
        world.server.start()
        b = world.client(f"b{n}")
        # what is whole arrives; what is not stays as it was
        good = {name: data for name, data in pending.items() if read(d / name) == data}
        until(lambda: all(read(b.dir / "d" / name) == data for name, data in good.items()), 60, "what is whole is sent")
        for name, data in pending.items():
            got = read(b.dir / "d" / name)
            assert got in (data, None, server.get(name, b"")), f"round {n}, {way}, {kind}, {name}: the server has {got!r:.100}"
        b.umount()
        world.clients.remove(b)
        for name in pending:  # a new start for each round
            if read(d / name) is not None:
                os.unlink(d / name)
        server = {}
        a.wait()
        until(lambda: a.status()["dirty_bytes"] == 0, what="nothing of the deleted files is left")
    print(f"pending: flips {flips}; of those in content {found_by_scrub} found by scrub, {content_hit} by their readers; {errors} errors, {before} times the state before, {whole} whole, 0 wrong here or on the server")
    assert flips["content"] == found_by_scrub == content_hit and errors and before, "void: nothing was damaged"


def test_objects(world):
    r = seeded()
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    flips = told = healed = 0
    for n in range(max(1, ROUNDS * 3 // 8)):
        model = {f"f{n}.{i}": r.randbytes(SIZES[i % len(SIZES)]) for i in range(24)}
        for name, data in model.items():
            (d / name).write_bytes(data)
        a.wait()
        if n % 2:
            world.server.stop()
        hit = flip_content(r, [world.server.data / "objects"], {name: model[name] for name in r.sample(sorted(model), 20)})
        assert len(hit) == 20
        flips += len(hit)
        if n % 2:
            world.server.start()
        b = world.client(f"b{n}")
        for name, data in model.items():
            got = read(b.dir / "d" / name)
            assert got == data or name in hit and isinstance(got, OSError), f"round {n}, {name}: {got!r:.100}"
            told += isinstance(got, OSError)
        p = run(SERVER, "scrub", "--data", world.server.data, "--json", check=False, timeout=300)
        assert p.returncode == 7 and json.loads(p.stdout)["blocks_damaged"] == len(hit), p.stdout + p.stderr
        for name, data in model.items():  # who has the bytes saves them again, or makes a change that needs them
            if r.random() < .5:
                (d / name).write_bytes(data)
            else:
                with open(d / name, "r+b", buffering=0) as f:
                    f.seek(len(data))
                    f.write(b"more")
                    f.truncate(len(data))
        a.wait()
        j = json.loads(run(SERVER, "scrub", "--data", world.server.data, "--json", check=False, timeout=300).stdout)
        assert j["blocks_damaged"] == 0, j
        until(lambda: all(read(b.dir / "d" / name) == data for name, data in model.items()), 60, "all reads well")
        healed += len(hit)
        b.umount()
        world.clients.remove(b)
    print(f"objects: {flips} content flips, {told} told to their readers, all found by the server's scrub, {healed} healed, 0 wrong")
    assert flips == told == healed
