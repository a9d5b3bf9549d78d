# SPDX-License-Identifier: Apache-2.0
"""Programs that people really use, on the mount, and what they made seen through another mount."""
import mmap
import os
import shutil
import sqlite3
import subprocess

import pytest

from support import assert_same_tree, run, until

GIT = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent", "PATH": os.environ["PATH"]}


def need(program):
    if not shutil.which(program):
        pytest.fail(f"{program} is not installed: run scripts/install-deps.sh test")


def git(*argv, cwd, **kw):
    return run("git", "-c", "init.defaultBranch=main", "-c", "safe.directory=*", *argv, cwd=cwd, env=GIT, timeout=180, **kw)


def test_git(world):
    need("git")
    origin = world.base / "origin"
    origin.mkdir()
    git("init", "-q", cwd=origin)
    for i in range(150):
        p = origin / f"dir{i % 12}" / f"file{i}.txt"
        p.parent.mkdir(exist_ok=True)
        p.write_text(f"line {i}\n" * (i + 1))
    git("add", ".", cwd=origin)
    git("commit", "-qm", "first", cwd=origin)
    a, b = world.client(), world.client()
    git("clone", "-q", "--no-local", str(origin), "repo", cwd=a.dir)
    repo = a.dir / "repo"
    assert git("status", "--porcelain", cwd=repo).stdout == ""
    for i in range(8):
        (repo / f"dir{i}" / f"file{i}.txt").write_text(f"changed {i}\n")
        (repo / f"new{i}").write_text(f"new {i}\n")
        git("add", "-A", cwd=repo)
        git("commit", "-qm", f"change {i}", cwd=repo)
    git("gc", "-q", "--aggressive", "--prune=now", cwd=repo)
    git("fsck", "--full", "--strict", cwd=repo)
    git("checkout", "-q", "-b", "other", "HEAD~4", cwd=repo)
    git("checkout", "-q", "main", cwd=repo)
    assert git("status", "--porcelain", cwd=repo).stdout == ""
    head = git("rev-parse", "HEAD", cwd=repo).stdout
    world.caught_up(a, b)
    assert git("rev-parse", "HEAD", cwd=b.dir / "repo").stdout == head
    git("fsck", "--full", "--strict", cwd=b.dir / "repo")
    assert git("log", "--oneline", cwd=b.dir / "repo").stdout.count("\n") == 9
    # a remount must not make git read everything again, nor find a change
    a.restart()
    assert git("status", "--porcelain", cwd=repo).stdout == ""
    assert git("diff-files", "--name-only", cwd=repo).stdout == ""


def test_sqlite_in_its_default_journal_mode(world):
    a, b = world.client(), world.client()
    db = sqlite3.connect(a.dir / "data.db")
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    for batch in range(20):
        with db:
            db.executemany("INSERT INTO t(v) VALUES (?)", [(f"value {batch} {i}",) for i in range(100)])
    with db:
        db.execute("DELETE FROM t WHERE id % 3 = 0")
    db.execute("VACUUM")
    want = db.execute("SELECT count(*), sum(id) FROM t").fetchone()
    # another process at the same time: its lock is seen
    other = sqlite3.connect(a.dir / "data.db", timeout=0)
    db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError):
        other.execute("INSERT INTO t(v) VALUES ('x')")
    db.rollback()
    other.close()
    db.close()
    a.wait()

    def same():
        try:
            c = sqlite3.connect(f"file:{b.dir / 'data.db'}?mode=ro", uri=True)
            try:
                return c.execute("SELECT count(*), sum(id) FROM t").fetchone() == want and c.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            finally:
                c.close()
        except sqlite3.Error:
            return False
    until(same, 20)
    assert sorted(os.listdir(a.dir)) == ["data.db"]


def test_tar_and_rsync(world):
    need("rsync")
    a, b = world.client(), world.client()
    source = "/usr/include/linux" if os.path.isdir("/usr/include/linux") else "/usr/include"
    run("tar", "-C", os.path.dirname(source), "--format=posix", "-cf", a.dir / "t.tar", os.path.basename(source))
    (a.dir / "x").mkdir()
    run("tar", "-C", a.dir / "x", "-xf", a.dir / "t.tar")
    assert_same_tree(source, a.dir / "x" / os.path.basename(source))
    run("rsync", "-a", source + "/", str(a.dir / "r") + "/", timeout=120)
    assert_same_tree(source, a.dir / "r")
    again = run("rsync", "-a", "--itemize-changes", source + "/", str(a.dir / "r") + "/", timeout=120)
    assert again.stdout == "", "a second rsync found something to do"
    world.caught_up(a, b)
    assert_same_tree(source, b.dir / "r")
    run("tar", "-C", b.dir, "-df", b.dir / "t.tar", check=False)


def vim_like_save(path, text, backup):
    """What editors do: rename the old file away or write beside it, write, sync, rename, remove."""
    if backup:
        os.rename(path, str(path) + "~")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    else:
        tmp = path.parent / f".{path.name}.swp.tmp"
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, text.encode())
    os.fsync(fd)
    os.fchmod(fd, 0o640)
    os.close(fd)
    if backup:
        os.unlink(str(path) + "~")
    else:
        os.rename(tmp, path)


@pytest.mark.parametrize("backup", [False, True])
def test_editor_saves(world, backup):
    a, b = world.client(), world.client()
    path = a.dir / "letter.txt"
    path.write_text("draft 0")
    a.wait()
    until(lambda: (b.dir / "letter.txt").exists())
    for i in range(1, 12):
        vim_like_save(path, f"draft {i}", backup)
        assert path.read_text() == f"draft {i}"
        assert os.listdir(a.dir) == ["letter.txt"]
    a.wait()
    until(lambda: os.listdir(b.dir) == ["letter.txt"] and (b.dir / "letter.txt").read_text() == "draft 11" and (b.dir / "letter.txt").stat().st_mode & 0o777 == 0o640, 10)


def test_vim(world):
    vim = shutil.which("vim") or shutil.which("vim.tiny") or shutil.which("vi")
    if not vim:
        pytest.fail("vim is not installed: run scripts/install-deps.sh test")
    a, b = world.client(), world.client()
    path = a.dir / "poem.txt"
    path.write_text("one\ntwo\n")
    for i in range(3):
        run(vim, "-u", "NONE", "-n", "-es", "-c", f"normal Goline {i}", "-c", "set backup backupcopy=no", "-c", "wq", path, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "HOME": str(world.base), "TERM": "dumb"})
    assert path.read_text() == "one\ntwo\nline 0\nline 1\nline 2\n"
    a.wait()
    until(lambda: (b.dir / "poem.txt").exists() and (b.dir / "poem.txt").read_text() == path.read_text(), 10)


def test_mmap(world):
    a, b = world.client(), world.client()
    path = a.dir / "mapped"
    size = 3 << 20
    with open(path, "wb") as f:
        f.truncate(size)
    with open(path, "r+b") as f:
        m = mmap.mmap(f.fileno(), size)
        for i in range(0, size, 65536):
            m[i:i + 8] = i.to_bytes(8, "big")
        m.flush()
        m.close()
    a.wait()
    until(lambda: (b.dir / "mapped").exists() and (b.dir / "mapped").stat().st_size == size, 10)

    def same():
        with open(b.dir / "mapped", "rb") as f:
            m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
            try:
                return all(int.from_bytes(m[i:i + 8], "big") == i for i in range(0, size, 65536))
            finally:
                m.close()
    until(same, 10)
