# SPDX-License-Identifier: Apache-2.0
"""A real tarn-server for tests: its own data directory, a port that the kernel picks, ended by its process id.

Nothing here waits for a guess: a start waits for the line that says "listening on", an end for the process, everything else has a deadline.
"""
import hashlib
import http.client
import os
import select
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.parse

SERVER = os.environ["TARN_SERVER"]
PASSWORD = "correct horse battery"
START_S = 30
SCALE = float(os.environ.get("TARN_TEST_SCALE", "1")) * float(os.environ.get("TARN_TEST_SHARE", "1"))  # SHARE: what a build that is watched runs of it


def seed_of():
    """The seed of a random test, told so that it can be run again."""
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    return seed


def run(*args, data=None, input=None, check=True):
    """One command of the program; its words, exit code and both outputs."""
    words = [SERVER, *args] + (["--data", str(data)] if data else [])
    done = subprocess.run(words, input=input, capture_output=True, text=True, timeout=60)
    if check and done.returncode != 0:
        raise AssertionError(f"{words} -> {done.returncode}: {done.stderr}")
    return done


class Server:
    def __init__(self, *options, users=("ann",), workspaces=("w",), env=None, data=None):
        self.top = tempfile.mkdtemp(prefix="tarn-test-")
        self.data = data or os.path.join(self.top, "data")
        self.options = list(options)
        self.process = None
        self.deaths, self.cut = [], False  # moments of kills; whether its power is off
        self.log = os.path.join(self.top, "log")
        self.env = {**os.environ, **(env or {})}
        run("init", data=self.data)
        for user in users:
            run("user", "add", user, "--password-stdin", data=self.data, input=PASSWORD + "\n")
        for workspace in workspaces:
            run("workspace", "add", workspace, "--owner", users[0], data=self.data)
        self.token = run("token", "add", "--user", users[0], data=self.data).stdout.strip()

    def start(self):
        assert self.process is None
        log = open(self.log, "ab")
        self.process = subprocess.Popen([SERVER, "serve", "--data", self.data, "--listen", "127.0.0.1:0", *self.options], stdout=subprocess.PIPE, stderr=log, env=self.env)
        log.close()
        ready, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline().decode() if ready else ""
        assert line.startswith("listening on "), f"no start: {line!r} {self.log_text()[-2000:]}"
        self.url = line.split()[-1]
        parts = urllib.parse.urlsplit(self.url)
        self.host, self.port, self.tls = parts.hostname, parts.port, parts.scheme == "https"
        return self

    def stop(self, number=signal.SIGTERM, timeout=30):
        """Ends it; its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self.process.stdout.close()
        self.process = None
        return code

    def kill(self):
        self.deaths.append(time.monotonic())
        self.stop(signal.SIGKILL)

    def close(self):
        try:
            code = self.stop()
            assert not code, f"the server ended with {code}: {self.log_text()[-8000:]}"  # so do sanitizers speak
        finally:
            self.kill()
            shutil.rmtree(self.top, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    def log_text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def connection(self, timeout=60, context=None):
        if self.tls:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context or ssl._create_unverified_context())
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def call(self, method, path, body=None, token=True, headers=None, connection=None, timeout=60):
        """One request: (status, headers, body)."""
        own = connection or self.connection(timeout)
        head = dict(headers or {})
        if token:
            head.setdefault("Authorization", "Bearer " + (self.token if token is True else token))
        try:
            own.request(method, path, body=body, headers=head)
            answer = own.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            if not connection:
                own.close()

    def file(self, path, workspace="w"):
        return f"/v1/workspaces/{workspace}/files/{urllib.parse.quote(path)}"

    def put(self, path, body, workspace="w", **more):
        return self.call("PUT", self.file(path, workspace), body=body, **more)

    def get(self, path, workspace="w", **more):
        return self.call("GET", self.file(path, workspace), **more)


def make_sparse(server, rng, workspace, name="part"):
    """An object of which a third is needed: a big file is put, another one shares its beginning, the big one goes. What `name` holds; None: the server did not answer."""
    big = rng.randbytes(4_000_000)
    try:
        for path, body in (("big", big), (name, big[:1_600_000])):
            if server.put(path, body, workspace=workspace, timeout=20)[0] not in (200, 201):
                return None
        server.call("DELETE", server.file("big", workspace), timeout=20)
        server.call("DELETE", f"/v1/workspaces/{workspace}/trash", timeout=20)
    except (OSError, http.client.HTTPException):
        return None
    return big[:1_600_000]


def deadline(seconds):
    """Yields until the time is over: `for _ in deadline(5): if condition: break`, `else:` failed. Waits a little between looks."""
    end = time.monotonic() + seconds
    pause = select.poll()
    while time.monotonic() < end:
        yield
        pause.poll(20)


def sha(data):
    return hashlib.sha256(data).hexdigest()
