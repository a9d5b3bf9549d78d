# SPDX-License-Identifier: Apache-2.0
"""Every kind of change is applied exactly once, whatever happens to its request: the answer is lost after the server committed, the request is lost before the server sees it, it
arrives twice, it is refused with 503. What counts is the server's sequence number: one change, one event. Then a few schedules, written out, that put such faults into an order that hurts."""
import hashlib
import http.client
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402
from support import Client, assert_same_tree, soon, until  # noqa: E402

FAULTS = ("lose_answer", "drop", "duplicate")
BIG = 3 << 20  # more than goes inline: asked for, put in packs, then committed


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def exchange(d):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, os.fsencode(d / "x"), -100, os.fsencode(d / "y"), 2) == 0, os.strerror(ctypes.get_errno())


def save(d):
    write(d / "f.tmp", "saved")
    os.rename(d / "f.tmp", d / "f")


# kind: (what is there before, the change, events that it makes, what is there after)
KINDS = {
    "create": ({}, lambda d: write(d / "n", "new"), 1, {"n": "new"}),
    "mkdir": ({}, lambda d: (d / "n").mkdir(), 1, {"n": None}),
    "symlink": ({}, lambda d: os.symlink("t", d / "n"), 1, {"n": ("->", "t")}),
    "content": ({"f": "old"}, lambda d: write(d / "f", "newer"), 1, {"f": "newer"}),
    "attributes": ({"f": "old"}, lambda d: (d / "f").chmod(0o600), 1, {"f": "old"}),
    "link": ({"f": "old"}, lambda d: os.link(d / "f", d / "g"), 1, {"f": "old", "g": "old"}),
    "unlink": ({"f": "old", "g": "x"}, lambda d: (d / "f").unlink(), 1, {"g": "x"}),
    "rename": ({"f": "old"}, lambda d: os.rename(d / "f", d / "g"), 1, {"g": "old"}),
    "rename over": ({"f": "old", "g": "x"}, lambda d: os.rename(d / "f", d / "g"), 1, {"g": "old"}),
    "exchange": ({"x": "1", "y": "2"}, exchange, 1, {"x": "2", "y": "1"}),
    "replace": ({"f": "old"}, save, 1, {"f": "saved"}),
    "packed put": ({}, lambda d: write(d / "n", os.urandom(BIG)), 1, {"n": BIG}),
}


def shown(d):
    def what(p):
        if p.is_symlink():
            return ("->", os.readlink(p))
        if p.is_dir():
            return None
        data = p.read_bytes()
        return len(data) if len(data) == BIG else data.decode()
    return {p.name: what(p) for p in d.iterdir()}


class Link:
    def __init__(self, world, options=""):
        self.proxy = Proxy("127.0.0.1", int(world.server.url.rsplit(":", 1)[1])).start()
        self.client = Client(world, "behind")
        world.clients.append(self.client)
        url = f"http://127.0.0.1:{self.proxy.port}"
        self.client.login(url=url)
        self.client.tarn("mount", f"{url}/work", self.client.dir, "-o", ",".join(filter(None, [f"cache_dir={self.client.cache}", options])), timeout=120)

    def close(self):
        self.client.close()
        self.proxy.stop()


def seq(client):
    return client.status()["cursor"]["seq"]


def settled(a, b):
    """All of a's work is committed, and both have seen it: the sequence number."""
    a.wait()
    return until(lambda: seq(a) if seq(a) == seq(b) else 0, 20, "both have seen every event")


def test_each_kind_once(world):
    link, b = Link(world), world.client("direct")
    a = link.client
    try:
        rows = [(kind, fault, f"{kind} {fault}") for kind in KINDS for fault in FAULTS]
        for kind, fault, name in rows:
            (a.dir / name).mkdir()
            for file, text in KINDS[kind][0].items():
                write(a.dir / name / file, text)
        at = settled(a, b)
        wrong = []
        for kind, fault, name in rows:
            fired = link.proxy.command(f"{fault} 1 POST")["fired"][fault]
            KINDS[kind][1](a.dir / name)
            until(lambda: link.proxy.command("counters")["fired"][fault] == fired + 1, 20, f"{name}: the fault")
            now = settled(a, b)
            if now != at + KINDS[kind][2]:
                wrong.append(f"{name}: {now - at} events")
            if shown(b.dir / name) != KINDS[kind][3]:
                wrong.append(f"{name}: {shown(b.dir / name)}")
            at = now
        assert not wrong, "\n".join(wrong)
        assert settled(a, b) == at  # duplicates that came late changed nothing
        s = a.status()
        assert s["parked"] == [] and s["counters"]["conflicts"] == 0, s
        assert sorted(p.name for p in a.dir.iterdir()) == sorted(name for _, _, name in rows)
    finally:
        link.close()


