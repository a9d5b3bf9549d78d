#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that makes a bad network out of loopback.

This kernel has no netem, so delay, bandwidth and faults come from here. Bytes of each direction pass a pipeline: read -> line (bandwidth: when has the
last bit left?) -> flight (delay: when does it arrive?) -> write. So delay does not limit throughput, and bandwidth is shared by all connections of a direction, as on a
real link. Counters are those of the proxy, not what a client says of itself.

As a program:  proxy.py LISTEN_PORT TARGET_HOST:TARGET_PORT   reads one command per line on standard input, answers each with one line of JSON:
    set rtt_ms=30 up_mbit=100 down_mbit=100     0 = none, unlimited
    refuse on|off         new connections are reset
    stall on|off          bytes stop flowing, connections stay
    cut                   resets every connection now
    cut_after BYTES [each]  the next connection (each: every new one, until cut_after 0) is reset after so many bytes of the answer; the counters have the cuts
    lose_answer N [METHOD]  the next N HTTP requests reach the server; their answers do not come back (the connection is cut when the answer starts)
    drop N [METHOD]       the next N HTTP requests are cut off before the server sees them
    duplicate N [METHOD]  the next N HTTP requests reach the server twice, over two connections; one answer comes back
                          METHOD (also of lose_answer): only requests with that method count
    stall_body N BYTES    the next N HTTP requests with at least so many bytes of body stop flowing (0: those that were stopped go on); all others pass
    status N CODE         the next N HTTP requests are answered CODE (503, 429) with Retry-After: 1, the server does not see them
    counters | reset | quit
