# SPDX-License-Identifier: Apache-2.0
"""Two mounts of one workspace: what one does, the other shows; what the network does, neither minds."""
import os
import time

import pytest

from support import alive, until


def read(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def test_change_is_visible_in_the_other_mount_within_a_second(world):
    a, b = world.client(), world.client()
    (a.dir / "warm").write_text("up")
    until(lambda: read(b.dir / "warm") == "up")
    slow = []
    for i in range(10):
        name, text = f"file {i}.txt", f"text {i}"
        began = time.monotonic()
        (a.dir / name).write_text(text)
        until(lambda: read(b.dir / name) == text, 10)
        slow.append(time.monotonic() - began)
    assert sorted(slow)[5] < 1, slow  # the median: the machine has other things to do now and then
    assert (b.dir / "file 3.txt").stat().st_size == 6
    # every kind of change, and what the kernel has cached must go: names, negative names, listings, attributes, bytes
    assert not (b.dir / "new name").exists()
    os.rename(a.dir / "file 0.txt", a.dir / "new name")
    until(lambda: (b.dir / "new name").exists() and not (b.dir / "file 0.txt").exists(), 10)
    (a.dir / "d").mkdir()
    (a.dir / "d" / "inside").write_text("x")
    until(lambda: sorted(os.listdir(b.dir / "d")) == ["inside"] if (b.dir / "d").exists() else False, 10)
    (a.dir / "file 1.txt").chmod(0o600)
    until(lambda: (b.dir / "file 1.txt").stat().st_mode & 0o777 == 0o600, 10)
    (a.dir / "file 2.txt").write_text("longer than before")
    until(lambda: read(b.dir / "file 2.txt") == "longer than before", 10)
    os.symlink("file 2.txt", a.dir / "link")
    until(lambda: os.path.islink(b.dir / "link") and os.readlink(b.dir / "link") == "file 2.txt", 10)
    (a.dir / "file 3.txt").unlink()
    until(lambda: "file 3.txt" not in os.listdir(b.dir), 10)
    (a.dir / "d" / "inside").unlink()
    (a.dir / "d").rmdir()
    until(lambda: not (b.dir / "d").exists(), 10)


def test_edit_edit_keeps_both(world):
    a, b = world.client(), world.client()
    (a.dir / "notes.txt").write_text("base\n")
    a.wait()
    until(lambda: read(b.dir / "notes.txt") == "base\n")
    world.server.stop()
    (a.dir / "notes.txt").write_text("from a\n")
    (b.dir / "notes.txt").write_text("from b\n")
    world.server.start()
    a.wait()
    b.wait()
    until(lambda: sorted(os.listdir(a.dir)) == sorted(os.listdir(b.dir)) and len(os.listdir(a.dir)) == 2, 30)
    names = sorted(os.listdir(a.dir))
    copy = [n for n in names if n != "notes.txt"][0]
    assert copy.startswith("notes (conflict ") and copy.endswith(").txt"), names
    until(lambda: {read(a.dir / n) for n in names} == {"from a\n", "from b\n"}, 10)
    until(lambda: [read(a.dir / n) for n in names] == [read(b.dir / n) for n in names], 10)
    assert a.status()["counters"]["conflicts"] + b.status()["counters"]["conflicts"] >= 1


def test_offline_start_and_queueing(world):
    a, b = world.client(), world.client()
    (a.dir / "dir").mkdir()
    (a.dir / "dir" / "old").write_text("old")
    a.wait()
    until(lambda: read(b.dir / "dir" / "old") == "old")
    world.server.stop()
    until(lambda: a.status()["state"] == "offline", 30)
    a.umount()
    a.mount()  # without a server: at once, with the tree that was loaded
    assert a.status()["state"] == "offline"
    assert read(a.dir / "dir" / "old") == "old"
    for i in range(20):
        (a.dir / "dir" / f"new {i}").write_text(f"new {i}")
    os.rename(a.dir / "dir" / "old", a.dir / "dir" / "moved")
    (a.dir / "dir" / "new 0").unlink()
    s = a.status()
    assert s["pending_items"] > 0 and s["pending_files"] > 0
    a.kill()  # and a crash on top
    a.mount()
    assert read(a.dir / "dir" / "new 7") == "new 7"
    world.server.start()
    a.wait()
    s = a.status()
    assert s["state"] == "online" and s["pending_items"] == 0 and s["pending_files"] == 0 and s["parked"] == []
    want = sorted(["moved"] + [f"new {i}" for i in range(1, 20)])
    until(lambda: sorted(os.listdir(b.dir / "dir")) == want, 20)
    until(lambda: read(b.dir / "dir" / "new 19") == "new 19" and read(b.dir / "dir" / "moved") == "old", 10)


def test_server_killed_under_a_writer(world):
    a, b = world.client(), world.client()
    for i in range(60):
        (a.dir / f"f{i}").write_text(f"{i}" * 1000)
        if i % 20 == 10:
            world.server.kill()
            world.server.start()
    a.wait(120)
    until(lambda: len(os.listdir(b.dir)) == 60, 20)
    for i in range(60):
        until(lambda: read(b.dir / f"f{i}") == f"{i}" * 1000, 10)


def test_daemon_killed_after_close_loses_nothing(world):
    a, b = world.client(), world.client()
    world.server.freeze()
    for i in range(50):
        (a.dir / f"f{i}").write_text(f"{i}" * 3000)
    fd = os.open(a.dir / "open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"still open")
    a.kill()
    with pytest.raises(OSError):  # ENOTCONN: the program learns it
        os.fsync(fd)
    try:
        os.close(fd)
    except OSError:
        pass
    world.server.freeze(False)
    a.mount()
    for i in range(50):
        assert read(a.dir / f"f{i}") == f"{i}" * 3000
    assert read(a.dir / "open") == "still open"
    a.wait()
    until(lambda: len(os.listdir(b.dir)) == 51, 20)
    until(lambda: read(b.dir / "open") == "still open" and read(b.dir / "f49") == "49" * 3000, 10)


def test_sigterm_ends_cleanly_and_brings_everything_up(world):
    a, b = world.client(), world.client()
    pid = a.pid()
    for i in range(20):
        (a.dir / f"f{i}").write_text(str(i))
    os.kill(pid, 15)
    until(lambda: not alive(pid), 40, "the end of the daemon")
    until(lambda: len(os.listdir(b.dir)) == 20, 10)
    assert not os.path.ismount(a.dir)


def test_remount_asks_for_news_only(world):
    a, b = world.client(), world.client()
    for i in range(20):
        (a.dir / f"f{i}").write_text(str(i))
    os.symlink("some/where/else", a.dir / "link")
    a.wait()
    until(lambda: os.path.lexists(b.dir / "link"))
    inodes = {name: os.lstat(b.dir / name).st_ino for name in os.listdir(b.dir)}
    b.umount()
    (a.dir / "f20").write_text("while away")
    a.wait()
    b.mount()
    until(lambda: read(b.dir / "f20") == "while away")
    assert b.status()["counters"]["snapshot_rows"] == 0  # the cursor is good: no snapshot
    assert {name: os.lstat(b.dir / name).st_ino for name in inodes} == inodes
    assert os.lstat(b.dir / "link").st_size == len("some/where/else")  # as events bring it
    c = world.client()
    assert os.lstat(c.dir / "link").st_size == len("some/where/else")  # as a snapshot brings it


def test_unmounted_offline_with_work_pending(world):
    a = world.client()
    (a.dir / "before").write_text("x")
    a.wait()
    world.server.stop()
    (a.dir / "while away").write_text("y")
    a.umount()  # succeeds and says what is not on the server yet
    assert "Assertion" not in a.log_text() and "ended" in a.log_text().splitlines()[-1]
    a.mount()
    assert read(a.dir / "while away") == "y"
    world.server.start()
    a.wait()
    b = world.client()
    assert read(b.dir / "while away") == "y"


def test_a_deleted_file_that_is_open_holds_nobody_up(world):
    """Programs keep temporaries open after they deleted them. Their bytes go nowhere, so nothing waits for them; what another client deleted while it is written here comes back, so that counts."""
    a, b = world.client("a"), world.client("b")
    for size in (10, 300000):
        with open(a.dir / "gone", "wb", buffering=0) as f:
            f.write(b"x" * size)
            assert a.status()["pending_files"] > 0
            os.unlink(a.dir / "gone")
            f.write(b"more")
            a.wait(20)
            assert a.status()["pending_files"] == 0
    (a.dir / "kept").write_bytes(b"1")
    world.caught_up(a, b)
    with open(a.dir / "kept", "r+b", buffering=0) as f:
        f.write(b"22")
        os.unlink(b.dir / "kept")
        b.wait()
        until(lambda: a.status()["cursor"] == world.server.cursor(), 30, "the deletion has come")
        assert a.status()["pending_files"] == 1
    world.caught_up(a, b)
    assert (b.dir / "kept").read_bytes() == b"22"
