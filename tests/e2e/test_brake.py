# SPDX-License-Identifier: Apache-2.0
"""What a snapshot may remove. The server is restored from a backup: what was made after it is only at the clients, who keep and name it. The answers are cut in the middle, again and again, and
nothing is removed by what is missing. Local mass deletions are nobody's business but the user's."""
import os
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402

from support import SERVER, facts, run, until  # noqa: E402


def restore(world, backup):
    """The server's data directory becomes the backup: a new epoch that forks at the backup."""
    world.server.stop()
    old = world.server.data.with_suffix(".old")
    world.server.data.rename(old)
    run(SERVER, "restore", "--from", backup, "--data", world.server.data)
    shutil.rmtree(old)
    world.server.start()


def test_a_restored_server(world):
    a = world.client("a")
    (a.dir / "old").mkdir()
    for i in range(30):
        (a.dir / "old" / f"f{i}").write_bytes(random.randbytes(2000))
    a.wait()
    backup = world.base / "backup"
    world.server.admin("backup", "--to", backup)
    (a.dir / "new").mkdir()
    for i in range(20):
        (a.dir / "new" / f"f{i}").write_bytes(b"after the backup %d" % i)
    a.wait()
    before = facts(a.dir)
    restore(world, backup)
    until(lambda: a.status()["held_nodes"] == 21, 60, "what only the client has is held")
    s = a.status()
    assert s["state"] == "online" and any(p.startswith("new") for p in s["held"])
    assert {p: f[0] for p, f in facts(a.dir).items()} == {p: f[0] for p, f in before.items()}
    assert (a.dir / "new" / "f7").read_bytes() == b"after the backup 7"
    assert "tarn accept" in a.tarn("status").stdout
    # everything else goes on
    (a.dir / "old" / "later").write_bytes(b"later")
    a.wait()
    b = world.client("b")
    assert (b.dir / "old" / "later").read_bytes() == b"later" and not (b.dir / "new").exists()
    a.restart()
    assert a.status()["held_nodes"] == 21 and (a.dir / "new" / "f3").exists()
    # what the user needs goes up again as a copy; the rest goes
    shutil.copytree(a.dir / "new", a.dir / "saved")
    a.tarn("accept", a.dir)
    until(lambda: a.status()["held_nodes"] == 0, what="nothing is held")
    assert not (a.dir / "new").exists()
    a.wait()
    until(lambda: (b.dir / "saved" / "f7").exists() and (b.dir / "saved" / "f7").read_bytes() == b"after the backup 7", what="the copy at the other client")


def test_a_snapshot_that_is_cut_removes_nothing_and_goes_on(world):
    """The new snapshot comes over a line that breaks in the middle of its pages."""
    p = Proxy("127.0.0.1", world.server.port).start()
    try:
        world.server.url = f"http://127.0.0.1:{p.port}"
        a = world.client("a")
        for d in range(6):
            (a.dir / f"d{d}").mkdir()
            for i in range(250):
                (a.dir / f"d{d}" / f"file {i}").touch()
        a.wait(120)
        backup = world.base / "backup"
        world.server.admin("backup", "--to", backup)
        before = set(facts(a.dir))
        p.command("refuse on")
        p.command("cut")
        restore(world, backup)
        p.command("cut_after 10000 each")  # a page is larger: no connection brings one
        p.command("refuse off")
        until(lambda: p.cuts >= 4, 60, "four connections that were cut")
        assert set(facts(a.dir)) == before
        p.command("cut_after 0")
        until(lambda: a.status()["state"] == "online", 60, "online")
        (a.dir / "later").touch()
        a.wait(120)
        assert set(facts(a.dir)) == before | {"later"}
        s = a.status()
        assert s["held_nodes"] == 0 and s["loaded"]
    finally:
        for c in world.clients:
            c.close()
        p.stop()


def test_local_mass_deletion_does_not_park(world):
    """make clean: 3,000 files of 3,003 go, on the server and at the other client, without a question."""
    a, b = world.client("a"), world.client("b")
    out = a.dir / "out"
    out.mkdir()
    for i in range(3000):
        (out / f"o{i}").touch()
    a.wait(120)
    until(lambda: b.status()["cursor"]["seq"] == a.status()["cursor"]["seq"], 60, "the other client has all")
    for i in range(3000):
        os.unlink(out / f"o{i}")
    a.wait(120)
    s = a.status()
    assert s["held_nodes"] == 0 and not s["parked"] and s["pending_items"] == 0
    until(lambda: not os.listdir(b.dir / "out"), 60, "the other client follows")
    assert b.status()["held_nodes"] == 0
