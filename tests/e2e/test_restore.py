# SPDX-License-Identifier: Apache-2.0
"""The server goes back in time: restored from a backup, or rolled back by hand without saying so. What only a client still has is kept there, told, and readable."""
import shutil
import sqlite3

from support import SERVER, run, until


def before_and_after(world, a, b, backup):
    """Something that the backup has, and something that it has not."""
    (a.dir / "old").write_text("in the backup")
    (a.dir / "d").mkdir()
    (a.dir / "d" / "old").write_text("in the backup too")
    a.wait()
    until(lambda: (b.dir / "d" / "old").exists())
    backup()
    (a.dir / "new").write_text("after the backup")
    (a.dir / "nd").mkdir()
    (a.dir / "nd" / "x").write_text("x")
    a.wait()
    until(lambda: a.status()["cursor"] == b.status()["cursor"] == world.server.cursor(), what="both have seen all events")
    until(lambda: (b.dir / "nd" / "x").exists() and (b.dir / "new").exists())
    assert (b.dir / "new").read_text() == "after the backup"


def kept(world, client):
    until(lambda: client.status()["state"] == "online" and sorted(client.status().get("held", [])) == ["nd", "nd/x", "new"], 60, f"what the server lost is held: {client.status()}")
    assert (client.dir / "new").read_text() == "after the backup" and (client.dir / "old").read_text() == "in the backup" and (client.dir / "nd" / "x").exists()


def goes_on(a, b):
    (a.dir / "later").write_text("both see it")
    a.wait()
    until(lambda: (b.dir / "later").exists() and (b.dir / "later").read_text() == "both see it", 30)


def test_restored_from_a_backup(world, tmp_path):
    a, b = world.client(), world.client()
    before_and_after(world, a, b, lambda: world.server.admin("backup", "--to", tmp_path / "backup"))
    world.server.kill()
    shutil.rmtree(world.server.data)
    run(SERVER, "restore", "--from", tmp_path / "backup", "--data", world.server.data)
    world.server.start()
    kept(world, a)
    kept(world, b)
    goes_on(a, b)


def test_rolled_back_behind_the_own_commits(world, tmp_path):
    """No events come to this client, so its cursor is older than what it has committed and than the state to which the server goes back: only the answers that it got tell."""
    a = world.client()
    (a.dir / "old").write_text("in the backup")
    a.wait()

    def newest():
        db = sqlite3.connect(f"file:{world.server.data}/meta.db?mode=ro", uri=True)
        seq = db.execute("SELECT seq FROM workspace").fetchone()[0]
        db.close()
        return seq
    until(lambda: a.status()["cursor"]["seq"] == newest(), what="the cursor is at what the copy has")
    assert a.ask(cmd="failpoint", arm="events.answer=fail:EIO").get("ok")
    seq = a.status()["cursor"]["seq"]
    world.server.stop()
    shutil.copytree(world.server.data, tmp_path / "copy", ignore=shutil.ignore_patterns("admin.sock", "url"))
    world.server.start()
    (a.dir / "new").write_text("after the backup")
    (a.dir / "nd").mkdir()
    (a.dir / "nd" / "x").write_text("x")
    a.wait()
    assert a.status()["cursor"]["seq"] == seq
    world.server.kill()
    shutil.rmtree(world.server.data)
    shutil.copytree(tmp_path / "copy", world.server.data)
    world.server.start()
    kept(world, a)
    assert a.ask(cmd="failpoint", arm="events.answer=off").get("ok")
    goes_on(a, world.client())
    kept(world, a)


def test_rolled_back_without_saying_so(world, tmp_path):
    a, b = world.client(), world.client()

    def copy():
        world.server.stop()
        shutil.copytree(world.server.data, tmp_path / "copy", ignore=shutil.ignore_patterns("admin.sock", "url"))
        world.server.start()

    before_and_after(world, a, b, copy)
    world.server.kill()
    shutil.rmtree(world.server.data)
    shutil.copytree(tmp_path / "copy", world.server.data)
    world.server.start()
    kept(world, a)
    kept(world, b)
    goes_on(a, b)
    # sequence numbers of the lost line are given out again, with other marks
    for i in range(12):
        (a.dir / f"more{i}").write_text(str(i))
    a.wait()
    until(lambda: sum(1 for i in range(12) if (b.dir / f"more{i}").exists()) == 12, 30)
    assert (a.dir / "new").exists() and (b.dir / "new").exists()
