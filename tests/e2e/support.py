# SPDX-License-Identifier: Apache-2.0
"""Real servers and real mounts for the end-to-end tests.

World makes a server (its own data directory, a free port on loopback that stays the same over restarts) and any number of clients (each with a state directory of its own), and takes
all of it down again, whatever the test did to it. Every wait is on a condition with a deadline. Programs come from TARN_BUILD (the build directory)."""
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("TARN_BUILD_ROOT", TOP / "build"))
TARN, SERVER = BUILD / "cli" / "tarn", BUILD / "server" / "tarn-server"
SCALE = float(os.environ.get("TARN_TEST_SCALE", "1"))
PATIENCE = float(os.environ.get("TARN_TEST_PATIENCE", "1"))  # factor for deadlines: slow machines, sanitizers
SHARD, SHARDS = map(int, os.environ.get("TARN_TEST_SHARD", "1/1").split("/"))  # "2/3": the second third of a run that is split, so that its parts run side by side
PASSWORD = "correct horse battery"

EXIT = dict(ok=0, other=1, usage=2, server=3, sign_in=4, tls=5, workspace=6, mount_point=7, in_use=8, disk=9, timeout=10, not_mounted=11, upgrade=12)


def share(n, slow=1):
    """This part's share of n rounds; slow: by what they are divided on slow machines and under sanitizers."""
    return max(1, int(n * SCALE / SHARDS / (slow if PATIENCE > 1 else 1)))


def seed_of_run():
    """Of TARN_TEST_SEED, or a new one; each part of a run that is split has its own."""
    given = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 31)
    seed = given + (SHARD - 1) * 1000003
    print(f"seed {seed}" + (f": TARN_TEST_SEED={given} TARN_TEST_SHARD={SHARD}/{SHARDS}" if SHARDS > 1 else ""))
    return seed


def until(condition, seconds=30, what="condition"):
    """The first true value of condition(), or an error after the deadline."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {seconds * PATIENCE:g} s")
        time.sleep(0.01)  # deadline-poll


def soon(assertion, seconds=10):
    """For what follows in a moment, such as the kernel's caches after an event: assertion() passes within that time, or its last failure is raised."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        try:
            return assertion()
        except (AssertionError, FileNotFoundError):  # the latter: of a walk that met a cached name
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)  # deadline-poll


def run(*argv, check=True, timeout=60, **kw):
    kw.setdefault("stdout", subprocess.PIPE)
    kw.setdefault("stderr", subprocess.PIPE)
    kw.setdefault("text", True)
    p = subprocess.run([str(a) for a in argv], timeout=timeout * PATIENCE, **kw)
    if check and p.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, argv))}: exit {p.returncode}\n{p.stdout}\n{p.stderr}")
    return p


def is_mounted(path):
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4].replace("\\040", " ") == str(path) for line in f)


