# SPDX-License-Identifier: Apache-2.0
"""The conflict table (semantics: the server's commit order decides), row by row, in real mounts.

Two mounts reach one server through a proxy each. Both are cut off; in a directory of its own for each row one of them does what the table calls "already on the server" and the other
one what it calls "local, pending"; then the first one is connected, and when all of its work is committed, the second one. In the end both mounts and a third one that has never
seen anything but the server show the same, and that is what the row says."""
import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402
from support import EXIT, Client, assert_same_tree, soon, until  # noqa: E402


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save(path, text):
    """As editors do: a temporary beside it, fsync, rename over it."""
    temp = path.with_name(path.name + ".tmp")
    with open(temp, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.rename(temp, path)


def rm(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# What is done, as small sentences: verb, name in the row's directory, argument.
VERBS = {
    "put": lambda d, name, text: put(d / name, text),
    "save": lambda d, name, text: save(d / name, text),
    "append": lambda d, name, text: open(d / name, "a").write(text),
    "rm": lambda d, name: rm(d / name),
    "rmdir": lambda d, name: (d / name).rmdir(),
    "mv": lambda d, name, to: os.rename(d / name, d / to),
    "mkdir": lambda d, name: (d / name).mkdir(parents=True),
    "chmod": lambda d, name, mode: (d / name).chmod(mode),
    "symlink": lambda d, name, target: os.symlink(target, d / name),
    "ln": lambda d, name, to: os.link(d / name, d / to),
}


def do(directory, actions):
    for verb, *args in actions:
        VERBS[verb](directory, *args)


F = [("put", "f.txt", "base")]
# name of the row: (before, already on the server, local and pending, what is there in the end; a directory is None, a symlink ("->", target), a conflict name has no host and number)
ROWS = {
    "edit | edit, same bytes": (F, [("put", "f.txt", "same")], [("put", "f.txt", "same")], {"f.txt": "same"}),
    "edit | edit": (F, [("put", "f.txt", "one")], [("put", "f.txt", "two")], {"f.txt": "one", "f (conflict).txt": "two"}),
    "edit | edit, of a conflict copy": ([("put", "f (conflict x 1).txt", "base")], [("put", "f (conflict x 1).txt", "one")], [("put", "f (conflict x 1).txt", "two")],
                                        {"f (conflict).txt": ["one", "two"]}),
    "edit | edit, twice each": (F, [("put", "f.txt", "1"), ("put", "f.txt", "one")], [("put", "f.txt", "2"), ("put", "f.txt", "two")], {"f.txt": "one", "f (conflict).txt": "two"}),
    "edit | edit, a long name": ([("put", "ä" * 125 + ".text", "base")], [("put", "ä" * 125 + ".text", "one")], [("put", "ä" * 125 + ".text", "two")], None),
    "save | save": (F, [("save", "f.txt", "one")], [("save", "f.txt", "two")], {"f.txt": "one", "f (conflict).txt": "two"}),
    "save | edit": (F, [("put", "f.txt", "one")], [("save", "f.txt", "two")], {"f.txt": "one", "f (conflict).txt": "two"}),
    "edit | save": (F, [("save", "f.txt", "one")], [("append", "f.txt", " two")], {"f.txt": "one", "f (conflict).txt": "base two"}),
    "edit | delete": (F, [("rm", "f.txt")], [("put", "f.txt", "two")], {"f.txt": "two"}),
    "edit | edit and delete": (F, [("put", "f.txt", "one"), ("rm", "f.txt")], [("put", "f.txt", "two")], {"f.txt": "two"}),
    "edit | delete of parents": ([("put", "d/e/f", "base"), ("put", "d/e/other", "x")], [("rm", "d")], [("put", "d/e/f", "two")], {"d": None, "d/e": None, "d/e/f": "two"}),
    "delete | edit": (F, [("put", "f.txt", "one")], [("rm", "f.txt")], {"f.txt": "one"}),
    "delete of parents | edit": ([("put", "d/e/f", "base"), ("put", "d/e/other", "x")], [("put", "d/e/f", "one")], [("rm", "d")], {"d": None, "d/e": None, "d/e/f": "one"}),
    "delete | delete": (F, [("rm", "f.txt")], [("rm", "f.txt")], {}),
    "delete | rename": (F, [("mv", "f.txt", "g.txt")], [("rm", "f.txt")], {}),
    "delete | rename and edit": (F, [("mv", "f.txt", "g.txt"), ("put", "g.txt", "one")], [("rm", "f.txt")], {"g.txt": "one"}),
    "rename-over | edit of the target": (F + [("put", "new", "new")], [("put", "f.txt", "one")], [("mv", "new", "f.txt")], {"f.txt": "one", "f (conflict).txt": "new"}),
    "edit of the target | rename-over": (F + [("put", "new", "new")], [("mv", "new", "f.txt")], [("put", "f.txt", "two")], {"f.txt": "new", "f (conflict).txt": "two"}),
    "rename-over | rename-over": (F + [("put", "new", "new"), ("put", "newer", "newer")], [("mv", "new", "f.txt")], [("mv", "newer", "f.txt")], {"f.txt": "new", "f (conflict).txt": "newer"}),
    "rename to n | create n": (F, [("put", "n", "one")], [("mv", "f.txt", "n")], {"n": "one", "n (conflict)": "base"}),
    "create n | rename to n": (F, [("mv", "f.txt", "n")], [("put", "n", "two")], {"n": "base", "n (conflict)": "two"}),
    "rename | rename of the same": (F, [("mv", "f.txt", "g.txt")], [("mv", "f.txt", "h.txt")], {"g.txt": "base"}),
    "rename | rename of the same directory": ([("put", "d/f", "x")], [("mv", "d", "e")], [("mv", "d", "g"), ("put", "g/new", "y")], {"e": None, "e/f": "x", "e/new": "y"}),
    "rename | edit": (F, [("put", "f.txt", "one")], [("mv", "f.txt", "g.txt")], {"g.txt": "one"}),
    "edit | rename": (F, [("mv", "f.txt", "g.txt")], [("put", "f.txt", "two")], {"g.txt": "two"}),
    "rename | delete": (F, [("rm", "f.txt")], [("mv", "f.txt", "g.txt")], {}),
    "rename and edit | delete": (F, [("rm", "f.txt")], [("mv", "f.txt", "g.txt"), ("put", "g.txt", "two")], {"f.txt": "two"}),
    "rename of a directory | edit in it": ([("put", "d/f", "base")], [("put", "d/f", "one")], [("mv", "d", "e")], {"e": None, "e/f": "one"}),
    "edit | rename of its directory": ([("put", "d/f", "base")], [("mv", "d", "e")], [("put", "d/f", "two")], {"e": None, "e/f": "two"}),
    "create | delete of the directory": ([("put", "d/x", "x")], [("rm", "d")], [("put", "d/new", "two")], {"d": None, "d/new": "two"}),
    "create | delete of parents": ([("mkdir", "d/e")], [("rm", "d")], [("put", "d/e/new", "two"), ("mkdir", "d/e/sub")], {"d": None, "d/e": None, "d/e/new": "two", "d/e/sub": None}),
    "move into | delete of the directory": (F + [("mkdir", "d")], [("rmdir", "d")], [("mv", "f.txt", "d/f.txt")], {"d": None, "d/f.txt": "base"}),
    "link into | delete of the directory": (F + [("mkdir", "d")], [("rmdir", "d")], [("ln", "f.txt", "d/g")], {"f.txt": "base", "d": None, "d/g": "base"}),
    "cycle": ([("mkdir", "d"), ("mkdir", "e")], [("mv", "d", "e/d")], [("mv", "e", "d/e")], {"e": None, "e/d": None}),
    "rmdir | child added": ([("mkdir", "d")], [("put", "d/x", "one")], [("rmdir", "d")], {"d": None, "d/x": "one"}),
    "create | create, same bytes": ([], [("put", "n", "same")], [("put", "n", "same")], {"n": "same"}),
    "create | create": ([], [("put", "n", "one")], [("put", "n", "two")], {"n": "one", "n (conflict)": "two"}),
    "create | create, then renamed": ([], [("put", "n", "one")], [("put", "n", "two"), ("mv", "n", "m")], {"n": "one", "m": "two"}),
    "symlink | symlink, same": ([], [("symlink", "l", "x")], [("symlink", "l", "x")], {"l": ("->", "x")}),
    "symlink | symlink": ([], [("symlink", "l", "x")], [("symlink", "l", "y")], {"l": ("->", "x"), "l (conflict)": ("->", "y")}),
    "link | create": (F, [("put", "g", "one")], [("ln", "f.txt", "g")], {"f.txt": "base", "g": "one", "g (conflict)": "base"}),
    "link | delete": (F, [("rm", "f.txt")], [("ln", "f.txt", "g")], {}),
    "mkdir | mkdir": ([], [("put", "d/a", "one")], [("put", "d/b", "two"), ("put", "d/e/c", "three")], {"d": None, "d/a": "one", "d/b": "two", "d/e": None, "d/e/c": "three"}),
    "mkdir | mkdir, the same file in both": ([], [("put", "d/a", "one")], [("put", "d/a", "two")], {"d": None, "d/a": "one", "d/a (conflict)": "two"}),
    "mkdir | mkdir, then renamed": ([], [("put", "d/a", "one")], [("put", "d/b", "two"), ("mv", "d", "e")], {"d": None, "d/a": "one", "e": None, "e/b": "two"}),
    "file | directory": ([], [("put", "n/c", "one")], [("put", "n", "two")], {"n": None, "n/c": "one", "n (conflict)": "two"}),
    "directory | file": ([], [("put", "n", "one")], [("put", "n/c", "two"), ("mkdir", "n/e")], {"n": None, "n/c": "two", "n/e": None, "n (conflict)": "one"}),
    "directory | symlink": ([], [("symlink", "n", "x")], [("mkdir", "n")], {"n": None, "n (conflict)": ("->", "x")}),
    "directory | file, then renamed": ([], [("put", "n", "one")], [("put", "n/c", "two"), ("mv", "n", "m")], {"n": "one", "m": None, "m/c": "two"}),
    "chmod | chmod": (F, [("chmod", "f.txt", 0o600)], [("chmod", "f.txt", 0o640)], {"f.txt": "base"}),
    "chmod | edit": (F, [("put", "f.txt", "one")], [("chmod", "f.txt", 0o640)], {"f.txt": "one"}),
}
MODES = {"chmod | chmod": 0o640, "chmod | edit": 0o640}


def plain(name):
    return re.sub(r" \(conflict [^()]+ \d+\)", " (conflict)", name)


def shown(root):
    """path -> what is there, with its mode and the names as they are."""
    tree = {}
    for at, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(at, name)
            what = ("->", os.readlink(path)) if os.path.islink(path) else None if os.path.isdir(path) else open(path).read()
            tree[os.path.relpath(path, root)] = (what, oct(os.lstat(path).st_mode))
    return tree


def state_of(root):
    try:
        return shown(root)
    except FileNotFoundError:  # it changes under the walk
        return None


def in_the_end(tree):
    """As the table writes it: two of one plain name become a list."""
    end = {}
    for path in sorted(tree):
        name, what = plain(path), tree[path][0]
        end[name] = sorted([end[name], what]) if name in end else what
    return end


class Link:
    """A client behind a proxy of its own."""

    def __init__(self, world, name):
        port = int(world.server.url.rsplit(":", 1)[1])
        self.proxy = Proxy("127.0.0.1", port).start()
        self.client = Client(world, name)
        world.clients.append(self.client)
        self.dir, self.url = self.client.dir, f"http://127.0.0.1:{self.proxy.port}"
        self.client.login(url=self.url)
        self.remount()

    def remount(self):
        self.client.tarn("mount", f"{self.url}/work", self.dir, "-o", f"cache_dir={self.client.cache}", timeout=120)

    def cut(self):
        self.proxy.command("refuse on")
        self.proxy.command("cut")

    def heal(self):
        self.proxy.command("refuse off")

    def close(self):
        self.client.close()
        self.proxy.stop()


def run_table(world, rows, between=None):
    links = [Link(world, "one"), Link(world, "two")]
    try:
        first, second = links
        names = {row: f"{i:02} " + re.sub("[|,]", "-", row)[:100] for i, row in enumerate(rows)}
        for row, name in names.items():
            (first.dir / name).mkdir()
            do(first.dir / name, rows[row][0])
        first.client.wait()
        until(lambda: state_of(second.dir) == state_of(first.dir), 30, "the second mount shows what is there before")
        for link in links:
            link.cut()
        for row, name in names.items():
            do(first.dir / name, rows[row][1])
            do(second.dir / name, rows[row][2])
        if between:
            between(second)
        for link in links:
            link.heal()
            link.client.wait()
        third = Client(world, "three")
        world.clients.append(third)
        third.mount()
        until(lambda: state_of(first.dir) == state_of(third.dir) and state_of(second.dir) == state_of(third.dir), 30, "all show the same")
        wrong = []
        for row, name in names.items():
            tree = shown(third.dir / name)
            end, want = in_the_end(tree), rows[row][3]
            if want is not None and end != want:
                wrong.append(f"{row}: {end} instead of {want}")
            if row in MODES and tree["f.txt"][1] != oct(0o100000 | MODES[row]):
                wrong.append(f"{row}: mode {tree['f.txt'][1]}")
            if row == "edit | edit, a long name":
                copies = [n for n in tree if "(conflict " in n]
                if len(copies) != 1 or not copies[0].endswith(".text") or len(copies[0].encode()) > 255 or sorted(v[0] for v in tree.values()) != ["one", "two"]:
                    wrong.append(f"{row}: {tree}")
        assert not wrong, "\n".join(wrong)
        for link in links:
            s = link.client.status()
            assert s["pending_items"] == 0 and s["parked"] == [], s
    finally:
        for link in links:
            link.close()


def test_every_row_of_the_table(world):
    run_table(world, ROWS)


def test_every_row_after_a_crash(world):
    """The second one is killed with all of its work pending, and starts without the server."""
    def crash(link):
        link.client.kill()
        link.remount()
    run_table(world, ROWS, crash)


def test_what_is_below_a_merged_directory_is_shown_all_the_time(world):
    """Two mounts make the same directory, and one of them loses the answer to its commit: until it has asked again it does not know that its directory has become the other one, and the
    events already name that one."""
    first, second = Link(world, "one"), Link(world, "two")
    try:
        (first.dir / "before").mkdir()
        until(lambda: (second.dir / "before").is_dir(), 30, "both are connected")
        second.cut()
        until(lambda: second.client.status()["state"] == "offline", 30, "offline")
        put(first.dir / "d" / "e" / "theirs", "1")
        put(second.dir / "d" / "e" / "mine", "2")
        put(second.dir / "d" / "mine" / "deep", "3")
        first.client.wait()
        lost = second.proxy.command("lose_answer 2 POST")["fired"]["lose_answer"]
        second.heal()

        def settled():
            assert (second.dir / "d" / "e" / "mine").read_text() == "2" and (second.dir / "d" / "mine" / "deep").read_text() == "3"
            return (second.dir / "d" / "e" / "theirs").exists() and second.client.status()["pending_items"] == 0
        until(settled, 60, "all is there")
        assert second.proxy.command("counters")["fired"]["lose_answer"] > lost
        until(lambda: state_of(first.dir) == state_of(second.dir), 30, "both show the same")
    finally:
        for link in (first, second):
            link.close()


# ---- tarn conflicts ----

def conflicts(client):
    """Paths of copies -> what the command says of them."""
    def ask():
        answer = json.loads(client.tarn("conflicts", client.dir, "--json").stdout)
        assert answer["mountpoint"] == str(client.dir) and answer["more"] is False
        return (answer["conflicts"],) if client.status()["conflicts"] == len(answer["conflicts"]) else None  # something came in between
    return {c["path"]: c for c in until(ask, 10, "status and list agree")[0]}


def make_conflicts(world, first, second, names):
    for name in names:
        put(first.dir / name, "base")
    first.wait()
    until(lambda: all((second.dir / n).exists() for n in names), 10, "the second one sees them")
    world.server.stop()
    for client in (first, second):
        for name in names:
            (client.dir / name).write_text(f"{client.name} {name}")
    world.server.start()
    for client in (first, second):
        client.wait()
    until(lambda: state_of(first.dir) == state_of(second.dir), 20, "both show the same")


def test_list_and_resolve(world):
    first, second = world.client("one"), world.client("two")
    names = ["mine.txt", "theirs.txt", "both.txt", "renamed.txt", "removed.txt", "sub/deep.txt", "saved.txt"]
    assert conflicts(first) == {}
    assert "0 conflicts" in first.tarn("conflicts").stdout
    make_conflicts(world, first, second, names)
    listed = conflicts(first)
    copy_of = {c["original"]["path"]: path for path, c in listed.items()}
    assert sorted(copy_of) == sorted(names)
    for name, copy in copy_of.items():
        c, there = listed[copy], listed[copy]["original"]
        assert plain(copy) == name.replace(".txt", " (conflict).txt")
        assert c["size"] == (first.dir / copy).stat().st_size and there["size"] == (first.dir / name).stat().st_size
        assert c["mtime_ns"] == (first.dir / copy).stat().st_mtime_ns and c["kind"] == there["kind"] == "file"
        assert c["host"] in copy and c["version"] != there["version"] == c["first_version"] and not c["pending"] and not there["pending"]
        assert sorted([(first.dir / copy).read_text(), (first.dir / name).read_text()]) == [f"one {name}", f"two {name}"]
        assert not any(x.startswith("user.tarn") for x in os.listxattr(first.dir / copy))
    text = first.tarn("conflicts", first.dir).stdout
    assert "7 conflicts" in text and copy_of["sub/deep.txt"] in text and "7 copies" in first.tarn("status", first.dir).stdout
    # the other one, one that was not there, and after a crash
    third = world.client("three")
    second.kill()
    second.mount()
    for client in (second, third):
        assert {p: (c["version"], c["original"]["path"], c["host"]) for p, c in conflicts(client).items()} == {p: (c["version"], c["original"]["path"], c["host"]) for p, c in listed.items()}
    # mine: a new version of the original, which keeps its inode number elsewhere and its history on the server
    mine, ino = (first.dir / copy_of["mine.txt"]).read_text(), (second.dir / "mine.txt").stat().st_ino
    first.tarn("conflicts", "resolve", first.dir / "mine.txt", "--keep", "mine")
    assert (first.dir / "mine.txt").read_text() == mine and not (first.dir / copy_of["mine.txt"]).exists()
    until(lambda: (second.dir / "mine.txt").read_text() == mine and not (second.dir / copy_of["mine.txt"]).exists(), 10)
    assert (second.dir / "mine.txt").stat().st_ino == ino
    first.wait()
    token = world.server.token("anna")
    history = json.loads(urlopen(Request(f"{world.server.url}/v1/workspaces/work/versions?path=mine.txt", headers={"Authorization": f"Bearer {token}"})).read())
    assert len(history["versions"]) == 3, history
    # theirs, in the other mount; named by the copy
    theirs = (second.dir / "theirs.txt").read_text()
    second.tarn("conflicts", "resolve", second.dir / copy_of["theirs.txt"], "--keep", "theirs")
    assert (second.dir / "theirs.txt").read_text() == theirs and not (second.dir / copy_of["theirs.txt"]).exists()
    # both
    first.tarn("conflicts", "resolve", first.dir / copy_of["both.txt"], "--keep", "both")
    assert (first.dir / copy_of["both.txt"]).exists() and (first.dir / "both.txt").exists()
    # by hand
    os.rename(first.dir / copy_of["renamed.txt"], first.dir / "other.txt")
    (first.dir / copy_of["removed.txt"]).unlink()
    # an editor that saves the copy decides nothing
    save(first.dir / copy_of["saved.txt"], "edited")
    left = sorted([copy_of["sub/deep.txt"], copy_of["saved.txt"]])
    for client in (first, second, third):
        until(lambda: sorted(conflicts(client)) == left, 10, "what is left is listed everywhere")
    # offline, too
    until(lambda: (third.dir / copy_of["saved.txt"]).read_text() == "edited", 10, "its bytes are in the cache")
    world.server.stop()
    third.tarn("conflicts", "resolve", third.dir / "sub" / "deep.txt", "--keep", "mine")
    third.tarn("conflicts", "resolve", third.dir / "saved.txt", "--keep", "mine")
    assert conflicts(third) == {} and (third.dir / "saved.txt").read_text() == "edited"
    world.server.start()
    third.wait()
    for client in (first, second):
        until(lambda: conflicts(client) == {} and (client.dir / "saved.txt").read_text() == "edited", 10)
    until(lambda: state_of(first.dir) == state_of(third.dir) and state_of(second.dir) == state_of(third.dir), 20, "all show the same")


def test_conflicts_bad_input(world):
    first, second = world.client("one"), world.client("two")
    make_conflicts(world, first, second, ["f"])
    (copy,) = conflicts(first)

    def refused(code, says, *argv):
        p = first.tarn("conflicts", *argv, check=False)
        assert p.returncode == EXIT[code] and says in p.stderr and p.stderr.count("\n") == 1, (argv, p.returncode, p.stderr)
    put(first.dir / "plain", "x")
    refused("other", "is not in conflict", "resolve", first.dir / "plain", "--keep", "mine")
    refused("other", "is not in conflict", "resolve", first.dir / "absent", "--keep", "mine")
    refused("usage", "say what to keep", "resolve", first.dir / "f")
    refused("usage", "say what to keep", "resolve", first.dir / "f", "--keep", "all")
    refused("usage", "the mount point itself", "resolve", first.dir, "--keep", "mine")
    refused("usage", "", "resolve", "--keep", "mine")
    refused("not_mounted", "not a mount", "resolve", "/tmp/x", "--keep", "mine")
    refused("not_mounted", "not a mount", "/tmp")
    refused("usage", "", "--nonsense")
    assert sorted(conflicts(first)) == [copy]
    # a second copy of the same file: one has to be named
    world.server.stop()
    for client in (first, second):
        (client.dir / "f").write_text(f"again {client.name}")
    world.server.start()
    for client in (first, second):
        client.wait()
    until(lambda: len(conflicts(first)) == 2, 10)
    refused("usage", "several conflict copies", "resolve", first.dir / "f", "--keep", "mine")
    for path in conflicts(first):
        first.tarn("conflicts", "resolve", first.dir / path, "--keep", "theirs")
    # the original is gone: the copy gets its name back. A directory is for people
    world.server.stop()
    put(first.dir / "d", "file")
    (second.dir / "d").mkdir()
    (first.dir / "f").write_text("1")
    (second.dir / "f").write_text("2")
    world.server.start()
    for client in (first, second):
        client.wait()
    until(lambda: len(conflicts(first)) == 2, 10)
    refused("other", "a directory is part", "resolve", first.dir / "d", "--keep", "mine")
    first.tarn("conflicts", "resolve", first.dir / "d", "--keep", "both")
    copies = [p for p in conflicts(first) if p.startswith("f")]
    (first.dir / "f").unlink()
    assert conflicts(first)[copies[0]]["original"] is None
    first.tarn("conflicts", "resolve", first.dir / copies[0], "--keep", "mine")
    assert (first.dir / "f").read_text() in "12" and conflicts(first) == {}
    first.umount()
    refused("not_mounted", "not a mount", "resolve", first.dir / "f", "--keep", "mine")


def test_a_directory_that_comes_back_while_something_in_it_is_open(world):
    """It was removed here, in both ways, but not empty on the server. What is open in it keeps the kernel's old inode, which nobody can enter any more: names must lead to another one."""
    link, b = Link(world, "one"), world.client("two")
    try:
        for name in ("removed", "replaced", "other"):
            (link.dir / name).mkdir()
        held = [os.open(link.dir / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("removed", "replaced")]
        for name in ("removed", "replaced"):
            put(link.dir / name / "open", "x")
            held.append(os.open(link.dir / name / "open", os.O_RDONLY))
            (link.dir / name / "open").unlink()
        world.caught_up(link.client, b)
        inodes = [os.fstat(fd).st_ino for fd in held]
        link.cut()
        (link.dir / "removed").rmdir()
        os.rename(link.dir / "other", link.dir / "replaced")
        assert [os.fstat(fd).st_ino for fd in held] == inodes
        for name in ("removed", "replaced"):
            put(b.dir / name / "new", name)
        b.wait()
        link.heal()
        world.caught_up(link.client, b)
        soon(lambda: assert_same_tree(link.dir, b.dir, dir_times=False))
        assert (link.dir / "removed" / "new").read_text() == "removed"
        for at, dirs, _ in list(os.walk(link.dir)):
            assert sorted(os.listdir(at)) == sorted(os.listdir(b.dir / os.path.relpath(at, link.dir)))
            put(Path(at) / "more", "made here")
        assert [os.fstat(fd).st_ino for fd in held] == inodes
        world.caught_up(link.client, b)
        soon(lambda: assert_same_tree(link.dir, b.dir, dir_times=False))
    finally:
        for fd in held:
            os.close(fd)
        link.close()
