# SPDX-License-Identifier: Apache-2.0
"""The server goes back in time: restored from a backup, or rolled back by hand without saying so. What only a client still has is kept there, told, and readable."""
import os
import shutil
import sqlite3

from support import SERVER, facts, run, until


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


def test_what_is_held_is_sent_again_or_dropped(world, tmp_path):
    """People decide, with one command, path by path; what others have is never doubled."""
    a, b = world.client(), world.client()
    before_and_after(world, a, b, lambda: world.server.admin("backup", "--to", tmp_path / "backup"))
    (a.dir / "nd" / "deep").mkdir()
    (a.dir / "nd" / "deep" / "big").write_bytes(bytes(range(256)) * 12000)
    os.chmod(a.dir / "nd" / "deep" / "big", 0o444)
    os.utime(a.dir / "nd" / "deep" / "big", ns=(10**18, 10**18))
    (a.dir / "nd" / "empty").touch()
    os.symlink("x", a.dir / "nd" / "link")
    os.setxattr(a.dir / "nd" / "x", "user.what", b"kept")
    a.wait()
    until(lambda: a.status()["cursor"] == b.status()["cursor"] == world.server.cursor(), what="both have seen all events")
    world.server.kill()
    shutil.rmtree(world.server.data)
    run(SERVER, "restore", "--from", tmp_path / "backup", "--data", world.server.data)
    world.server.start()
    until(lambda: a.status()["held_nodes"] == 7 and b.status()["held_nodes"] == 7, 60, "what the server lost is held")
    listed = a.tarn("held", a.dir).stdout
    assert all(str(a.dir / p) in listed for p in ("new", "nd", "nd/x", "nd/deep/big", "nd/empty", "nd/link")) and listed.count("only here") == 7
    assert "tarn held" in a.tarn("status").stdout
    # one thing goes, nobody is told
    a.tarn("held", a.dir / "new", "--drop")
    assert not (a.dir / "new").exists() and a.status()["held_nodes"] == 6 and a.status()["pending_items"] == 0
    assert "tarn held" in a.tarn("held", "--send", "--drop", check=False).stderr
    # the rest goes up again, in two parts
    a.tarn("held", a.dir / "nd" / "deep", "--send")
    assert a.status()["held_nodes"] == 3  # the directories on the way went with it
    a.tarn("held", "--send")
    assert a.status()["held_nodes"] == 0 and "nothing is held" in a.tarn("held", a.dir).stdout
    a.wait()
    world.server.known_token = None  # the backup does not know it
    until(lambda: b.status()["cursor"]["seq"] == a.status()["cursor"]["seq"] == world.server.cursor()["seq"], 30, "the other client follows")
    c = world.client()
    want = facts(a.dir, False)
    assert set(want) == {"old", "d", "d/old", "nd", "nd/x", "nd/deep", "nd/deep/big", "nd/empty", "nd/link"}
    assert facts(c.dir, False) == want
    st = os.stat(c.dir / "nd" / "deep" / "big")
    assert (c.dir / "nd" / "deep" / "big").read_bytes() == bytes(range(256)) * 12000 and st.st_mode & 0o777 == 0o444 and st.st_mtime_ns == 10**18
    assert os.getxattr(c.dir / "nd" / "x", "user.what") == b"kept"
    # the other client had the same: its directories are the server's again, the rest is its people's to decide
    assert (b.dir / "new").read_text() == "after the backup"
    b.tarn("held", "--drop")
    until(lambda: b.status()["held_nodes"] == 0, 30, "nothing is held there")
    assert facts(b.dir, False) == want and (b.dir / "nd" / "deep" / "big").read_bytes() == bytes(range(256)) * 12000


def test_what_is_made_in_a_directory_that_the_server_forgot(world, tmp_path):
    """Made before the client has heard of it, while it is offline, and after: the directories come back."""
    a, b = world.client(), world.client()
    before_and_after(world, a, b, lambda: world.server.admin("backup", "--to", tmp_path / "backup"))
    world.server.kill()
    (a.dir / "nd" / "offline").write_text("made while it was away")
    (a.dir / "nd" / "sub").mkdir()
    shutil.rmtree(world.server.data)
    run(SERVER, "restore", "--from", tmp_path / "backup", "--data", world.server.data)
    world.server.start()
    until(lambda: a.status()["state"] == "online" and a.status()["held_nodes"] == 2, 60, "the file that only clients have is held")
    a.wait()
    assert not a.status()["parked"]
    c = world.client()
    assert set(facts(c.dir)) == {"old", "d", "d/old", "nd", "nd/offline", "nd/sub"}
    until(lambda: (b.dir / "nd" / "offline").exists(), 30, "the other client")
    assert (b.dir / "nd" / "offline").read_text() == "made while it was away" and (b.dir / "nd" / "x").exists()


