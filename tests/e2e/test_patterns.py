# SPDX-License-Identifier: Apache-2.0
"""How programs save. Each row of PATTERNS is the order of system calls that a program makes on a save, as a trace of it shows them; the test replays it on a mount, once with the server
following, then twice in a hurry, then with a pause before each rename and unlink as if the program were slow, and looks at what the server got: the document's bytes, its history, and that
no temporary was ever sent. (One that lives for two seconds may be: on a machine so busy that a save takes that long, the save does not count.)

The table's words: DOC the document, R six random characters (new for each save), NEW the bytes of this save. Handles are named h, l, s.
  node     same: the save is a new version of the document's node. any: the program takes the document itself away and makes another one
  stays    names that the program leaves behind on purpose"""
import hashlib
import json
import math
import os
import random
import sqlite3
import string
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from support import until

W = os.O_WRONLY | os.O_CREAT
PATTERNS = {
    "vim": dict(node="any", calls=[
        ("open", "s", ".DOC.swp", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "s", "swap"), ("write", "s", "more swap"), ("fsync", "s"),
        ("open", "h", "4913", W | os.O_EXCL), ("chown", "4913"), ("close", "h"), ("unlink", "4913"),
        ("rename", "DOC", "DOC~"), ("open", "h", "DOC", W | os.O_EXCL), ("write", "h", "NEW"), ("fsync", "h"), ("chmod", "DOC"), ("close", "h"), ("unlink", "DOC~"),
        ("write", "s", "swap again"), ("close", "s"), ("unlink", ".DOC.swp")]),
    "vim, backupcopy=yes": dict(node="same", calls=[
        ("open", "s", ".DOC.swp", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "s", "swap"),
        ("open", "l", "DOC~", W | os.O_EXCL), ("write", "l", "the old bytes"), ("close", "l"),
        ("open", "h", "DOC", os.O_WRONLY | os.O_TRUNC), ("write", "h", "NEW"), ("fsync", "h"), ("close", "h"), ("unlink", "DOC~"), ("close", "s"), ("unlink", ".DOC.swp")]),
    "emacs": dict(node="same", calls=[
        ("symlink", "anna@host.4711:1700000000", ".#DOC"), ("open", "l", "#DOC#", W | os.O_TRUNC), ("write", "l", "auto save"), ("close", "l"),
        ("open", "h", "DOC", W | os.O_TRUNC), ("write", "h", "NEW"), ("fsync", "h"), ("close", "h"), ("unlink", "#DOC#"), ("unlink", ".#DOC")]),
    "libreoffice": dict(node="same", calls=[
        ("open", "l", ".~lock.DOC#", W | os.O_EXCL), ("write", "l", ",anna,host,01.01.2026;"), ("close", "l"),
        ("open", "h", "luR.tmp", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("fsync", "h"), ("close", "h"), ("chmod", "luR.tmp"), ("rename", "luR.tmp", "DOC"),
        ("unlink", ".~lock.DOC#")]),
    "ms office": dict(node="any", calls=[
        ("open", "l", "~$DOC", W | os.O_EXCL), ("write", "l", "anna"), ("close", "l"),
        ("open", "h", "R.tmp", W | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("rename", "DOC", "R2.tmp"), ("rename", "R.tmp", "DOC"), ("unlink", "R2.tmp"), ("unlink", "~$DOC")]),
    "keepassxc": dict(node="same", calls=[
        ("open", "h", "DOC.R", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("fsync", "h"), ("chmod", "DOC.R"), ("rename", "DOC.R", "DOC"), ("close", "h")]),
    "sed -i": dict(node="same", calls=[
        ("open", "h", "sedR", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("chmod", "sedR"), ("close", "h"), ("rename", "sedR", "DOC")]),
    "qsavefile": dict(node="same", calls=[
        ("open", "h", "DOC.R", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("fsync", "h"), ("close", "h"), ("rename", "DOC.R", "DOC")]),
    "intellij": dict(node="any", calls=[
        ("open", "h", "DOC___jb_tmp___", W | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("rename", "DOC", "DOC___jb_old___"), ("rename", "DOC___jb_tmp___", "DOC"),
        ("unlink", "DOC___jb_old___")]),
    "go": dict(node="same", calls=[
        ("open", "h", ".DOCR1234", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("rename", ".DOCR1234", "DOC")]),
    "rsync": dict(node="same", calls=[
        ("open", "h", ".DOC.R", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("utime", ".DOC.R"), ("chmod", ".DOC.R"), ("rename", ".DOC.R", "DOC")]),
    "gedit": dict(node="same", calls=[
        ("open", "h", ".goutputstream-R", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("write", "h", "NEW"), ("fsync", "h"), ("rename", ".goutputstream-R", "DOC"), ("close", "h")]),
    "git": dict(node="same", calls=[
        ("open", "h", "DOC.lock", W | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("rename", "DOC.lock", "DOC")]),
    "in place": dict(node="same", calls=[
        ("open", "h", "DOC", os.O_WRONLY | os.O_TRUNC), ("write", "h", "NEW"), ("close", "h")]),
    "browser": dict(node="any", calls=[
        ("open", "h", "DOC.part", W | os.O_EXCL), ("write", "h", "NEW"), ("close", "h"), ("rename", "DOC.part", "DOC")]),
}
DOC = "report.odt"


class Replay:
    def __init__(self, at, rng):
        self.at, self.random, self.handles, self.slow = str(at), rng, {}, set()

    def save(self, calls, data, pause=None):
        """pause: called before each rename and unlink, between the moment when a file is closed and the moment when it goes."""
        born = {}
        r, r2 = ("".join(self.random.choices(string.ascii_letters, k=6)) for _ in range(2))

        def name(text):
            return os.path.join(self.at, text.replace("R2", r2).replace("R", r).replace("DOC", DOC) if "DOC" != text else DOC)

        def ends(path):
            if time.monotonic() - born.get(path, math.inf) > 1.8:
                self.slow.add(os.path.basename(path))
        for call, *a in calls:
            if pause and call in ("rename", "unlink"):
                pause()
            if call in ("open", "symlink"):
                born.setdefault(name(a[1]), time.monotonic())
            if call == "rename":
                born.setdefault(name(a[1]), time.monotonic())
            if call == "open":
                self.handles[a[0]] = os.open(name(a[1]), a[2], 0o644)
            elif call == "write":
                text = data if a[1] == "NEW" else a[1].encode()
                for part in (text[:len(text) // 2], text[len(text) // 2:]):  # more than one write
                    os.write(self.handles[a[0]], part)
            elif call == "fsync":
                os.fsync(self.handles[a[0]])
            elif call == "close":
                os.close(self.handles.pop(a[0]))
            elif call == "rename":
                os.rename(name(a[0]), name(a[1]))
                ends(name(a[0]))
            elif call == "unlink":
                os.unlink(name(a[0]))
                ends(name(a[0]))
            elif call == "symlink":
                os.symlink(a[0], name(a[1]))
            elif call == "chmod":
                os.chmod(name(a[0]), 0o644)
            elif call == "chown":
                os.chown(name(a[0]), os.getuid(), os.getgid())
            elif call == "utime":
                os.utime(name(a[0]), ns=(10**18, 10**18 + 5))
            else:
                raise AssertionError(call)


class Look:
    """What the server has and ever had."""

    def __init__(self, server):
        self.server, self.token = server, server.token("anna")

    def versions(self, path):
        """(node, roots of its versions, newest first)"""
        url = f"{self.server.url}/v1/workspaces/work/versions?path={urllib.request.quote(path)}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"}), timeout=30) as f:
            answer = json.load(f)
        return answer["node"], [v["root"] for v in answer["versions"]]

    def names(self):
        """(directory's name, name) of each entry that there ever was."""
        db = sqlite3.connect(f"file:{self.server.data}/meta.db?mode=ro", uri=True)
        entries = [(p, n.decode(), c) for table in ("entry", "entry_past") for p, n, c in db.execute(f"SELECT parent, name, node FROM {table}")]
        db.close()
        dirs = {c: n for _, n, c in entries}
        return {(dirs.get(p, "/"), n) for p, n, _ in entries}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_programs_save(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    a, b, look = world.client("a"), world.client("b"), Look(world.server)
    saved, replays, nodes = {}, {}, {}
    for p in PATTERNS:
        (a.dir / p).mkdir()
        saved[p] = [f"{p} 0\n".encode() + rng.randbytes(3000)]
        (a.dir / p / DOC).write_bytes(saved[p][0])
        replays[p] = Replay(a.dir / p, rng)
    a.wait()
    for p in PATTERNS:
        nodes[p] = look.versions(f"{p}/{DOC}")[0]

    def save(n):
        for p, row in PATTERNS.items():
            saved[p].append(f"{p} {n}\n".encode() + rng.randbytes(rng.choice((10, 5000, 100000))))
            replays[p].save(row["calls"], saved[p][-1])

    def slowly(n):
        """All programs at the same time, each with a pause of 0.1 to 0.5 s before what it made is renamed or deleted."""
        never = threading.Event()
        with ThreadPoolExecutor(len(PATTERNS)) as pool:
            jobs = []
            for p, row in PATTERNS.items():
                ends = sum(call[0] in ("rename", "unlink") for call in row["calls"])
                gap = min(rng.uniform(0.1, 0.5), 1.2 / max(ends, 1))
                saved[p].append(f"{p} {n}\n".encode() + rng.randbytes(5000))
                jobs.append(pool.submit(replays[p].save, row["calls"], saved[p][-1], lambda gap=gap: never.wait(gap)))
            for job in jobs:
                job.result()
    save(1)
    a.wait()
    save(2)
    save(3)
    a.wait()
    slowly(4)
    slowly(5)
    a.wait()
    wrong = []
    for p, row in PATTERNS.items():
        node, roots = look.versions(f"{p}/{DOC}")
        known = [digest(d) for d in saved[p]]
        order = [known.index(r) if r in known else None for r in roots]
        if order[:1] != [5] or None in order or order != sorted(order, reverse=True):
            wrong.append(f"{p}: versions {order}")
        if row["node"] == "same" and (node != nodes[p] or order[-1:] != [0] or 1 not in order):
            wrong.append(f"{p}: the history is cut: {order}, {'same' if node == nodes[p] else 'another'} node")
    slow = {(p, n) for p in PATTERNS for n in replays[p].slow}
    print(f"temporaries that lived for 1.8 s: {len(slow)}")
    extra = sorted((d, n) for d, n in look.names() - slow if d in PATTERNS and n != DOC)
    assert not wrong and not extra, f"{wrong}; sent: {extra}"
    until(lambda: b.status()["cursor"] == a.status()["cursor"], what="the other mount has all")
    for p in PATTERNS:
        assert os.listdir(b.dir / p) == os.listdir(a.dir / p) == [DOC], p
        assert (b.dir / p / DOC).read_bytes() == (a.dir / p / DOC).read_bytes() == saved[p][-1], p
