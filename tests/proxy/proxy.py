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
    keep N [METHOD]       the next N HTTP requests pass, and a copy of each stays here
                          METHOD (of all of these): only requests with that method count
    replay                what was kept reaches the server once more, in that order; the answer has the statuses that it gave
    reset N [METHOD]      of the next N HTTP requests the server sees half of the first piece; then both connections are reset
    truncate N [METHOD]   the answers to the next N HTTP requests end in the middle, in good order (FIN)
    wrong_up N [METHOD]   in the body of the next N HTTP requests (with one) a byte is changed on the way
    wrong_down N [METHOD] the same in the bodies of answers
    close_slowly N MS     the next N HTTP requests on a connection that had an answer before meet a server that has closed it, which the client learns MS later: they are swallowed
    slice on|off          everything passes in pieces of a few bytes
    stall_body N BYTES    the next N HTTP requests with at least so many bytes of body stop flowing (0: those that were stopped go on); all others pass
    status N CODE [PART [WORD]]  the next N HTTP requests (with PART in their first line) are answered CODE (503, 429) with Retry-After: 1, the server does not see them; WORD: the error's code
    nth N COMMAND         the N-th HTTP request from now on: COMMAND is done before it is looked at (`nth 7 drop 1` cuts off the seventh)
    heal                  no fault any more, also none that a connection still had before it; connections stay
    counters | reset | quit
