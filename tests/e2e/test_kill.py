# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon at random moments under writers: nothing accepted is lost or torn, nothing deleted comes back.

Each writer has a directory and a model of it: what every call that returned has made. The call that the kill interrupted may have happened or not, and a write may have happened
up to any byte. After the remount the mount must show the model; after `tarn wait` a client with an empty cache must show it as well, without a conflict copy. Some rounds kill
again while the mount recovers, and some do not wait, so that work of several lives is pending. A run in which too few kills met pending work proves nothing and fails.

25 kills here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import json
import os
import random
import shutil
import signal
import subprocess
import threading

from support import SCALE, TARN, alive, facts, until

KILLS = int(25 * SCALE)
NAMES = [f"f{i}" for i in range(7)]
DIRS = ["d0", "d1", "d2"]


def test_kill_9_under_writers(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    r = random.Random(seed)
    a = world.client("a", options="cache_size=256M")
    models, pending, kills = {"w0": {}, "w1": {}}, 0, 0
    for w in models:
        (a.dir / w).mkdir()

    def compare_through_an_empty_cache():
        a.wait(30)
        s = a.status()
        assert s["pending_files"] == 0 and s["pending_items"] == 0 and not s.get("parked"), s
        b = world.client(f"b{kills}")
        for w, model in models.items():
            wrong = differences(model, seen(b.dir / w))
            assert not wrong, f"kill {kills}, {w}, through another client: {wrong[:10]}"
        x, y = facts(a.dir), facts(b.dir)
        wrong = [f"{p}: {x.get(p)} != {y.get(p)}" for p in sorted(set(x) | set(y)) if (x.get(p) != y.get(p) if len(x.get(p, ())) == 3 else x.get(p, ("",))[0] != y.get(p, ("",))[0])]
        assert not wrong, f"kill {kills}: {wrong[:10]}"
        b.close()
        until(lambda: not b.pid() or not os.path.ismount(b.dir), what="the end of the other client")
        world.clients.remove(b)
        for d in (b.state, b.cache):
            shutil.rmtree(d)

    while kills < KILLS:
        writers = [Writer(str(a.dir / w), r.randrange(1 << 32), models[w]) for w in models]
        for w in writers:
            w.start()
        alive_for = r.choice((0.05, 0.2, 0.5, 1.0)) * r.random()
        idle_for = r.choice((0, 0, 0.05, 0.3)) * r.random()
        threading.Event().wait(alive_for)
        if idle_for:  # all is closed, and on its way
            for w in writers:
                w.stop.set()
            for w in writers:
                w.join()
                assert w.error is None, w.error
            threading.Event().wait(idle_for)
        s = a.status()
        pending += s["pending_files"] + s["pending_items"] > 0
        a.kill()
        kills += 1
        for w in writers:
            w.join(60)
            assert not w.is_alive(), f"a call hangs after the kill: {w.log[-1]}"
        while r.random() < 0.3 and kills < KILLS:  # again, while it recovers or starts to send what is left
            p = subprocess.Popen([str(TARN), "mount", f"{world.server.url}/work", str(a.dir), "-o", f"cache_dir={a.cache},cache_size=256M"], env=a.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            threading.Event().wait(0.3 * r.random())
            p.kill()
            p.wait()
            while n := end_daemons(a):  # one may have begun another meanwhile
                kills += n
        a.mount(options="cache_size=256M")
        for w, name in zip(writers, models):
            model, wrong = settle(w, seen(w.at))
            assert model is not None, f"kill {kills}, {name}, after the remount: {wrong[:10]}\nlast calls: {w.log[-30:]}\nin flight: {w.may is not None or w.part and w.part[0]}"
            models[name] = model
        if r.random() < 0.6 or kills >= KILLS:
            compare_through_an_empty_cache()
    print(f"{kills} kills, {pending} with work pending")
    assert pending >= 0.3 * kills, f"only {pending} of {kills} kills met pending work"
