# SPDX-License-Identifier: Apache-2.0
"""Random schedules of a bad network under writers: what was accepted is applied once, nothing is lost, and 30 s after the faults stop everybody shows the same.

Three mounts reach one server through a proxy each. A schedule is a few faults of random kinds, each on one line for a while or for a few requests; meanwhile each mount has a writer alone in a
directory of its own (writer.py: it knows exactly what must be there) and one in a directory that all of them write to (test_storm.py: any content that was closed is a version, unless its
own writer went on from it). Then the faults and the writers stop, and within 30 s nothing is pending or parked, all three stand at the server's last event, show the same tree, and each own
directory is what its writer made, without a conflict copy. Applied twice is: an operation id with two events, or a node with one content under two versions (each content here is written once).

A run of 25 or more in which a kind of fault never met a request proves nothing: that kind gets up to five turns more, then the run fails. 50 schedules here (in the suite in two parts side by side); TARN_TEST_SCALE multiplies, TARN_TEST_SEED repeats, TARN_TEST_RUN=N runs schedule N of that seed alone."""
import collections
import errno
import os
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402
from support import PATIENCE, Client, assert_same_tree, seed_of_run, share, soon, until  # noqa: E402
from test_storm import Writer as Storm, versions  # noqa: E402
from writer import Writer as Alone, differences, seen  # noqa: E402

SCHEDULES = share(50, slow=4)
FAULTS_S = 1.5        # of one schedule
HEALED_S = 30
PAUSE_S = 0.02        # between two changes of a writer


def some(r):
    return f"{r.choice((1, 1, 2, 3))} {r.choice(('', '', 'POST', 'GET'))}".strip()


# kind: (the command, the one that ends it, what the proxy counts)
KINDS = {
    "delay": (lambda r: f"set rtt_ms={r.choice((20, 100, 400))}", "set rtt_ms=0", "delay"),
    "bandwidth": (lambda r: f"set up_mbit={r.choice((0.3, 2, 10))} down_mbit={r.choice((0.3, 2, 10))}", "set up_mbit=0 down_mbit=0", "bandwidth"),
    "cut off": (lambda r: "refuse on", "refuse off", "refuse"),
    "cut": (lambda r: "cut", None, "cut"),
    "stall": (lambda r: "stall on", "stall off", "stall"),
    "reset": (lambda r: f"reset {some(r)}", None, "reset"),
    "slice": (lambda r: "slice on", "slice off", "slice"),
    "truncate": (lambda r: f"truncate {some(r)}", None, "truncate"),
    "answer lost": (lambda r: f"lose_answer {some(r)}", None, "lose_answer"),
    "request lost": (lambda r: f"drop {some(r)}", None, "drop"),
    "duplicate": (lambda r: f"duplicate {r.choice((1, 2, 3))} POST", None, "duplicate"),
    "429 or 503": (lambda r: f"status {r.choice((1, 2))} {r.choice((429, 503))}", None, "status"),
    "wrong byte up": (lambda r: f"wrong_up {r.choice((1, 2, 3))} POST", None, "wrong_up"),  # a GET has no body
    "wrong byte down": (lambda r: f"wrong_down {some(r)}", None, "wrong_down"),
    "close slowly": (lambda r: f"close_slowly {r.choice((1, 2))} {r.choice((200, 1000))}", None, "close_slowly"),
}


class Behind(Client):
    """A client with a line of its own."""

    def __init__(self, world, name, seed):
        super().__init__(world, name)
        world.clients.append(self)
        self.line = Proxy("127.0.0.1", world.server.port, seed=seed).start()
        self.url = f"http://127.0.0.1:{self.line.port}"
        self.login(url=self.url)
        self.mount()

    def mount(self):
        self.tarn("mount", f"{self.url}/work", self.dir, "-o", f"cache_dir={self.cache},net_timeout=2s", timeout=120)

    def close(self):
        super().close()
        self.line.stop()


