#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The proxy does what it says: else what is shown through it shows nothing."""
import http.client
import http.server
import sys
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from proxy import Proxy  # noqa: E402

BODY = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen = 0

    def do_GET(self):
        Handler.seen += 1
        body = BODY if self.path == "/big" else b"small"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class TestProxy(unittest.TestCase):
    def setUp(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.proxy = Proxy("127.0.0.1", self.server.server_port).start()

    def tearDown(self):
        self.proxy.stop()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def get(self, path="/", timeout=10):
        c = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=timeout)
        try:
            c.request("GET", path)
            r = c.getresponse()
            return r.status, r.read()
        finally:
            c.close()

    def test_bytes_pass_unchanged_and_are_counted(self):
        self.assertEqual(self.get("/big"), (200, BODY))
        counters = self.proxy.command("counters")
        self.assertGreaterEqual(counters["bytes_down"], len(BODY))
        self.assertEqual(counters["requests"], 1)

    def test_delay_and_bandwidth_are_at_least_what_was_set(self):
        self.proxy.command("set rtt_ms=100")
        start = time.monotonic()
        self.get()
        self.assertGreaterEqual(time.monotonic() - start, 0.1)
        self.proxy.command("set rtt_ms=0 down_mbit=16")
        start = time.monotonic()
        self.get("/big")
        self.assertGreaterEqual(time.monotonic() - start, 0.5)

    def test_refuse_cut_and_stall(self):
        self.proxy.command("refuse on")
        with self.assertRaises(OSError):
            self.get()
        self.proxy.command("refuse off")
        self.proxy.command("cut_after 1000")
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.get("/big")
        self.proxy.command("stall on")
        with self.assertRaises(TimeoutError):
            self.get(timeout=0.3)
        self.proxy.command("stall off")
        self.assertEqual(self.get()[0], 200)

    def test_answer_lost_after_the_server_acted(self):
        before = Handler.seen
        self.proxy.command("lose_answer 1")
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.get()
        self.assertEqual(Handler.seen, before + 1)
        self.assertEqual(self.get()[0], 200)

    def test_status(self):
        before = Handler.seen
        self.proxy.command("status 1 503")
        self.assertEqual(self.get()[0], 503)
        self.assertEqual(Handler.seen, before)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