As a module: Proxy(target_host, target_port), start(), command(text), stop(); runs its event loop on a thread of its own.
"""
import asyncio
import json
import re
import sys
import threading

PIECE = 65536


class Direction:
    """One direction of the link: when the line is free again, and what has passed."""

    def __init__(self):
        self.bits_per_s = 0
        self.free_at = 0.0
        self.bytes = 0

    def send(self, now, n):
        """The moment at which the last of n bytes has left."""
        self.bytes += n
        if not self.bits_per_s:
            return now
        self.free_at = max(self.free_at, now) + n * 8 / self.bits_per_s
        return self.free_at


class Proxy:
    def __init__(self, host, port, listen_port=0):
        self.target = (host, port)
        self.listen_port = listen_port
        self.port = None
        self.delay_s = 0.0
        self.up, self.down = Direction(), Direction()
        self.refuse = False
        self.flowing = None
        self.writers = set()
        self.cut_after, self.cut_each, self.cuts = None, False, 0
        self.faults = {"lose_answer": [0, b""], "drop": [0, b""], "duplicate": [0, b""]}  # how many more, which method
        self.fired = {"lose_answer": 0, "drop": 0, "duplicate": 0}
        self.twice = set()
        self.statuses = [0, 503]
        self.stall_bodies, self.stalled, self.stall_over = [0, 0], 0, None
        self.connections = self.requests = self.answers_lost = 0
        self.loop = self.thread = self.server = None

    # ---- one connection ----
    async def serve(self, reader, writer):
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, there_writer}
        self.writers |= pair
        state = {"lose": False, "left": self.cut_after}
        if not self.cut_each:
            self.cut_after = None
        tasks = [asyncio.create_task(self.pump(reader, there_writer, writer, self.up, state, True)),
                 asyncio.create_task(self.pump(there_reader, writer, there_writer, self.down, state, False))]
        try:
            await asyncio.gather(*tasks)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            for w in pair:
                w.transport.abort() if state.get("abort") else w.close()
            self.writers -= pair

    def is_request(self, data):
        return data[:5] in (b"GET /", b"PUT /", b"POST ", b"HEAD ", b"DELET")

    def due(self, fault, data):
        left = self.faults[fault]
        if left[0] <= 0 or not data.startswith(left[1]):
            return False
        left[0] -= 1
        self.fired[fault] += 1
        return True

    async def again(self, request):
        """The same request over a connection of its own; whatever is answered is thrown away."""
        reader, writer = await asyncio.open_connection(*self.target)
        try:
            writer.write(request)
            await writer.drain()
            await asyncio.wait_for(reader.read(PIECE), 10)
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()

    def collect(self, state, data):
        """Bytes of the request that is to be sent twice, until it is complete."""
        state["copy"] += data
        head, end, body = bytes(state["copy"]).partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) >= length:
            task = asyncio.create_task(self.again(head + end + body[:length]))
            self.twice.add(task)
            task.add_done_callback(self.twice.discard)
            state["copy"] = None

    async def pump(self, reader, writer, other, line, state, is_up):
        queue = asyncio.Queue(256)

        async def flight():
            while True:
                arrives, data = await queue.get()
                wait = arrives - self.loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)  # deadline-poll: the delay of the link itself
                await self.flowing.wait()
                if data is None:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        flying = asyncio.create_task(flight())
        try:
            while True:
                data = await reader.read(PIECE)
                if data and is_up and self.is_request(data):
                    self.requests += 1
                    if self.statuses[0] > 0:
                        self.statuses[0] -= 1
                        code = self.statuses[1]
                        body = b'{"code":"UNAVAILABLE","message":"the proxy says so"}'
                        other.write(b"HTTP/1.1 %d X\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (code, len(body), body))
                        await other.drain()
                        other.close()
                        return
                    if self.due("drop", data):
                        state["abort"] = True
                        raise ConnectionResetError
                    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", data)
                    if self.stall_bodies[0] > 0 and length and int(length[1]) >= self.stall_bodies[1]:
                        self.stall_bodies[0] -= 1
                        self.stalled += 1
                        await self.stall_over.wait()
                    if self.due("lose_answer", data):
                        state["lose"] = True
                    if self.due("duplicate", data):
                        state["copy"] = bytearray()
                if data and is_up and state.get("copy") is not None:
                    self.collect(state, data)
                if data and not is_up:
                    if state["lose"]:
                        self.answers_lost += 1
                        state["abort"] = True
                        raise ConnectionResetError
                    if state["left"] is not None:
                        state["left"] -= len(data)
                        if state["left"] < 0:
                            state["abort"] = True
                            self.cuts += 1
                            raise ConnectionResetError
                now = self.loop.time()
                left = line.send(now, len(data))
                await queue.put((left + self.delay_s, data or None))
                if not data:
                    await flying
                    return
                if left - now > 0.2:  # the sender's window: do not read ahead of the line without end
                    await asyncio.sleep(left - now - 0.2)  # deadline-poll: the bandwidth of the link itself
        finally:
            flying.cancel()

    # ---- control ----
    async def do(self, text):
        words = text.split()
        if not words:
            return {"error": "empty command"}
        verb, args = words[0], words[1:]
        if verb == "set":
            for arg in args:
                key, value = arg.split("=")
                if key == "rtt_ms":
                    self.delay_s = float(value) / 2000
                elif key == "up_mbit":
                    self.up.bits_per_s = float(value) * 1e6
                elif key == "down_mbit":
                    self.down.bits_per_s = float(value) * 1e6
                else:
                    return {"error": f"unknown setting {key}"}
        elif verb == "refuse":
            self.refuse = args[0] == "on"
        elif verb == "stall":
            self.flowing.clear() if args[0] == "on" else self.flowing.set()
        elif verb == "cut":
            for w in list(self.writers):
                w.transport.abort()
        elif verb == "cut_after":
            self.cut_after, self.cut_each = int(args[0]) or None, len(args) > 1
        elif verb in self.faults:
            self.faults[verb] = [int(args[0]), args[1].encode() + b" " if len(args) > 1 else b""]
        elif verb == "stall_body":
            self.stall_bodies = [int(args[0]), int(args[1]) if len(args) > 1 else 0]
            self.stall_over.clear() if self.stall_bodies[0] else self.stall_over.set()
        elif verb == "status":
            self.statuses = [int(args[0]), int(args[1])]
        elif verb == "reset":
            self.up.bytes = self.down.bytes = self.connections = self.requests = self.answers_lost = 0
        elif verb != "counters":
            return {"error": f"unknown command {verb}"}
        return {"bytes_up": self.up.bytes, "bytes_down": self.down.bytes, "connections": self.connections, "requests": self.requests, "answers_lost": self.answers_lost, "fired": dict(self.fired), "stalled": self.stalled, "cuts": self.cuts}

    async def main(self, ready):
        self.loop = asyncio.get_running_loop()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.stall_over = asyncio.Event()
        self.stall_over.set()
        self.ended = asyncio.Event()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.listen_port)
        self.port = self.server.sockets[0].getsockname()[1]
        ready.set()
        await self.ended.wait()
        self.server.close()
        await self.do("cut")

    def start(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main(ready)), name="proxy")
        self.thread.start()
        if not ready.wait(10):
            raise TimeoutError("the proxy did not start")
        return self

    def command(self, text):
        answer = asyncio.run_coroutine_threadsafe(self.do(text), self.loop).result(10)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def stop(self):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)

    __enter__ = start

    def __exit__(self, *_):
        self.stop()


def main():
    host, port = sys.argv[2].rsplit(":", 1)
    with Proxy(host, int(port), int(sys.argv[1])) as proxy:
        print(json.dumps({"port": proxy.port}), flush=True)
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            try:
                print(json.dumps(proxy.command(line)), flush=True)
            except (ValueError, IndexError) as e:
                print(json.dumps({"error": str(e)}), flush=True)


if __name__ == "__main__":
    main()
