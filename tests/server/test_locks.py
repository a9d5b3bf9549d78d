# SPDX-License-Identifier: Apache-2.0
"""Locks across clients on the real server: parked waits, ends of leases by the server's clock, restarts, clients that go away.

Nothing here depends on how fast the machine is: times have a bound that tells one cause from another, or a lower one where a lock must not go too early.
"""
import concurrent.futures
import json
import os
import socket
import time

import pytest
from support import SCALE, Server, deadline

SHORT_S = 2
PATH = "/v1/workspaces/w/leases"


@pytest.fixture()
def server():
    with Server() as s:  # 30 s: nobody loses his lease because the machine is busy
        yield s


class Client:
    """A lease and the numbers of its requests."""

    def __init__(self, s):
        self.s, self.number = s, 0
        status, _, body = s.call("POST", PATH)
        assert status == 201
        self.lease = json.loads(body)["lease"]

    def body(self, node, type, **more):
        self.number += 1
        return json.dumps({"node": node, "owner": "0" * 16, "type": type, "number": self.number, **more})

    def lock(self, node, type, **more):
        status, _, body = self.s.call("POST", f"{PATH}/{self.lease}/locks", body=self.body(node, type, **more))
        return status, json.loads(body)

    def renew(self):
        return self.s.call("POST", f"{PATH}/{self.lease}")[0]


def parked(s):
    """How many locks are waited for."""
    text = s.call("GET", "/v1/metrics")[2].decode()
    return int(next(line for line in text.splitlines() if line.startswith("tarn_lock_waits ")).split()[1])


def until(condition, what, seconds=60):
    for _ in deadline(seconds):
        if condition():
            return
    raise AssertionError(what)


def test_a_waiter_is_woken_by_the_unlock(server):
    a, b, node = Client(server), Client(server), os.urandom(16).hex()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert a.lock(node, "write")[0] == 200
        waits = pool.submit(b.lock, node, "write", wait=60)
        until(lambda: parked(server) == 1 and a.renew() == 200, "nobody waits")
        assert not waits.done()
        assert a.lock(node, "none")[0] == 200
        begun = time.monotonic()
        assert waits.result()[0] == 200
        assert time.monotonic() - begun < 20  # by the unlock, not by the end of a lease or of the wait
        assert a.lock(node, "read")[0] == 423
        assert parked(server) == 0


def test_the_end_of_a_lease_wakes():
    with Server("--lease-time", f"{SHORT_S}s") as s:
        a, b, node = Client(s), Client(s), os.urandom(16).hex()
        begun = time.monotonic()
        assert a.lock(node, "write")[0] == 200
        status = 423
        while status != 200:
            status = b.lock(node, "write", wait=60)[0]
            if status == 410:  # its own has ended: it was not let run for so long
                b = Client(s)
            assert status in (200, 410, 423) and time.monotonic() - begun < 60
        assert time.monotonic() - begun >= SHORT_S
        assert a.lock(node, "none")[0] == 410 and a.renew() == 410


def test_a_restart_ends_leases(server):
    a, node = Client(server), os.urandom(16).hex()
    assert a.lock(node, "write")[0] == 200
    server.stop()
    server.start()
    assert a.renew() == 410 and a.lock(node, "write")[0] == 410
    assert Client(server).lock(node, "write")[0] == 200


def test_a_stop_answers_waits(server):
    a, b, node = Client(server), Client(server), os.urandom(16).hex()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert a.lock(node, "write")[0] == 200
        waits = pool.submit(b.lock, node, "write", wait=60)
        until(lambda: parked(server) == 1 or waits.done(), "nobody waits")
        assert server.stop() == 0
        assert waits.result()[0] in (200, 423)
    server.start()


def test_a_waiter_that_goes_away_is_forgotten(server):
    a, b, node = Client(server), Client(server), os.urandom(16).hex()
    assert a.lock(node, "write")[0] == 200
    body = b.body(node, "write", wait=60).encode()
    with socket.create_connection((server.host, server.port)) as gone:
        gone.sendall(b"POST %s/%s/locks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" %
                     (PATH.encode(), b.lease.encode(), server.token.encode(), len(body)) + body)
        until(lambda: parked(server) == 1 and a.renew() == 200, "nobody waits")
    until(lambda: parked(server) == 0 and a.renew() == 200, "it still waits")
    # and cancelled by name, whatever became of it: nobody is in the way
    assert server.call("POST", f"{PATH}/{b.lease}/locks", body=json.dumps({"number": b.number, "done": b.number, "cancel": True}))[0] == 200
    assert a.lock(node, "none")[0] == 200
    assert Client(server).lock(node, "write")[0] == 200


def test_many_count_in_turn(server):
    """A counter outside, that only the lock guards: nobody is in it together with somebody else, and everybody gets his turn."""
    rounds, clients, node, inside, total = max(2, int(20 * SCALE)), 6, os.urandom(16).hex(), [], [0]

    def work(i):
        c = Client(server)
        for _ in range(rounds):
            status = 423
            while status == 423:
                status = c.lock(node, "write", wait=5)[0]
            assert status == 200
            inside.append(i)
            assert inside == [i]
            value = total[0]
            assert c.lock(os.urandom(16).hex(), "read")[0] == 200  # somebody else may run
            total[0] = value + 1
            inside.remove(i)
            assert c.lock(node, "none")[0] == 200

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work, i) for i in range(clients)]:
            done.result()
    assert total[0] == rounds * clients
    assert parked(server) == 0


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", __file__]))
