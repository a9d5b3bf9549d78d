# SPDX-License-Identifier: Apache-2.0
"""The programs die at each of their named places (include/base/base/failpoint.h): before and after each sync, rename, commit, request, answer, eviction, freeze and adoption.

The names come from the programs themselves, so that a new place is tested the day it is written. For each: writers work on a real mount with a real server and a small cache; at the
first, the second and some later time that a thread passes the place, the process gets SIGKILL there. Then it is started again; the mount must show what the calls made, and, once for each
place, a client with an empty cache must show it after everything was sent. A place that is never passed fails the test: it would prove nothing.

  starting places    (recovery, schema, first load) are armed from the environment of `tarn mount`, with work pending from a kill before
  server's places    the server dies and is started again; the client goes on by itself

Not passed here: places of eviction, which need a small cache (EVICT).

3 hits each; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats, TARN_FAULT_POINT=NAME tests one place only."""
import os
import random
import signal
import subprocess
import time

import pytest
from support import PATIENCE, SCALE, SERVER, TARN, alive, run, until
from writer import Scene, differences, seen

OPTIONS = "cache_size=256M,drain_timeout=0"
SMALL = "cache_size=24M,free_floor=1,drain_timeout=0"  # so that blocks are evicted
ROUNDS = max(1, round(3 * SCALE))
ONLY = os.environ.get("TARN_FAULT_POINT")
FIRST = {"tree.schema", "index.schema", "load.page", "load.step"}         # with an empty cache directory
START = {"tree.opened", "recover.found", "recover.match", "recover.flush", "replace.fsync", "replace.rename", "replace.renamed", "segment.begin", "mount.visible", "mount.answers"}
EVICT = {"evict.index", "evict.punch", "pack.trim"}                       # with a small cache
RARE = {"index.commit", "index.committed"}                                # passed every few seconds at most, whatever is done


def points(program):
    names = run(program, "failpoints").stdout.split()
    assert names, f"{program} was built without failpoints: use a build type other than release"
    return sorted(n for n in set(names) if not ONLY or n == ONLY)


def seed_of():
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    return seed


def hit_of(r, i):
    return (1, 2)[i] if i < 2 else r.randrange(3, 9)


def mount_under(client, options, text):
    """`tarn mount` with a point armed; whether the daemon died of it."""
    env = dict(client.env, TARN_FAILPOINTS=text)
    o = f"cache_dir={client.cache},{options}"
    p = subprocess.run([str(TARN), "mount", f"{client.world.server.url}/work", str(client.dir), "-o", o], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120 * PATIENCE)
    return p.returncode != 0


def test_the_client_dies_at_each_of_its_places(world):
    r = random.Random(seed_of())
    s = Scene(world, r.random(), OPTIONS, size_max=2 << 20, reads=True)
    a, silent, hits = s.client, [], {}
    names = [n for n in points(TARN) if n not in FIRST | START | EVICT]
    token = world.server.token("anna")

    def somebody_else(n):
        """Remote changes, so that there are events and reads that miss."""
        data = r.randbytes(r.choice((1000, 300000, 3000000)))
        run("curl", "-sf", "-X", "PUT", "-H", f"Authorization: Bearer {token}", "--data-binary", "@-", f"{world.server.url}/v1/workspaces/work/files/r{n % 3}", input=data, text=False)
        return f"r{n % 3}", data

    for name in names:
        for i in range(ROUNDS):
            hit, pid = 1 if name in RARE else hit_of(r, i), a.pid()
            assert a.ask(cmd="failpoint", arm=f"{name}=kill@{hit}") == {"ok": True}
            s.start()
            end, n = time.monotonic() + 30 * PATIENCE, 0
            while alive(pid) and time.monotonic() < end:
                n += 1
                remote, data = somebody_else(n)
                try:
                    until(lambda: not alive(pid) or (a.dir / remote).exists(), 10)
                    (a.dir / remote).read_bytes()
                    if n % 4 == 0:  # the writers rest, so that what follows the last close happens too
                        until(lambda: not alive(pid), 0.5 / PATIENCE)
                except (OSError, AssertionError):
                    pass
                if not any(w.is_alive() for w in s.writers) and alive(pid):
                    until(lambda: not alive(pid), 10, "the end of a daemon whose mount answers no more")
            fired = not alive(pid)
            if not fired:
                s.stop()
                s.calls, s.closed, s.synced = (x + sum(getattr(w, k) for w in s.writers) for x, k in ((s.calls, "calls"), (s.closed, "closed"), (s.synced, "synced")))
                for w, m in zip(s.writers, s.models):
                    s.models[m] = w.model
                a.ask(cmd="failpoint", arm="*=off")
                silent.append(f"{name}@{hit}")
                continue
            hits[name] = hits.get(name, 0) + 1
            s.died()
            s.mount()
            s.settle(f"{name}, hit {hit}")
        s.compare(name)
    print(f"client, {len(hits)} places: {s.report()}")
    assert not silent, f"never passed: {silent}"


