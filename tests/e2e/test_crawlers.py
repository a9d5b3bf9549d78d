# SPDX-License-Identifier: Apache-2.0
"""Programs that look at everything: those that want names and attributes only cost no content, the others are guarded against by rules (docs/crawlers.md)."""
import concurrent.futures
import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from support import run, until

BYTES = 40000
FILES = 240

LOOKERS = {
    "find": lambda d, tmp: run("find", d, "-type", "f", "-size", "+1", "-newermt", "2001-01-01", "-ls"),
    "ls": lambda d, tmp: run("ls", "-lRZ", "--color=always", d),
    "du": lambda d, tmp: run("du", "-a", "--apparent-size", d),
    "tree of stat": lambda d, tmp: [os.stat(os.path.join(base, n)) for base, dirs, files in os.walk(d) for n in files + dirs],
    "updatedb": lambda d, tmp: run("updatedb", "--database-root", d, "--output", tmp / "db", "--require-visibility", "no", "--prunefs", "", "--prunepaths", "", "--prune-bind-mounts", "no"),
}


@pytest.fixture(scope="module")
def tree():
    from support import World
    w = World().start()
    try:
        a = w.client()
        for i in range(FILES):
            d = a.dir / f"dir{i % 12}" / "sub"
            d.mkdir(parents=True, exist_ok=True)
            (d / f"file{i}.jpg").write_bytes(os.urandom(BYTES))
        (a.dir / "large").write_bytes(os.urandom(5 << 20))
        os.symlink("large", a.dir / "link")
        a.wait()
        yield w
    except BaseException:
        w.close(failed=True)
        raise
    w.close()


@pytest.mark.parametrize("name", LOOKERS)
def test_names_and_attributes_cost_no_content(tree, name, tmp_path):
    """With a client that has read nothing, twice: when the kernel knows nothing yet, and when it knows all."""
    c = tree.client()
    until(lambda: c.status()["loaded"], 60, "the tree is here")
    until(lambda: len(os.listdir(c.dir)) == 14, 60, "all of it")
    before = c.status()["counters"]
    for _ in range(2):
        answer = LOOKERS[name](c.dir, tmp_path)
    after = c.status()["counters"]
    grew = {n: after[n] - before[n] for n in ("fuse_read", "fuse_open", "blocks_fetched", "cache_misses", "bytes_received")}
    assert grew["fuse_read"] == grew["blocks_fetched"] == grew["cache_misses"] == 0, grew
    assert grew["bytes_received"] < 64 << 10, "no bytes by another way: the polls only"
    if name == "updatedb":
        found = run("plocate", "--database", tmp_path / "db", "--count", ".jpg").stdout
        assert int(found) == FILES
    elif name in ("find", "ls", "du"):
        assert answer.stdout.count(".jpg") == FILES
    shutil.rmtree(tmp_path, ignore_errors=True)
    c.umount()


# ---- the guard: programs that read contents ----

HEAD = 64 << 10
MOVIE = os.urandom(6 << 20)
NOTE = os.urandom(3000)


@pytest.fixture(scope="module")
def drive():
    """A server with a large and a small file, and programs under names of their own."""
    from support import World
    w = World().start()
    try:
        a = w.client()
        for i in range(8):
            (a.dir / f"movie{i}").write_bytes(MOVIE[i:] + MOVIE[:i])
        (a.dir / "note").write_bytes(NOTE)
        a.wait()
        a.umount()
        bin_ = w.base / "bin"
        bin_.mkdir()
        shutil.copy(shutil.which("cat"), bin_ / "nosy-cat")
        shutil.copy(shutil.which("cat"), bin_ / "decent-cat")
        shutil.copy(os.path.realpath("/usr/bin/python3"), bin_ / "nosy-python")
        w.bin = bin_
        yield w
    except BaseException:
        w.close(failed=True)
        raise
    w.close()


def guarded(drive, rules):
    c = drive.client(mount=False)
    c.rules = drive.base / f"{c.name}.rules"
    c.rules.write_text(rules)
    c.mount(options=f"crawlers={c.rules}")
    return c


def read_by(drive, program, path):
    p = run(drive.bin / program, path, check=False, text=False)
    return p.returncode, p.stdout, p.stderr.decode()


def grew(c, before):
    after = c.status()["counters"]
    return {n: after[n] - before[n] for n in after}


def test_a_crawler_gets_the_head_and_what_is_cached(drive):
    c = guarded(drive, "# ours\nexe nosy-*\n")
    before = c.status()["counters"]
    code, got, error = read_by(drive, "nosy-cat", c.dir / "movie0")
    assert code != 0 and "Host is down" in error
    assert HEAD <= len(got) < 2 << 20 and got == MOVIE[:len(got)], "the blocks that begin in the head"
    g = grew(c, before)
    assert g["crawler_opens"] == 1 and g["crawler_refusals"] > 0
    assert g["blocks_fetched"] <= 3, "a block or two, and the list"
    assert g["bytes_received"] < len(got) + (128 << 10)
    s = c.status()["crawlers"]
    assert s["rules"] == 1 and s["errors"] == [] and s["refused"] > 0 and s["last"] == str(drive.bin / "nosy-cat") and s["last_pid"] > 0
    assert "nosy-cat" in c.tarn("status", c.dir).stdout
    # again: the same, and nothing is fetched
    before = c.status()["counters"]
    assert read_by(drive, "nosy-cat", c.dir / "movie0")[1] == got
    assert grew(c, before)["blocks_fetched"] == 0
    # a file that is one block is there as a whole
    assert read_by(drive, "nosy-cat", c.dir / "note") == (0, NOTE, "")
    # nobody else notices: not the kernel's pages, not the size
    assert (c.dir / "movie0").stat().st_size == len(MOVIE)
    assert read_by(drive, "decent-cat", c.dir / "movie0") == (0, MOVIE, "")
    # what is cached is for everybody: from the kernel's pages, and from the disk
    assert read_by(drive, "nosy-cat", c.dir / "movie0") == (0, MOVIE, "")
    c.umount()
    c.mount(options=f"crawlers={c.rules}")
    before = c.status()["counters"]
    assert read_by(drive, "nosy-cat", c.dir / "movie0") == (0, MOVIE, "")
    g = grew(c, before)
    assert g["blocks_fetched"] == 0 and g["crawler_refusals"] == 0 and g["crawler_opens"] == 1
    c.umount()


