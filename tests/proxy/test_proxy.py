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

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
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

    def test_answers_that_end_early_or_have_a_wrong_byte(self):
        self.proxy.command("truncate 1")
        with self.assertRaises(http.client.IncompleteRead):
            self.get("/big")
        self.proxy.command("wrong_down 1 GET")
        _, got = self.get("/big")
        self.assertEqual([bin(a ^ b).count("1") for a, b in zip(got, BODY) if a != b], [1])
        self.assertEqual(self.get("/big"), (200, BODY))
        fired = self.proxy.command("counters")["fired"]
        self.assertEqual((fired["truncate"], fired["wrong_down"]), (1, 1))

    def test_requests_that_break_off_have_a_wrong_byte_or_come_in_crumbs(self):
        self.proxy.command("reset 1")
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.get()
        self.proxy.command("slice on")
        self.assertEqual(self.get(), (200, b"small"))
        self.proxy.command("slice off")
        c = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=10)
        try:
            for wrong in (1, 0):
                self.proxy.command("wrong_up %d POST" % wrong)
                c.request("POST", "/", BODY[:1000])
                self.assertEqual(c.getresponse().read() == BODY[:1000], not wrong)
        finally:
            c.close()

    def test_a_kept_connection_that_the_server_has_closed(self):
        c = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=10)
        try:
            c.request("GET", "/")
            c.getresponse().read()
            before, start = Handler.seen, time.monotonic()
            self.proxy.command("close_slowly 1 300")
            c.request("GET", "/")
            with self.assertRaises((OSError, http.client.HTTPException)):
                c.getresponse().read()
            self.assertGreaterEqual(time.monotonic() - start, 0.3)
            self.assertEqual(Handler.seen, before)
        finally:
            c.close()

    def test_heal_ends_every_fault(self):
        for command in ("lose_answer 9", "drop 9", "duplicate 9", "reset 9", "truncate 9", "wrong_down 9", "close_slowly 9 100", "status 9 503", "refuse on", "stall on", "slice on", "cut_after 1", "set rtt_ms=5000 up_mbit=0.001"):
            self.proxy.command(command)
        self.proxy.command("heal")
        before = self.proxy.command("counters")["fired"]
        self.assertEqual(self.get("/big"), (200, BODY))
        self.assertEqual(self.proxy.command("counters")["fired"], before)

    def test_status(self):
        before = Handler.seen
        self.proxy.command("status 1 503")
        self.assertEqual(self.get()[0], 503)
        self.assertEqual(Handler.seen, before)
        self.proxy.command("status 1 410 /big GONE")
        self.assertEqual(self.get()[0], 200)
        status, body = self.get("/big")
        self.assertEqual((status, b'"GONE"' in body), (410, True))

    def test_the_third_request(self):
        before = self.proxy.command("counters")["fired"]["status"]
        self.proxy.command("nth 3 status 1 503")
        self.assertEqual([self.get()[0] for _ in range(4)], [200, 200, 503, 200])
        self.assertEqual(self.proxy.command("counters")["fired"]["status"], before + 1)
        self.proxy.command("nth 1 status 1 503")
        self.proxy.command("heal")
        self.assertEqual(self.get()[0], 200)

    def test_what_is_kept_comes_again_when_it_is_asked_for(self):
        before = Handler.seen
        self.proxy.command("keep 2")
        for path in ("/", "/big", "/"):
            self.assertEqual(self.get(path)[0], 200)
        self.assertEqual(Handler.seen, before + 3)
        self.assertEqual(self.proxy.command("replay"), {"statuses": [200, 200]})
        self.assertEqual(Handler.seen, before + 5)
        self.assertEqual(self.proxy.command("replay"), {"statuses": []})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
