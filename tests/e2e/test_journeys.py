# SPDX-License-Identifier: Apache-2.0
"""The table of journeys in ARCHITECTURE.md, on counters: what a thing may cost in requests to the daemon, SQL transactions and HTTP requests."""
import os
import time

from support import run, until


class Meter:
    """What the counters of a client grew by. The long poll may end at any moment: HTTP budgets count what is above what an idle client does. What blobs became is written to their index
    some seconds later, whatever is done then: sql_transactions are counted without that."""

    def __init__(self, client):
        self.client = client
        self.before = self.now()

    def now(self):
        counters = self.client.status()["counters"]
        counters["sql_transactions"] -= counters["index_flushes"]
        return counters

    def grew(self, name):
        return self.now()[name] - self.before[name]


QUIET_S = 1.5  # longer than the slowest thing that follows a change: the sync of each second


def settled(*clients):
    """Everything is sent, own events have come back, stages are adopted and synced: nothing has happened for longer than any of that waits."""
    for c in clients:
        c.wait()
    before, since = None, time.monotonic()

    def still():
        nonlocal before, since
        all_ = [c.status() for c in clients]
        now = [(s["counters"]["sql_transactions"], s["counters"]["events_applied"], s["dirty_bytes"], s["cursor"]["seq"]) for s in all_]
        if now != before or any(s["dirty_bytes"] for s in all_) or len({s["cursor"]["seq"] for s in all_}) > 1:
            before, since = now, time.monotonic()
        return time.monotonic() - since > QUIET_S
    until(still, 30, "nothing happens any more")


def test_looking_again_asks_nobody(world):
    a = world.client()
    for i in range(30):
        (a.dir / f"f{i}").write_text("x" * i)
    settled(a)
    look = lambda: [os.lstat(a.dir / name).st_size for name in sorted(os.listdir(a.dir))]
    look(), look()
    meter = Meter(a)
    before = meter.now()["fuse_requests"]
    per_status = meter.now()["fuse_requests"] - before  # status itself looks at the mount point
    for _ in range(10):
        look()
    assert meter.grew("fuse_requests") <= 10 * 3 + 2 * per_status + 4  # opendir, releasedir, and no lookup or getattr
    assert meter.grew("fuse_getattr") <= 2 and meter.grew("fuse_lookup") <= 2 and meter.grew("fuse_readdir") == 0
    assert meter.grew("sql_transactions") == 0


def test_reading_again_asks_nobody(world):
    a = world.client()
    path = a.dir / "big"
    path.write_bytes(os.urandom(3 << 20))
    settled(a)
    path.read_bytes()
    meter = Meter(a)
    for _ in range(5):
        path.read_bytes()
    assert meter.grew("fuse_read") == 0 and meter.grew("blocks_fetched") == 0 and meter.grew("sql_transactions") == 0


def test_a_cold_range_is_one_request(world):
    a, b = world.client(), world.client()
    (a.dir / "big").write_bytes(os.urandom(40 << 20))
    settled(a, b)
    meter = Meter(b)
    fd = os.open(b.dir / "big", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(fd, 4096, 20 << 20)) == 4096
    finally:
        os.close(fd)
    assert meter.grew("http_requests") <= 2  # the list and the blocks together; the poll may have ended meanwhile
    assert meter.grew("bytes_received") < 6 << 20  # the block, what is beside it, and the list: not the file
    assert meter.grew("sql_transactions") == 0


def test_local_changes_cost_a_transaction_each(world):
    a = world.client()
    (a.dir / "warm").write_text("x")
    settled(a)
    world.server.freeze()  # so that nothing but the changes themselves is counted
    try:
        meter = Meter(a)
        for i in range(20):
            (a.dir / f"d{i}").mkdir()
        made = meter.grew("sql_transactions")
        for i in range(20):
            os.rename(a.dir / f"d{i}", a.dir / f"e{i}")
        renamed = meter.grew("sql_transactions") - made
        for i in range(20):
            (a.dir / f"e{i}").rmdir()
        removed = meter.grew("sql_transactions") - made - renamed
        flushed = 12  # the flusher makes things durable once a second; the first batch may be marked as sent
        assert made <= 20 + flushed and renamed <= 20 + flushed and removed <= 20 + flushed, (made, renamed, removed)
        fd = os.open(a.dir / "warm", os.O_WRONLY)
        meter = Meter(a)
        for i in range(200):
            os.pwrite(fd, b"y" * 4096, i * 4096)
        assert meter.grew("sql_transactions") <= flushed and meter.grew("fuse_write") == 200  # a write is no transaction
        os.close(fd)
    finally:
        world.server.freeze(False)


def test_small_files_go_up_in_batches(world):
    a = world.client()
    (a.dir / "warm").write_text("x")
    settled(a)
    world.server.stop()
    (a.dir / "many").mkdir()
    for i in range(1000):
        (a.dir / "many" / f"{i}").write_text(f"file {i}")
    meter = Meter(a)
    world.server.start()
    a.wait()
    assert meter.grew("ops_committed") >= 1000
    assert meter.grew("http_requests") <= 40  # 1,000 files: a handful of batches, the probes and the polls


def test_own_events_bring_no_bytes(world):
    a = world.client()
    settled(a)
    meter = Meter(a)
    (a.dir / "mine").write_bytes(os.urandom(5 << 20))
    settled(a)
    assert meter.grew("blocks_fetched") == 0 and meter.grew("bytes_received") < 64 << 10
    assert (a.dir / "mine").stat().st_size == 5 << 20


def test_remote_changes_are_applied_in_batches(world):
    a, b = world.client(), world.client()
    world.server.stop()
    for i in range(500):
        (a.dir / f"f{i}").write_text("x")
    world.server.start()
    meter = Meter(b)
    a.wait()
    until(lambda: (b.dir / "f499").exists(), 30)
    settled(a, b)
    assert meter.grew("events_applied") >= 500
    assert meter.grew("sql_transactions") <= 60


def test_a_copy_moves_no_byte(world):
    """cp of a file that was never read here: neither fetched nor sent, and accepted like any write."""
    a, b = world.client(), world.client()
    data = os.urandom(40 << 20)
    (a.dir / "big").write_bytes(data)
    settled(a, b)
    meter = Meter(b)
    run("cp", b.dir / "big", b.dir / "copy")
    assert meter.grew("fuse_write") == 0 and meter.grew("fuse_read") == 0
    settled(a, b)
    assert meter.grew("blocks_fetched") == 0 and meter.grew("blocks_sent") == 0
    assert meter.grew("bytes_sent") + meter.grew("bytes_received") <= 48 << 10  # the list of blocks, once to us and once back by name; the polls
    assert (a.dir / "copy").read_bytes() == data
    run("cp", b.dir / "big", b.dir / "again")
    b.kill()
    b.restart()
    settled(a, b)
    assert (a.dir / "again").read_bytes() == data and (b.dir / "again").read_bytes() == data
