# SPDX-License-Identifier: Apache-2.0
"""Without a server, and with a bad line: a mount starts and works, waits are bounded and can be interrupted, one stuck upload stops nobody, what is parked says why, and the queue of changes is as short as
what remains of them."""
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402

from support import PATIENCE, assert_same_tree, until  # noqa: E402

# SIGINT as most programs have it; a program that catches it waits in the kernel's page cache until the read ends
READER = "import os,signal,sys; signal.signal(signal.SIGINT, signal.SIG_DFL); fd = os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); os.read(fd, 4096); print('read', flush=True)"


@pytest.fixture
def line(world):
    """A proxy between the server and the clients of this test."""
    p = Proxy("127.0.0.1", world.server.port).start()
    world.server.url = f"http://127.0.0.1:{p.port}"
    try:
        yield p
    finally:
        for c in world.clients:
            c.close()
        p.stop()


def cold(world, content):
    """A client that knows of a file and has none of its bytes."""
    a = world.client("a")
    (a.dir / "cold").write_bytes(content)
    a.wait()
    return world.client("b", options="net_timeout=3s")


def test_known_offline_a_read_fails_at_once(world):
    b = cold(world, random.randbytes(300000))
    (b.dir / "here").write_bytes(b"cached")
    b.wait()
    world.server.stop()
    until(lambda: b.status()["state"] == "offline", 40, "offline")
    took = []
    for _ in range(10):
        with open(b.dir / "cold", "rb", buffering=0) as f:
            before = time.monotonic()
            with pytest.raises(OSError) as e:
                f.read(4096)
            took.append(time.monotonic() - before)
        assert e.value.errno in (errno.EHOSTDOWN, errno.EIO), e.value
    print(f"reads failed within {sorted(took)[5] * 1000:.1f} ms (median), {max(took) * 1000:.1f} ms (worst)")
    assert sorted(took)[5] < 0.05 * PATIENCE  # the median: the machine may be busy for a moment
    assert (b.dir / "here").read_bytes() == b"cached"
    assert b"".join([b.dir.joinpath("here").read_bytes()]) and "cold" in os.listdir(b.dir)


