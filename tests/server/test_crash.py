# SPDX-License-Identifier: Apache-2.0
"""The server is killed, and its disk loses power, under load: no acknowledged version is lost, none is applied twice.

Each writer has files of its own and knows the exact list of contents that it was told are on disk. What was not answered is sent again with the same Idempotency-Key until it
is. At the end the versions of each file must be that list: nothing missing, nothing doubled, nothing out of order; and fsck finds nothing.

Power is cut by the shutdown ioctl (no flush of the log) of ext4 and XFS on a loop mount: what was not synced is gone, then the server is killed, the file system mounted again. An answer that comes
between the two is sent for again: the kernel's fsync may succeed while the log is being given up under it.
"""
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import time

import pytest
from support import SCALE, Server, deadline, run, seed_of, sha

SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125
WRITERS = 6


class Writer(threading.Thread):
    def __init__(self, server, number, seed):
        super().__init__(daemon=True)
        self.server, self.number, self.rng = server, number, random.Random(f"{seed} {number}")
        self.history = {}        # name -> contents of the node that has the name now, in order
        self.when = {}           # key of the request -> name, size, moments of sending and of the answer: what a failure is told with
        self.open = None         # (name, content, key): sent, not answered; content None: a deletion
        self.acked, self.error, self.stop, self.connection, self.down = 0, None, False, None, threading.Event()

    def send(self, name, content, key):
        """True if it was answered."""
        try:
            if self.connection is None:
                self.connection = self.server.connection(20)
            self.connection.request("DELETE" if content is None else "PUT", self.server.file(name), body=content, headers={"Authorization": "Bearer " + self.server.token, "Idempotency-Key": key})
            answer = self.connection.getresponse()
            body = answer.read()
        except Exception:
            if self.connection:
                self.connection.close()
            self.connection = None
            return False
        assert answer.status != 507 or self.server.cut, "void: the disk of this test is full"
        if answer.status >= 500:  # the disk is gone
            return False
        if self.server.cut:  # from a machine without power no answer comes: one that is given while its disk is being shut down proves nothing
            return False
        assert answer.status in (200, 201, 204), (answer.status, body)
        return True

    def run(self):
        try:
            while not self.stop:
                if self.open is None:
                    name = f"w{self.number}/f{self.rng.randrange(4)}"
                    gone = self.history.get(name) and self.rng.random() < 0.05
                    size = self.rng.choice([0, 50, 3000, 100_000, 100_000, 700_000])
                    self.open = (name, None if gone else b"%d %d " % (self.number, self.acked) + self.rng.randbytes(size), os.urandom(8).hex())
                name, content, key = self.open
                sent = time.monotonic()
                if not self.send(name, content, key):
                    self.down.wait(0.02)
                    continue
                self.acked += 1
                self.when[key] = (name, content if content is None else len(content), sent, time.monotonic())
                if content is None:
                    self.history[name] = []
                else:
                    self.history.setdefault(name, []).append(content)
                self.open = None
        except BaseException as e:
            self.error = e

    def check(self):
        """Everything that was acknowledged, once, in order. What is open may be there or not."""
        lost = twice = 0
        for name, contents in self.history.items():
            pending = self.open if self.open and self.open[0] == name else None
            status, _, body = self.server.get(name)
            if status == 404:
                assert not contents or (pending and pending[1] is None), f"{name} is gone"
                continue
            assert status == 200, (name, status, body[:200])
            versions = json.loads(self.server.call("GET", f"/v1/workspaces/w/versions?path={name}&limit=1000")[2])["versions"][::-1]
            sizes = [v["size"] for v in versions]
            want = [len(c) for c in contents]
            if pending and pending[1] is not None and len(sizes) == len(want) + 1:
                contents = contents + [pending[1]]
                want.append(len(pending[1]))
            lost += max(0, len(want) - len(sizes))
            twice += max(0, len(sizes) - len(want))
            assert sizes == want, f"{name}: versions {sizes}, acknowledged {want}; pending {pending and (pending[2], len(pending[1] or b''))}; deaths {self.server.deaths}; of this file {[(k, *v[1:]) for k, v in self.when.items() if v[0] == name]}"
            assert sha(body) == sha(contents[-1]), name
            for v, c in list(zip(versions, contents))[-4:-1]:
                assert sha(self.server.call("GET", self.server.file(name) + "?version=" + v["version"])[2]) == sha(c), name
        return lost + twice


