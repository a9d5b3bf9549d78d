# SPDX-License-Identifier: Apache-2.0
"""The trash: what was deleted is listed, comes back, and is forgotten; the database stays right all the while. Members."""
import json
import os
import random

import pytest
from support import PASSWORD, SCALE, Server, run

WS = "/v1/workspaces/w"


def fsck(s, *options):
    done = run("fsck", "--json", *options, data=s.data, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def trash(s, query=""):
    items, before = [], ""
    while True:
        status, _, body = s.call("GET", f"{WS}/trash?limit=50{query}{before}")
        assert status == 200, body
        page = json.loads(body)
        items += page["items"]
        if "before" not in page:
            return items
        before = f"&before={page['before']}"


def restore(s, **what):
    key = what.pop("key", None)
    total = {"restored": 0, "merged": 0, "left": 0}
    while True:
        status, _, body = s.call("POST", WS + "/trash/restore", body=json.dumps(what), headers={"Idempotency-Key": key} if key else None)
        assert status == 200, body
        page = json.loads(body)
        for k in total:
            total[k] += page[k]
        if "before" not in page:
            return total
        what["before"] = page["before"]


def remove_tree(s, top):
    """What `rm -rf` sends: child first, one operation each."""
    listing = json.loads(s.get(top)[2])
    for e in listing["entries"]:
        if e["kind"] == "dir":
            remove_tree(s, f"{top}/{e['name']}")
        else:
            assert s.call("DELETE", s.file(f"{top}/{e['name']}"))[0] == 204
    assert s.call("DELETE", s.file(top))[0] == 204


def make_tree(s, top, n, seed=1):
    rng = random.Random(seed)
    files = {f"{top}/d{rng.randrange(4)}/e{rng.randrange(3)}/f{i}": rng.randbytes(rng.choice([0, 20, 5000])) for i in range(n)}
    for name, data in files.items():
        assert s.put(name, data)[0] == 201
    return files


def same(s, files):
    for name, data in files.items():
        status, _, body = s.get(name)
        assert (status, body) == (200, data), name


def test_a_deleted_tree_comes_back_with_one_request():
    with Server() as s:
        kept = make_tree(s, "kept", 20)
        files = make_tree(s, "top/project", int(200 * SCALE))
        versions = json.loads(s.call("GET", f"{WS}/versions?path={next(iter(files))}")[2])["versions"]
        s.put("early", b"1")
        s.call("DELETE", s.file("early"))
        remove_tree(s, "top/project")
        assert s.get("top/project")[0] == 404
        items = trash(s)
        assert {i["path"] for i in items} >= set(files) | {"early", "top/project"}
        assert [i["seq"] for i in items] == sorted((i["seq"] for i in items), reverse=True) and items[0]["path"] == "top/project" and items[0]["actor"] == "ann"
        assert {i["path"] for i in trash(s, "&path=early")} == {"early"} and trash(s, "&until_s=3600") == []
        got = restore(s, path="top/project")
        assert got["restored"] >= len(files) and got["left"] == 0
        same(s, {**files, **kept})
        assert s.get("early")[0] == 404
        assert json.loads(s.call("GET", f"{WS}/versions?path={next(iter(files))}")[2])["versions"] == versions  # the same node, with its history
        assert restore(s, path="top/project") == {"restored": 0, "merged": 0, "left": 0}
        assert [i["path"] for i in trash(s)] == ["early"]
        fsck(s)


def test_by_time_by_node_and_repeated():
    with Server() as s:
        files = make_tree(s, "a", 30)
        remove_tree(s, "a")
        first = restore(s, since_s=3600, key="k")
        again = restore(s, since_s=3600, key="k")
        assert first["restored"] >= 30 and again == {"restored": 0, "merged": 0, "left": 0}
        same(s, files)
        name = next(iter(files))
        node = json.loads(s.call("GET", f"{WS}/versions?path={name}")[2])["node"]
        s.call("DELETE", s.file(name))
        assert restore(s, node=node)["restored"] == 1
        same(s, files)
        assert restore(s, node="9" * 32)["restored"] == 0
        events = json.loads(s.call("GET", f"/v1/events?cursor=w:{json.loads(s.call('GET', WS)[2])['epoch']}:0:{'0' * 16}&limit=1000", headers={"Accept": "application/json"})[2])
        seqs = [e["seq"] for e in events["workspaces"][0]["events"]]
        assert seqs == list(range(1, len(seqs) + 1))
        fsck(s)


def test_names_that_are_taken():
    with Server() as s:
        s.put("d/f", b"old")
        s.put("d/same", b"equal")
        remove_tree(s, "d")
        s.put("d/f", b"new")
        s.put("d/same", b"equal")
        got = restore(s, since_s=3600)
        assert got["left"] == 0 and got["merged"] >= 1
        names = {e["name"] for e in json.loads(s.get("d")[2])["entries"]}
        assert names == {"f", "f (restored 1)", "same"}
        assert s.get("d/f")[2] == b"new" and s.get("d/f (restored 1)")[2] == b"old"
        fsck(s)


def test_purge_gives_the_quota_back_and_nothing_else():
    rng = random.Random(3)
    with Server() as s:
        used = lambda: json.loads(s.call("GET", WS)[2])["used_bytes"]
        big = rng.randbytes(4_000_000)
        s.put("keep", big)
        s.put("gone", big)  # the same blocks
        s.put("gone", big[:2_000_000] + b"edit" + big[2_000_000:])
        s.put("gone", b"one block after a list")
        s.put("other", rng.randbytes(1_000_000))
        before = used()
        s.call("DELETE", s.file("gone"))
        s.call("DELETE", s.file("other"))
        assert used() == before
        status, _, body = s.call("DELETE", WS + "/trash")
        done = json.loads(body)
        assert status == 200 and done["purged"] == 2 and done["released_bytes"] == before - used() > 1_000_000
        fsck(s)
        assert trash(s) == [] and restore(s, since_s=3600)["restored"] == 0
        assert s.get("keep")[2] == big
        gc = json.loads(run("gc", "--min-age", "0", "--json", data=s.data).stdout)
        assert gc["objects_removed"] >= 1
        fsck(s)
        assert s.get("keep")[2] == big
        # a year later
        s.put("late", b"x")
        s.call("DELETE", s.file("late"))
        assert json.loads(run("gc", "--trash-age", "1d", "--json", data=s.data).stdout)["trash_purged"] == 0
        assert json.loads(run("gc", "--trash-age", "1s", "--dry-run", "--json", data=s.data).stdout)["trash_purged"] in (0, 1)
        s.stop()
        fsck(s)


def test_rights():
    with Server(users=("ann", "bob")) as s:
        bob = json.loads(s.call("POST", "/v1/login", body=json.dumps({"user": "bob", "password": PASSWORD, "device": "d"}), token=False)[2])["token"]
        s.put("f", b"x")
        s.call("DELETE", s.file("f"))
        assert s.call("GET", WS + "/trash", token=bob)[0] == 404
        assert s.call("PUT", WS + "/members/bob", body=b'{"role": "viewer"}')[0] == 200
        assert s.call("GET", WS + "/trash", token=bob)[0] == 200
        assert s.call("POST", WS + "/trash/restore", body=b'{"path": "f"}', token=bob)[0] == 403
        assert s.call("PUT", WS + "/members/bob", body=b'{"role": "editor"}')[0] == 200
        assert s.call("DELETE", WS + "/trash", token=bob)[0] == 403
        assert s.call("PUT", WS + "/members/bob", body=b'{"role": "owner"}', token=bob)[0] == 403
        assert s.call("POST", WS + "/trash/restore", body=b'{"path": "f"}', token=bob)[0] == 200 and s.get("f")[2] == b"x"
        assert json.loads(s.call("GET", WS + "/members", token=bob)[2])["members"] == [{"user": "ann", "role": "owner"}, {"user": "bob", "role": "editor"}]
        assert s.call("DELETE", WS + "/members/bob")[0] == 204 and s.call("GET", WS, token=bob)[0] == 404


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", "-rs", __file__]))