def test_the_client_dies_while_it_starts(world):
    """With work pending from a kill; hit 1, because most of these places are passed once."""
    s = Scene(world, seed_of(), OPTIONS, size_max=1 << 20)
    r, a, silent = s.random, s.client, []
    names = [n for n in points(TARN) if n in START and n != "segment.begin"]
    for name in names:
        for _ in range(ROUNDS):
            s.start()
            until(lambda: not all(w.is_alive() for w in s.writers) or all(len(w.log) > 20 for w in s.writers), 20)
            a.kill()
            s.died()
            if not mount_under(a, OPTIONS, f"{name}=kill@1"):
                silent.append(name)
            s.mount()
            s.settle(name)
        s.compare(name)
    print(f"client's start, {len(names)} places: {s.report()}")
    assert not silent, f"never passed: {silent}"


def test_the_client_dies_in_its_first_start(world):
    s = Scene(world, seed_of(), OPTIONS, size_max=1 << 20, writers=1)
    s.start()
    until(lambda: not s.writers[0].is_alive() or len(s.writers[0].log) > 50, 20)
    s.stop()
    s.models["w0"] = s.writers[0].model
    s.client.wait()
    names, silent = [n for n in points(TARN) if n in FIRST], []
    for n, name in enumerate(names):
        c = world.client(f"c{n}", mount=False)
        c.login()
        if not mount_under(c, OPTIONS, f"{name}=kill@1"):
            silent.append(name)
        c.mount(options=OPTIONS, signed_in=True)
        wrong = differences(s.models["w0"], seen(c.dir / "w0"))
        assert not wrong, f"{name}: {wrong[:10]}"
    print(f"client's first start, {len(names)} places")
    assert not silent, f"never passed: {silent}"


def start_armed(server, text):
    """The server with a place armed. It may pass it before it could say where it listens: the client asks from the first moment on."""
    os.environ["TARN_FAILPOINTS"] = text
    try:
        server.start()
    except AssertionError:
        if server.process.wait(30 * PATIENCE) != -signal.SIGKILL:
            raise
    finally:
        del os.environ["TARN_FAILPOINTS"]


def test_the_server_dies_at_each_of_its_places(world):
    """Those that a mount passes; the others: tests/server/test_failpoints.py."""
    s = Scene(world, seed_of(), OPTIONS, size_max=1 << 20)
    r, silent = s.random, []
    names = [n for n in points(SERVER) if n.startswith(("commit.", "object.", "answer."))]
    for name in names:
        for i in range(ROUNDS):
            world.server.stop()
            if i % 2:  # what was made without a server comes at once
                s.start()
            start_armed(world.server, f"{name}=kill@{hit_of(r, i)}")
            if not s.writers:
                s.start()
            try:
                until(lambda: world.server.process.poll() is not None, 30, name)
            except AssertionError:
                silent.append(name)
            world.server.stop()
            s.stop()
            for w, m in zip(s.writers, s.models):
                s.models[m] = w.model
                s.calls, s.closed, s.synced = s.calls + w.calls, s.closed + w.closed, s.synced + w.synced
            s.kills, s.writers = s.kills + 1, []
            world.server.start()
        s.compare(name)
    print(f"server, {len(names)} places: {s.report()}")
    assert not silent, f"never passed: {silent}"


def test_a_truncation_is_not_lost_when_the_write_after_it_grows_the_stage(world):
    a = world.client("a")
    path = a.dir / "f"
    path.write_bytes(b"old" * 10000)
    a.wait()
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    a.ask(cmd="failpoint", arm="stage.write=kill@1")
    pid = a.pid()
    with pytest.raises(OSError):
        os.pwrite(fd, b"n" * 200000, 0)
    try:
        os.close(fd)
    except OSError:
        pass
    until(lambda: not alive(pid), what="the daemon's death")
    a.mount(signed_in=True)
    assert path.read_bytes() == b""
