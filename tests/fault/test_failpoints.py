# SPDX-License-Identifier: Apache-2.0
"""The programs die at each of their named places (include/base/base/failpoint.h): before and after each sync, rename, commit, request, answer, eviction, freeze and adoption.

The names come from the programs themselves, so that a new place is tested the day it is written. For each: writers work on a real mount with a real server and a small cache; at the
first, the second and some later time that a thread passes the place, the process gets SIGKILL there. Then it is started again; the mount must show what the calls made, and, once for each
place, a client with an empty cache must show it after everything was sent. A place that is never passed fails the test: it would prove nothing.

  starting places    (recovery, schema, first load) are armed from the environment of `tarn mount`, with work pending from a kill before
  server's places    the server dies and is started again; the client goes on by itself

3 hits each; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats, TARN_FAULT_POINT=NAME tests one place only."""
import json
import os
import random
import shutil
import socket
import subprocess
import time

import pytest
from support import PASSWORD, PATIENCE, SCALE, SERVER, TARN, alive, run, until
from writer import Scene

OPTIONS = "cache_size=256M,drain_timeout=0"
SMALL = "cache_size=24M,free_floor=1,drain_timeout=0"  # so that blocks are evicted
ROUNDS = max(1, round(3 * SCALE))
ONLY = os.environ.get("TARN_FAULT_POINT")
FIRST = {"tree.schema", "index.schema", "load.page", "load.step"}         # with an empty cache directory
START = {"tree.opened", "recover.found", "recover.match", "recover.flush", "replace.fsync", "replace.rename", "replace.renamed", "segment.begin"}
EVICT = {"evict.index", "evict.punch", "pack.trim"}                       # with a small cache
INIT = {"server.schema"}                                                  # when the server's directory is made


def points(program):
    names = run(program, "failpoints").stdout.split()
    assert names, f"{program} was built without failpoints: use a build type other than release"
    return sorted(n for n in set(names) if not ONLY or n == ONLY)


def ask(client, **request):
    """One line to the daemon's control socket."""
    path = next(iter(client.state.glob("mounts/*/control.sock")))
    with socket.socket(socket.AF_UNIX) as s:
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)  # the path may be longer than a socket's may be
        try:
            s.connect(f"/proc/self/fd/{fd}/control.sock")
        finally:
            os.close(fd)
        s.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(s.makefile().readline())


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
            hit, pid = hit_of(r, i), a.pid()
            assert ask(a, cmd="failpoint", arm=f"{name}=kill@{hit}") == {"ok": True}
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
                ask(a, cmd="failpoint", arm="*=off")
                silent.append(f"{name}@{hit}")
                continue
            hits[name] = hits.get(name, 0) + 1
            print(name, hit, round(time.monotonic() - end + 30 * PATIENCE, 1), flush=True); s.died()
            s.mount()
            s.settle(f"{name}, hit {hit}")
        s.compare(name)
    print(f"{len(hits)} places, {s.report()}")
    assert not silent, f"never passed: {silent}"
