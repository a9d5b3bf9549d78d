# SPDX-License-Identifier: Apache-2.0
"""Programs that look at everything: those that want names and attributes only cost no content (docs/crawlers.md)."""
import os
import shutil

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
