# SPDX-License-Identifier: Apache-2.0
"""docs/openapi.yaml against the server, in both directions.

Every route of the server's table is documented and every documented one is in the table. Every documented status has a scenario below that provokes it with
a real request; the answer's content type, required headers and JSON are compared with what the document says. A status without a scenario, or
a scenario without a documented status, fails.
"""
import concurrent.futures
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import PASSWORD, SERVER, Server

DOCUMENT = yaml.safe_load((Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml").read_text())
FRAMES = "application/vnd.tarn.frames"
ZERO = "0" * 32
WS = "/v1/workspaces/{workspace}"


def resolve(o):
    while isinstance(o, dict) and "$ref" in o:
        at = DOCUMENT
        for part in o["$ref"].lstrip("#/").split("/"):
            at = at[part]
        o = at
    return o


OPERATIONS = {(method.upper(), path): operation for path, item in DOCUMENT["paths"].items() for method, operation in item.items() if method in ("get", "head", "put", "post", "delete")}


@pytest.fixture(scope="module")
def server():
    with Server(users=("ann", "bob")) as s:
        s.put("dir/f", b"0123456789")
        s.put("dir/f", b"9876543210")
        s.put("empty/x", b"x")
        s.put("plain", b"plain")
        s.call("POST", "/v1/workspaces", body=json.dumps({"name": "tiny", "quota_bytes": 100}))
        s.node = json.loads(s.get("dir")[2])["entries"][0]
        s.dir = json.loads(s.get("dir")[2])["id"]
        s.versions = json.loads(s.call("GET", "/v1/workspaces/w/versions?path=dir/f")[2])["versions"]
        yield s


def frame(kind, payload):
    return bytes([kind]) + struct.pack("<I", len(payload)) + payload


def login(s, **more):
    return json.loads(s.call("POST", "/v1/login", body=json.dumps({"user": "ann", "password": PASSWORD, "device": "d"}), token=False)[2])


def cursor(s):
    w = json.loads(s.call("GET", "/v1/workspaces/w")[2])
    return f"w:{w['epoch']}:{w['seq']}:{w['mark']}"


def post_json(s, path, body, **more):
    return s.call("POST", path, body=json.dumps(body), **more)


JSON = {"Accept": "application/json"}
S = {}  # (method, pattern, status) -> list of functions of the server that give (status, headers, body)


def add(method, pattern, status, *functions):
    S.setdefault((method, pattern, status), []).extend(functions)


for plain in ("/v1", "/v1/health", "/v1/ready", "/v1/metrics", "/v1/devices", "/v1/workspaces"):
    add("GET", plain, 200, lambda s, p=plain: s.call("GET", p))
add("POST", "/v1/login", 200, lambda s: post_json(s, "/v1/login", {"user": "ann", "password": PASSWORD, "device": "d"}, token=False))
add("POST", "/v1/login", 400, lambda s: post_json(s, "/v1/login", {"user": "ann"}, token=False), lambda s: s.call("POST", "/v1/login", body=b"{", token=False),
    lambda s: s.call("POST", "/v1/login", body=b"[1]", token=False), lambda s: s.call("POST", "/v1/login", token=False))
add("POST", "/v1/login", 401, lambda s: post_json(s, "/v1/login", {"user": "ann", "password": "not this one"}, token=False))
add("POST", "/v1/refresh", 200, lambda s: post_json(s, "/v1/refresh", {"refresh_token": login(s)["refresh_token"]}, token=False))
add("POST", "/v1/refresh", 400, lambda s: post_json(s, "/v1/refresh", {}, token=False))
add("POST", "/v1/refresh", 401, lambda s: post_json(s, "/v1/refresh", {"refresh_token": "tarnr_" + "x" * 43}, token=False))
add("POST", "/v1/logout", 204, lambda s: s.call("POST", "/v1/logout", token=login(s)["token"]))
add("DELETE", "/v1/devices/{device}", 204, lambda s: s.call("DELETE", "/v1/devices/" + login(s)["device_id"]))
add("DELETE", "/v1/devices/{device}", 400, lambda s: s.call("DELETE", "/v1/devices/xyz"))
add("DELETE", "/v1/devices/{device}", 404, lambda s: s.call("DELETE", "/v1/devices/" + ZERO))
add("POST", "/v1/workspaces", 201, lambda s: post_json(s, "/v1/workspaces", {"name": "made", "quota_bytes": 5}), lambda s: post_json(s, "/v1/workspaces", {"name": "made2", "names": "portable"}))
add("POST", "/v1/workspaces", 400, lambda s: post_json(s, "/v1/workspaces", {"name": "a/b"}), lambda s: post_json(s, "/v1/workspaces", {}),
    lambda s: post_json(s, "/v1/workspaces", {"name": "x", "quota_bytes": -1}))
add("POST", "/v1/workspaces", 409, lambda s: post_json(s, "/v1/workspaces", {"name": "w"}))
add("GET", WS, 200, lambda s: s.call("GET", "/v1/workspaces/w"))
for scan in ("nodes", "entries"):
    pattern = WS + "/snapshot/" + scan
    base = "/v1/workspaces/w/snapshot/" + scan
    add("GET", pattern, 200, lambda s, b=base: s.call("GET", b), lambda s, b=base: s.call("GET", b + "?limit=2", headers=JSON), lambda s, b=base: s.call("GET", b, headers=JSON))
    add("GET", pattern, 400, lambda s, b=base: s.call("GET", b + "?limit=x"), lambda s, b=base: s.call("GET", b + "?after=x"), lambda s, b=base: s.call("GET", b + "?previous=1"))
DIRS = WS + "/dirs/{node}"
add("GET", DIRS, 200, lambda s: s.call("GET", "/v1/workspaces/w/dirs/root"), lambda s: s.call("GET", "/v1/workspaces/w/dirs/" + s.dir, headers=JSON))
add("GET", DIRS, 400, lambda s: s.call("GET", "/v1/workspaces/w/dirs/x"))
add("GET", DIRS, 404, lambda s: s.call("GET", "/v1/workspaces/w/dirs/" + "9" * 32))
add("GET", DIRS, 409, lambda s: s.call("GET", "/v1/workspaces/w/dirs/" + s.node["id"]))
first = lambda s: "w:" + cursor(s).split(":")[1] + ":0:" + "0" * 16
add("GET", "/v1/events", 200, lambda s: s.call("GET", "/v1/events?cursor=" + cursor(s)), lambda s: s.call("GET", "/v1/events?cursor=" + first(s), headers=JSON),
    lambda s: s.call("GET", "/v1/events?cursor=" + cursor(s), headers=JSON))
add("GET", "/v1/events", 400, lambda s: s.call("GET", "/v1/events"), lambda s: s.call("GET", "/v1/events?cursor=x"), lambda s: s.call("GET", f"/v1/events?cursor={cursor(s)}&wait=x"))
add("GET", "/v1/events", 404, lambda s: s.call("GET", f"/v1/events?cursor=none:{ZERO}:1:{'0' * 16}"))
add("GET", "/v1/events", 410, lambda s: s.call("GET", f"/v1/events?cursor=w:{'1' * 32}:1:{'0' * 16}"))
for name, bad in (("commit", frame(9, b"")), ("missing", frame(7, b"")), ("blocks", frame(7, b"")), ("read", frame(7, b""))):
    pattern, path = f"{WS}/{name}", f"/v1/workspaces/w/{name}"
    add("POST", pattern, 200, lambda s, p=path: s.call("POST", p, body=b""))
    add("POST", pattern, 400, lambda s, p=path, b=bad: s.call("POST", p, body=b), lambda s, p=path: s.call("POST", p, body=b"\x07\xff\xff"))
    add("POST", pattern, 413, lambda s, p=path: s.call("POST", p, body=b"x" * 10_000_000))
add("POST", WS + "/missing", 200, lambda s: s.call("POST", "/v1/workspaces/w/missing", body=frame(10, protobuf((1, os.urandom(64))))))
add("POST", WS + "/missing", 400, lambda s: s.call("POST", "/v1/workspaces/w/missing?session=x", body=b""))
add("POST", WS + "/commit", 426, lambda s: s.call("POST", "/v1/workspaces/w/commit", body=frame(99, b"")))


def protobuf(*fields):
    """Length-delimited (bytes) and varint (int) fields."""
    def varint(v):
        out = b""
        while v > 127:
            out += bytes([v & 127 | 128])
            v >>= 7
        return out + bytes([v])
    return b"".join(varint(n << 3 | 2) + varint(len(v)) + v if isinstance(v, bytes) else varint(n << 3) + varint(v) for n, v in fields)


def block_fields():
    """Field numbers of a BLOCK from docs/tarn.proto."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "tarn.proto").read_text()
    body = re.search(r"message Block \{(.*?)\n\}", text, re.S).group(1)
    return {m.group(1): int(m.group(2)) for m in re.finditer(r"(\w+) = (\d+);", body)}


def wrong_block(s):
    f = block_fields()
    return s.call("POST", "/v1/workspaces/w/blocks", body=frame(11, protobuf((f["hash"], b"\1" * 32), (f["raw_bytes"], 3), (f["data"], b"abc"))))


add("POST", WS + "/blocks", 422, wrong_block)
FILES = WS + "/files/{path}"
add("GET", FILES, 200, lambda s: s.get("dir/f"), lambda s: s.get("dir"), lambda s: s.call("GET", s.file("dir/f") + "?version=" + s.versions[-1]["version"]))
add("GET", FILES, 206, lambda s: s.get("dir/f", headers={"Range": "bytes=-3"}))
add("GET", FILES, 304, lambda s: s.get("dir/f", headers={"If-None-Match": s.get("dir/f")[1]["ETag"]}))
add("GET", FILES, 400, lambda s: s.get("dir/../x"))
add("GET", FILES, 404, lambda s: s.get("none"), lambda s: s.call("GET", s.file("dir/f") + "?version=" + "9" * 32))
add("GET", FILES, 412, lambda s: s.get("dir/f", headers={"If-Match": '"x"'}))
add("GET", FILES, 416, lambda s: s.get("dir/f", headers={"Range": "bytes=99-"}))
add("HEAD", FILES, 200, lambda s: s.call("HEAD", s.file("dir/f")))
add("HEAD", FILES, 404, lambda s: s.call("HEAD", s.file("none")))
add("PUT", FILES, 200, lambda s: s.put("plain", b"again"))
add("PUT", FILES, 201, lambda s: s.put("new", b"new"))
add("PUT", FILES, 400, lambda s: s.put("a/../b", b""), lambda s: s.call("PUT", s.file("x") + "?mode=9", body=b""))
add("PUT", FILES, 404, lambda s: s.call("PUT", s.file("x", "none"), body=b""))
add("PUT", FILES, 409, lambda s: s.put("dir", b""), lambda s: s.put("plain/below", b""))
add("PUT", FILES, 412, lambda s: s.put("plain", b"", headers={"If-None-Match": "*"}), lambda s: s.put("plain", b"", headers={"If-Match": '"x"'}))
add("PUT", FILES, 507, lambda s: s.call("PUT", s.file("x", "tiny"), body=os.urandom(1000)))
add("DELETE", FILES, 204, lambda s: s.call("DELETE", s.file("empty/x")), lambda s: s.call("DELETE", s.file("empty")))
add("DELETE", FILES, 400, lambda s: s.call("DELETE", s.file("")))
add("DELETE", FILES, 404, lambda s: s.call("DELETE", s.file("none")))
add("DELETE", FILES, 409, lambda s: s.call("DELETE", s.file("dir")))
add("DELETE", FILES, 412, lambda s: s.call("DELETE", s.file("dir/f"), headers={"If-Match": '"x"'}))
versions = lambda s: f"/v1/workspaces/w/nodes/{s.node['id']}/versions"
restore = lambda s: f"/v1/workspaces/w/nodes/{s.node['id']}/restore"
add("GET", WS + "/versions", 200, lambda s: s.call("GET", "/v1/workspaces/w/versions?path=dir/f"))
add("GET", WS + "/versions", 400, lambda s: s.call("GET", "/v1/workspaces/w/versions"), lambda s: s.call("GET", "/v1/workspaces/w/versions?path=dir"))
add("GET", WS + "/versions", 404, lambda s: s.call("GET", "/v1/workspaces/w/versions?path=none"))
add("GET", WS + "/nodes/{node}/versions", 200, lambda s: s.call("GET", versions(s)))
add("GET", WS + "/nodes/{node}/versions", 400, lambda s: s.call("GET", "/v1/workspaces/w/nodes/x/versions"))
add("GET", WS + "/nodes/{node}/versions", 404, lambda s: s.call("GET", f"/v1/workspaces/w/nodes/{'9' * 32}/versions"))
add("POST", WS + "/restore", 200, lambda s: post_json(s, "/v1/workspaces/w/restore?path=dir/f", {"version": s.versions[-1]["version"]}))
add("POST", WS + "/restore", 400, lambda s: post_json(s, "/v1/workspaces/w/restore?path=dir/f", {}), lambda s: post_json(s, "/v1/workspaces/w/restore", {"version": ZERO}))
add("POST", WS + "/restore", 404, lambda s: post_json(s, "/v1/workspaces/w/restore?path=none", {"version": ZERO}), lambda s: post_json(s, "/v1/workspaces/w/restore?path=dir/f", {"version": "9" * 32}))
add("POST", WS + "/nodes/{node}/restore", 200, lambda s: post_json(s, restore(s), {"version": s.versions[-1]["version"]}))
add("POST", WS + "/nodes/{node}/restore", 400, lambda s: post_json(s, restore(s), {"version": "x"}))
add("POST", WS + "/nodes/{node}/restore", 404, lambda s: post_json(s, restore(s), {"version": "9" * 32}))

TRASH = WS + "/trash"
add("GET", TRASH, 200, lambda s: s.call("GET", "/v1/workspaces/w/trash"), lambda s: s.call("GET", "/v1/workspaces/w/trash?limit=1&path=none&since_s=60&until_s=1"))
add("GET", TRASH, 400, lambda s: s.call("GET", "/v1/workspaces/w/trash?limit=0"), lambda s: s.call("GET", "/v1/workspaces/w/trash?since_s=x"), lambda s: s.call("GET", "/v1/workspaces/w/trash?before=x"))
add("DELETE", TRASH, 200, lambda s: s.call("DELETE", "/v1/workspaces/w/trash?path=none"))
add("DELETE", TRASH, 400, lambda s: s.call("DELETE", "/v1/workspaces/w/trash?until_s=x"))
add("POST", TRASH + "/restore", 200, lambda s: post_json(s, "/v1/workspaces/w/trash/restore", {"path": "none", "since_s": 60}))
add("POST", TRASH + "/restore", 400, lambda s: post_json(s, "/v1/workspaces/w/trash/restore", {}), lambda s: post_json(s, "/v1/workspaces/w/trash/restore", {"node": "x"}),
    lambda s: post_json(s, "/v1/workspaces/w/trash/restore", {"since_s": "x"}))
MEMBERS = WS + "/members"
add("GET", MEMBERS, 200, lambda s: s.call("GET", "/v1/workspaces/w/members"))
add("PUT", MEMBERS + "/{user}", 200, lambda s: s.call("PUT", "/v1/workspaces/w/members/bob", body=b'{"role": "viewer"}'))
add("PUT", MEMBERS + "/{user}", 400, lambda s: s.call("PUT", "/v1/workspaces/w/members/bob", body=b'{"role": "none"}'))
add("PUT", MEMBERS + "/{user}", 404, lambda s: s.call("PUT", "/v1/workspaces/w/members/nobody", body=b'{"role": "viewer"}'))
add("PUT", MEMBERS + "/{user}", 409, lambda s: s.call("PUT", "/v1/workspaces/w/members/ann", body=b'{"role": "viewer"}'))
add("DELETE", MEMBERS + "/{user}", 204, lambda s: s.call("DELETE", "/v1/workspaces/w/members/bob"))
add("DELETE", MEMBERS + "/{user}", 404, lambda s: s.call("DELETE", "/v1/workspaces/w/members/nobody"))
add("DELETE", MEMBERS + "/{user}", 409, lambda s: s.call("DELETE", "/v1/workspaces/w/members/ann"))

LEASES, LEASE, LOCKS = WS + "/leases", WS + "/leases/{lease}", WS + "/leases/{lease}/locks"


def lease_of(s):
    return "/v1/workspaces/w/leases/" + json.loads(s.call("POST", "/v1/workspaces/w/leases")[2])["lease"]


def lock(s, lease, **more):
    """One of a node and an owner of this call's own, unless it says otherwise."""
    body = {"node": os.urandom(16).hex(), "owner": "1" * 16, "type": "write", "number": 1, **more}
    return post_json(s, lease + "/locks", {k: v for k, v in body.items() if v is not None})


def lock_twice(s, **more):
    node, first, second = os.urandom(16).hex(), lease_of(s), lease_of(s)
    assert lock(s, first, node=node)[0] == 200
    return lock(s, second, node=node, **more)


def lock_in_a_circle(s):
    lease, nodes, owners = lease_of(s), [os.urandom(16).hex() for _ in range(2)], ["1" * 16, "2" * 16]
    for i in range(2):
        assert lock(s, lease, node=nodes[i], owner=owners[i], number=i + 1)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lock, s, lease, node=nodes[1], owner=owners[0], number=3, wait=50)
        while True:  # until the other one is seen to wait
            answer = lock(s, lease, node=nodes[0], owner=owners[1], number=4, wait=1)
            if answer[0] == 409:
                break
            assert answer[0] == 423
            if waits.done():  # it came later, and closed the circle itself
                return waits.result()
        assert post_json(s, lease + "/locks", {"number": 3, "done": 0, "cancel": True})[0] == 200
        assert waits.result()[0] == 412
    return answer


def lock_as_viewer(s):
    bob = json.loads(s.call("POST", "/v1/login", body=json.dumps({"user": "bob", "password": PASSWORD, "device": "d"}), token=False)[2])["token"]
    assert s.call("PUT", "/v1/workspaces/w/members/bob", body=b'{"role": "viewer"}')[0] == 200
    lease = json.loads(s.call("POST", "/v1/workspaces/w/leases", token=bob)[2])["lease"]
    body = {"node": ZERO[:-1] + "5", "owner": "1" * 16, "type": "write", "number": 1}
    return s.call("POST", f"/v1/workspaces/w/leases/{lease}/locks", body=json.dumps(body), token=bob)


add("POST", LEASES, 201, lambda s: s.call("POST", "/v1/workspaces/w/leases"))
add("POST", LEASE, 200, lambda s: s.call("POST", lease_of(s)))
add("DELETE", LEASE, 204, lambda s: s.call("DELETE", lease_of(s)))
for verb in ("POST", "DELETE"):
    add(verb, LEASE, 400, lambda s, v=verb: s.call(v, "/v1/workspaces/w/leases/x"))
    add(verb, LEASE, 410, lambda s, v=verb: s.call(v, "/v1/workspaces/w/leases/" + "9" * 32))
add("POST", LOCKS, 200, lambda s: lock(s, lease_of(s)), lambda s: lock(s, lease_of(s), number=None, test=True), lambda s: lock_twice(s, number=None, test=True),
    lambda s: post_json(s, lease_of(s) + "/locks", {"number": 1, "cancel": True}))
add("POST", LOCKS, 400, lambda s: lock(s, lease_of(s), node="x"), lambda s: lock(s, lease_of(s), type="both"), lambda s: s.call("POST", lease_of(s) + "/locks", body=b"["))
add("POST", LOCKS, 403, lock_as_viewer)
add("POST", LOCKS, 409, lock_in_a_circle)
add("POST", LOCKS, 410, lambda s: lock(s, "/v1/workspaces/w/leases/" + "9" * 32))
add("POST", LOCKS, 412, lambda s: lock(s, lease_of(s), done=1))
add("POST", LOCKS, 423, lambda s: lock_twice(s), lambda s: lock_twice(s, wait=1))


def concrete(pattern, workspace="w"):
    pattern = pattern.replace("{lease}", "1" * 32)
    return pattern.replace("{workspace}", workspace).replace("{node}", "1" * 32).replace("{device}", "1" * 32).replace("{path}", "x").replace("{user}", "bob")


for (m, p), op in OPERATIONS.items():
    if op.get("security") != []:
        add(m, p, 401, lambda s, m=m, p=p: s.call(m, concrete(p), token=False), lambda s, m=m, p=p: s.call(m, concrete(p), token="tarna_" + "x" * 43))
    if p.startswith(WS) and (m, p) != ("HEAD", FILES):
        add(m, p, 404, lambda s, m=m, p=p: s.call(m, concrete(p, "none"), body=b'{"version": "%s"}' % (b"1" * 32) if p.endswith("restore") else None))


def check_answer(method, pattern, status, answer):
    got, headers, body = answer
    assert got == status, f"{method} {pattern}: {got} instead of {status}: {body[:300]}"
    said = resolve(OPERATIONS[method, pattern]["responses"][str(status)])
    assert len(headers["X-Request-Id"]) == 32
    for name, header in said.get("headers", {}).items():
        header = resolve(header)
        if "json" not in headers.get("Content-Type", "") or method == "PUT":  # a directory has no ETag
            assert headers[name], f"{name} is missing"
            jsonschema.validate(headers[name], full(header["schema"]), cls=jsonschema.Draft202012Validator)
    if "content" not in said:
        assert body == b""
        return None
    kind = headers["Content-Type"].split(";")[0]
    assert kind in said["content"], f"{kind} is not documented for {method} {pattern} {status}"
    if kind != "application/json":
        return kind
    value = json.loads(body)
    jsonschema.validate(value, full(said["content"][kind]["schema"]), cls=jsonschema.Draft202012Validator)
    if status >= 400:
        assert value["request_id"] == headers["X-Request-Id"]
    return kind


def full(schema):
    """The schema with the components that its references name."""
    return {"components": DOCUMENT["components"], **schema}


def test_every_route_is_documented_and_the_other_way_round():
    table = set(tuple(line.split(" ", 1)) for line in subprocess.run([SERVER, "routes"], capture_output=True, text=True, check=True).stdout.splitlines())
    assert table == set(OPERATIONS)


def test_every_documented_status_has_a_scenario_and_the_other_way_round():
    documented = {(m, p, int(status)) for (m, p), op in OPERATIONS.items() for status in op["responses"]}
    assert documented - set(S) == set()
    assert set(S) - documented == set()


@pytest.mark.parametrize("key", list(S), ids=lambda k: f"{k[0]} {k[1]} {k[2]}")
def test_answers_as_documented(server, key):
    for scenario in S[key]:
        check_answer(*key, scenario(server))


def test_every_documented_content_type_is_seen(server):
    for (method, pattern), op in OPERATIONS.items():
        for status, said in op["responses"].items():
            kinds = set(resolve(said).get("content", {}))
            if len(kinds) > 1:
                assert {check_answer(method, pattern, int(status), f(server)) for f in S[method, pattern, int(status)]} == kinds


def test_methods_that_are_not_there(server):
    for path in DOCUMENT["paths"]:
        status, headers, body = server.call("PATCH", concrete(path))
        assert status == 405 and json.loads(body)["code"] == "METHOD_NOT_ALLOWED"
        assert set(headers["Allow"].split(", ")) == {m for m, p in OPERATIONS if p == path}


def test_every_code_is_in_the_manual():
    manual = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    source = (Path(__file__).resolve().parents[2] / "api" / "code.c").read_text()
    codes = re.findall(r'\{ "([A-Z_]+)", (\d+), E', source)
    assert len(codes) > 15
    for code, status in codes:
        assert re.search(rf"`{code}` \| {status} \|", manual), f"{code} {status} is not in docs/api.md"


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", __file__]))
