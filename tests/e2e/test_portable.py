# SPDX-License-Identifier: Apache-2.0
"""A workspace of portable names: what Windows or macOS cannot carry is refused, and so is a second name that is the same one there, by the server and on the mount."""
import errno
import json
import os
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest
from support import facts, soon, until

NFC, NFD = "\u00e9t\u00e9", "e\u0301te\u0301"
BAD = ["a:b", "what?", "end.", "end ", "CON", "nul.txt", "a\\b", "tab\t", "new\u0378"]


def request(world, method, path, body=None):
    """Status and answer of a request for a path of the workspace."""
    token = world.server.known_token = world.server.known_token or world.server.token("anna")
    q = urllib.request.Request(f"{world.server.direct}/v1/workspaces/p/files/{quote(path)}", data=body, method=method, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(q, timeout=30) as f:
            return f.status, f.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def refused(number, call, *args, **kw):
    with pytest.raises(OSError) as e:
        call(*args, **kw)
    assert e.value.errno == number, e.value


def create(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def test_portable_names(world):
    world.server.admin("workspace", "add", "p", "--owner", "anna", "--portable-names")
    assert request(world, "PUT", "d/README.md", b"1")[0] == 201
    # the server
    for name in BAD:
        status, body = request(world, "PUT", name, b"x")
        assert (status, json.loads(body)["code"]) == (400, "NAME_INVALID") and "Windows" in json.loads(body)["message"], name
    for name in ("d/readme.md", "D/x", "d/Readme.MD"):
        status, body = request(world, "PUT", name, b"x")
        assert (status, json.loads(body)["code"]) == (409, "CONFLICT"), (name, body)
    assert request(world, "PUT", "d/README.md", b"2")[0] == 200 and request(world, "GET", "d/readme.md")[0] == 404
    assert request(world, "PUT", NFC, b"3")[0] == 201 and request(world, "PUT", NFD, b"x")[0] == 409
    # the mount: the same, at once
    a, b = world.client(mount=False), world.client(mount=False)
    a.mount("p")
    d = a.dir / "d"
    for name in BAD:
        refused(errno.EINVAL, create, a.dir / name)
        refused(errno.EINVAL, os.mkdir, a.dir / name)
        refused(errno.EINVAL, os.rename, d / "README.md", d / name)
    for call in (create, os.mkdir, os.mkfifo, lambda p: os.symlink("x", p), lambda p: os.link(d / "README.md", p)):
        refused(errno.EEXIST, call, d / "Readme.md")
        refused(errno.EEXIST, call, a.dir / NFD)
    (d / "other").write_text("other")
    refused(errno.EEXIST, os.rename, d / "other", d / "readme.md")
    # the same file may be written otherwise, and comes to the server
    os.rename(d / "README.md", d / "Readme.md")
    os.rename(a.dir / NFC, a.dir / NFD)
    os.rename(d / "other", d / "Readme.md")  # over the very name: as anywhere
    a.wait()
    assert sorted(os.listdir(d)) == ["Readme.md"] and request(world, "GET", "d/Readme.md") == (200, b"other") and request(world, "GET", NFD)[0] == 200
    assert not a.status()["parked"]
    # what is deleted is no obstacle, and comes back only if its name is free
    os.unlink(d / "Readme.md")
    (d / "README.MD").write_text("new")
    a.wait()
    assert request(world, "GET", "d/README.MD")[0] == 200
    # two clients want one name: the second gets a conflict name
    b.mount("p")
    world.server.stop()
    (d / "same").write_text("a")
    (a.dir / "dir").mkdir()
    (a.dir / "dir" / "in").write_text("a")
    (b.dir / "d" / "Same").write_text("b")
    (b.dir / "Dir").mkdir()
    (b.dir / "Dir" / "in").write_text("b")
    world.server.start()
    a.wait()
    b.wait()
    until(lambda: a.status()["cursor"] == b.status()["cursor"], 30, "both have seen what the other one made")

    def equal():
        assert facts(a.dir, False) == facts(b.dir, False)  # refused names: the times of directories may differ by ms

    soon(equal)
    assert sorted(p.read_text() for p in d.iterdir() if p.name.lower().startswith("same")) == ["a", "b"]
    assert sorted((p / "in").read_text() for p in a.dir.iterdir() if p.name.lower().startswith("dir")) == ["a", "b"]
    assert sum("(conflict " in p.name for p in [*d.iterdir(), *a.dir.iterdir()]) == 2 and not a.status()["parked"] and not b.status()["parked"]
    # known to a start without the server, too
    a.tarn("umount", a.dir)
    world.server.stop()
    a.mount("p")
    refused(errno.EEXIST, create, d / "SAME")
    refused(errno.EINVAL, create, d / "a|b")
    world.server.start()
    # an exact one does not care
    c = world.client()
    for name in ("a", "A", "a:b", "CON"):
        create(c.dir / name)
    c.wait()
    assert not c.status()["parked"]
    assert "problems_left: 0" in world.server.admin("fsck").stdout
