# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the daemon at random moments under writers: nothing accepted is lost or torn, nothing deleted comes back.

writer.py has the writers and the oracle. After each kill and remount the mount must show what the calls made; after `tarn wait` a client with an empty cache must show it as well, without a
conflict copy. Some rounds kill again while the mount recovers, and some do not wait, so that work of several lives is pending. A run in which less than 80 % of the kills under writers met
pending work proves nothing and fails.

200 kills here; TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats."""
import random
import subprocess
import threading

from support import TARN, seed_of_run, share
from writer import Scene, end_daemons

KILLS = share(200, slow=10)


def test_kill_9_under_writers(world):
    seed = seed_of_run()
    r = random.Random(seed)
    s = Scene(world, seed, options="cache_size=256M")
    a, again = s.client, 0
    while s.kills < KILLS:
        s.start()
        threading.Event().wait(r.choice((0.05, 0.2, 0.5, 1.0)) * r.random())
        if r.random() < 0.2:  # all is closed, and on its way
            s.stop()
            threading.Event().wait(r.choice((0, 0.05)) * r.random())
        s.dirty_kills += s.pending() > 0
        a.kill()
        s.died()
        while r.random() < 0.3:  # again, while it recovers or starts to send what is left
            p = subprocess.Popen([str(TARN), "mount", f"{world.server.url}/work", str(a.dir), "-o", f"cache_dir={a.cache},{s.options}"], env=a.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            threading.Event().wait(0.3 * r.random())
            p.kill()
            p.wait()
            while n := end_daemons(a):  # one may have begun another meanwhile
                again += n
        s.mount()
        s.settle(f"kill {s.kills}")
        if r.random() < 0.2 or s.kills >= KILLS:
            s.compare(f"kill {s.kills}", last=s.kills >= KILLS)
    print(f"{s.report()}; {s.dirty_kills} kills with work pending, {again} more while it started")
    assert s.dirty_kills >= 0.8 * s.kills, f"void: only {s.dirty_kills} of {s.kills} kills met pending work"
