# SPDX-License-Identifier: Apache-2.0
"""`tarn doctor` and `tarn scrub`: each check is made to fire by the damage that it is for, tells what to do, and repairs no more than it may."""
import json
import ctypes
import os
import random
import sqlite3
import subprocess

import pytest

from support import TARN, alive, is_mounted, run, until

PAGE = 4096


class Doctor:
    def __init__(self, client):
        self.client = client

    def run(self, *extra, env=None, check=None):
        p = run(TARN, "doctor", "--json", *extra, env=env or self.client.env, check=False)
        answer = json.loads(p.stdout.split("\n")[0])
        assert answer["ok"] == (p.returncode == 0), p.stdout
        for f in answer["findings"]:
            assert f["grade"] != "bad" or f["todo"], f  # says what to do
        return {(f["check"], f["grade"]): f["text"] for f in answer["findings"]}, answer["ok"]

    def bad(self, *extra, **kw):
        found, ok = self.run(*extra, **kw)
        return {check: text for (check, grade), text in found.items() if grade == "bad"}


@pytest.fixture
def pending(world):
    """A client whose daemon was killed with small and large files pending, and some cached ones."""
    a = world.client("a", options="free_floor=1M")
    (a.dir / "d").mkdir()
    (a.dir / "d" / "cached").write_bytes(random.randbytes(200000))
    (a.dir / "cached large").write_bytes(random.randbytes(3 << 20))
    a.wait()
    until(lambda: a.status()["dirty_bytes"] == 0, what="the cache takes over what was sent")
    a.restart(options="free_floor=1M")  # writes the index
    world.server.stop()
    (a.dir / "d" / "small").write_bytes(b"pending small" * 100)
    with open(a.dir / "large", "wb", buffering=0) as f:
        for at in (0, 2 << 20, 4 << 20):  # three records: the last one may be torn by a kill, damage is in another
            os.pwrite(f.fileno(), random.randbytes(1 << 20), at)

    def queued():
        c = sqlite3.connect(f"file:{a.cache}/tree.db?mode=ro", uri=True)
        [n] = c.execute("SELECT count(*) FROM outbox WHERE gen > 0").fetchone()
        c.close()
        return n == 2
    until(queued, what="both files are closed")  # a release comes after close
    a.kill()
    subprocess.run(["fusermount3", "-uz", str(a.dir)], check=True)
    world.server.start()
    return a


def own_log(a):
    for p in sorted((a.cache / "stages").glob("log-*")):
        data = p.read_bytes()
        if data[:8] == b"tarnlog1" and data[12] == 2 and b"large" in data and b"cached" not in data:
            return p
    raise AssertionError("no own log")


def shared_log(a, text):
    for p in sorted((a.cache / "stages").glob("log-*")):
        data = p.read_bytes()
        if data[12:13] == b"\1" and text in data:
            return p, data.index(text)
    raise AssertionError("no such bytes")


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        b = f.read(1)[0]
        f.seek(at)
        f.write(bytes([b ^ 4]))