def alive(pid):
    """Runs, and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1  # a killed one's threads end one by one
    except (FileNotFoundError, ProcessLookupError):
        return False


def disk_usage(path):
    """Bytes that a directory takes on its disk, as du counts them."""
    total = 0
    for root, dirs, files in os.walk(path):
        for name in dirs + files:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


class Server:
    def __init__(self, base, tls=None):
        self.data, self.log, self.process, self.port, self.tls = base / "server", base / "server.log", None, 0, tls
        self.known_token = None
        run(SERVER, "init", "--data", self.data)

    def admin(self, *words, **kw):
        return run(SERVER, *words, "--data", self.data, **kw)

    def user(self, name, password=PASSWORD):
        self.admin("user", "add", name, "--password-stdin", input=password + "\n")

    def workspace(self, name, owner):
        self.admin("workspace", "add", name, "--owner", owner)

    def token(self, user):
        return self.admin("token", "add", "--user", user).stdout.strip()

    def cursor(self, workspace="work"):
        """Where the workspace's events are now, as `tarn status` shows what a client has applied."""
        self.known_token = self.known_token or self.token("anna")
        with urllib.request.urlopen(urllib.request.Request(f"{self.direct}/v1/workspaces/{workspace}", headers={"Authorization": f"Bearer {self.known_token}"}), timeout=30) as f:
            answer = json.load(f)
        return {k: answer[k] for k in ("epoch", "seq", "mark")}

    def rows(self, sql):
        """What its database says, whether it runs or not."""
        db = sqlite3.connect(f"file:{self.data}/meta.db?mode=ro", uri=True)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def start(self):
        argv = [str(SERVER), "serve", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}"]
        if self.tls:
            argv += ["--tls-cert", str(self.tls[0]), "--tls-key", str(self.tls[1])]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        line = self.process.stdout.readline().decode()  # ends when the server does
        if not line.startswith("listening"):
            raise AssertionError(f"server did not start: {self.log.read_text()[-2000:]}")
        self.url = self.direct = (self.data / "url").read_text().strip()  # a test may put a proxy's into url
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def stop(self, sig=signal.SIGTERM):
        if self.process:
            if sig != signal.SIGKILL:  # that one needs no help, and a frozen server shall not answer before it dies
                self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(sig)
            self.process.wait(30 * PATIENCE)
            self.process.stdout.close()
            code, self.process = self.process.returncode, None
            return code

    def kill(self):
        return self.stop(signal.SIGKILL)

    def freeze(self, on=True):
        self.process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)