def restored(world, tmp_path):
    world.server.kill()
    shutil.rmtree(world.server.data)
    run(SERVER, "restore", "--from", tmp_path / "backup", "--data", world.server.data)
    world.server.start()
    world.server.known_token = None  # the backup does not know it


def listed(client):
    return [line for line in client.tarn("held", client.dir).stdout.splitlines() if "newer here" in line]


def test_newer_than_the_backup(world, tmp_path):
    """A file that both have, edited after the backup: the backup's version has the name, the newer bytes stay as a held copy until people decide."""
    a, b = world.client(), world.client()
    big = {i: bytes([i]) + os.urandom(300_000) for i in range(2)}
    for name in ("sent", "changed", "dropped", "same"):
        (a.dir / name).write_text(f"{name}, in the backup")
    (a.dir / "big").write_bytes(big[0])
    (a.dir / "untouched").write_text("as it was")
    os.chmod(a.dir / "sent", 0o640)
    a.wait()
    world.server.admin("backup", "--to", tmp_path / "backup")
    for name in ("sent", "changed", "dropped", "same"):
        (a.dir / name).write_text(f"{name}, edited since")
    (a.dir / "big").write_bytes(big[1])
    os.chmod(a.dir / "untouched", 0o600)
    a.wait()
    until(lambda: a.status()["cursor"] == b.status()["cursor"] == world.server.cursor(), what="both have seen all events")
    assert (b.dir / "same").read_text() == "same, edited since"  # the other client has the bytes of this one only
    restored(world, tmp_path)
    until(lambda: a.status()["held_nodes"] == 5 and b.status()["held_nodes"] == 1, 60, f"copies are held: {a.status()}")
    assert (a.dir / "sent").read_text() == "sent, in the backup" and (a.dir / "big").read_bytes() == big[0] and (a.dir / "untouched").read_text() == "as it was"
    copy = {p.name.split(" ")[0]: p for p in a.dir.iterdir() if "(conflict " in p.name}
    assert sorted(copy) == ["big", "changed", "dropped", "same", "sent"] and copy["big"].read_bytes() == big[1] and copy["sent"].read_text() == "sent, edited since"
    lines = listed(a)
    assert len(lines) == 5 and "lost" not in str(lines) and all(any(str(copy[n]) in line and f"(of {n})" in line for line in lines) for n in copy)
    # what is not here as a whole cannot be kept: named, until somebody has seen it
    assert sorted(line.split("/")[-1] for line in listed(b) if "lost" in line) == ["big", "changed", "dropped", "sent"]
    b.tarn("held", b.dir / "dropped", "--drop")
    assert len(listed(b)) == 4
    # kept from eviction, over a restart, and not told to the server
    a.tarn("umount", a.dir)
    a.mount()
    assert copy["big"].read_bytes() == big[1] and a.status()["held_nodes"] == 5 and a.status()["pending_items"] == 0
    c = world.client()
    assert sorted(facts(c.dir)) == ["big", "changed", "dropped", "same", "sent", "untouched"]
    # the next version of the file that it was made of
    a.tarn("held", copy["sent"], "--send")
    a.tarn("held", copy["same"], "--send")
    a.wait()
    assert not copy["sent"].exists() and (a.dir / "sent").read_text() == "sent, edited since" and os.stat(a.dir / "sent").st_mode & 0o777 == 0o640
    until(lambda: (c.dir / "sent").read_text() == "sent, edited since", 30)
    # who has the same bytes has nothing to decide any more
    until(lambda: b.status()["held_nodes"] == 0 and not [p for p in b.dir.iterdir() if "(conflict" in p.name], 30, "the other client's copy went by itself")
    # the file has changed since: a conflict copy beside it
    (c.dir / "changed").write_text("somebody else's")
    c.wait()
    until(lambda: (a.dir / "changed").read_text() == "somebody else's", 30)
    assert ["which has changed since" in line for line in listed(a) if str(copy["changed"]) in line] == [True]
    a.tarn("held", copy["changed"], "--send")
    a.wait()
    until(lambda: (c.dir / copy["changed"].name).exists(), 30)
    assert (a.dir / "changed").read_text() == "somebody else's" and (c.dir / copy["changed"].name).read_text() == "changed, edited since"
    # let go
    a.tarn("held", copy["dropped"], "--drop")
    assert not copy["dropped"].exists() and (a.dir / "dropped").read_text() == "dropped, in the backup" and a.status()["pending_items"] == 0
    # mv takes a held file for one of another file system: its bytes are copied
    run("mv", copy["big"], a.dir / "moved")
    a.wait()
    assert (a.dir / "moved").read_bytes() == big[1] and (a.dir / "big").read_bytes() == big[0] and a.status()["held_nodes"] == 0
    until(lambda: a.status()["cursor"] == c.status()["cursor"] == world.server.cursor(), 30)
    assert facts(a.dir) == facts(c.dir) == facts(b.dir)
