# SPDX-License-Identifier: Apache-2.0
"""The cache directory lies on a tmpfs of 20 MiB that really gets full.

Without a server: writers get ENOSPC (or EDQUOT) and nothing else, what was acknowledged reads back, and at zero free bytes unlink, rename and truncate still work. With the server
back everything that is complete is sent, a file whose write failed is never on the server with other bytes than those acknowledged, and writing goes on."""
import errno
import os

import pytest
from support import run, until
from writer import differences, seen


@pytest.fixture
def small(bare):
    if os.geteuid() != 0:
        pytest.skip("needs root for a tmpfs")
    disk = bare.base / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=20m,nosuid,nodev", "tmpfs", disk)
    yield disk
    for c in bare.clients:
        c.close()
    run("umount", disk)


def test_a_full_cache_disk(small, world):
    a = world.client("a", mount=False)
    a.cache = small / "cache"
    a.mount(options="cache_size=64M,free_floor=1,drain_timeout=0")
    d, model, failed = a.dir / "d", {}, {}
    d.mkdir()
    a.wait()
    world.server.stop()
    until(lambda: a.status()["state"] == "offline", 30, "offline")
    for n in range(400):
        data, done = os.urandom(100000), 0
        try:
            fd = os.open(d / f"f{n}", os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as e:
            assert e.errno in (errno.ENOSPC, errno.EDQUOT), e
            failed[f"f{n}"] = b""
            break
        try:
            while done < len(data):
                done += os.write(fd, data[done:])
        except OSError as e:
            assert e.errno in (errno.ENOSPC, errno.EDQUOT), e
        try:
            os.close(fd)
        except OSError as e:
            assert e.errno in (errno.ENOSPC, errno.EDQUOT), e
        if done == len(data):
            model[f"f{n}"] = data
        else:
            failed[f"f{n}"] = data[:done]
            if len(failed) > 5:
                break
    assert failed, "void: it never was full"
    free = os.statvfs(small).f_bavail * 4096
    print(f"{len(model)} files fit, {len(failed)} did not, {free} bytes free")
    got = seen(d)
    wrong = differences(model, {n: c for n, c in got.items() if n not in failed})
    assert not wrong, wrong[:10]
    rows = 0
    (a.dir / "rows").mkdir()
    try:  # rows grow the database, up to what the engine and those who give room back need
        for rows in range(100000):
            (a.dir / "rows" / f"a directory with a name of some length {rows}").mkdir()
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
    free = os.statvfs(small).f_bavail * 4096
    print(f"{rows} directories on top, {free} bytes free")
    assert 100 < rows < 99999 and free > 500000
    os.unlink(d / "f0")
    del model["f0"]
    os.rename(d / "f1", d / "g1")
    model["g1"] = model.pop("f1")
    os.truncate(d / "f2", 0)
    model["f2"] = b""
    world.server.start()
    until(lambda: a.status()["state"] == "online", 30, "online")
    for n in range(50):  # who writes or makes something is slowed down now, not refused: nothing may have been sent yet
        model[f"h{n}"] = os.urandom(200000)
        (d / f"h{n}").write_bytes(model[f"h{n}"])
        os.rename(d / f"h{n}", d / f"i{n}")
        model[f"i{n}"] = model.pop(f"h{n}")
    until(lambda: a.status()["pending_items"] == 0, 90, "everything is sent")
    assert not a.status()["parked"]
    b = world.client("b")
    for n in failed:
        (d / n).unlink(missing_ok=True)
    a.wait(60)
    until(lambda: set(os.listdir(b.dir / "d")) == set(model), 30, "the other client shows the same names")
    wrong = differences(model, seen(b.dir / "d"))
    assert not wrong, wrong[:10]
    until(lambda: len(os.listdir(b.dir / "rows")) == rows, 30, "the other client shows all directories")
