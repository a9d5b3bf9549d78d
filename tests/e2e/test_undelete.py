# SPDX-License-Identifier: Apache-2.0
"""`rm -rf` of the wrong directory, and one command that undoes it."""
import os
import shutil

from support import EXIT, facts, run, until


def same(plain, there):
    """Bytes, modes and times; a directory's own time is that of its restoring."""
    run("diff", "-r", plain, there)
    a, b = facts(plain), facts(there)
    assert {p: f for p, f in a.items() if len(f) > 2} == {p: f for p, f in b.items() if len(f) > 2}


def test_undelete(world, tmp_path):
    a, b = world.client(), world.client()
    plain = tmp_path / "project"
    for i in range(60):
        d = plain / f"d{i % 5}" / f"e{i % 3}"
        d.mkdir(parents=True, exist_ok=True)
        (d / f"f{i}").write_bytes(os.urandom([0, 30, 5000, 200_000][i % 4]))
    shutil.copytree(plain, a.dir / "project", copy_function=shutil.copy2)
    (a.dir / "other").write_text("stays deleted")
    a.wait()
    until(lambda: (b.dir / "other").exists())
    os.unlink(a.dir / "other")
    shutil.rmtree(a.dir / "project")
    a.wait()
    until(lambda: not (b.dir / "project").exists())
    assert "project/d1" in a.tarn("undelete", a.dir).stdout  # lists
    out = a.tarn("undelete", a.dir / "project").stdout
    assert "brought back" in out
    for client in (a, b):
        until(lambda: (client.dir / "project").exists() and sum(len(f) for _, _, f in os.walk(client.dir / "project")) == 60, what="the tree is back")
        same(plain, client.dir / "project")
        assert not (client.dir / "other").exists()
    # by time, before the deletion has left this machine
    shutil.rmtree(a.dir / "project")
    assert "brought back" in a.tarn("undelete", a.dir, "--since", "1h").stdout
    for client in (a, b):
        until(lambda: (client.dir / "other").exists() and (client.dir / "project").exists() and sum(len(f) for _, _, f in os.walk(client.dir / "project")) == 60, what="all is back")
        same(plain, client.dir / "project")
    assert a.tarn("undelete", "/nowhere/x", check=False).returncode == EXIT["not_mounted"]