def test_a_silent_server_is_waited_for_no_longer_than_said(world, line):
    """The line stays up and nothing comes: a read ends after net_timeout, or at once when its program is told to."""
    b = cold(world, random.randbytes(300000))
    line.command("stall on")
    reader = subprocess.Popen([sys.executable, "-c", READER, str(b.dir / "cold")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert reader.stdout.readline() == b"open\n"
        before = time.monotonic()
        reader.send_signal(signal.SIGKILL)
        assert reader.wait(3 * PATIENCE) == -signal.SIGKILL
        print(f"killed within {(time.monotonic() - before) * 1000:.0f} ms")
        with open(b.dir / "cold", "rb", buffering=0) as f:
            before = time.monotonic()
            with pytest.raises(OSError):
                f.read(4096)
            took = time.monotonic() - before
        print(f"failed after {took:.1f} s with net_timeout=3s")
        assert took < 3 + 2 * PATIENCE
        (b.dir / "written").write_bytes(b"while it was silent")  # nothing else waits
        assert b.status()["pending_files"] >= 1
    finally:
        reader.stdout.close()
        line.command("stall off")
    b.wait()
    assert len((b.dir / "cold").read_bytes()) == 300000


def test_reads_that_wait_stop_nobody(world, line):
    """More programs than the daemon has threads read what is not here, over a line that is silent. Everything else goes on: tree operations, reads from the cache, writes, status; SIGINT
    ends a waiting one at once, and all that are left have their bytes when the line is back."""
    a = world.client("a")
    (a.dir / "d").mkdir()
    contents = {f"cold {i}": random.randbytes(200000) for i in range(24)}
    for name, data in contents.items():
        (a.dir / name).write_bytes(data)
    a.wait()
    b = world.client("b", options="net_timeout=120s")
    (b.dir / "d" / "here").write_bytes(b"cached")
    b.wait()
    line.command("stall on")
    stuck = {n: subprocess.Popen([sys.executable, "-c", READER, str(b.dir / n)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for n in contents}
    try:
        for p in stuck.values():
            assert p.stdout.readline() == b"open\n"
        took = {}

        def timed(what, act):
            before = time.monotonic()
            value = act()
            took[what] = time.monotonic() - before
            return value
        assert timed("stat", lambda: os.stat(b.dir / "cold 1")).st_size == 200000
        assert "cold 2" in timed("readdir", lambda: os.listdir(b.dir))
        assert timed("read from the cache", lambda: (b.dir / "d" / "here").read_bytes()) == b"cached"
        timed("create and write", lambda: (b.dir / "d" / "new").write_bytes(b"new"))
        timed("append to what is not here", lambda: open(b.dir / "cold 3", "ab").write(b"more"))
        timed("mkdir", lambda: os.mkdir(b.dir / "d2"))
        timed("rename", lambda: os.rename(b.dir / "cold 4", b.dir / "d2" / "moved"))
        timed("chmod", lambda: os.chmod(b.dir / "cold 5", 0o600))
        timed("link", lambda: os.link(b.dir / "d" / "here", b.dir / "d2" / "linked"))
        timed("unlink", lambda: os.unlink(b.dir / "d" / "new"))
        timed("fsync", lambda: fsynced(b.dir / "d" / "synced"))
        timed("a name that is not there", lambda: os.path.exists(b.dir / "never"))
        timed("status", b.status)
        waiting = [n for n, p in stuck.items() if p.poll() is None]
        stuck["cold 0"].send_signal(signal.SIGINT)
        timed("SIGINT", lambda: stuck["cold 0"].wait(60))
        print(", ".join(f"{what} {s * 1000:.0f} ms" for what, s in took.items()), f"; {len(waiting)} readers waited")
        assert len(waiting) == len(stuck) and stuck["cold 0"].returncode == -signal.SIGINT and max(took.values()) < 10 * PATIENCE, took
        line.command("stall off")
        for name in list(contents)[1:]:
            assert stuck[name].wait(120) == 0, name
    finally:
        line.command("stall off")
        for p in stuck.values():
            p.kill()
            p.wait()
            p.stdout.close()
    b.wait(90)
    contents["cold 3"] += b"more"
    os.rename(b.dir / "d2" / "moved", b.dir / "cold 4")
    until(lambda: b.status()["state"] == "online", 60, "online")
    for name, data in contents.items():
        assert (b.dir / name).read_bytes() == data


def fsynced(path):
    with open(path, "wb") as f:
        f.write(b"x")
        f.flush()
        os.fsync(f.fileno())


def test_a_line_that_breaks_gives_errors_and_no_other_bytes(world, line):
    """Reads over connections that are reset, end early or change bytes: the right bytes or an error, at any offset; and the whole file when the line is good again."""
    faults = {"cut_after 50000 each": None, "truncate 100 POST": "truncate", "wrong_down 100 POST": "wrong_down", "lose_answer 100 POST": "lose_answer", "reset 100 POST": "reset", "slice on": "slice"}
    a = world.client("a")
    contents = {fault: random.randbytes(1 << 20) for fault in faults}
    for fault, data in contents.items():
        (a.dir / fault).write_bytes(data)
    a.wait()
    b = world.client("b", options="net_timeout=3s")
    right = wrong = 0
    for fault, counter in faults.items():
        line.command("heal")
        until(lambda: b.status()["state"] == "online", 60, "online")
        before = line.command(fault)
        with open(b.dir / fault, "rb", buffering=0) as f:
            for off in range(0, 1 << 20, 256 << 10):
                try:
                    got = os.pread(f.fileno(), 128 << 10, off)
                    assert got == contents[fault][off:off + (128 << 10)], f"{fault}: other bytes at {off}"
                    right += 1
                except OSError as e:
                    assert e.errno in (errno.EIO, errno.EHOSTDOWN, errno.ETIMEDOUT), e
                    wrong += 1
        after = line.command("counters")
        assert after["fired"][counter] > before["fired"][counter] if counter else after["cuts"] > before["cuts"], f"{fault}: no request met it"
    print(f"{right} reads with the right bytes, {wrong} with an error")
    line.command("heal")
    until(lambda: b.status()["state"] == "online", 60, "online")
    for fault, data in contents.items():
        assert (b.dir / fault).read_bytes() == data


def test_a_start_without_any_network(world):
    a = world.client("a")
    content = random.randbytes(100000)
    (a.dir / "d").mkdir()
    (a.dir / "d" / "f").write_bytes(content)
    a.wait()
    a.umount()
    world.server.stop()
    a.mount(signed_in=True)
    assert (a.dir / "d" / "f").read_bytes() == content and os.listdir(a.dir) == ["d"]
    (a.dir / "d" / "new").write_bytes(b"made without a server")
    os.rename(a.dir / "d" / "f", a.dir / "moved")
    with pytest.raises(FileNotFoundError):
        os.stat(a.dir / "never")
    a.kill()
    a.mount(signed_in=True)
    assert (a.dir / "moved").read_bytes() == content and (a.dir / "d" / "new").exists()
    world.server.start()
    a.wait()
    b = world.client("b")
    assert_same_tree(a.dir, b.dir, dir_times=False)


def test_one_stuck_upload_stops_nobody(world, line):
    a = world.client("a")
    stuck, other = random.randbytes(3 << 20), random.randbytes(3 << 20)
    line.command("stall_body 1 1000000")
    (a.dir / "stuck").write_bytes(stuck)
    until(lambda: line.command("counters")["stalled"] == 1, 30, "the upload hangs")
    (a.dir / "small").write_bytes(b"small")
    (a.dir / "other").write_bytes(other)
    (a.dir / "d").mkdir()
    os.rename(a.dir / "small", a.dir / "d" / "renamed")
    b = world.client("b")

    def there():
        return (b.dir / "d" / "renamed").exists() and (b.dir / "other").exists() and (b.dir / "other").stat().st_size == len(other)
    until(there, 20, "all the others at the other client")
    assert line.command("counters")["stalled"] == 1 and a.status()["pending_files"] >= 1
    assert (b.dir / "other").read_bytes() == other
    line.command("stall_body 0")
    a.wait(90)
    until(lambda: (b.dir / "stuck").exists() and (b.dir / "stuck").read_bytes() == stuck, 30, "the stuck one, too")


def test_what_is_parked_says_why_and_when(world):
    a = world.client("a")
    (a.dir / "first").write_bytes(b"1")
    a.wait()
    import sqlite3
    world.server.stop()
    c = sqlite3.connect(world.server.data / "meta.db")
    c.execute("UPDATE workspace SET quota = used + 1000")
    c.commit()
    c.close()
    world.server.start()
    (a.dir / "too large").write_bytes(random.randbytes(500000))
    parked = until(lambda: a.status()["parked"], 60, "parked")
    assert parked[0]["path"] == "too large" and parked[0]["reason"] and parked[0]["next_try_s"] > 0, parked
    (a.dir / "small").write_bytes(b"2")  # what fits goes on
    b = world.client("b")
    until(lambda: (b.dir / "small").exists(), 30, "the others go on")
    assert "too large" in a.tarn("status").stdout
    os.unlink(a.dir / "too large")
    a.wait()
    assert not a.status()["parked"]


def chain(a, what):
    """-> how many changes are queued by it."""
    before = a.status()["pending_items"]
    what()
    return a.status()["pending_items"] - before


def test_the_queue_is_as_short_as_what_remains(world):
    """Counts of operations after long chains of changes without a server, and that they come to the same tree."""
    a = world.client("a")
    d = a.dir
    for name in ("log", "copied", "renamed 0", "saved", "touched", "there"):
        (d / name).write_bytes(b"before")
    (d / "dir 0").mkdir()
    a.wait()
    world.server.stop()
    until(lambda: a.status()["state"] == "offline", 40, "offline")

    def appends():
        for i in range(300):
            with open(d / "log", "ab") as f:
                f.write(b"line %d\n" % i)

    def copies():  # content, times, mode: what cp -p and rsync do
        for i in range(50):
            (d / "copied").write_bytes(b"content %d" % i)
            os.utime(d / "copied", (i, i))
            os.chmod(d / "copied", 0o600 + i % 8)

    def short_lives():
        for i in range(100):
            (d / f"short {i}").write_bytes(b"gone")
            os.unlink(d / f"short {i}")
            os.mkdir(d / f"dir {i + 1}")
            (d / f"dir {i + 1}" / "f").touch()
            os.unlink(d / f"dir {i + 1}" / "f")
            os.rmdir(d / f"dir {i + 1}")

    def renames():
        for i in range(100):
            os.rename(d / f"renamed {i}", d / f"renamed {i + 1}")

    def directory_renames():
        for i in range(30):
            os.rename(d / f"dir {i}", d / f"dir {i + 1}")

    def there_and_back():
        os.rename(d / "there", d / "back")
        os.rename(d / "back", d / "there")

    def new_and_renamed():
        (d / "new 0").write_bytes(b"new")
        for i in range(20):
            os.rename(d / f"new {i}", d / f"new {i + 1}")

    def saves():  # as editors do it
        for i in range(50):
            (d / ".saved.tmp").write_bytes(b"save %d" % i * 100)
            os.rename(d / ".saved.tmp", d / "saved")

    def touches():
        for i in range(50):
            os.utime(d / "touched", (i, i))

    counts = {}
    for what, most in ((appends, 1), (copies, 2), (short_lives, 0), (renames, 1), (directory_renames, 1), (there_and_back, 2), (new_and_renamed, 1), (saves, 1), (touches, 1)):
        counts[what.__name__] = chain(a, what)
        assert counts[what.__name__] <= most, f"{what.__name__}: {counts[what.__name__]} operations, {most} are enough"
    print(counts)
    before = a.status()["counters"]["ops_committed"]
    world.server.start()
    a.wait()
    s = a.status()
    assert s["counters"]["ops_committed"] - before <= sum(counts.values()) and not s["parked"]
    assert (d / "saved").read_bytes() == b"save 49" * 100 and (d / "renamed 100").exists() and (d / "dir 30").is_dir()
    assert (d / "copied").read_bytes() == b"content 49" and int((d / "copied").stat().st_mtime) == 49
    b = world.client("b")
    assert sorted(os.listdir(b.dir)) == sorted(os.listdir(d))
    for name in os.listdir(d):
        x, y = (d / name).stat(), (b.dir / name).stat()
        if (d / name).is_file():
            assert (d / name).read_bytes() == (b.dir / name).read_bytes() and x.st_mtime_ns == y.st_mtime_ns and x.st_mode == y.st_mode


def test_an_edit_of_damaged_bytes_waits_for_the_server_only(world, line):
    """What an edit shows through is damaged in the cache, and the server goes just while it is asked for it: nothing of the edit is damaged, and it is sent as soon as the server is there again."""
    c, content = world.client("c"), random.randbytes(300000)
    (c.dir / "f").write_bytes(content)
    c.wait()
    c.umount()
    damaged = 0
    for path in [p for p in c.cache.rglob("*") if p.is_file() and p.stat().st_size >= len(content)]:
        at = path.read_bytes().find(content[1000:2000])
        if at >= 0:
            with open(path, "r+b") as f:
                f.seek(at)
                f.write(bytes(1000))
            damaged += 1
    assert damaged
    line.command("refuse on")
    c.mount(signed_in=True)
    until(lambda: c.status()["state"] == "offline", 40, "offline")
    with open(c.dir / "f", "r+b") as f:
        f.seek(200000)
        f.write(b"edited")
    line.command("heal")
    line.command("status 3 503 /read")
    c.wait(40)
    assert not c.status()["parked"] and "parked" not in c.log_text()
    d = world.client("d")
    assert (d.dir / "f").read_bytes() == content[:200000] + b"edited" + content[200006:]