def check_all(s, writers):
    errors = [w.error for w in writers if w.error]
    assert not errors, errors
    assert sum(w.check() for w in writers) == 0
    done = run("fsck", "--json", data=s.data, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kills_under_load():
    seed = seed_of()
    kills, every_s = max(3, int(12 * SCALE)), 5
    rng = random.Random(seed)
    with Server() as s:
        writers = [Writer(s, n, seed) for n in range(WRITERS)]
        s.options = ["--listen", f"127.0.0.1:{s.port}"]
        s.stop()
        s.start()
        [w.start() for w in writers]
        pause, busy = threading.Event(), 0
        for _ in range(kills):
            before = sum(w.acked for w in writers)
            pause.wait(every_s * (0.5 + rng.random()))
            busy += sum(w.open is not None for w in writers) > 0
            assert sum(w.acked for w in writers) > before, "nothing was written between two kills"
            s.kill()
            s.start()
        for w in writers:
            w.stop = True
        [w.join(60) for w in writers]
        check_all(s, writers)
        assert busy >= 0.8 * kills  # else these kills hit nobody
        print(f"kills {kills} acknowledged {sum(w.acked for w in writers)} lost 0 twice 0")


class Disk:
    """A file system of its own in a file. Each mount has a loop device of its own: a mount namespace of somebody else may keep the one that was cut alive, and it stays dead."""

    def __init__(self, kind):
        self.top = tempfile.mkdtemp(prefix="tarn-disk-")
        self.image, self.at, self.kind = os.path.join(self.top, "image"), os.path.join(self.top, "mnt"), kind
        os.mkdir(self.at)
        with open(self.image, "wb") as f:
            f.truncate(8 << 30)  # sparse; an idle machine writes some 50 MB/s
        subprocess.run(["mkfs." + kind, "-q", self.image], check=True, capture_output=True)
        self.mount()

    def mount(self):
        self.loop = subprocess.run(["losetup", "-f", "--show", self.image], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(["mount", *(["-o", "nouuid"] if self.kind == "xfs" else []), self.loop, self.at], check=True, capture_output=True)

    def cut(self):
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", 2))
        finally:
            os.close(fd)

    def umount(self):
        for _ in deadline(30):
            if subprocess.run(["umount", self.at], capture_output=True).returncode == 0:
                subprocess.run(["losetup", "-d", self.loop], capture_output=True)
                return
        raise AssertionError("cannot unmount " + self.at)

    def close(self):
        subprocess.run(["umount", self.at], capture_output=True)
        subprocess.run(["losetup", "-d", self.loop], capture_output=True)
        shutil.rmtree(self.top, ignore_errors=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts(kind):
    if os.geteuid() != 0 or not shutil.which("mkfs." + kind):
        pytest.skip("needs root and mkfs." + kind)
    seed = seed_of()
    rng = random.Random(seed)
    cuts = max(2, int(25 * SCALE))
    disk = Disk(kind)
    try:
        s = Server(data=os.path.join(disk.at, "data"))
        try:
            s.start()
            s.options = ["--listen", f"127.0.0.1:{s.port}"]
            writers = [Writer(s, n, seed) for n in range(WRITERS)]
            [w.start() for w in writers]
            pause, busy = threading.Event(), 0
            for _ in range(cuts):
                before = sum(w.acked for w in writers)
                pause.wait(0.3 + rng.random())
                for _ in deadline(30):
                    if sum(w.acked for w in writers) > before:
                        break
                busy += any(w.open is not None for w in writers)
                s.deaths.append(time.monotonic())
                s.cut = True
                disk.cut()
                s.kill()
                disk.umount()
                disk.mount()
                s.cut = False
                s.start()
            for w in writers:
                w.stop = True
            [w.join(60) for w in writers]
            check_all(s, writers)
            assert busy >= 0.8 * cuts, f"void: only {busy} of {cuts} cuts met an open request"
            print(f"{kind}: cuts {cuts} acknowledged {sum(w.acked for w in writers)} lost 0 twice 0")
        finally:
            s.close()
    finally:
        disk.close()


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-rs", __file__]))
