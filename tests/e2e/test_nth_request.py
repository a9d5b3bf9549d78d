# SPDX-License-Identifier: Apache-2.0
"""The n-th request over real HTTP: one journey between a real client and a real server, whose n-th request is broken in one way, for n = 1, 2, ... until a journey has no n-th request.

A journey: read what another client made, without its bytes in the cache; make a tree, large file included; edit, save by rename over, link, rename, delete; unmount and mount; edit again.
Whatever the request was: no call fails but a read of what is not here, everything gets to the server without help, and the other client shows exactly what the calls made.

The suite takes some n of each way, others in each run (TARN_TEST_SEED); all of them: TARN_TEST_SCALE=100. Void if no request of a way was broken."""
import errno
import os
import random
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402
from support import SCALE, Client, assert_same_facts, facts, seed_of_run, soon, until  # noqa: E402

WAYS = {"cut before": ("drop 1", "drop"), "answer lost": ("lose_answer 1", "lose_answer"), "503": ("status 1 503", "status"), "half an answer": ("truncate 1", "truncate")}
STEP = 5  # in the suite: every so many-th n
AWAY = (errno.EHOSTDOWN, errno.ETIMEDOUT)


def write(made, top, name, data):
    (top / name).write_bytes(data)
    made[name] = data


def read(top, name, want):
    """Its bytes, or the word that the network is away."""
    try:
        assert (top / name).read_bytes() == want, f"{name}: wrong bytes"
    except OSError as e:
        assert e.errno in AWAY, e
        return 1
    return 0


def journey(a, there, rng, mount):
    """What must be there in the end: name -> bytes, None for a directory, (target,) for a link; and how many reads were told that the network is away."""
    made, top = {"there": b"there", "cold": there}, a.dir / "top"
    refused = read(top, "cold", there)
    (top / "dir").mkdir()
    (top / "dir" / "sub").mkdir()
    made |= {"dir": None, "dir/sub": None}
    for i in range(4):
        write(made, top, f"dir/small{i}", rng.randbytes(3000 + i))
    write(made, top, "dir/large", rng.randbytes(1500000))
    os.symlink("small1", top / "dir" / "points")
    made["dir/points"] = ("small1",)
    a.tarn("wait", a.dir, "--timeout", "60", timeout=90)
    with open(top / "dir/small0", "ab") as f:
        f.write(b"more")
    made["dir/small0"] += b"more"
    write(made, top, "new.tmp", rng.randbytes(2000))
    os.rename(top / "new.tmp", top / "dir/small2")  # a save
    made["dir/small2"] = made.pop("new.tmp")
    os.link(top / "dir/small1", top / "linked")
    made["linked"] = made["dir/small1"]
    os.rename(top / "dir/sub", top / "moved")
    made["moved"] = made.pop("dir/sub")
    (top / "dir/small3").unlink()
    del made["dir/small3"]
    a.tarn("umount", a.dir, timeout=120)
    mount()
    write(made, top, "there", b"there, and back")
    with open(top / "dir/large", "r+b") as f:
        f.seek(700000)
        f.write(b"patched")
    made["dir/large"] = made["dir/large"][:700000] + b"patched" + made["dir/large"][700007:]
    return made, refused


def shown(top):
    return {p.relative_to(top).as_posix(): (os.readlink(p),) if p.is_symlink() else None if p.is_dir() else p.read_bytes() for p in top.rglob("*")}


def test_each_request_fails(world):
    rng = random.Random(seed_of_run())
    step = max(1, int(STEP / SCALE))
    proxy = Proxy("127.0.0.1", world.server.port).start()
    try:
        b, a = world.client("b"), Client(world, "a")
        world.clients.append(a)
        url = f"http://127.0.0.1:{proxy.port}"
        a.login(url=url)

        def mount():
            a.tarn("mount", f"{url}/work", a.dir, "-o", f"cache_dir={a.cache}", timeout=120)
        mount()

        def once(command):
            """Runs the journey in a new directory; how many requests it had, and how many reads were told that the network is away."""
            there, top = rng.randbytes(300000), b.dir / "top"
            shutil.rmtree(top, ignore_errors=True)
            top.mkdir()
            (top / "there").write_bytes(b"there")
            (top / "cold").write_bytes(there)
            b.tarn("wait", b.dir, "--timeout", "60", timeout=90)
            until(lambda: (a.dir / "top" / "cold").exists() and not (a.dir / "top" / "dir").exists(), 30, "news")
            before = proxy.command("counters")["requests"]
            if command:
                proxy.command(command)
            made, refused = journey(a, there, rng, mount)
            a.tarn("wait", a.dir, "--timeout", "60", timeout=90)
            requests = proxy.command("heal")["requests"] - before

            def same():
                seen = shown(top)
                wrong = [name for name in sorted(set(seen) | set(made)) if seen.get(name, 0) != made.get(name, 0)]
                assert not wrong, f"not what was made: {wrong}"
            soon(same, 30)
            soon(lambda: assert_same_facts(facts(a.dir, dir_times=False), facts(b.dir, dir_times=False)), 30)
            assert shown(a.dir / "top") == made
            status = a.status()
            assert not status["parked_items"] and not status["held_nodes"] and not status["conflicts"], status
            return requests, refused

        start = time.monotonic()
        print(f"{once(None)[0]} requests without a failure, {time.monotonic() - start:.1f} s")
        for way, (command, counter) in WAYS.items():
            met = refused = 0
            start, n = time.monotonic(), rng.randrange(1, step + 1)
            while True:
                before = proxy.command("counters")["fired"][counter]
                try:
                    refused += once(f"nth {n} {command}")[1]
                except AssertionError as e:
                    raise AssertionError(f"{way}, request {n}: {e}") from e
                if proxy.command("counters")["fired"][counter] == before:
                    break
                met += 1
                n += step
            print(f"{way}: {met} requests failed, the last one was number {n - step}; {refused} reads were told that the network is away; {time.monotonic() - start:.1f} s")
            assert met > 0, f"{way}: no request was broken"
    finally:
        a.close()
        proxy.stop()