def tree(a, sql):
    """As a program that is wrong would change it: each page gets its sum (cache/db_sums.c)."""
    c = sqlite3.connect(a.cache / "tree.db")
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    c.executescript(sql)
    c.close()
    xxh = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    xxh.restype, xxh.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
    with open(a.cache / "tree.db", "r+b") as f:
        for n in range(os.fstat(f.fileno()).st_size // 4096):
            f.seek(n * 4096)
            page = f.read(4088)
            f.seek(n * 4096 + 4088)
            f.write(((xxh(page, 4088) + (n + 1) * 0x9E3779B97F4A7C15) % (1 << 64)).to_bytes(8, "little"))


def test_nothing_is_wrong(world, pending):
    found, ok = Doctor(pending).run()
    assert ok, found
    for check in ("fuse", "fusermount", "login", "server", "daemon", "mount", "workspace", "lock", "space", "tree", "outbox", "stages", "time", "index"):
        assert (check, "ok") in found, (check, found)
    assert "2 files" in found["stages", "ok"] and "pending" in found["outbox", "ok"]
    text = run(TARN, "doctor", env=pending.env).stdout
    assert "nothing is wrong" in text
    pending.mount(signed_in=True)  # looking has changed nothing
    pending.wait()
    found, ok = Doctor(pending).run()
    assert ok and "online" in found["daemon", "ok"]
    assert ("tree", "ok") not in found  # the daemon's business now


def test_a_dead_mount(world):
    a = world.client("a")
    a.kill()
    assert "mount" in Doctor(a).bad()
    assert "mount" not in Doctor(a).bad("--repair")
    assert not is_mounted(a.dir)
    assert Doctor(a).run()[1]


def test_the_login(world, pending):
    [session] = pending.state.glob("session-*.json")
    session.chmod(0o644)
    assert "readable by others" in Doctor(pending).bad()["login"]
    assert "login" not in Doctor(pending).bad("--repair")
    assert session.stat().st_mode & 0o777 == 0o600
    pending.state.chmod(0o755)
    assert "looked into" in Doctor(pending).bad()["login"]
    pending.state.chmod(0o700)
    text = session.read_bytes()
    session.write_bytes(text[:40])
    bad = Doctor(pending).bad()
    assert "cannot be read as a login" in bad["login"] and "workspace" in bad
    session.unlink()
    found, ok = Doctor(pending).run()
    assert ("login", "warn") in found and ("workspace", "bad") in found


def test_the_server_and_the_workspace(world, pending):
    world.server.stop()
    found, ok = Doctor(pending).run()
    assert ("server", "bad") in found and ("workspace", "warn") in found and ("tree", "ok") in found
    world.server.admin("user", "add", "bert", "--password-stdin", input="another password\n")
    world.server.start()
    pending.login("bert", "another password")
    assert "not there for bert" in Doctor(pending).bad()["workspace"]


def test_the_machine(world, pending):
    env = dict(pending.env, PATH="/nonexistent", TARN_FUSE_DEVICE="/nonexistent/fuse")
    found, ok = Doctor(pending).run(env=env)
    assert ("fuse", "bad") in found
    assert ("fusermount", "warn" if os.geteuid() == 0 else "bad") in found


def test_somebody_else_has_the_cache(world, pending):
    holder = subprocess.Popen(["flock", "-x", str(pending.cache / "lock"), "sh", "-c", "echo held; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert "another process" in Doctor(pending).bad()["lock"]
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()


def test_a_daemon_that_hangs(world):
    a = world.client("a")
    pid = a.pid()
    os.kill(pid, 19)
    try:
        assert "does not answer" in Doctor(a).bad()["daemon"]
    finally:
        os.kill(pid, 18)
    assert alive(pid)


def test_space(world, pending):
    [note] = pending.state.glob("mounts/*/place.json")
    j = json.loads(note.read_text())
    note.write_text(json.dumps(dict(j, floor_bytes=1 << 60)))
    found, _ = Doctor(pending).run()
    assert "less than the floor" in found["space", "warn"]
    note.write_text(json.dumps(dict(j, cache_dir="/nonexistent/cache")))
    assert "cannot be looked at" in Doctor(pending).bad()["space"]


def test_clock(world, pending):
    note, at = shared_log(pending, b"pending small")
    found, ok = Doctor(pending).run()
    assert ("time", "ok") in found
    # a generation is a time in microseconds: one from next year, as a clock that was wrong makes it
    faketime = run("sh", "-c", "command -v faketime", check=False)
    if faketime.returncode == 0:
        p = run("faketime", "-f", "-400d", TARN, "doctor", "--json", env=pending.env, check=False)
        assert any(f["check"] == "time" and f["grade"] == "warn" for f in json.loads(p.stdout)["findings"])


RULES = [
    ("DELETE FROM node WHERE ino=(SELECT node FROM entry WHERE name='small')", "names of nodes that are not there"),
    ("UPDATE entry SET parent=999999 WHERE name='small'", "names in what is not a directory"),
    ("UPDATE node SET cookie=999999 WHERE ino=(SELECT node FROM entry WHERE name='cached')", "nodes whose own name is not there"),
    ("UPDATE node SET nlink=7 WHERE ino=(SELECT node FROM entry WHERE name='cached')", "files whose link count"),
    ("INSERT INTO entry SELECT 1, 999999, 'second name', node, NULL, 2 FROM entry WHERE name='d'", "directories with two names"),
    ("UPDATE node SET nlink=9 WHERE ino=(SELECT node FROM entry WHERE name='d')", "directories whose link count"),
    ("UPDATE node SET pend=5 WHERE ino=(SELECT node FROM entry WHERE name='small')", "count their pending changes wrong"),
    ("UPDATE outbox SET ino=888888", "pending changes of nodes that are not there"),
    ("UPDATE outbox SET nwait=3", "pending changes that wait for the wrong ones"),
    ("INSERT INTO dep VALUES(5, 900000)", "dependencies without their changes"),
    ("INSERT INTO shadow VALUES(1, NULL)", "server rows of nodes that have none"),
    ("UPDATE node SET bits=bits|1 WHERE ino=(SELECT node FROM entry WHERE name='cached')", "nodes whose server row is gone"),
    ("INSERT INTO shadow_name VALUES(777777, 1, 'x', NULL)", "server names without their row"),
]


def test_every_rule_of_the_tree(world, pending):
    good = (pending.cache / "tree.db").read_bytes(), (pending.cache / "tree.db-wal").read_bytes()
    for sql, what in RULES:
        tree(pending, sql)
        bad = Doctor(pending)
        p = run(TARN, "doctor", env=pending.env, check=False)
        assert p.returncode == 1 and what in p.stdout, (sql, p.stdout)
        (pending.cache / "tree.db").write_bytes(good[0])
        (pending.cache / "tree.db-wal").write_bytes(good[1])
        (pending.cache / "tree.db-shm").unlink(missing_ok=True)
    assert Doctor(pending).run()[1]


def test_a_damaged_tree_file(world, pending):
    tree(pending, "")
    db = pending.cache / "tree.db"
    good = db.read_bytes()
    with open(db, "r+b") as f:
        f.seek(2 * PAGE)
        f.write(b"\xa5" * PAGE)
    assert "damaged" in Doctor(pending).bad()["tree"]
    db.write_bytes(random.randbytes(len(good)))
    assert "damaged" in Doctor(pending).bad()["tree"]
    assert "tree" in Doctor(pending).bad("--repair")
    assert list(pending.cache.glob("tree.db.damaged-*")) and not db.exists()
    found, ok = Doctor(pending).run()
    assert ("tree", "warn") in found and ok
    pending.mount(signed_in=True)
    assert (pending.dir / "d" / "small").read_bytes() == b"pending small" * 100
    pending.wait()


def test_a_newer_schema(world, pending):
    tree(pending, "PRAGMA user_version=99")
    before = (pending.cache / "tree.db").read_bytes()
    assert "newer tarn" in Doctor(pending).bad("--repair")["tree"]
    assert (pending.cache / "tree.db").read_bytes() == before


def test_stages(world, pending):
    log, at = shared_log(pending, b"pending small")
    flip(log, at + 5)
    found, _ = Doctor(pending).run()
    assert "'small'" in found["stages", "bad"], found
    assert "d/small" in found["outbox", "bad"]
    flip(log, at + 5)
    assert Doctor(pending).run()[1]
    own = own_log(pending)
    flip(own, 64 + 64 + 512 + 20)  # the record after the header
    assert "'large'" in Doctor(pending).bad()["stages"]
    flip(own, 64 + 64 + 512 + 20)
    flip(own, 20)
    assert "cannot be read" in Doctor(pending).bad()["stages"]
    flip(own, 20)
    [data] = [p for p in (pending.cache / "lent").iterdir() if p.stat().st_blocks]
    sums = own.with_name(own.name.replace("log-", "sums-"))
    for path, at in ((data, 2 << 20), (data, (5 << 20) - 1), (sums, 4096), (sums, 4096 + 8 * 1279)):  # a page of its bytes, or the sum of one
        flip(path, at)
        bad = Doctor(pending).bad()
        assert "'large'" in bad["stages"] and "1 of 768 pages" in bad["stages"] and "'large' are damaged" in bad["outbox"], bad
        assert scrub(pending, 1)["stages_bad"] == 1
        flip(path, at)
    flip(data, 1 << 20)  # nobody wrote there: not a byte of the file
    assert Doctor(pending).run()[1] and scrub(pending)["stages_bad"] == 0
    flip(data, 1 << 20)
    os.truncate(data, 1000)
    assert "too short" in Doctor(pending).bad()["stages"]
    data.rename(pending.cache / "elsewhere")
    assert "is gone" in Doctor(pending).bad()["stages"]
    own.unlink()
    assert "'large' are gone" in Doctor(pending).bad()["outbox"]


def test_orphans_go_to_lost_and_found(world, pending):
    orphan = pending.cache / "lent" / "0000beef"
    orphan.write_bytes(b"whose?" * 1000)
    found, ok = Doctor(pending).run()
    assert ("orphans", "warn") in found and ok
    Doctor(pending).run("--repair")
    assert (pending.cache / "lost+found" / "0000beef").read_bytes() == b"whose?" * 1000 and not orphan.exists()
    assert ("orphans", "warn") not in Doctor(pending).run()[0]


def test_a_stage_that_the_database_does_not_know(world, pending):
    tree(pending, "DELETE FROM dep; DELETE FROM outbox; UPDATE node SET pend=0, gen=0, last_gen=0")
    found, _ = Doctor(pending).run()
    assert ("stages", "warn") in found and "not known to the database" in found["stages", "warn"]


def test_the_index(world, pending):
    index = pending.cache / "blobs.db"
    index.write_bytes(random.randbytes(20000))
    for part in ("-wal", "-shm"):
        (pending.cache / ("blobs.db" + part)).unlink(missing_ok=True)
    assert "index" in Doctor(pending).bad()
    Doctor(pending).run("--repair")
    assert not index.exists() and list(pending.cache.glob("blobs.db.damaged-*"))
    assert "index" not in Doctor(pending).bad()


def test_unknown_directory(world):
    a = world.client("a")
    assert run(TARN, "doctor", "/tmp", env=a.env, check=False).returncode == 11
    assert run(TARN, "scrub", "/tmp", env=a.env, check=False).returncode == 11


# ---- scrub ----

def scrub(a, code=0):
    p = run(TARN, "scrub", str(a.dir), "--json", env=a.env, check=False, timeout=120)
    assert p.returncode == code, p.stdout + p.stderr
    return json.loads(p.stdout)


def damage_cached(a):
    n = 0
    for p in list((a.cache / "pack").glob("*.seg")) + [p for p in (a.cache / "blob").iterdir() if not p.name.endswith(".sums")]:
        data = p.read_bytes()
        at = next((i for i in range(0, len(data), PAGE) if any(data[i:i + 64])), None)
        if at is not None:
            flip(p, at + 10)
            n += 1
    return n


def test_scrub_of_a_living_mount(world):
    a = world.client("a", options="free_floor=1M")
    small, large = random.randbytes(200000), random.randbytes(3 << 20)
    (a.dir / "small").write_bytes(small)
    (a.dir / "large").write_bytes(large)
    a.wait()
    until(lambda: a.status()["dirty_bytes"] == 0, what="the cache takes over what was sent")
    j = scrub(a)
    assert j["blocks"] >= 3 and j["blocks_bad"] == 0 and not j["findings"], j
    assert damage_cached(a) == 2
    j = scrub(a)
    assert j["blocks_bad"] == 2 and j["blocks_healed"] == 2, j
    j = scrub(a)
    assert j["blocks_bad"] == 0
    # without a server what is damaged goes all the same, and nobody reads it
    world.server.stop()
    until(lambda: a.status()["state"] == "offline" or a.tarn("status").returncode, what="offline")
    damage_cached(a)
    j = scrub(a)
    assert j["blocks_bad"] == 2 and j["blocks_healed"] == 0, j
    with pytest.raises(OSError):
        with open(a.dir / "small", "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            f.read()
    # what is pending and damaged is told by its path
    (a.dir / "only here").write_bytes(b"only on this disk" * 50)
    log, at = shared_log(a, b"only on this disk")
    flip(log, at + 3)
    j = scrub(a, 1)
    assert j["stages_bad"] == 1 and "only here" in j["findings"][-1]["text"] or any("'only here'" in f["text"] for f in j["findings"]), j
    flip(log, at + 3)
    # likewise a large one, and one that a program still writes
    with open(a.dir / "still open", "wb") as f:
        f.write(random.randbytes(300000))
        f.flush()
        (a.dir / "large only here").write_bytes(random.randbytes(2 << 20))
        files = [p for p in (a.cache / "lent").iterdir() if p.stat().st_blocks]
        assert len(files) == 2
        for p in files:
            flip(p, 123456)
        j = scrub(a, 1)
        assert j["stages_bad"] == 2 and all(any(f"'{name}'" in f["text"] for f in j["findings"]) for name in ("still open", "large only here")), j
        for p in files:
            flip(p, 123456)
        assert scrub(a)["stages_bad"] == 0
    world.server.start()
    a.wait()
    text = run(TARN, "scrub", env=a.env).stdout
    assert "blocks read" in text
    assert (a.dir / "small").read_bytes() == small and (a.dir / "large").read_bytes() == large


def test_scrub_of_a_dead_mount(world, pending):
    j = scrub(pending)
    assert j["blocks"] > 0 and j["stages"] == 2 and j["blocks_bad"] == 0, j
    assert damage_cached(pending) > 0
    j = scrub(pending)
    assert j["blocks_bad"] > 0
    assert scrub(pending)["blocks_bad"] == 0
    log, at = shared_log(pending, b"pending small")
    flip(log, at + 5)
    j = scrub(pending, 1)
    assert j["stages_bad"] == 1
    flip(log, at + 5)
    tree(pending, "UPDATE node SET nlink=7 WHERE ino=(SELECT node FROM entry WHERE name='cached')")
    assert any("link count" in f["text"] for f in scrub(pending, 1)["findings"])


def test_a_mount_scrubs_by_itself(world):
    a = world.client("a", options="free_floor=1M,scrub=2s")
    small, large = random.randbytes(200000), random.randbytes(3 << 20)
    (a.dir / "small").write_bytes(small)
    (a.dir / "large").write_bytes(large)
    a.wait()
    until(lambda: a.status()["dirty_bytes"] == 0, what="the cache takes over what was sent")
    before = a.status()["scrub"]
    until(lambda: a.status()["scrub"]["finished_s"] > before["finished_s"] and a.status()["scrub"]["blocks"] >= 3, 60, "a round over all")
    assert damage_cached(a) == 2
    until(lambda: a.status()["counters"]["corruptions_healed"] == 2, 60, "what nobody reads is found and fetched again")
    s = a.status()["scrub"]
    assert s["period_s"] == 2 and s["stages_bad"] == 0, s
    assert scrub(a)["blocks_bad"] == 0
    assert (a.dir / "small").read_bytes() == small and (a.dir / "large").read_bytes() == large
    world.server.stop()
    (a.dir / "only here").write_bytes(random.randbytes(300000))
    files = [p for p in (a.cache / "lent").iterdir() if p.stat().st_blocks]
    assert len(files) == 1
    flip(files[0], 123456)
    until(lambda: a.status()["scrub"]["stages_bad"] == 1, 60, "damage in what only this disk has is told")
    assert "1 pending files are damaged" in run(TARN, "status", env=a.env).stdout
    (a.dir / "only here").unlink()
    world.server.start()
    a.wait()
    a.umount()
    a.mount(options="free_floor=1M,scrub=0")
    assert a.status()["scrub"] is None and "never" in run(TARN, "status", env=a.env).stdout