def test_beside_other_readers(drive):
    """Crawlers and readers of the same cold files at the same time: each reader gets every byte."""
    c = guarded(drive, "exe nosy-* head 64K\n")
    for i in range(8):
        data, path = MOVIE[i:] + MOVIE[:i], c.dir / f"movie{i}"
        nosy = [subprocess.Popen([drive.bin / "nosy-cat", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            taken = [pool.submit(p.communicate) for p in nosy]
            readers = [pool.submit(read_by, drive, "decent-cat", path) for _ in range(2)]
            assert all(r.result() == (0, data, "") for r in readers)
        for p, t in zip(nosy, taken):
            got = t.result()[0]
            assert got == data[:len(got)] and (len(got) == len(data)) == (p.returncode == 0)
    c.umount()


def test_mapped_and_inherited(drive):
    c = guarded(drive, "exe nosy-python head 4096\n")
    env = dict(os.environ, PYTHONHOME="/usr")
    text = """
import mmap, os, sys
m = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
print(m[:100].hex(), flush=True)
print(m[4 << 20])
"""
    p = run(drive.bin / "nosy-python", "-c", text, c.dir / "movie1", env=env, check=False)
    assert p.returncode == -signal.SIGBUS, p
    assert p.stdout.strip() == (MOVIE[1:] + MOVIE[:1])[:100].hex()
    # the limit belongs to the handle, whoever has it: here a decent program that was given one, and whose opener is gone
    text = "import os, sys; f = os.open(sys.argv[1], os.O_RDONLY); os.dup2(f, 0); os.execv(sys.argv[2], ['decent-cat'])"
    p = run(drive.bin / "nosy-python", "-c", text, c.dir / "movie2", drive.bin / "decent-cat", env=env, check=False, text=False)
    assert p.returncode != 0 and b"Host is down" in p.stderr and 4096 <= len(p.stdout) < 2 << 20
    # and the other way round: who was not one when it opened is none
    before = c.status()["counters"]
    with open(c.dir / "movie3", "rb") as f:
        p = run(drive.bin / "nosy-python", "-c", "import sys; sys.exit(len(sys.stdin.buffer.read()) != 6 << 20)", stdin=f, env=env)
    assert grew(c, before)["crawler_refusals"] == 0
    c.umount()


def test_rules_change(drive):
    """Read again at SIGHUP; the first line that fits counts; a slip is told, and the rest counts; an open handle keeps what it has."""
    c = guarded(drive, "not nosy-cat\nexe nosy-*\n")

    def change(rules, n):
        c.rules.write_text(rules)
        os.kill(c.pid(), signal.SIGHUP)
        until(lambda: c.status()["crawlers"]["rules"] == n, 30, "the new rules")
    before = c.status()["counters"]
    assert read_by(drive, "nosy-cat", c.dir / "movie4")[0] == 0, "not a crawler"
    assert grew(c, before)["crawler_opens"] == 0
    held = open(c.dir / "movie5", "rb", buffering=0)
    change(f"exe nosy-cat head 0\nexcept nosy-cat\nexe /usr/bin/false\nexe {os.path.realpath(sys.executable)} head 0\n", 3)
    assert c.status()["crawlers"]["errors"] == [f"{c.rules}:2: 'except' is not one of exe, cgroup, not"]
    assert f"{c.rules}:2:" in c.tarn("status", c.dir).stdout
    assert len(held.read(200000)) > 0, "opened before"
    held.close()
    code, got, error = read_by(drive, "nosy-cat", c.dir / "movie6")
    assert (code != 0) and got == b"" and "Host is down" in error
    with pytest.raises(OSError) as e:
        (c.dir / "movie6").read_bytes()
    assert e.value.errno == errno.EHOSTDOWN
    c.rules.unlink()
    os.kill(c.pid(), signal.SIGHUP)
    until(lambda: c.status()["crawlers"]["rules"] == 0, 30, "no rules")
    assert read_by(drive, "nosy-cat", c.dir / "movie6") == (0, MOVIE[6:] + MOVIE[:6], "")
    c.umount()


def test_what_a_crawler_makes_is_its_own(drive):
    """It writes, truncates and reads back like anybody: those bytes are here."""
    c = guarded(drive, "exe nosy-* head 0\n")
    text = """
import os, sys
d = sys.argv[1]
with open(d + '/made', 'wb') as f: f.write(b'x' * 300000)
assert open(d + '/made', 'rb').read() == b'x' * 300000
with open(d + '/movie7', 'r+b') as f:
    f.seek(1 << 20); f.write(b'y' * 8192); f.flush()
    assert os.pread(f.fileno(), 8192, 1 << 20) == b'y' * 8192
"""
    run(drive.bin / "nosy-python", "-c", text, c.dir, env=dict(os.environ, PYTHONHOME="/usr"))
    c.wait()
    data = bytearray(MOVIE[7:] + MOVIE[:7])
    data[1 << 20:(1 << 20) + 8192] = b"y" * 8192
    assert (c.dir / "movie7").read_bytes() == bytes(data)
    c.umount()
