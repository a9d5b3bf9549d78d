# SPDX-License-Identifier: Apache-2.0
"""A source tree through two mounts. TARN_E2E_TREE names a real one (unpacked by apt-get source, say); otherwise one of that shape is made."""
import os
import random
import subprocess
from pathlib import Path

import pytest

from support import SCALE, assert_same_tree, run


def make_tree(root, files, seed):
    """Directories, sizes, modes, times and names as source trees have them; text from this machine's headers and noise."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    text = b"".join(p.read_bytes() for p in sorted(Path("/usr/include").glob("*.h"))[:60]) or b"#include <stdio.h>\n" * 5000
    dirs = [root]
    root.mkdir()
    words = ["core", "util", "net", "docs", "test", "src", "include", "io", "älter", "日本", "with space", "x86", "lib"]
    for i in range(max(files // 12, 10)):
        d = rng.choice(dirs[-40:] + dirs[:5]) / f"{rng.choice(words)}{i}"
        d.mkdir()
        dirs.append(d)
    suffixes = [".c", ".h", ".c", ".py", ".txt", ".md", "", ".png", ".po", ".in"]
    for i in range(files):
        p = rng.choice(dirs) / f"{rng.choice(words)}_{i}{rng.choice(suffixes)}"
        kind = rng.random()
        size = 0 if kind < 0.02 else min(int(rng.lognormvariate(8, 1.5)), 1 << 20)
        if p.suffix == ".png":
            data = rng.randbytes(size)
        else:
            at = rng.randrange(max(len(text) - size, 1))
            data = text[at:at + size]
        p.write_bytes(data)
        p.chmod(rng.choice([0o644, 0o644, 0o644, 0o755, 0o600, 0o444, 0o640]))
        if kind > 0.98:
            os.symlink(rng.choice([p.name, "../nowhere", "/absolute/target"]), str(p) + ".link")
    (root / "empty dir").mkdir()
    for at, names, _ in os.walk(root, topdown=False):
        for name in os.listdir(at):
            t = rng.randrange(946684800 * 10**9, 1760000000 * 10**9)
            os.utime(os.path.join(at, name), ns=(t, t), follow_symlinks=False)
        os.chmod(at, rng.choice([0o755, 0o755, 0o750, 0o775]))
    os.utime(root, ns=(10**18, 10**18))


@pytest.fixture
def tree(bare):
    given = os.environ.get("TARN_E2E_TREE")
    if given:
        return Path(given)
    make_tree(bare.base / "tree", int(5200 * SCALE), int.from_bytes(os.urandom(4), "big"))
    return bare.base / "tree"


def test_source_tree_is_the_same_through_an_empty_cache_and_after_restarts(bare, tree):
    bare.start()
    a, b = bare.client("a"), bare.client("b", mount=False)
    run("cp", "-a", tree, a.dir / "copy", timeout=600)
    assert_same_tree(tree, a.dir / "copy")
    a.wait(300)
    b.mount()
    assert_same_tree(tree, b.dir / "copy")
    for c in (a, b):
        c.umount()
    bare.server.stop()
    bare.server.start()
    for c in (a, b):
        c.mount()
    assert_same_tree(tree, b.dir / "copy")
    assert_same_tree(tree, a.dir / "copy")
    files = sum(len(f) for _, _, f in os.walk(tree))
    assert files >= 5000 or SCALE < 1, f"only {files} files"
    assert subprocess.run(["rm", "-rf", str(b.dir / "copy")]).returncode == 0
    b.wait(300)
    assert os.listdir(b.dir) == []