class Client:
    def __init__(self, world, name):
        self.world, self.name = world, name
        self.state, self.dir, self.cache = world.base / f"{name}.state", world.base / name, world.base / f"{name}.cache"
        self.foreground, self.foreground_log = None, world.base / f"{name}.log"
        self.dir.mkdir()
        self.env = dict(os.environ, TARN_STATE_DIR=str(self.state))

    def tarn(self, *argv, check=True, **kw):
        return run(TARN, *argv, check=check, env=self.env, **kw)

    def login(self, user="anna", password=PASSWORD, check=True, url=None, extra=()):
        return self.tarn("login", url or self.world.server.url, "--user", user, "--password-stdin", *extra, input=password + "\n", check=check)

    def mount(self, workspace="work", options="", check=True, signed_in=False):
        if not signed_in and not list(self.state.glob("session-*.json")):
            self.login()
        o = f"cache_dir={self.cache}" + ("," + options if options else "")
        return self.tarn("mount", f"{self.world.server.url}/{workspace}", self.dir, "-o", o, check=check, timeout=120)

    def mount_in_foreground(self, failpoints=None, options="", signed_in=False):
        """The daemon as a child of the test; its log is foreground_log. It may still be starting."""
        if not signed_in:
            self.login()
        env = dict(self.env, TARN_FAILPOINTS=failpoints) if failpoints else self.env
        with open(self.foreground_log, "ab") as log:
            self.foreground = subprocess.Popen([str(TARN), "mount", f"{self.world.server.url}/work", str(self.dir), "-f", "-o", ",".join(filter(None, [f"cache_dir={self.cache}", options]))], env=env, stdin=subprocess.DEVNULL, stderr=log)
        return self.foreground

    def status(self):
        return json.loads(self.tarn("status", self.dir, "--json").stdout)

    def pid(self):
        for info in self.state.glob("mounts/*/mount.json"):
            return json.loads(info.read_text())["pid"]
        return None

    def ask(self, **request):
        """One line to the daemon's control socket, and its answer."""
        path = next(iter(self.state.glob("mounts/*/control.sock")))
        with socket.socket(socket.AF_UNIX) as s:
            fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)  # the path may be longer than a socket's may be
            try:
                s.connect(f"/proc/self/fd/{fd}/control.sock")
            finally:
                os.close(fd)
            s.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(s.makefile().readline())

    def wait(self, timeout=60):
        r = self.tarn("wait", self.dir, "--timeout", int(timeout * PATIENCE), check=False, timeout=timeout + 10)
        assert r.returncode == 0, f"{r.stderr}{self.tarn('status', self.dir, check=False).stdout}{self.tarn('status', self.dir, '--json', check=False).stdout}"
        return r

    def umount(self, check=True, extra=()):
        return self.tarn("umount", self.dir, *extra, check=check, timeout=90)

    def kill(self):
        """kill -9 of the daemon; the stale mount stays, as it does in life."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), what="the daemon's death")

    def restart(self, options=""):
        self.umount()
        self.mount(options=options)

    def log_text(self):
        return "\n".join(p.read_text(errors="replace") for p in [self.foreground_log, *self.state.glob("mounts/*/log")] if p.exists())

    def close(self):
        pid = self.pid()
        if pid and alive(pid):
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGTERM)  # the second one: do not wait for the server
                until(lambda: not alive(pid), 40, "the end of the daemon")
            except (AssertionError, ProcessLookupError):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if self.foreground:
            self.foreground.kill()
            self.foreground.wait()
        if is_mounted(self.dir):
            subprocess.run(["fusermount3", "-uz", str(self.dir)], stderr=subprocess.DEVNULL)


class World:
    def __init__(self):
        self.base = Path(tempfile.mkdtemp(prefix="tarn-e2e-", dir=os.environ.get("TARN_E2E_TMP")))
        self.server, self.clients, self.extra = None, [], []

    def start(self, **kw):
        self.server = Server(self.base, **kw)
        self.server.user("anna")
        self.server.workspace("work", "anna")
        self.server.start()
        return self

    def client(self, name=None, mount=True, options=""):
        c = Client(self, name or f"m{len(self.clients) + 1}")
        self.clients.append(c)
        if mount:
            c.mount(options=options)
        return c

    def caught_up(self, *clients, seconds=60):
        """All that these have done is on the server, and each of them has applied everything that is there. What a client has looked at before is cached by the kernel, which follows soon()."""
        for c in clients:
            c.wait(2 * seconds)

        def at_the_end():
            now = self.server.cursor()
            return all(s["cursor"] == now and s["pending_items"] == 0 and s["pending_files"] == 0 for s in (c.status() for c in clients))
        until(at_the_end, seconds, "everybody has applied all events")

    def close(self, failed=False):
        for c in self.clients:
            c.close()
        if self.server:
            try:
                self.server.stop()
            except subprocess.TimeoutExpired:
                self.server.kill()
        if failed:
            for c in self.clients:
                print(f"---- log of {c.name}\n{c.log_text()[-6000:]}")
            if self.server:
                print(f"---- log of the server\n{self.server.log.read_text(errors='replace')[-4000:]}")
        wrong = [line for text in [c.log_text() for c in self.clients] + [self.server.log.read_text(errors="replace") if self.server and self.server.log.exists() else ""]
                 for line in text.split("\n") if re.search(r"Sanitizer|runtime error:|Assertion|assertion failed|rank violation", line)]
        assert not wrong, "\n".join(wrong[:20])
        left = [c.dir for c in self.clients if is_mounted(c.dir)]
        assert not left, f"still mounted: {left}"
        shutil.rmtree(self.base, ignore_errors=True)


# ---- comparing trees ----

def facts(root, dir_times=True):
    """path -> what must be equal: type, mode, mtime, size, link target."""
    all_ = {}
    for at, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(at, name)
            st = os.lstat(path)
            kind = st.st_mode & 0o170000
            fact = [oct(st.st_mode)]
            if kind != 0o120000 and (dir_times or kind != 0o040000):
                fact.append(st.st_mtime_ns)
            if kind == 0o100000:
                fact.append(st.st_size)
            if kind == 0o120000:
                fact.append(os.readlink(path))
            all_[os.path.relpath(path, root)] = tuple(fact)
    return all_


def assert_same_facts(x, y):
    wrong = [f"{p}: {x.get(p)} != {y.get(p)}" for p in sorted(set(x) | set(y)) if x.get(p) != y.get(p)]
    assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(wrong[:20])


def assert_same_tree(a, b, dir_times=True):
    assert_same_facts(facts(a, dir_times), facts(b, dir_times))
    d = run("diff", "-r", "--no-dereference", a, b, check=False, timeout=600)
    assert d.returncode == 0, d.stdout[:2000] + d.stderr[:2000]
