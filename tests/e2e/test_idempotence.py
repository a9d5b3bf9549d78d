# SPDX-License-Identifier: Apache-2.0
"""Every kind of change is applied exactly once, whatever happens to its request: the answer is lost after the server committed, the request is lost before the server sees it, it
arrives twice, it is refused with 503. What counts is the server's sequence number: one change, one event."""
import http.client
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402
from support import Client, until  # noqa: E402

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
    def __init__(self, world):
        self.proxy = Proxy("127.0.0.1", int(world.server.url.rsplit(":", 1)[1])).start()
        self.client = Client(world, "behind")
        world.clients.append(self.client)
        url = f"http://127.0.0.1:{self.proxy.port}"
        self.client.login(url=url)
        self.client.tarn("mount", f"{url}/work", self.client.dir, "-o", f"cache_dir={self.client.cache}", timeout=120)

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
