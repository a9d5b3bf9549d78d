# SPDX-License-Identifier: Apache-2.0
"""A mount for a test: starts fsharness, talks to it, and takes everything away again."""
import errno
import os
import select
import shutil
import subprocess
import tempfile
import time

DEADLINE_S = 20


def wait_for(condition, what="condition", deadline_s=DEADLINE_S):
    """Polls until condition() is true; the poll is on a descriptor that never fires, so that it costs nothing."""
    end = time.monotonic() + deadline_s
    step = 0.001
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        select.select([], [], [], step)
        step = min(step * 2, 0.05)


class Mount:
    def __init__(self, *options, keep=None):
        self.top = keep or tempfile.mkdtemp(prefix="tarn-fs-test.")
        self.state, self.path = self.top + "/state", self.top + "/mnt"
        for d in (self.state, self.path):
            os.makedirs(d, exist_ok=True)
        self.process = None
        self.options = options
        self.start()

    def start(self, *options):
        env = dict(os.environ, ASAN_OPTIONS="detect_leaks=1:" + os.environ.get("ASAN_OPTIONS", ""))
        self.process = subprocess.Popen([os.environ["FSHARNESS"], self.state, self.path, *(options or self.options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.first = self.answer()
        return self.first

    def answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        if not ready:
            raise AssertionError("the harness does not answer")
        return self.process.stdout.readline().strip()

    def try_(self, *words):
        self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def do(self, *words):
        a = self.try_(*words)
        assert a.startswith("ok"), f"{words}: {a!r}"
        return a[3:]

    def counter(self, name):
        return int(self.do("counter", name))

    def stop(self, *how):
        """Clean end; the harness and its sanitizers must be content."""
        if self.process and self.process.poll() is None:
            try:
                a = self.try_("quit", *how)
            except BrokenPipeError:
                a = ""
            if a.startswith("error"):
                return a
        if self.process:
            self.process.stdin.close()
            self.process.stdout.read()
            code = self.process.wait(60)
            self.process = None
            assert code == 0, f"harness ended with {code}"
        return "ok"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None

    def remove(self):
        if self.process and self.process.poll() is None:
            self.stop("lazy")
        elif self.process:
            self.process.stdin.close()
            self.process.stdout.close()
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.top, ignore_errors=True)

    def __truediv__(self, name):
        return os.path.join(self.path, name)


def name_of(e):
    return "EOPNOTSUPP" if e == errno.EOPNOTSUPP else errno.errorcode.get(e, str(e))


def filled(n, byte):
    """What the harness makes of "@N:BYTE": each page begins with its number."""
    return b"".join((i.to_bytes(8, "little") + byte * 4088) for i in range(-(-n // 4096)))[:n]


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data, mode="wb"):
    with open(path, mode) as f:
        f.write(data)