class Together(Storm):
    """Remembers what it did."""
    unreadable = (errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EIO)

    def __init__(self, *args):
        super().__init__(*args)
        self.log, self.began = [], time.monotonic()

    def note(self, fd, data, path, over=None):
        super().note(fd, data, path, over)
        self.log.append(f"{time.monotonic() - self.began:.3f} step {self.n}: {len(data)} bytes to inode {os.fstat(fd).st_ino} for {os.path.relpath(path, self.at)}")

    def take_away(self, path, act, source=None):
        how = "done"
        try:
            gone = super().take_away(path, act, source)
            how = f"done, the last name of inodes {gone}" if gone else how
        except OSError as e:
            how = errno.errorcode[e.errno]
            raise
        finally:
            self.log.append(f"{time.monotonic() - self.began:.3f} step {self.n}: {os.path.relpath(path, self.at)} taken away: {how}")


class Slow(Alone):
    def step(self):
        super().step()
        self.stop.wait(PAUSE_S * 2 * self.random.random())


def schedule(r, n, clients):
    """[(when, client, command)]. The kinds take turns at being in it for certain."""
    steps, kinds = [], list(KINDS)
    first = kinds.pop(n % len(kinds))
    for kind in [first] + r.sample(kinds, r.randrange(2, 7)):
        on, off, _ = KINDS[kind]
        start, c = r.uniform(0, FAULTS_S * 0.8), r.randrange(clients)
        steps.append((start, c, on(r)))
        if kind == "cut off":
            steps.append((start, c, "cut"))
        if off:
            steps.append((start + r.uniform(0.1, FAULTS_S), c, off))
    return sorted(steps)


class Run:
    def __init__(self, world, seed):
        self.world, self.seed = world, seed
        self.clients = [Behind(world, name, seed + i) for i, name in enumerate("abc")]
        self.operations = self.closed = self.schedules = 0
        self.told, self.covered = collections.Counter(), 0
        self.must, self.slowest, self.twice = [], 0.0, 0

    def fired(self):
        return sum((collections.Counter(c.line.command("counters")["fired"]) for c in self.clients), collections.Counter())

    def one(self, n):
        r = random.Random(f"{self.seed} {n}")
        steps = schedule(r, n, len(self.clients))
        base = f"s{n}"
        self.what = f"schedule {n} of seed {self.seed}: " + ", ".join(f"{t:.2f} {self.clients[c].name} {command}" for t, c, command in steps)
        for c in self.clients:  # the same directories in all mounts, at once
            for d in ("", "together", "together/x", "together/y", c.name):
                os.makedirs(c.dir / base / d, exist_ok=True)
        began = time.monotonic()
        alone = [Slow(str(c.dir / base / c.name), r.randrange(1 << 32), {}, size_max=256 << 10, reads=True) for c in self.clients]
        together = [Together(c.name, c.dir / base / "together", r.randrange(1 << 32), began + FAULTS_S) for c in self.clients]
        for w in alone + together:
            w.start()
        for t, c, command in steps:
            threading.Event().wait(max(0, min(t, FAULTS_S) + began - time.monotonic()))
            self.clients[c].line.command(command)
        threading.Event().wait(max(0, began + FAULTS_S - time.monotonic()))
        for w in alone:
            w.stop.set()
        for w in alone + together:
            w.join(30 * PATIENCE)
            assert not w.is_alive(), f"a call hangs; {self.what}"
            assert w.error is None, f"{w.error!r}; {self.what}"
        healed = time.monotonic()
        for c in self.clients:
            c.line.command("heal")
        self.converge(healed)
        self.schedules += 1
        self.operations += sum(w.calls for w in alone) + sum(w.n for w in together)
        self.closed += sum(w.closed for w in alone + together)
        self.told += sum((w.mine.told for w in together), collections.Counter())
        self.covered += sum(len(w.mine.covered) for w in together)
        there = {x[0].hex() for x in self.world.server.rows("SELECT root FROM revision WHERE kind = 1 AND root IS NOT NULL UNION SELECT root FROM node WHERE kind = 1 AND root IS NOT NULL")}
        lost = [(how, w.log) for w in together for d, how in w.must() if d not in there]
        assert not lost, f"lost: {lost[0][0]}; what its writer did: {lost[0][1]}; {self.what}"
        self.must += [(d, f"{how} in schedule {n}") for w in together for d, how in w.must()]
        for c in self.clients[1:]:
            soon(lambda: assert_same_tree(self.clients[0].dir / base, c.dir / base, dir_times=False))
        for w in alone:
            for c in self.clients:
                soon(lambda: self.as_made(w, c, base))
        self.applied_twice()

    def as_made(self, w, c, base):
        name = os.path.basename(w.at)
        wrong = differences(w.model, seen(c.dir / base / name))
        assert not wrong, f"the directory of {name} as {c.name} shows it: {wrong[:10]}; last calls {w.log[-20:]}; {self.what}"

    def converge(self, healed):
        left = HEALED_S * PATIENCE

        def calm():
            s = [c.status() for c in self.clients]
            self.at = [{k: x[k] for k in ("state", "reason", "pending_items", "pending_files", "parked", "cursor") if k in x} for x in s]
            return all(x["pending_items"] == 0 and x["pending_files"] == 0 and not x["parked"] and x["cursor"]["seq"] == self.last_seq() for x in s)
        while not calm():
            assert time.monotonic() - healed < left, f"not converged {left:g} s after healing: {self.at}; {self.what}"
            threading.Event().wait(0.05)
        self.slowest = max(self.slowest, time.monotonic() - healed)

    def last_seq(self):
        return self.world.server.rows("SELECT seq FROM workspace")[0][0]

    def applied_twice(self):
        twice = self.world.server.rows("SELECT op FROM event GROUP BY op HAVING COUNT(*) > 1")
        twice += self.world.server.rows("SELECT id FROM (SELECT id, root, version FROM revision WHERE kind = 1 AND size > 0 UNION SELECT id, root, version FROM node WHERE kind = 1 AND size > 0) "
                            "GROUP BY id, root HAVING COUNT(DISTINCT version) > 1")
        self.twice = len(twice)
        assert not twice, f"applied twice: {[x[0].hex() for x in twice[:5]]}; {self.what}"


