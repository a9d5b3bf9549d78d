# SPDX-License-Identifier: Apache-2.0
"""The server dies at each of its named places, at the first, the second and a later time that it passes them: while it serves writers, readers, gc and backups, and in its commands.

The names come from `tarn-server failpoints`: a place that no run below passes fails the test, also one that is written tomorrow. After each death the server is started again and the writers go on with
the same keys (test_crash.py: what was acknowledged is there once, in order); a backup that was under way restores to something whole; a command that died is run again and completes.

TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats, TARN_FAULT_POINT=NAME runs one place only."""
import http.client
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading

import pytest
from support import SCALE, SERVER, Server, deadline, make_sparse, run, seed_of
from test_crash import Writer, check_all

ROUNDS = max(1, round(3 * SCALE))
ONLY = os.environ.get("TARN_FAULT_POINT")
COMMANDS = {"server.schema", "restore.copied", "replace.fsync", "replace.rename", "replace.renamed"}  # passed once in a command's life; all others while it serves


def points():
    done = run("failpoints")
    names = sorted(set(done.stdout.split()))
    if not names:
        pytest.skip("this build has no failpoints")
    return [n for n in names if not ONLY or n == ONLY]


def died(point, *words, data, hit=1):
    """One command with a place armed; whether it died of it."""
    done = subprocess.run([SERVER, *words, "--data", str(data)], env={**os.environ, "TARN_FAILPOINTS": f"{point}=kill@{hit}"}, capture_output=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), (point, words, done)
    return done.returncode != 0


class Load:
    """What makes a serving server pass its places: readers, and for some places a command inside it, again and again until it is dead."""

    def __init__(self, server, point, backup):
        self.server, self.stop = server, threading.Event()
        command = {"gc": ["gc", "--min-age", "0"], "backup": ["backup", "--to", backup]}.get(point.split(".")[0])
        command = ["gc", "--min-age", "0", "--compact"] if point.startswith("gc.compact.") else ["backup", backup + ".file"] if point.startswith("backup.file.") else command
        self.threads = [threading.Thread(target=self.read)] + ([threading.Thread(target=self.command, args=(command,))] if command else [])
        for t in self.threads:
            t.start()

    def read(self):
        n = 0
        while not self.stop.is_set():
            n += 1
            try:
                self.server.get(f"w{n % 3}/f{n % 4}", timeout=20)
            except (OSError, http.client.HTTPException):
                return

    def command(self, words):
        while not self.stop.is_set():
            if "--compact" in words:
                make_sparse(self.server, random.Random(), "sparse")
            if words[0] == "gc":  # something to remove: an object without a row, and a block that nobody refers to any more
                name = os.urandom(16).hex()
                path = os.path.join(self.server.data, "objects", name[0], name[1:3])
                os.makedirs(path, mode=0o700, exist_ok=True)
                with open(os.path.join(path, name), "wb") as f:
                    f.write(b"left by a crash")
                os.utime(os.path.join(path, name), (1, 1))
            try:
                subprocess.run([SERVER, *words, "--data", self.server.data], capture_output=True, timeout=60)
            except subprocess.TimeoutExpired:
                return
            if self.server.process.poll() is not None:
                return

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join(90)
            assert not t.is_alive()


def start_armed(s, text):
    """It may pass the place before it could say where it listens."""
    s.env = {**os.environ, "TARN_FAILPOINTS": text}
    try:
        s.start()
    except AssertionError:
        if s.process.wait(60) != -signal.SIGKILL:
            raise
    finally:
        s.env = dict(os.environ)


def whole_backup(to, point):
    """Whatever a backup died of: what it left, if it was one, is whole."""
    if not os.path.exists(to if point.startswith("backup.file.") else os.path.join(to, "meta.db")):  # the first one into this place, before it was one
        return 0
    new = to + ".restored"
    run("restore", "--from", to, data=new)
    assert run("fsck", data=new, check=False).returncode == 0, point
    shutil.rmtree(new)
    return 1


