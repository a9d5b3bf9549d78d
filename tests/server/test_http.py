# SPDX-License-Identifier: Apache-2.0
"""The real server over real sockets: what a person with curl, a script, a bad client and an administrator meet."""
import json
import os
import random
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
import warnings

import pytest
import support
from support import PASSWORD, SCALE, SERVER, Server, deadline, run



@pytest.fixture(scope="module")
def server():
    with Server(users=("ann", "bob")) as s:
        yield s


def curl(server, *words, input=None):
    done = subprocess.run(["curl", "-sS", "-H", "Authorization: Bearer " + server.token, *words], input=input, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw(server, data, timeout=20):
    """Sends bytes as they are; everything that comes back until the server closes."""
    with socket.create_connection((server.host, server.port), timeout=timeout) as s:
        got = b""
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                got += piece
        except OSError:  # it was quicker to close
            pass
        return got


def test_a_body_that_was_damaged_on_its_way_is_not_judged(server):
    """The sum of the empty body and of the answers are known by their shape only: the end-to-end tests have both sides."""
    body = b'{"user": "ann", "password": "wrong", "device": "d"}'
    head = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%%bConnection: close\r\n\r\n" % len(body)
    answers = [raw(server, head % more + body).split(b"\r\n\r\n", 1) for more in (b"X-Tarn-Sum: 0123456789abcdef\r\n", b"")]
    assert [a[0].split()[1] for a in answers] == [b"503", b"401"] and b"damaged" in answers[0][1]
    assert all(b"\r\nX-Tarn-Sum: " in a[0] for a in answers[1:])


# ---- whole files ----

def test_curl(server, tmp_path):
    f = tmp_path / "f"
    f.write_bytes(b"0123456789")
    url = server.url + server.file("curl/dir ä/f")
    made = json.loads(curl(server, "-T", str(f), url))
    assert made["created"] and made["node"]["size"] == 10
    assert curl(server, url) == b"0123456789"
    assert curl(server, "-r", "2-4", url) == b"234"
    assert curl(server, "-r", "-3", url) == b"789"
    head = curl(server, "-I", url).decode().lower()
    assert "content-length: 10\r\n" in head and "accept-ranges: bytes" in head and "last-modified: " in head
    listing = json.loads(curl(server, server.url + server.file("curl")))
    assert [e["name"] for e in listing["entries"]] == ["dir ä"]
    f.write_bytes(b"second")
    again = json.loads(curl(server, "-T", str(f), url))
    assert not again["created"] and again["replaced"] == made["node"]["version"]
    assert curl(server, url + "?version=" + made["node"]["version"]) == b"0123456789"
    assert curl(server, "-X", "DELETE", "-o", "/dev/null", "-w", "%{http_code}", url) == b"204"
    assert curl(server, "-o", "/dev/null", "-w", "%{http_code}", url) == b"404"


def test_curl_resumes_a_download(server, tmp_path):
    data = random.Random(1).randbytes(5_000_000)
    assert server.put("resume", data)[0] == 201
    part = tmp_path / "part"
    part.write_bytes(data[:1_234_567])
    curl(server, "-C", "-", "-o", str(part), server.url + server.file("resume"))
    assert part.read_bytes() == data


def test_etag_and_conditions(server):
    status, head, _ = server.put("tag", b"one")
    assert status == 201
    tag = head["ETag"]
    assert server.get("tag", headers={"If-None-Match": tag})[0] == 304
    assert server.get("tag", headers={"If-Match": '"' + "0" * 64 + '"'})[0] == 412
    assert server.put("tag", b"two", headers={"If-None-Match": "*"})[0] == 412
    assert server.put("tag", b"two", headers={"If-Match": tag})[0] == 200
    status, head, body = server.put("tag", b"three", headers={"If-Match": tag})
    assert status == 412 and json.loads(body)["code"] == "PRECONDITION_FAILED" and head["ETag"] != tag
    assert server.get("tag")[2] == b"two"
    assert server.call("DELETE", server.file("tag"), headers={"If-Match": tag})[0] == 412
    assert server.call("DELETE", server.file("tag"), headers={"If-Match": head["ETag"]})[0] == 204


def test_two_writers_with_if_match_never_both_win(server):
    for i in range(20):
        tag = server.put("race", b"start %d" % i)[1]["ETag"]
        results = []
        threads = [threading.Thread(target=lambda n=n: results.append(server.put("race", b"writer %d of %d" % (n, i), headers={"If-Match": tag})[0])) for n in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert sorted(results) == [200, 412, 412, 412]


def test_large_file_streams(server, tmp_path):
    data = random.Random(2).randbytes(40_000_000)
    status, head, _ = server.put("large", data)
    assert status == 201
    for chunked in (iter([data[i:i + 100_000] for i in range(0, len(data), 100_000)]),):  # without Content-Length
        status, again, _ = server.put("large-chunked", chunked)
        assert status == 201 and again["ETag"] == head["ETag"]
    assert server.get("large")[2] == data
    rng = random.Random(3)
    for _ in range(20):
        a = rng.randrange(len(data))
        b = min(len(data) - 1, a + rng.randrange(5_000_000))
        status, head, body = server.get("large", headers={"Range": f"bytes={a}-{b}"})
        assert status == 206 and body == data[a:b + 1] and head["Content-Range"] == f"bytes {a}-{b}/{len(data)}"


def test_keep_alive_and_many_connections(server):
    server.put("small", b"x" * 100)
    connections = [server.connection() for _ in range(100)]
    for _ in range(3):
        for c in connections:
            assert server.get("small", connection=c)[2] == b"x" * 100
    [c.close() for c in connections]


def test_bad_paths_and_requests(server):
    auth = f"Authorization: Bearer {server.token}\r\nConnection: close\r\n\r\n".encode()
    for path in ("../../../../etc/passwd", "a/../../b", "%2e%2e/%2e%2e/etc/passwd", "a%2fb", "a%00", "%ff", "a/%2e/b"):
        answer = raw(server, b"GET /v1/workspaces/w/files/" + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + auth)
        assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
        assert b"NAME_INVALID" in answer
    assert raw(server, b"GET /v1/../etc/passwd HTTP/1.1\r\nHost: x\r\n" + auth).startswith(b"HTTP/1.1 404")
    assert raw(server, b"garbage\r\n\r\n").startswith((b"HTTP/1.1 400", b""))
    assert raw(server, b"GET /v1/" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n" + auth)[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 414", b"HTTP/1.1 431", b"")
    assert raw(server, b"BREW /v1/health HTTP/1.1\r\nHost: x\r\n" + auth).startswith(b"HTTP/1.1 405")
    assert server.call("GET", "/v1/health")[0] == 200


def test_every_answer_has_a_request_id(server):
    seen = set()
    for path, token in (("/v1", False), ("/nowhere", True), ("/v1/workspaces", False), ("/v1/workspaces", True)):
        _, head, _ = server.call("GET", path, token=token)
        assert len(head["X-Request-Id"]) == 32
        seen.add(head["X-Request-Id"])
    assert len(seen) == 4


# ---- accounts ----

def login(server, user="ann", password=PASSWORD):
    return server.call("POST", "/v1/login", body=json.dumps({"user": user, "password": password, "device": "test"}), token=False)


def test_wrong_password_and_tokens(server):
    status, head, body = login(server, password="wrong password")
    assert status == 401 and json.loads(body)["code"] == "UNAUTHORIZED" and head["WWW-Authenticate"].startswith("Bearer")
    assert login(server, user="nobody")[2].split(b'"message":')[1][:40] == body.split(b'"message":')[1][:40]  # says the same
    status, _, body = login(server)
    tokens = json.loads(body)
    assert status == 200
    assert server.call("GET", "/v1/workspaces", token=tokens["token"])[0] == 200
    assert server.call("GET", "/v1/workspaces", token=tokens["refresh_token"])[0] == 401  # not an access token
    assert server.call("GET", "/v1/workspaces", token="tarna_" + "x" * 43)[0] == 401
    assert server.call("POST", "/v1/refresh", body=json.dumps({"refresh_token": tokens["token"]}), token=False)[0] == 401
    status, _, body = server.call("POST", "/v1/refresh", body=json.dumps({"refresh_token": tokens["refresh_token"]}), token=False)
    assert status == 200
    fresh = json.loads(body)["token"]
    assert server.call("DELETE", "/v1/devices/" + tokens["device_id"])[0] == 204  # revoked
    for token in (tokens["token"], fresh):
        assert server.call("GET", "/v1/workspaces", token=token)[0] == 401
    assert server.call("POST", "/v1/refresh", body=json.dumps({"refresh_token": tokens["refresh_token"]}), token=False)[0] == 401


def test_expired_token():
    s = Server()
    try:
        s.start()
        tokens = json.loads(login(s)[2])
        s.stop()
        db = sqlite3.connect(os.path.join(s.data, "meta.db"))
        assert db.execute("UPDATE token SET expires_ns = 1 WHERE expires_ns IS NOT NULL").rowcount == 2
        db.commit()
        db.close()
        s.start()
        assert s.call("GET", "/v1/workspaces", token=tokens["token"])[0] == 401
        assert s.call("POST", "/v1/refresh", body=json.dumps({"refresh_token": tokens["refresh_token"]}), token=False)[0] == 401
        assert s.call("GET", "/v1/workspaces")[0] == 200  # a script's token has no end
    finally:
        s.close()


def test_other_peoples_workspaces_do_not_exist(server):
    bob = json.loads(login(server, "bob")[2])["token"]
    for method, path in (("GET", "/v1/workspaces/w"), ("GET", server.file("x")), ("PUT", server.file("x")), ("DELETE", server.file("x")), ("POST", "/v1/workspaces/w/commit")):
        assert server.call(method, path, body=b"x" if method == "PUT" else None, token=bob)[0] == 404


def test_guessing_does_not_take_the_server(server):
    results = []
    threads = [threading.Thread(target=lambda: results.append(login(server, password="guess guess")[0])) for _ in range(24)]
    [t.start() for t in threads]
    assert server.call("GET", "/v1/health", timeout=10)[0] == 200
    [t.join() for t in threads]
    assert set(results) <= {401, 429} and 401 in results


def test_secrets_never_reach_the_log():
    with Server("--verbose") as s:
        tokens = json.loads(login(s)[2])
        login(s, password="a wrong secret")
        s.put("x", b"y")
        s.stop()
        log = s.log_text()
        assert "path=/v1/login" in log
        for secret in (s.token, PASSWORD, "a wrong secret", tokens["token"], tokens["refresh_token"]):
            assert secret not in log


# ---- commits and events ----

def cursor(server, workspace="w"):
    w = json.loads(server.call("GET", "/v1/workspaces/" + workspace)[2])
    return f"{workspace}:{w['epoch']}:{w['seq']}:{w['mark']}"


def events(server, cursors, wait, timeout=60, **more):
    query = "&".join("cursor=" + c for c in cursors)
    status, _, body = server.call("GET", f"/v1/events?{query}&wait={wait}", headers={"Accept": "application/json"}, timeout=timeout, **more)
    assert status == 200, body
    return json.loads(body)["workspaces"]


def test_2000_commits():
    with Server() as s:
        start = cursor(s)
        count, failed = int(2000 * SCALE), []

        def work(n):
            c = s.connection()
            for i in range(n, count, 8):
                status = s.put(f"many/{i % 50}/{i}", b"content of %d" % i, connection=c)[0]
                if status != 201:
                    failed.append((i, status))
            c.close()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not failed
        seqs, at, ops = [], start, set()
        while True:  # no event is missed, none comes twice, none before its row
            (w,) = events(s, [at], 0)
            if not w["events"]:
                break
            seqs += [e["seq"] for e in w["events"]]
            ops |= {e["op"] for e in w["events"]}
            at = f"w:{w['cursor']['epoch']}:{w['cursor']['seq']}:{w['cursor']['mark']}"
        assert seqs == sorted(set(seqs)) and len(ops) >= count
        names = 0
        for d in range(50):
            names += len(json.loads(s.get(f"many/{d}")[2])["entries"])
        assert names == count
        rng = random.Random(4)
        for i in rng.sample(range(count), 50):
            assert s.get(f"many/{i % 50}/{i}")[2] == b"content of %d" % i
        metrics = s.call("GET", "/v1/metrics")[2].decode()
        values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
        assert int(values["tarn_nodes"]) == count + 52
        assert s.stop() == 0


def test_long_poll_wakes(server):
    delays = []
    for i in range(10):
        at, got = cursor(server), {}

        def poll():
            got["events"] = events(server, [at], 30)
            got["time"] = time.monotonic()

        t = threading.Thread(target=poll)
        t.start()
        for _ in deadline(10):  # until it is parked
            if b"tarn_polls_parked 1" in server.call("GET", "/v1/metrics")[2]:
                break
        else:
            raise AssertionError("the poll never parked")
        done = time.monotonic()
        server.put("wake", b"%d" % i)
        t.join()
        assert len(got["events"][0]["events"]) == 1
        delays.append(got["time"] - done)
    assert max(delays) < 1, delays


def test_long_poll_ends_without_news(server):
    at, start = cursor(server), time.monotonic()
    (w,) = events(server, [at], 1)
    assert w["events"] == [] and 0.9 < time.monotonic() - start < 10
    assert at == f"w:{w['cursor']['epoch']}:{w['cursor']['seq']}:{w['cursor']['mark']}"


def test_long_poll_of_two_workspaces(server):
    assert server.call("POST", "/v1/workspaces", body=json.dumps({"name": "second"}))[0] == 201
    at, got = [cursor(server), cursor(server, "second")], {}
    t = threading.Thread(target=lambda: got.update(events=events(server, at, 30)))
    t.start()
    server.call("PUT", server.file("x", "second"), body=b"x")
    t.join()
    assert [w["workspace"] for w in got["events"]] == ["second"]


def test_many_parked_polls(server):
    at, got = cursor(server), []
    threads = [threading.Thread(target=lambda: got.append(len(events(server, [at], 50)[0]["events"]))) for _ in range(150)]
    [t.start() for t in threads]
    for _ in deadline(30):
        if b"tarn_polls_parked 150" in server.call("GET", "/v1/metrics")[2]:
            break
    else:
        raise AssertionError("not all polls parked")
    assert server.get("wake")[0] == 200  # others are served
    server.put("wake", b"all")
    [t.join() for t in threads]
    assert got == [1] * 150


def test_a_poll_whose_client_went_away_is_given_up(server):
    at = cursor(server)
    s = socket.create_connection((server.host, server.port))
    s.sendall(f"GET /v1/events?cursor={at}&wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode())
    for _ in deadline(10):
        if b"tarn_polls_parked 1\n" in server.call("GET", "/v1/metrics")[2]:
            break
    s.close()
    for _ in deadline(10):
        if b"tarn_polls_parked 0\n" in server.call("GET", "/v1/metrics")[2]:
            break
    else:
        raise AssertionError("still parked")


# ---- limits ----

def test_oversized_bodies(server):
    url = "/v1/workspaces/w/commit"
    status, _, body = server.call("POST", url, body=b"x" * 12_000_000)  # sent without asking first
    assert status == 413 and json.loads(body)["code"] == "TOO_LARGE"
    status, _, body = server.call("POST", url, body=iter([b"x" * 1_000_000] * 12))  # no length told
    assert status == 413
    status, _, body = server.call("POST", "/v1/login", body=b"x" * 100_000, token=False)
    assert status == 413
    head = f"POST {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n".encode()
    assert raw(server, head).startswith(b"HTTP/1.1 413")  # before a byte of it is sent
    assert server.call("GET", "/v1/health")[0] == 200


def cut_after(sock, seconds):
    """Seconds until the server closes this connection."""
    start = time.monotonic()
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


def test_slow_clients_are_cut_off():
    with Server("--head-timeout", "1s", "--body-grace", "1s", "--min-rate", "2M", "--idle-timeout", "2s") as s:
        auth = f"Host: x\r\nAuthorization: Bearer {s.token}\r\n".encode()
        connect = lambda: socket.create_connection((s.host, s.port))
        with connect() as c:  # says nothing
            assert cut_after(c, 10) < 5
        with connect() as c:  # one byte now and then: idle time alone would never end it
            c.settimeout(0.1)
            start = time.monotonic()
            try:
                for ch in b"GET /v1/health HTTP/1.1\r\nX-Slow: " + b"y" * 1000:
                    c.send(bytes([ch]))
                    try:
                        if not c.recv(1):
                            break
                    except TimeoutError:
                        pass
            except (ConnectionResetError, BrokenPipeError):
                pass
            assert time.monotonic() - start < 8
        for target in (b"PUT /v1/workspaces/w/files/slow", b"POST /v1/workspaces/w/commit"):
            with connect() as c:  # a body that stops
                c.sendall(target + b" HTTP/1.1\r\n" + auth + b"Content-Length: 1000000\r\n\r\n" + b"z" * 1000)
                assert cut_after(c, 15) < 8
        assert s.get("slow")[0] == 404
        with connect() as c:  # rests between requests
            c.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert cut_after(c, 15) < 8
        data = random.Random(5).randbytes(30_000_000)
        assert s.put("big", data)[0] == 201
        with connect() as c:  # does not take its answer
            c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            c.sendall(b"GET /v1/workspaces/w/files/big HTTP/1.1\r\n" + auth + b"\r\n")
            for _ in deadline(20):
                if "slow_client_cut" in s.log_text() and "phase=4" in s.log_text():
                    break
            else:
                raise AssertionError("a reader that does not read was not cut off")
        assert s.get("big")[2] == data  # one at a good pace is not
        assert s.stop() == 0


def test_an_upload_in_steady_pieces_is_not_cut_off():
    with Server("--body-grace", "1s", "--min-rate", "10K") as s:
        def pieces():
            wait = threading.Event()
            for _ in range(30):
                yield b"p" * 20_000
                wait.wait(0.1)
        assert s.put("steady", pieces())[0] == 201


# ---- TLS ----

@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    d = tmp_path_factory.mktemp("tls")
    cert, key = d / "cert.pem", d / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return str(cert), str(key)


def test_tls(certificate):
    cert, key = certificate
    with Server("--tls-cert", cert, "--tls-key", key) as s:
        assert s.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=cert)
        c = s.connection(context=trusted)
        data = random.Random(6).randbytes(10_000_000)
        assert s.put("secret", data, connection=c)[0] == 201
        assert s.get("secret", connection=c)[2] == data
        c.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            s.get("secret", connection=s.connection(context=ssl.create_default_context()))
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            s.get("secret", connection=s.connection(context=old))
        plain = raw(s, b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" not in plain
        at, got = cursor(s), {}
        t = threading.Thread(target=lambda: got.update(events=events(s, [at], 30)))
        t.start()
        s.put("wake", b"x")
        t.join()
        assert len(got["events"][0]["events"]) == 1
        assert s.stop() == 0


def test_bad_certificates(certificate, tmp_path):
    cert, key = certificate
    data = tmp_path / "d"
    run("init", data=data)
    for words in (["--tls-cert", str(tmp_path / "none.pem"), "--tls-key", key], ["--tls-cert", __file__, "--tls-key", key], ["--tls-cert", cert]):
        done = run("serve", "--listen", "127.0.0.1:0", *words, data=data, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "tls" in done.stderr + "tls" * ("PEM" in done.stderr)


# ---- crashes and stops ----

def test_kill_9_loses_no_acknowledged_version():
    seed = int(os.environ.get("TARN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print("seed", seed)
    rng = random.Random(seed)
    s = Server()
    acknowledged, lock, in_flight_at_kill = {}, threading.Lock(), 0
    try:
        for round_ in range(int(12 * SCALE) or 1):
            s.start()
            stop, busy = threading.Event(), set()

            def work(n, round_=round_, wseed=rng.randrange(1 << 32)):
                mine = random.Random(wseed)
                c = s.connection(timeout=20)
                try:
                    for i in range(100000):
                        if stop.is_set():
                            return
                        path = f"kill/{n}/{mine.randrange(10)}"
                        data = mine.randbytes(mine.choice((10, 5000, 300_000, 3_000_000)))
                        busy.add(n)
                        status, _, body = s.put(path, data, connection=c)
                        busy.discard(n)
                        assert status in (200, 201), body
                        with lock:
                            acknowledged[path] = support.sha(data)
                            acknowledged.pop("maybe " + path, None)
                except (OSError, support.http.client.HTTPException):
                    with lock:  # not acknowledged: the old or the new bytes are right
                        acknowledged["maybe " + path] = support.sha(data)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            [t.start() for t in threads]
            before = len(acknowledged)
            for _ in deadline(10):  # some are acknowledged, then at a random moment
                if len(acknowledged) > before or round_ > 3:
                    break
            threading.Event().wait(rng.random() * 0.7)
            in_flight_at_kill += bool(busy)
            s.kill()
            stop.set()
            [t.join() for t in threads]
            s.start()
            for path, digest in list(acknowledged.items()):
                if path.startswith("maybe "):
                    continue
                status, _, body = s.get(path)
                assert status == 200, path
                got = support.sha(body)
                assert got in (digest, acknowledged.get("maybe " + path)), f"{path} has other bytes (seed {seed})"
                acknowledged[path] = got
            for path in [p for p in acknowledged if p.startswith("maybe ")]:
                del acknowledged[path]
            s.stop()
        assert in_flight_at_kill >= 0.8 * round_, "the kills hit nothing"
        assert len(acknowledged) > 5
    finally:
        s.close()


def test_sigterm_ends_cleanly():
    with Server() as s:
        at, got = cursor(s), {}
        poll = threading.Thread(target=lambda: got.update(events=events(s, [at], 60)))
        poll.start()
        for _ in deadline(10):
            if b"tarn_polls_parked 1\n" in s.call("GET", "/v1/metrics")[2]:
                break
        first, rest = threading.Event(), threading.Event()

        def pieces():  # an upload that is under way may finish
            yield b"a" * 100_000
            first.set()
            rest.wait(20)
            yield b"b" * 100_000

        upload = threading.Thread(target=lambda: got.update(put=s.put("finish", pieces())[0]))
        upload.start()
        first.wait(20)
        start = time.monotonic()
        s.process.send_signal(signal.SIGTERM)
        poll.join()
        assert got["events"][0]["events"] == [] and time.monotonic() - start < 5  # the poll was answered
        rest.set()
        upload.join()
        assert got["put"] == 201
        assert s.stop() == 0
        assert time.monotonic() - start < 9
        assert not os.path.exists(os.path.join(s.data, "url")) and not os.path.exists(os.path.join(s.data, "admin.sock"))
        s.start()
        assert s.get("finish")[2] == b"a" * 100_000 + b"b" * 100_000


def test_a_stuck_upload_does_not_stop_the_stop():
    with Server() as s:
        c = socket.create_connection((s.host, s.port))
        c.sendall(f"PUT /v1/workspaces/w/files/stuck HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {s.token}\r\nContent-Length: 1000000\r\n\r\nabc".encode())
        start = time.monotonic()
        for _ in deadline(5):
            if s.call("GET", "/v1/health")[0] == 200:
                break
        assert s.stop(signal.SIGINT) == 0
        assert time.monotonic() - start < 20
        c.close()


def test_bit_rot_never_leaves():
    with Server() as s:
        data = random.Random(7).randbytes(3_000_000)
        s.put("rot", data)
        s.stop()
        objects = [os.path.join(d, f) for d, _, files in os.walk(os.path.join(s.data, "objects")) for f in files]
        largest = max(objects, key=os.path.getsize)
        with open(largest, "r+b") as f:
            f.seek(2_000_000)
            byte = f.read(1)
            f.seek(2_000_000)
            f.write(bytes([byte[0] ^ 1]))
        s.start()
        c = s.connection()
        c.request("GET", s.file("rot"), headers={"Authorization": "Bearer " + s.token})
        answer = c.getresponse()
        got = b""
        with pytest.raises((support.http.client.IncompleteRead, ConnectionResetError)):
            while True:
                piece = answer.read(65536)
                if not piece:
                    break
                got += piece
            raise support.http.client.IncompleteRead(got) if len(got) < len(data) else AssertionError("damaged bytes were sent")
        assert data.startswith(got) and len(got) < len(data)
        assert b"tarn_damaged_blocks_total 1" in s.call("GET", "/v1/metrics")[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which needs root")
def test_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tarn-test", str(small)], check=True)
    s = Server(data=str(small / "data"))
    try:
        s.start()
        rng, kept = random.Random(8), {}
        for i in range(40):
            data = rng.randbytes(1_000_000 if i < 20 else 5_000)
            status, _, body = s.put(f"f{i}", data)
            assert status in (201, 507), body
            if status == 201:
                kept[f"f{i}"] = data
            else:
                assert json.loads(body)["code"] == "NO_SPACE"
        assert 5 < len(kept) < 40
        assert s.call("GET", "/v1/ready")[0] in (200, 503)
        assert {e["name"] for e in json.loads(s.get("")[2])["entries"]} == set(kept)
        for name, data in kept.items():
            assert s.get(name)[2] == data
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)  # space again: it goes on by itself
        assert s.put("after", b"x" * 2_000_000)[0] == 201
        assert s.call("GET", "/v1/ready")[0] == 200
        assert s.stop() == 0
    finally:
        s.close()
        subprocess.run(["umount", str(small)], check=True)


# ---- the program ----

def test_second_server_is_refused(server):
    done = run("serve", "--listen", "127.0.0.1:0", data=server.data, check=False)
    assert done.returncode == 5 and "in use" in done.stderr and done.stderr.count("\n") == 1
    assert server.call("GET", "/v1/health")[0] == 200


def test_address_in_use(server, tmp_path):
    run("init", data=tmp_path / "d")
    done = run("serve", "--listen", f"127.0.0.1:{server.port}", data=tmp_path / "d", check=False)
    assert done.returncode == 5 and "in use" in done.stderr and "--listen" in done.stderr


def test_administration_while_running(server):
    assert "added" in run("user", "add", "carl", "--password-stdin", data=server.data, input="another password\n").stdout
    assert run("user", "add", "carl", "--password-stdin", data=server.data, input="another password\n", check=False).returncode == 4
    assert run("workspace", "add", "carls", "--owner", "carl", data=server.data).returncode == 0
    assert run("workspace", "add", "x", "--owner", "nobody", data=server.data, check=False).returncode == 3
    token = run("token", "add", "--user", "carl", data=server.data).stdout.strip()
    assert [w["name"] for w in json.loads(server.call("GET", "/v1/workspaces", token=token)[2])["workspaces"]] == ["carls"]
    assert os.stat(os.path.join(server.data, "admin.sock")).st_mode & 0o777 == 0o600
    assert os.stat(server.data).st_mode & 0o077 == 0
    assert open(os.path.join(server.data, "url")).read().strip() == server.url
    s = socket.socket(socket.AF_UNIX)  # rubbish on the socket harms nobody
    s.connect(f"/proc/self/fd/{os.open(server.data, os.O_RDONLY)}/admin.sock")
    s.sendall(b"rubbish")
    s.close()
    assert run("user", "add", "x", "--password-stdin", data=server.data, input="short\n", check=False).returncode == 2


def test_wrong_usage(tmp_path):
    d = str(tmp_path / "d")
    for words, code, text in (
        ([], 2, "usage"), (["frobnicate"], 2, "frobnicate"), (["user", "del", "x"], 2, "user add"), (["init"], 2, "--data"), (["serve", "--data", d, "--lisen", "x"], 2, "listen"),
        (["serve", "--data", d], 3, "tarn-server init"), (["user", "add", "--data", d], 2, "NAME"), (["user", "add", "x", "--data", d], 2, "--password-stdin"),
        (["workspace", "add", "w", "--data", d], 2, "--owner"), (["token", "add", "--data", d], 2, "--user"),
    ):
        done = subprocess.run([SERVER, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
        assert done.returncode == code, (words, done)
        assert text in done.stderr and (not words or done.stderr.count("\n") == 1), (words, done)
    run("init", data=d)
    assert run("init", data=d, check=False).returncode == 4
    for listen in ("nonsense", "127.0.0.1", "127.0.0.1:99999", ":80"):
        assert run("serve", "--listen", listen, data=d, check=False).returncode == 2
    assert subprocess.run([SERVER, "--help"], capture_output=True).returncode == 0
    assert subprocess.run([SERVER, "serve", "--help"], capture_output=True).returncode == 0
    with open(os.path.join(d, "format"), "w") as f:
        f.write("tarn-server 2\n")
    done = run("serve", data=d, check=False)
    assert done.returncode == 6 and "another version" in done.stderr


def test_password_prompt(tmp_path):
    import pty
    d = str(tmp_path / "d")
    run("init", data=d)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(SERVER, [SERVER, "user", "add", "ann", "--data", d])
    shown = b""
    for prompt in (b"Password for ann: ", b"The same again: "):
        while prompt not in shown:
            shown += os.read(fd, 1000)
        os.write(fd, b"typed password\n")
    try:
        while True:
            piece = os.read(fd, 1000)
            if not piece:
                break
            shown += piece
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(fd)
    assert b"user ann added" in shown and b"typed password" not in shown


def test_reads_that_hang_hold_nobody_else_up():
    """A disk that does not answer reads takes the threads of reads, not those of logins, metadata and commits."""
    with Server(env={"TARN_FAILPOINTS": "content.read=hold"}) as s:
        if b"no such point" in open(s.log, "rb").read():
            pytest.skip("this build has no failpoints")
        assert s.put("f", b"x" * 1000)[0] == 201
        stuck = [s.connection() for _ in range(20)]
        for c in stuck:
            c.request("GET", s.file("f"), headers={"Authorization": "Bearer " + s.token})
        began = time.monotonic()
        for i in range(10):
            assert s.put(f"g{i}", b"y")[0] == 201
            assert s.call("GET", "/v1/workspaces/w")[0] == 200
            assert s.call("HEAD", s.file("f"))[0] == 200
            assert s.call("DELETE", s.file(f"g{i}"))[0] == 204
        assert s.call("POST", "/v1/login", body=json.dumps({"user": "ann", "password": PASSWORD, "device": "d"}), token=False)[0] == 200
        assert time.monotonic() - began < 30  # the reads are held for 60
        [c.close() for c in stuck]
        s.kill()


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-v", "-o", "faulthandler_timeout=120", "-p", "no:cacheprovider", __file__]))
