# SPDX-License-Identifier: Apache-2.0
"""Absence is not deletion: a new snapshot (the server was restored) comes with each kind of damage that an answer can have while HTTP calls it whole: a row less, a row twice, a bit flipped, the trailer
gone or of another page, a page for another one, an end that comes too early. No name may go; when the answers are whole again the load ends by itself. The damage is made between client and server by a
relay that understands frames."""
import http.client
import http.server
import threading

from support import assert_same_facts, facts, soon, until
from test_brake import restore

NODE, ENTRY, PAGE, TYPE = 1, 2, 3, "application/vnd.tarn.frames"


def split(body):
    """[(kind, bytes of the whole frame)]"""
    out, at = [], 0
    while at < len(body):
        end = at + 5 + int.from_bytes(body[at + 1:at + 5], "little")
        out.append((body[at], body[at:end]))
        at = end
    return out


def join(frames):
    return b"".join(f for _, f in frames)


def a_row_less(frames, other):
    return join(frames[:3] + frames[4:])


def a_row_twice(frames, other):
    return join(frames[:4] + frames[3:])


def a_bit_flipped(frames, other):
    body = bytearray(join(frames))
    body[len(body) // 2] ^= 1
    return bytes(body)


def no_trailer(frames, other):
    return join(frames[:-1])


def a_half(frames, other):
    return join(frames[:len(frames) // 2])


def rows_without_any(frames, other):
    return join(frames[-1:])


def the_trailer_of_another_page(frames, other):
    return join(frames[:-1] + other[-1:])


def another_page(frames, other):
    return join(other)


def nothing(frames, other):
    return b""


DAMAGES = (a_row_less, a_row_twice, a_bit_flipped, no_trailer, a_half, rows_without_any, the_trailer_of_another_page, another_page, nothing)


class Relay:
    """Hands requests to the server and answers back. It damages the next `left` pages of the scan of `kind`; the `other` page of a damage is the one before it in that scan, or of the other scan."""

    def __init__(self, server):
        self.server, self.damage, self.kind, self.left, self.done, self.last = server, None, NODE, 0, 0, None
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                c = http.client.HTTPConnection("127.0.0.1", relay.server.port, timeout=120)
                try:
                    c.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "expect", "transfer-encoding")})
                    answer = c.getresponse()
                    body = answer.read()
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    c.close()
                if "/snapshot/" in self.path and answer.status == 200:
                    body = relay.scan(self.path, body)
                self.send_response(answer.status)
                for k, v in answer.getheaders():
                    if k.lower() not in ("content-length", "connection", "transfer-encoding", "date", "keep-alive", "x-tarn-sum"):  # the sum would tell before the page does
                        self.send_header(k, v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = pass_on

            def log_message(self, *_):
                pass

        class Http(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):  # a client that went away
                pass

        self.http = Http(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))

    def scan(self, path, body):
        frames = split(body)
        assert frames and frames[-1][0] == PAGE
        kind = NODE if "/snapshot/nodes" in path else ENTRY
        if not self.left or kind != self.kind or len(frames) < 8:
            self.last = frames
            return body
        self.left -= 1
        self.done += 1
        return self.damage(frames, self.last)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join(10)
        self.http.server_close()


def test_damaged_snapshots_remove_nothing(world):
    with Relay(world.server) as relay:
        try:
            world.server.url = f"http://127.0.0.1:{relay.http.server_address[1]}"
            a = world.client("a")
            for d in range(4):
                (a.dir / f"d{d}").mkdir()
                for i in range(50):
                    (a.dir / f"d{d}" / f"file {i}").write_bytes(b"%d %d" % (d, i))
            a.wait(120)
            relay.last = split(b"".join(kind.to_bytes(1, "little") + (0).to_bytes(4, "little") for kind in (NODE, PAGE)))  # what stands for "another page" before there was one
            before = facts(a.dir)
            backup = world.base / "backup"
            world.server.admin("backup", "--to", backup)
            def load(damage, kind, times):
                """A new epoch, so that the client needs a new snapshot."""
                relay.damage, relay.kind, relay.left, relay.done = damage, kind, times, 0
                restore(world, backup)

            def ended(loads):
                assert facts(a.dir) == before, relay.damage.__name__  # at every moment, not only at the end
                return relay.done == 2 and a.log_text().count("sync load=done") > loads

            for kind in (NODE, ENTRY):
                for damage in DAMAGES:
                    loads = a.log_text().count("sync load=done")
                    load(damage, kind, 2)
                    until(lambda: ended(loads), 60, f"the end of the load, {damage.__name__}")
            assert facts(a.dir) == before
            # a server, or a way to it, that has nothing else to give: said, and asked again
            load(a_bit_flipped, NODE, 1 << 30)
            until(lambda: a.status()["state"] == "offline" and "broken or damaged" in a.status()["reason"], 60, "offline, with the reason")
            assert facts(a.dir) == before and (a.dir / "d1" / "file 7").read_bytes() == b"1 7"
            relay.left = 0
            until(lambda: a.status()["state"] == "online", 90, "online by itself")
            assert facts(a.dir) == before
            (a.dir / "later").touch()
            a.wait(120)
            b = world.client("b")
            soon(lambda: assert_same_facts({p: f for p, f in facts(b.dir).items() if p != "later"}, before), 60)
        finally:
            for c in world.clients:
                c.close()