def test_dies_while_it_serves(tmp_path):
    seed = seed_of()
    rng, fired, restored = random.Random(seed), 0, 0
    names = [n for n in points() if n not in COMMANDS]
    backup = str(tmp_path / "backup")
    with Server(workspaces=("w", "sparse")) as s:
        s.options = ["--listen", f"127.0.0.1:{s.port}"]
        writers = [Writer(s, n, seed) for n in range(4)]
        s.stop()
        unfired, started = [], False
        for name in names:
            for i in range(ROUNDS):
                hit = (1, 2)[i] if i < 2 else rng.randrange(3, 9)
                start_armed(s, f"{name}=kill@{hit}")
                if not started:
                    started = True
                    [w.start() for w in writers]
                load = Load(s, name, backup)
                try:
                    s.process.wait(120)
                except subprocess.TimeoutExpired:
                    unfired.append(f"{name}@{hit}")
                load.end()
                code = s.stop(signal.SIGKILL)
                fired += code == -signal.SIGKILL and f"{name}@{hit}" not in unfired
                if name.startswith("backup."):
                    restored += whole_backup(backup + ".file" if name.startswith("backup.file.") else backup, name)
                s.start()
                before = sum(w.acked for w in writers)
                for _ in deadline(60):
                    if sum(w.acked for w in writers) > before or [w.error for w in writers if w.error]:
                        break
                else:
                    raise AssertionError(f"nothing is written any more after {name}")
                s.stop()
        s.start()
        for w in writers:
            w.stop = True
        [w.join(90) for w in writers]
        check_all(s, writers)
        print(f"serving: places {len(names)} kills {fired} acknowledged {sum(w.acked for w in writers)} backups restored {restored} lost 0 twice 0")
        assert not unfired, f"never passed: {unfired}"


def test_dies_in_its_commands(tmp_path):
    """init, restore and the start: whatever it died of, the same command again completes, and what the backup holds is there."""
    seed_of()
    names, fired, content = [n for n in points() if n in COMMANDS], {}, os.urandom(300_000)
    assert ONLY or set(names) == COMMANDS
    with Server() as s:
        s.put("f", content)
        run("backup", "--to", tmp_path / "backup", data=s.data)
        s.stop()
        for name in names:
            for i in range(ROUNDS):
                new = tmp_path / f"{name}{i}"
                command = ["restore", "--from", str(tmp_path / "backup")] if i % 3 == 1 and name != "server.schema" or name == "restore.copied" else ["init"]
                if i % 3 == 2 and name.startswith("replace."):  # the start writes where it listens
                    shutil.copytree(s.data, new)
                    old, s.data = s.data, str(new)
                    start_armed(s, f"{name}=kill@1")
                    assert s.process.wait(60) == -signal.SIGKILL, name
                    s.stop(signal.SIGKILL)
                    s.start()
                    assert s.get("f")[2] == content
                    s.stop()
                    s.data = old
                else:
                    assert died(name, *command, data=new), (name, command)
                    if command[0] == "init":
                        done = run(*command, data=new, check=False)
                        if done.returncode != 0:  # it says what to do: the directory is new, so it may go
                            assert "data directory already" in done.stderr or "empty directory" in done.stderr, done.stderr
                            whole = run("fsck", data=new, check=False).returncode == 0
                            if not whole:
                                shutil.rmtree(new)
                                run(*command, data=new)
                    else:
                        done = run(*command, data=new, check=False)
                        if done.returncode != 0:
                            shutil.rmtree(new)
                            run(*command, data=new)
                    assert run("fsck", data=new, check=False).returncode == 0, (name, command)
                    if command[0] == "restore":
                        assert sqlite3.connect(f"file:{new}/meta.db?mode=ro", uri=True).execute("SELECT count(*) FROM node WHERE kind = 1").fetchone()[0] == 1
                fired[name] = fired.get(name, 0) + 1
                shutil.rmtree(new)
    print(f"commands: {fired}")
    assert all(n == ROUNDS for n in fired.values())


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-rs", __file__]))