What is chosen at random (which byte is wrong, where an answer ends) comes from the seed that the proxy was made with.
As a module: Proxy(target_host, target_port, seed=0), start(), command(text), stop(); runs its event loop on a thread of its own.
"""
import asyncio
import json
import random
import re
import sys
import threading

PIECE = 65536
FAULTS = ("lose_answer", "drop", "duplicate", "keep", "reset", "truncate", "wrong_up", "wrong_down")


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
    def __init__(self, host, port, listen_port=0, seed=0):
        self.random = random.Random(seed)
        self.target = (host, port)
        self.listen_port = listen_port
        self.port = None
        self.delay_s = 0.0
        self.up, self.down = Direction(), Direction()
        self.refuse = False
        self.flowing = None
        self.writers, self.states = set(), {}
        self.cut_after, self.cut_each, self.cuts = None, False, 0
        self.faults = {fault: [0, b""] for fault in FAULTS}  # how many more, which method
        self.fired = dict.fromkeys((*FAULTS, "close_slowly", "status", "refuse", "cut", "delay", "bandwidth", "stall", "slice"), 0)  # requests, connections or pieces that met it
        self.close_slowly, self.slicing = [0, 0], False
        self.twice, self.kept = set(), []
        self.statuses = [0, 503, b"", "UNAVAILABLE"]  # how many more, which code, what is in the request line, the error's code
        self.stall_bodies, self.stalled, self.stall_over = [0, 0], 0, None
        self.connections = self.requests = self.answers_lost = 0
        self.later = None  # [how many requests until, what]
        self.loop = self.thread = self.server = None

    # ---- one connection ----
    async def serve(self, reader, writer):
        self.connections += 1
        if self.refuse:
            self.fired["refuse"] += 1
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, there_writer}
        self.writers |= pair
        state = {"lose": False, "left": self.cut_after, "answers": False}
        if not self.cut_each:
            self.cut_after = None
        self.states[id(state)] = state
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
            del self.states[id(state)]

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
        """The same request over a connection of its own; whatever is answered is thrown away, but for its status."""
        reader, writer = await asyncio.open_connection(*self.target)
        try:
            writer.write(request)
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(PIECE), 10)
            return int(answer[9:12] or b"0")
        except (OSError, asyncio.TimeoutError):
            return 0
        finally:
            writer.close()

    def collect(self, state, data):
        """Bytes of the request that is to be sent twice, or later, until it is complete."""
        state["copy"] += data
        head, end, body = bytes(state["copy"]).partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(body) >= length:
            request, state["copy"] = head + end + body[:length], None
            if state.pop("keep", False):
                self.kept.append(request)
                return
            task = asyncio.create_task(self.again(request))
            self.twice.add(task)
            task.add_done_callback(self.twice.discard)

    def damage(self, state, key, data):
        """One byte of the body is another one; a piece without a body leaves it to the next piece of the connection."""
        at = data.find(b"\r\n\r\n") + 4 if data[:5] == b"HTTP/" or self.is_request(data) else 0
        if at == 3 or at >= len(data):
            return data
        state[key] = False
        self.fired[key] += 1
        at = self.random.randrange(at, len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.random.randrange(8)]) + data[at + 1:]

    async def write(self, writer, data):
        if not self.slicing:
            writer.write(data)
            await writer.drain()
            return
        self.fired["slice"] += 1
        at = 0
        while at < len(data):
            n = self.random.choice((1, 1, 2, 7, 100)) if at < 400 else 4096
            writer.write(data[at:at + n])
            await writer.drain()
            await asyncio.sleep(0)  # deadline-poll: no time at all; each crumb leaves by itself
            at += n

    async def swallow(self, reader):
        while await reader.read(PIECE):
            pass

    async def pump(self, reader, writer, other, line, state, is_up):
        queue = asyncio.Queue(256)

        async def flight():
            while True:
                arrives, data = await queue.get()
                wait = arrives - self.loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)  # deadline-poll: the delay of the link itself
                if not self.flowing.is_set():
                    self.fired["stall"] += 1
                    await self.flowing.wait()
                if data is None:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                await self.write(writer, data)
                queue.task_done()
        flying = asyncio.create_task(flight())
        try:
            while True:
                data = await reader.read(PIECE)
                if data and is_up and self.is_request(data):
                    self.requests += 1
                    if self.later:
                        self.later[0] -= 1
                        if self.later[0] <= 0:
                            command, self.later = self.later[1], None
                            await self.do(command)
                    if self.statuses[0] > 0 and self.statuses[2] in data.split(b"\r\n", 1)[0]:
                        self.statuses[0] -= 1
                        self.fired["status"] += 1
                        code = self.statuses[1]
                        body = json.dumps({"code": self.statuses[3], "message": "the proxy says so"}).encode()
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
                    if self.due("keep", data):
                        state["copy"], state["keep"] = bytearray(), True
                    if self.close_slowly[0] > 0 and state["answers"]:
                        self.close_slowly[0] -= 1
                        self.fired["close_slowly"] += 1
                        try:
                            await asyncio.wait_for(self.swallow(reader), self.close_slowly[1] / 1000)
                        except asyncio.TimeoutError:
                            pass
                        raise ConnectionResetError
                    if self.due("reset", data):
                        await queue.put((self.loop.time() + self.delay_s, data[:max(1, len(data) // 2)]))
                        await queue.join()
                        state["abort"] = True
                        raise ConnectionResetError
                    if self.due("truncate", data):
                        state["truncate"] = True
                    for key in ("wrong_up", "wrong_down"):
                        if self.due(key, data):
                            self.fired[key] -= 1  # counts when there was a byte to change
                            state[key] = True
                if data and state.get("wrong_up" if is_up else "wrong_down"):
                    data = self.damage(state, "wrong_up" if is_up else "wrong_down", data)
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
                    state["answers"] = True
                    if state.get("truncate"):
                        await queue.put((self.loop.time() + self.delay_s, data[:self.random.randrange(1, len(data))]))
                        await queue.put((self.loop.time() + self.delay_s, None))
                        await flying
                        raise ConnectionResetError  # both are closed, in good order
                now = self.loop.time()
                self.fired["delay"] += self.delay_s > 0
                self.fired["bandwidth"] += line.bits_per_s > 0
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
            self.fired["cut"] += len(self.writers) // 2
            for w in list(self.writers):
                w.transport.abort()
        elif verb == "cut_after":
            self.cut_after, self.cut_each = int(args[0]) or None, len(args) > 1
        elif verb in self.faults:
            self.faults[verb] = [int(args[0]), args[1].encode() + b" " if len(args) > 1 else b""]
        elif verb == "stall_body":
            self.stall_bodies = [int(args[0]), int(args[1]) if len(args) > 1 else 0]
            self.stall_over.clear() if self.stall_bodies[0] else self.stall_over.set()
        elif verb == "heal":
            for state in self.states.values():
                state.update(lose=False, left=None, truncate=False, wrong_up=False, wrong_down=False)
            self.faults = {fault: [0, b""] for fault in FAULTS}
            self.statuses[0] = self.delay_s = self.up.bits_per_s = self.down.bits_per_s = 0
            self.later = None
            self.refuse, self.slicing, self.close_slowly, self.cut_after, self.stall_bodies = False, False, [0, 0], None, [0, 0]
            self.flowing.set()
            self.stall_over.set()
        elif verb == "nth":
            self.later = [int(args[0]), " ".join(args[1:])]
        elif verb == "slice":
            self.slicing = args[0] == "on"
        elif verb == "close_slowly":
            self.close_slowly = [int(a) for a in args]
        elif verb == "status":
            self.statuses = [int(args[0]), int(args[1]), args[2].encode() if len(args) > 2 else b"", args[3] if len(args) > 3 else "UNAVAILABLE"]
        elif verb == "replay":
            kept, self.kept = self.kept, []
            return {"statuses": [await self.again(request) for request in kept]}
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
        answer = asyncio.run_coroutine_threadsafe(self.do(text), self.loop).result(60)
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
