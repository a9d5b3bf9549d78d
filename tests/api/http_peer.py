#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a test program against HTTP servers that misbehave on request: one plain, one with TLS (a certificate of an authority made for this run).
usage: http_peer.py PROGRAM. The program finds TARN_TEST_PORT, TARN_TEST_TLS_PORT, TARN_TEST_CA and TARN_TEST_DIR in its environment."""
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading

STOP = threading.Event()  # ends every stalled answer
LOGINS = {"refresh": "r1", "refreshes": 0, "token": 1}
LOCK = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    def read_one(self):
        line = self.rfile.readline(65536).decode("latin-1")
        if not line:
            return None
        method, target, _ = line.split(" ", 2)
        headers = {}
        while (h := self.rfile.readline(65536).decode("latin-1").rstrip("\r\n")):
            k, _, v = h.partition(":")
            headers[k.lower()] = v.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        return method, target, headers, body

    def answer(self, status, body=b"", headers=()):
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers) + "\r\n"
        self.wfile.write(head.encode() + body)

    def handle(self):
        try:
            while (q := self.read_one()):
                if not self.one(*q):
                    return
        except (OSError, ValueError, ssl.SSLError):
            pass

    def one(self, method, target, headers, body):
        path = target.split("?")[0]
        if path == "/ok":
            self.answer(200, f"{method} {self.client_address[1]}".encode() if method != "HEAD" else b"")
        elif path == "/echo":
            self.answer(200, body)
        elif path == "/sum":  # what came with the request, and for the answer whatever the query says
            self.answer(200, headers.get("x-tarn-sum", "none").encode(), [("X-Tarn-Sum", target.split("?")[1])] if "?" in target else [])
        elif path == "/auth":
            self.answer(200, headers.get("authorization", "none").encode())
        elif path == "/busy":
            self.answer(503, json.dumps({"code": "UNAVAILABLE", "message": "come back later", "request_id": "1"}).encode(), [("Retry-After", "7")])
        elif path == "/proxy":
            self.answer(502, b"<html>bad gateway</html>")
        elif path == "/gone":
            self.answer(410, json.dumps({"code": "CURSOR_GONE", "message": "m", "request_id": "1"}).encode())
        elif path == "/denied":
            self.answer(401, json.dumps({"code": "UNAUTHORIZED", "message": "no", "request_id": "1"}).encode())
        elif path == "/moved":
            self.answer(302, b"", [("Location", "/ok")])
        elif path == "/big":
            self.answer(200, b"x" * 1000000)
        elif path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")
            return False
        elif path == "/headless":  # breaks off within its head
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Request-Id: 12")
            return False
        elif path == "/close":
            return False
        elif path == "/garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            return False
        elif path == "/stall":
            STOP.wait(60)
            return False
        elif path == "/drip":  # an answer that trickles
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not STOP.wait(0.02):
                self.wfile.write(b"x")
            return False
        elif path == "/v1/login":
            q = json.loads(body)
            if (q["user"], q["password"]) != ("anna", "pass word"):
                self.answer(401, json.dumps({"code": "UNAUTHORIZED", "message": "no", "request_id": "1"}).encode())
            else:
                with LOCK:
                    LOGINS.update(refresh="r1", token=1)
                self.answer(200, json.dumps({"token": "t1", "expires_in": 3600, "refresh_token": "r1", "device_id": "d1", "user": "anna"}).encode())
        elif path == "/v1/refresh":
            q = json.loads(body)
            with LOCK:
                good = q["refresh_token"] == LOGINS["refresh"]
                if good:
                    LOGINS["token"] += 1
                    LOGINS["refresh"] = f"r{LOGINS['token']}"
                    LOGINS["refreshes"] += 1
                n = LOGINS["token"]
            if good:
                self.answer(200, json.dumps({"token": f"t{n}", "expires_in": 3600, "refresh_token": f"r{n}", "device_id": "d1", "user": "anna"}).encode())
            else:
                self.answer(401, json.dumps({"code": "UNAUTHORIZED", "message": "no", "request_id": "1"}).encode())
        elif path == "/revoke":
            with LOCK:
                LOGINS["refresh"] = "revoked"
            self.answer(200)
        elif path == "/refreshes":
            self.answer(200, str(LOGINS["refreshes"]).encode())
        else:
            self.answer(404, b"what?")
        return True


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    context = None

    def get_request(self):
        s, a = super().get_request()
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return (self.context.wrap_socket(s, server_side=True, do_handshake_on_connect=False) if self.context else s), a

    def handle_error(self, request, client_address):
        pass


def certificates(d):
    def run(*a):
        subprocess.run(["openssl", *a], cwd=d, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=tarn test authority")
    run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "req.pem", "-subj", "/CN=localhost")
    with open(os.path.join(d, "ext"), "w") as f:
        f.write("subjectAltName=DNS:localhost\n")  # not the address: a mismatch on request
    run("x509", "-req", "-in", "req.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", "cert.pem")


def main(program):
    with tempfile.TemporaryDirectory(prefix="tarn-http-") as d:
        certificates(d)
        plain, tls = Server(("127.0.0.1", 0), Handler), Server(("127.0.0.1", 0), Handler)
        tls.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.context.load_cert_chain(os.path.join(d, "cert.pem"), os.path.join(d, "key.pem"))
        threads = [threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02}) for s in (plain, tls)]
        for t in threads:
            t.start()
        env = dict(os.environ, TARN_TEST_PORT=str(plain.server_address[1]), TARN_TEST_TLS_PORT=str(tls.server_address[1]), TARN_TEST_CA=os.path.join(d, "ca.pem"), TARN_TEST_DIR=d)
        env.pop("http_proxy", None)
        try:
            code = subprocess.run(program, env=env, timeout=300).returncode
        finally:
            STOP.set()
            for s in (plain, tls):
                s.shutdown()
                s.server_close()
            for t in threads:
                t.join()
    return code


sys.exit(main(sys.argv[1:]))