def test_random_schedules(world):
    seed = seed_of_run()
    only = os.environ.get("TARN_TEST_RUN")
    run = Run(world, seed)
    began = time.monotonic()
    for n in [int(only)] if only else range(SCHEDULES):
        run.one(n)
    for n in range(SCHEDULES, SCHEDULES + 5 * len(KINDS)) if SCHEDULES >= 25 and not only else []:
        if not run.fired()[list(KINDS.values())[n % len(KINDS)][2]]:  # by chance no request met it in its turns
            run.one(n)
    there = versions(world.server)
    lost = [how for d, how in run.must if d not in there]
    fresh = world.client("fresh")
    until(lambda: fresh.status()["cursor"]["seq"] == run.last_seq(), HEALED_S, "a client with an empty cache has seen all")
    soon(lambda: assert_same_tree(run.clients[0].dir, fresh.dir, dir_times=False))
    fired = run.fired()
    print(f"{run.schedules} schedules, {run.operations} operations, {run.closed} contents closed, {len(run.must)} last ones together ({run.covered} covered by others; taken away by their own writers: {dict(run.told)}), {len(lost)} lost, {run.twice} applied twice, "
          f"converged after {run.slowest:.1f} s at most, {time.monotonic() - began:.0f} s in all; fired: " + ", ".join(f"{kind} {fired[k]}" for kind, (_, _, k) in KINDS.items()))
    assert not lost, f"seed {seed}: lost: {lost[:20]}"
    never = [kind for kind, (_, _, k) in KINDS.items() if not fired[k]]
    assert SCHEDULES < 25 or only or not never, f"void: no request met {never}"