# ---- the API for curl and scripts ----

class Api:
    def __init__(self, world, port):
        self.port, self.token = port, world.server.token("anna")

    def __call__(self, method, path, body=None, **headers):
        """(status, answer, headers), or None if the connection broke."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        h = {"Authorization": f"Bearer {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        try:
            c.request(method, f"/v1/workspaces/work/{path}", body, h)
            r = c.getresponse()
            data = r.read()
            return r.status, json.loads(data) if data[:1] == b"{" else data, dict(r.getheaders())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            c.close()


@pytest.mark.parametrize("fault", ("lose_answer", "drop", "duplicate"))
def test_whole_files_once(world, fault):
    with Proxy("127.0.0.1", int(world.server.url.rsplit(":", 1)[1])) as proxy:
        api, direct = Api(world, proxy.port), Api(world, int(world.server.url.rsplit(":", 1)[1]))

        def twice(method, path, body=None, **headers):
            """The request with a fault, then until it is answered, as a careful script does it."""
            proxy.command(f"{fault} 1 {method}")
            answer = api(method, path, body, **headers)
            assert (answer is None) == (fault != "duplicate") and proxy.command("counters")["fired"][fault] > 0
            again = api(method, path, body, **headers)
            assert answer is None or (answer[0], answer[1]) == (again[0], again[1]), (answer, again)
            return again

        def versions(path):
            return [v["version"] for v in direct("GET", f"versions?path={path}")[1]["versions"]]

        status, made, head = twice("PUT", "files/f", b"one", Idempotency_Key="k1")
        assert status == 201 and len(versions("f")) == 1, made
        # a condition that the request itself makes untrue
        status, _, after = twice("PUT", "files/f", b"two", Idempotency_Key="k2", If_Match=head["ETag"])
        assert status == 200 and len(versions("f")) == 2
        assert api("PUT", "files/f", b"three", Idempotency_Key="k3", If_Match=head["ETag"])[0] == 412 and len(versions("f")) == 2
        assert api("PUT", "files/f", b"three", If_Match=head["ETag"])[0] == 412
        status, _, _ = twice("PUT", "files/g", b"new", Idempotency_Key="k4", If_None_Match="*")
        assert status == 201
        # later changes of others do not matter to a retry; and it undoes nothing
        assert direct("PUT", "files/f", b"other")[0] == 200
        assert api("PUT", "files/f", b"two", Idempotency_Key="k2", If_Match=head["ETag"])[0] == 200
        assert direct("GET", "files/f")[1] == b"other" and len(versions("f")) == 3
        # the same key for something else
        for path, body, more in (("files/f", b"TWO", {"If_Match": head["ETag"]}), ("files/f", b"two", {}), ("files/h", b"two", {"If_Match": head["ETag"]}), ("files/f", b"two", {"If_Match": after["ETag"]})):
            status, error, _ = api("PUT", path, body, Idempotency_Key="k2", **more)
            assert (status, error["code"]) == (409, "OPERATION_ID_REUSED"), (path, body, more)
        assert len(versions("f")) == 3
        # restore, delete
        first = versions("f")[-1]
        status, _, _ = twice("POST", "restore?path=f", json.dumps({"version": first}).encode(), Idempotency_Key="k5", Content_Type="application/json")
        assert status == 200 and len(versions("f")) == 4 and direct("GET", "files/f")[1] == b"one"
        etag = direct("GET", "files/f")[2]["ETag"]
        assert twice("DELETE", "files/f", Idempotency_Key="k6", If_Match=etag)[0] == 204
        assert direct("PUT", "files/f", b"again")[0] == 201
        assert api("DELETE", "files/f", Idempotency_Key="k6", If_Match=etag)[0] == 204  # was done; this is another file
        assert direct("GET", "files/f")[1] == b"again"
        assert api("DELETE", "files/g", Idempotency_Key="k6", If_Match=etag)[0] == 409
        assert twice("DELETE", "files/g", Idempotency_Key="k7")[0] == 204


# ---- schedules: faults in an order that hurts ----

@pytest.fixture
def pair(world):
    """A client behind a bad line, the line, and one that is not."""
    link = Link(world)
    try:
        yield link.client, link.proxy, world.client("direct")
    finally:
        link.close()


def unheard(line, b):
    """From now on what is asked for is done, but no answer to it comes back, and no event. The poll under way still gets one; nothing has failed before the first answer that is lost."""
    lost = line.command("lose_answer 100000")["fired"]["lose_answer"]
    (b.dir / "f").chmod(0o600)
    until(lambda: line.command("counters")["fired"]["lose_answer"] > lost, 20, "the next poll")


def away(line):
    for command in ("refuse on", "cut", "lose_answer 0"):
        line.command(command)


def back(client, line):
    line.command("refuse off")
    client.ask(cmd="nudge")


def contents(d):
    return {p.name: p.read_text() for p in d.iterdir() if p.is_file()}


def history(world, name):
    """The sizes of all versions of the file that has this name, oldest first."""
    node = world.server.rows(f"SELECT hex(node) FROM entry WHERE name = CAST('{name}' AS BLOB)")[0][0]
    rows = [r for t in ("node", "revision") for r in world.server.rows(f"SELECT seq, hex(version), size FROM {t} WHERE hex(id) = '{node}'")]
    return list({version: size for _, version, size in sorted(rows)}.values())


def once(world):
    """No operation has two events."""
    return world.server.rows("SELECT op FROM event GROUP BY op HAVING COUNT(*) > 1") == []


@pytest.mark.parametrize("lost_again", (0, 1, 3))
def test_changed_on_both_sides_before_the_answer(world, pair, lost_again):
    """The server has an edit whose answer is lost; it is edited and renamed there, and edited and renamed otherwise here. Then the answers to those are lost, too."""
    a, line, b = pair
    write(a.dir / "f", "1")
    settled(a, b)
    unheard(line, b)
    write(a.dir / "f", "22")
    until(lambda: (b.dir / "f").read_text() == "22", 20, "it was done")
    away(line)
    write(b.dir / "f", "333")
    os.rename(b.dir / "f", b.dir / "there")
    b.wait()
    write(a.dir / "f", "4444")
    os.rename(a.dir / "f", a.dir / "here")
    assert contents(a.dir) == {"here": "4444"}
    lost = line.command("counters")["answers_lost"]
    line.command(f"lose_answer {lost_again} POST")
    back(a, line)
    settled(a, b)
    assert line.command("counters")["answers_lost"] == lost + lost_again
    soon(lambda: assert_same_tree(a.dir, b.dir, dir_times=False))
    shows = contents(b.dir)
    assert shows.pop("there") == "333" and list(shows.values()) == ["4444"] and "(conflict " in next(iter(shows)), shows
    assert history(world, "there") == [1, 2, 3] and once(world)
    assert a.status()["counters"]["conflicts"] == 1 and not a.status()["parked"]


def test_requests_that_come_late_again(world, pair):
    """All that a client asked for reaches the server once more, in the old order, when everything has changed since."""
    a, line, b = pair
    line.command("keep 100000 POST")
    write(a.dir / "f", "1")
    (a.dir / "d").mkdir()
    write(a.dir / "gone", "x")
    write(a.dir / "big", os.urandom(BIG))
    a.wait()
    write(a.dir / "f", "22")
    a.wait()
    os.rename(a.dir / "f", a.dir / "d" / "f")
    os.unlink(a.dir / "gone")
    os.link(a.dir / "d" / "f", a.dir / "second")
    a.wait()
    line.command("keep 0")
    write(a.dir / "f", "another f")
    write(a.dir / "gone", "another one")
    settled(a, b)
    write(b.dir / "d" / "f", "333")
    os.unlink(b.dir / "second")
    os.rename(b.dir / "big", b.dir / "d" / "f2")
    write(b.dir / "d" / "f2", "short")
    b.wait()
    at = settled(b, a)
    late = line.command("replay")["statuses"]
    assert len(late) >= 4 and set(late) == {200}, late
    assert settled(a, b) == at and once(world)
    for c in (a, b):
        soon(lambda: seen(c) == {"f": "another f", "gone": "another one", "d/f": "333", "d/f2": "short"})
    assert history(world, "f2") == [BIG, 5]
    assert not a.status()["parked"] and a.status()["counters"]["conflicts"] == 0


def seen(c):
    return {str(p.relative_to(c.dir)): p.read_text() for p in c.dir.rglob("*") if p.is_file()}


def test_events_forgotten_before_the_answer(world, pair):
    """The answers are lost, and the events with them: the server does not have these any more when the client asks (410)."""
    a, line, b = pair
    for name in ("f", "g", "h"):
        write(a.dir / name, "1")
    at = settled(a, b)
    unheard(line, b)
    write(a.dir / "f", "22")
    until(lambda: (b.dir / "f").read_text() == "22", 20, "it was done")
    away(line)
    os.rename(a.dir / "f", a.dir / "here")   # waits behind what is unanswered
    write(a.dir / "g", "4444")
    write(a.dir / "new", "of a")
    os.unlink(b.dir / "h")
    write(b.dir / "g", "333")
    for i in range(5):
        write(b.dir / f"n{i}", "of b")
        b.wait()
    world.server.admin("gc", "--keep-events", "2")
    assert world.server.rows("SELECT horizon FROM workspace")[0][0] > at + 1
    back(a, line)
    settled(a, b)
    soon(lambda: assert_same_tree(a.dir, b.dir, dir_times=False))
    shows = contents(b.dir)
    copy = [name for name in shows if "(conflict " in name]
    assert len(copy) == 1 and shows.pop(copy[0]) == "4444", shows
    assert shows == {"here": "22", "g": "333", "new": "of a", **{f"n{i}": "of b" for i in range(5)}}
    assert history(world, "here") == [1, 2] and once(world) and not a.status()["parked"]


@pytest.mark.parametrize("code, word, path", ((410, "CURSOR_GONE", "/events"), (409, "CONFLICT", "/commit"), (409, "BLOCKS_MISSING", "/commit")))
def test_refused_in_between(world, pair, code, word, path):
    """A strange refusal of the whole request comes instead of the answer to what was already done."""
    a, line, b = pair
    write(a.dir / "f", "1")
    settled(a, b)
    unheard(line, b)
    write(a.dir / "f", "22")
    until(lambda: (b.dir / "f").read_text() == "22", 20, "it was done")
    away(line)
    write(a.dir / "f", "4444")
    write(a.dir / "g", "new")
    fired = line.command(f"status 1 {code} {path} {word}")["fired"]["status"]
    back(a, line)
    until(lambda: line.command("counters")["fired"]["status"] > fired, 20, "it was refused")
    until(lambda: a.tarn("retry", a.dir) and not a.status()["pending_items"] and seq(a) == seq(b), 40, "both have all")
    for c in (a, b):
        soon(lambda: seen(c) == {"f": "4444", "g": "new"})
    assert history(world, "f") == [1, 2, 4] and once(world) and not a.status()["parked"] and a.status()["counters"]["conflicts"] == 0


@pytest.mark.parametrize("how", ("in place", "rename"))
def test_a_stalled_upload_and_a_newer_save(world, pair, how):
    """A large content is stuck on its way when a newer one is saved; its bytes come late."""
    a, line, b = pair
    write(a.dir / "f", "1")
    settled(a, b)
    line.command("stall_body 1 1000000")
    write(a.dir / "f", os.urandom(BIG))
    until(lambda: line.command("counters")["stalled"] == 1, 30, "the upload hangs")
    if how == "rename":
        write(a.dir / "f.tmp", "newer")
        os.rename(a.dir / "f.tmp", a.dir / "f")
    else:
        write(a.dir / "f", "newer")
    until(lambda: (b.dir / "f").read_bytes() == b"newer", 90, "the newer one is not held up")
    line.command("stall_body 0")
    settled(a, b)
    for c in (a, b):
        assert seen(c) == {"f": "newer"}
    assert history(world, "f") in ([1, 5], [1, BIG, 5]) and once(world) and a.status()["counters"]["conflicts"] == 0


def test_cut_again_and_again_in_an_upload_session(world):
    """A file that is larger than the room for it is sent while it is written; the line is cut every few MiB."""
    link = Link(world, "cache_size=32M")
    a, line, b = link.client, link.proxy, world.client("direct")
    size, sum_, cuts, at = 96 << 20, hashlib.sha256(), 0, 0
    try:
        with open(a.dir / "big", "wb", buffering=0) as f:
            for _ in range(size >> 20):
                piece = os.urandom(1 << 20)
                sum_.update(piece)
                assert f.write(piece) == len(piece)
                up = line.command("counters")["bytes_up"]
                if up > at + (6 << 20):
                    at = up
                    cuts += line.command("cut")["fired"]["cut"] > 0
            sessions = world.server.rows("SELECT COUNT(*) FROM upload_session")[0][0]
        assert cuts >= 3 and sessions == 1, (cuts, sessions)
        a.wait(120)
        until(lambda: seq(a) == seq(b), 20, "both have all")
        with open(b.dir / "big", "rb") as f:
            assert hashlib.file_digest(f, "sha256").digest() == sum_.digest()
        assert history(world, "big")[-1] == size and once(world) and not a.status()["parked"] and a.status()["counters"]["conflicts"] == 0
    finally:
        link.close()
