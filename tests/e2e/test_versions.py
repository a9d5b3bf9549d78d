# SPDX-License-Identifier: Apache-2.0
"""A version on the server is the file as it was at one commit point, however slow the link and whatever the program does meanwhile; and a file that is saved again and again gets there all the same."""
import json
import os
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from support import SCALE, Client, until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "proxy"))
from proxy import Proxy  # noqa: E402

PAGE, PAGES = 4096, 128


@pytest.fixture
def slow(world):
    """A client behind a link of 8 Mbit/s up: half a second for the file below, as often as it is sent."""
    proxy = Proxy("127.0.0.1", int(world.server.url.rsplit(":", 1)[1])).start()
    c = Client(world, "slow")
    world.clients.append(c)
    url = f"http://127.0.0.1:{proxy.port}"
    c.login(url=url)
    c.tarn("mount", f"{url}/work", c.dir, "-o", f"cache_dir={c.cache}", timeout=120)
    proxy.command("set rtt_ms=20 up_mbit=8 down_mbit=0")
    yield c
    proxy.command("set rtt_ms=0 up_mbit=0 down_mbit=0")
    c.close()
    proxy.stop()


def page(n, k):
    """Says which save it is of, and does not shrink."""
    return (b"%08d %04d " % (n, k)) + os.urandom(PAGE - 14)


class Server:
    def __init__(self, server):
        self.url, self.auth = f"{server.url}/v1/workspaces/work", {"Authorization": f"Bearer {server.token('anna')}"}

    def get(self, path):
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=self.auth), timeout=60) as f:
            return f.read()

    def versions(self, name):
        """Oldest first: (saves whose pages it has, number of pages, when)."""
        found = []
        for v in reversed(json.loads(self.get(f"/versions?path={name}&limit=1000"))["versions"]):
            if v["size"]:
                data = self.get(f"/files/{name}?version={v['version']}")
                found.append(({int(data[i:i + 8]) for i in range(0, len(data), PAGE)}, len(data) // PAGE, v["time_ns"] / 1e9))
        return found


def test_versions_are_whole_while_the_program_writes_on(world, slow):
    """Rewritten in place, page by page, closed, and again, without a pause: each upload takes longer than a save. And a file that is frozen by a link while its handle writes on."""
    path, end, n = slow.dir / "f", time.monotonic() + 6 * SCALE, 0
    path.write_bytes(b"".join(page(0, k) for k in range(PAGES)))
    while time.monotonic() < end:
        n += 1
        with open(path, "r+b", buffering=0) as f:
            for k in range(PAGES):
                f.write(page(n, k))
    slow.wait(120)
    server = Server(world.server)
    versions = server.versions("f")
    print(f"{n} saves, {len(versions)} versions")
    assert all(len(saves) == 1 and pages == PAGES for saves, pages, _ in versions), versions
    order = [min(saves) for saves, _, _ in versions]
    assert order == sorted(set(order)) and order[-1] == n and 2 <= len(order) < n

    with open(slow.dir / "g", "wb", buffering=0) as f:
        for n in range(1, 4):
            f.seek(0)
            for k in range(PAGES):
                f.write(page(n, k))
            os.link(slow.dir / "g", slow.dir / f"g{n}")  # a commit point: what was written so far is frozen
            until(lambda: slow.status()["sending"] > 0 or slow.status()["pending_items"] == 0, 20, "the upload")
            for k in range(PAGES // 2):  # under way
                f.seek(k * PAGE)
                f.write(page(100 + n, k))
    slow.wait(120)
    versions = server.versions("g")
    assert versions[-1][0] == {103, 3} and all(len(saves) == 1 for saves, _, _ in versions[:-1]), [v[0] for v in versions]
    assert {min(saves) for saves, _, _ in versions} >= {1}


@pytest.mark.parametrize("how", ["in place", "by rename", "moved aside"])
def test_a_file_that_is_saved_all_the_time_is_not_starved(world, slow, how):
    """Saved each quarter of a second, which is faster than it can be sent: there is a version at least every ten seconds, by the server's clock."""
    path, stop, saves = slow.dir / "f", threading.Event(), []

    def save():
        while not stop.is_set():
            saves.append(time.time())
            data = b"".join(page(len(saves), k) for k in range(PAGES))
            if how == "in place":
                path.write_bytes(data)
            elif how == "moved aside":
                if len(saves) > 1:
                    os.rename(path, slow.dir / "f~")
                path.write_bytes(data)
                if len(saves) > 1:
                    os.unlink(slow.dir / "f~")
            else:
                (slow.dir / ".f.tmp").write_bytes(data)
                os.rename(slow.dir / ".f.tmp", path)
            stop.wait(0.25)
    t = threading.Thread(target=save)
    began = time.time()
    t.start()
    threading.Event().wait(11 * SCALE)
    stop.set()
    t.join()
    slow.wait(120)
    versions = Server(world.server).versions("f")
    times = [began] + [at for _, _, at in versions]
    gaps = [b - a for a, b in zip(times, times[1:]) if a <= saves[-1]]
    print(f"{len(saves)} saves, {len(versions)} versions, the longest gap {max(gaps):.1f} s")
    assert max(gaps) < 10
    assert all(len(s) == 1 for s, _, _ in versions)
    assert versions[-1][0] == {len(saves)}


@pytest.mark.parametrize("before", [b"", b"n"])
def test_a_save_that_takes_its_time(world, before):
    """The old file goes while the new one is open and empty, or has its first bytes, and stays so until the server has been told: then that is what the file is, and what is written later is its next
    version."""
    a = world.client("a")
    (a.dir / "f").write_bytes(b"old")
    a.wait(60)
    os.rename(a.dir / "f", a.dir / "f~")
    with open(a.dir / "f", "wb", buffering=0) as f:
        f.write(before)
        os.unlink(a.dir / "f~")
        until(lambda: len(json.loads(Server(world.server).get("/versions?path=f&limit=100"))["versions"]) == 2, 30, "the empty version")
        f.write(b"new"[len(before):])
    a.wait(60)
    versions = json.loads(Server(world.server).get("/versions?path=f&limit=100"))["versions"]
    assert [v["size"] for v in versions] == [3, 0, 3] and os.listdir(a.dir) == ["f"] and (a.dir / "f").read_bytes() == b"new"
