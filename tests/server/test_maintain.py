# SPDX-License-Identifier: Apache-2.0
"""fsck, scrub, gc, backup and restore: offline and through the running server, on data directories that are well, broken on purpose, and killed in the middle."""
import glob
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading

import pytest
import support
from support import SCALE, SERVER, Server, deadline, make_sparse, run, sha

DAMAGED = 7


def report(command, *options, data, check=0):
    done = run(command, "--json", *options, data=data, check=False)
    assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def fill(server, seed=1, files=12):
    """Files of all kinds: inline, one block, a list of blocks, several versions, deleted ones."""
    rng = random.Random(seed)
    made = {}
    for i in range(files):
        size = [0, 10, 5000, 200_000, 3_000_000, 6_000_000][i % 6]
        for version in range(1 + i % 3):
            data = rng.randbytes(size)
            if version and size > 1_000_000:  # an edit in the middle: most blocks stay
                data = made[f"d{i % 4}/f{i}"][:size // 2] + b"edited" + made[f"d{i % 4}/f{i}"][size // 2:]
            assert server.put(f"d{i % 4}/f{i}", data)[0] in (200, 201)
            made[f"d{i % 4}/f{i}"] = data
    for name in list(made)[::5]:
        assert server.call("DELETE", server.file(name))[0] == 204
        del made[name]
    return made


def same(server, made, workspace="w"):
    for name, data in made.items():
        status, _, body = server.get(name, workspace=workspace)
        assert (status, sha(body)) == (200, sha(data)), name


def cursor(server):
    return json.loads(server.call("GET", "/v1/workspaces/w")[2])


def database(server):
    return sqlite3.connect(os.path.join(server.data, "meta.db"), isolation_level=None)


def objects(data):
    return sorted(glob.glob(os.path.join(data, "objects", "?", "??", "*")))


def biggest(data):
    return max(objects(data), key=os.path.getsize)


def flip(path, at=None):
    with open(path, "r+b") as f:
        size = os.path.getsize(path)
        f.seek(size // 2 if at is None else at)
        byte = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([byte ^ 0x40]))


# ---- fsck ----

def test_a_healthy_directory_has_no_problem(tmp_path):
    with Server() as s:
        made = fill(s)
        online = report("fsck", data=s.data)
        assert online["problems"] == [] and online["problems_left"] == 0 and online["contents"] > 12 and online["objects"] > 5
        text = run("fsck", data=s.data).stdout
        assert "problems_left: 0" in text
        assert run("fsck", "--repair", data=s.data, check=False).returncode == 5  # not under a running server
        s.stop()
        offline = report("fsck", data=s.data)
        assert {**offline, "objects_without_row": 0} == {**online, "objects_without_row": 0}
        assert report("fsck", "--repair", data=s.data)["problems_found"] == 0
        s.start()
        same(s, made)


BREAKS = [
    ("name_without_node", "UPDATE entry SET node = randomblob(16) WHERE id = (SELECT e.id FROM entry e JOIN node n ON n.id = e.node WHERE n.kind = 1 LIMIT 1)"),
    ("name_without_directory", "UPDATE entry SET parent = randomblob(16) WHERE id = (SELECT e.id FROM entry e JOIN node n ON n.id = e.node WHERE n.kind = 1 LIMIT 1)"),
    ("directory_unreachable", "UPDATE entry SET parent = node WHERE id = (SELECT e.id FROM entry e JOIN node n ON n.id = e.node WHERE n.kind = 2 LIMIT 1)"),
    ("node_without_name", "DELETE FROM entry WHERE id = (SELECT e.id FROM entry e JOIN node n ON n.id = e.node WHERE n.kind = 1 LIMIT 1)"),
    ("directory_with_names", "INSERT INTO entry SELECT workspace, 900000, parent, X'4141', NULL, node, placement, seq FROM entry WHERE node = (SELECT id FROM node WHERE kind = 2 AND id <> X'00000000000000000000000000000001' LIMIT 1)"),
    ("event_gap", "DELETE FROM event WHERE seq = 3"),
    ("event_unreadable", "UPDATE event SET body = X'00112233' WHERE seq = 4"),
    ("event_and_row", "UPDATE node SET mode = 4095 WHERE id = (SELECT id FROM node WHERE kind = 1 AND deleted = 0 LIMIT 1)"),
    ("row_without_event", "UPDATE node SET seq = (SELECT seq FROM workspace) - 1 WHERE id = (SELECT id FROM node WHERE kind = 1 AND deleted = 0 ORDER BY seq LIMIT 1)"),
    ("event_time", "UPDATE event SET time_ns = 5 WHERE seq = 6"),
    ("mark", "UPDATE workspace SET mark = X'0102030405060708'"),
    ("node_counter", "UPDATE workspace SET nodes = nodes + 3"),
    ("used_bytes", "UPDATE workspace SET used = used + 1000"),
    ("reserved_bytes", "UPDATE workspace SET reserved = reserved + 1000"),
    ("entry_counter", "UPDATE workspace SET entry_next = 1"),
    ("reference_too_low", "DELETE FROM block_ref WHERE hash = (SELECT hash FROM block_ref LIMIT 1)"),
    ("reference_too_low", "UPDATE block_ref SET refs = refs + 1; UPDATE block_ref SET refs = 1 WHERE hash = (SELECT root FROM revision WHERE size > 0 LIMIT 1); DELETE FROM block_ref WHERE hash = (SELECT root FROM node WHERE depth > 0 LIMIT 1)"),
    ("claim", "INSERT INTO claim VALUES(1, 99, X'00', 0, NULL, 9000000000000000000)"),
    ("alias_without_node", "INSERT INTO alias VALUES(1, randomblob(16), randomblob(16))"),
    ("trash_without_place", "DELETE FROM entry_past WHERE node IN (SELECT id FROM node WHERE deleted = 1)"),
]


def test_each_broken_invariant_is_found_and_repaired():
    with Server() as s:
        made = fill(s)
        s.stop()
        keep = s.data + ".keep"
        shutil.copytree(s.data, keep)
        for kind, sql in BREAKS:
            shutil.rmtree(s.data)
            shutil.copytree(keep, s.data)
            db = database(s)
            db.executescript(sql)
            assert db.total_changes > 0, sql
            db.close()
            found = report("fsck", data=s.data, check=DAMAGED)
            kinds = {p["kind"] for p in found["problems"]}
            assert kind in kinds, (kind, found)
            fixed = run("fsck", "--repair", "--json", data=s.data, check=False)
            left = json.loads(fixed.stdout)
            assert fixed.returncode == 0 and left["problems"] == [] and left["problems_found"] > 0, (kind, left)
            assert run("fsck", data=s.data).returncode == 0
            if kind in ("event_gap", "directory_unreachable", "event_and_row"):
                before = sqlite3.connect(os.path.join(keep, "meta.db")).execute("SELECT epoch FROM workspace").fetchone()
                now = database(s).execute("SELECT epoch, predecessor FROM workspace").fetchone()
                assert now[0] != before[0] and now[1] == before[0]
        s.start()
        assert s.put("after", b"works")[0] == 201
        assert len(made) > 5
        shutil.rmtree(keep)


def test_lost_and_cut_objects_are_named_and_their_blocks_wanted_again():
    with Server() as s:
        data = random.Random(5).randbytes(500_000)
        assert s.put("one", data)[0] == 201
        assert s.put("two", data[:400_000][::-1])[0] == 201
        s.stop()
        first, second = objects(s.data)
        os.unlink(first)
        os.truncate(second, 1000)
        kinds = {p["kind"] for p in report("fsck", data=s.data, check=DAMAGED)["problems"]}
        assert kinds - {"list_unreadable"} == {"object_cut", "object_lost"}
        left = report("fsck", "--repair", data=s.data, check=DAMAGED)  # bytes cannot be made
        assert {p["kind"] for p in left["problems"]} >= {"block_damaged", "object_cut", "object_lost"}
        s.start()
        assert s.get("one")[0] == 500 and s.get("two")[0] == 500
        assert s.put("one again", data)[0] == 201  # whoever has the bytes heals
        assert s.put("two again", data[:400_000][::-1])[0] == 201
        same(s, {"one": data, "two": data[:400_000][::-1]})
        assert report("gc", "--min-age", "0", data=s.data)["objects_removed"] == 2
        assert report("fsck", data=s.data)["problems"] == []


# ---- bit rot and scrub ----

def test_flipped_bits_never_reach_a_reader_and_a_put_heals():
    rng = random.Random(7)
    with Server() as s:
        files = {f"f{i}": rng.randbytes(rng.choice([5000, 150_000, 400_000])) for i in range(int(30 * SCALE))}
        for name, data in files.items():
            assert s.put(name, data)[0] == 201
        by_size = {os.path.getsize(p): p for p in objects(s.data)}
        harmed = {}
        for path in objects(s.data):
            flip(path, rng.randrange(os.path.getsize(path)))
        for name, data in files.items():
            try:
                status, _, body = s.get(name)
            except Exception:  # cut off in the middle
                continue
            assert status == 500 or (status == 200 and body == data), name
            harmed[name] = status
        assert all(status == 500 for status in harmed.values()) and by_size
        found = report("scrub", data=s.data, check=DAMAGED)
        assert found["blocks_damaged"] == len(objects(s.data)) == found["blocks_read"]
        kinds = {p["kind"] for p in report("fsck", data=s.data, check=DAMAGED)["problems"]}
        assert "block_damaged" in kinds and kinds <= {"block_damaged", "list_unreadable"}
        for name, data in files.items():  # another client has the same bytes
            assert s.put("copies/" + name, data)[0] == 201
        same(s, files)
        assert report("scrub", data=s.data)["blocks_damaged"] == 0
        assert report("fsck", data=s.data)["problems"] == []


def test_a_block_that_reads_well_again_loses_its_mark():
    with Server() as s:
        data = random.Random(8).randbytes(300_000)
        s.put("f", data)
        path = biggest(s.data)
        flip(path, 1000)
        assert s.get("f")[0] == 500
        assert report("scrub", data=s.data, check=DAMAGED)["blocks_damaged"] == 1
        flip(path, 1000)  # the disk has come to its senses
        assert s.get("f")[2] == data
        assert report("scrub", data=s.data)["blocks_well_again"] == 1
        assert report("fsck", data=s.data)["problems"] == []


def test_scrub_keeps_its_rate_and_ends_with_the_server():
    with Server() as s:
        for i in range(4):
            s.put(f"f{i}", random.Random(i).randbytes(2_000_000))
        start = lambda: subprocess.Popen([SERVER, "scrub", "--rate", "64K", "--data", s.data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        slow = start()
        for _ in deadline(20):
            if run("gc", data=s.data, check=False).returncode == 5:  # one maintenance at a time
                break
            if slow.poll() is not None:  # gc was there first
                slow.communicate()
                slow = start()
        else:
            raise AssertionError("scrub did not take its time")
        assert s.put("meanwhile", b"x")[0] == 201
        assert s.stop() == 0
        out, err = slow.communicate(timeout=20)
        assert slow.returncode == 1 and "stopped" in err, (out, err)


# ---- gc ----

def orphan(data, bytes_=b"left by a crash"):
    name = os.urandom(16).hex()
    path = os.path.join(data, "objects", name[0], name[1:3])
    os.makedirs(path, mode=0o700, exist_ok=True)
    with open(os.path.join(path, name), "wb") as f:
        f.write(bytes_)
    return os.path.join(path, name)


def test_gc_takes_orphans_and_leaves_what_is_young_or_claimed():
    with Server() as s:
        made = fill(s)
        young, old = orphan(s.data), orphan(s.data)
        os.utime(old, (1, 1))
        done = report("gc", "--dry-run", data=s.data)
        assert done["orphans_removed"] == 1 and os.path.exists(old)
        assert report("gc", data=s.data)["orphans_removed"] == 1
        assert os.path.exists(young) and not os.path.exists(old)
        assert report("gc", "--min-age", "0", data=s.data)["orphans_removed"] == 1
        # a claim without a version: an upload that was broken off
        import socket
        part = random.Random(3).randbytes(20_000_000)
        with socket.create_connection((s.host, s.port), timeout=30) as c:
            c.sendall(f"PUT {s.file('broken')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {s.token}\r\nContent-Length: 40000000\r\n\r\n".encode())
            c.sendall(part)
            for _ in deadline(30):
                if sqlite3.connect(f"file:{s.data}/meta.db?mode=ro", uri=True).execute("SELECT count(*) FROM claim WHERE raw > 0").fetchone()[0] > 2:
                    break
            else:
                raise AssertionError("no claims")
        done = report("gc", "--min-age", "0", data=s.data)
        assert done["blocks_marked"] == 0 and done["objects_removed"] == 0  # claims live for 7 days
        s.stop()
        db = database(s)
        claimed = db.execute("SELECT count(DISTINCT hash) FROM claim WHERE raw > 0").fetchone()[0]
        db.execute("UPDATE claim SET expires_ns = 1")
        db.close()
        first = report("gc", data=s.data)  # expired: marked at the earliest when a day old
        assert first["blocks_marked"] == 0
        done = report("gc", "--min-age", "0", data=s.data)
        assert done["blocks_marked"] == done["blocks_forgotten"] == claimed and done["objects_removed"] > 0
        assert report("fsck", data=s.data)["problems"] == []
        s.start()
        same(s, made)


def test_a_dead_block_counts_as_missing_and_comes_back():
    with Server() as s:
        data = random.Random(4).randbytes(700_000)
        s.put("f", data)
        s.stop()
        db = database(s)
        db.execute("UPDATE block SET dead_ns = 1")
        db.execute("DELETE FROM block_ref")
        db.execute("DELETE FROM node WHERE kind = 1")
        db.close()
        s.start()
        assert s.put("g", data)[0] == 201
        run("gc", "--min-age", "0", data=s.data)
        assert s.get("g")[2] == data


def test_gc_beside_writers_and_killed_in_the_middle_loses_nothing():
    """Contents are shared and deleted and put again while gc runs without any grace and puts objects together, and the server is killed under it."""
    rng = random.Random(11)
    rounds = max(3, int(6 * SCALE))
    with Server(workspaces=("w", "sparse")) as s:
        parts, moved = {}, 0
        pool = [rng.randbytes(n) for n in (100, 3000, 150_000, 300_000, 900_000, 2_500_000)]
        known, lock = {}, threading.Lock()
        kills = 0
        for k in range(rounds):
            stop = threading.Event()

            def writer(w):
                r = random.Random((k, w).__hash__())
                while not stop.is_set():
                    name, data = f"w{w}/{r.randrange(8)}", r.choice(pool)
                    try:
                        if s.put(name, data, timeout=20)[0] in (200, 201):
                            with lock:
                                known[name] = data
                        else:
                            return
                    except OSError:
                        with lock:
                            known.pop(name, None)  # not known whether it happened
                        return

            threads = [threading.Thread(target=writer, args=(w,)) for w in range(4)]
            [t.start() for t in threads]
            for i in range(3):
                name = f"part{len(parts) % 7}"
                part = make_sparse(s, rng, "sparse", name)
                assert part
                parts[name] = part
                for _ in range(20):
                    os.utime(orphan(s.data), (1, 1))
                # claims that never become versions are given up at once, so that gc has blocks to take
                gc = subprocess.Popen([SERVER, "gc", "--min-age", "0", "--compact", "--json", "--data", s.data], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                if i == 2:
                    try:
                        gc.wait(rng.random() * 0.05)
                    except subprocess.TimeoutExpired:
                        pass
                    s.kill()
                    kills += 1
                out = gc.communicate(timeout=60)[0]
                moved += json.loads(out)["blocks_moved"] if gc.returncode == 0 else 0
            stop.set()
            [t.join() for t in threads]
            s.start()
            same(s, known)
            same(s, parts, "sparse")
            assert report("fsck", data=s.data)["problems_left"] == 0
        assert report("scrub", data=s.data)["blocks_damaged"] == 0 and moved
        assert kills == rounds and known
        print(f"kills {kills} files {len(known)} lost 0")


# ---- backup and restore ----

def test_backup_of_a_running_server_and_restore(tmp_path):
    with Server() as s:
        made = fill(s)
        stop = threading.Event()

        def busy():
            i = 0
            while not stop.is_set():
                s.put(f"busy/{i % 20}", random.Random(i).randbytes(20_000))
                i += 1

        t = threading.Thread(target=busy)
        t.start()
        to = str(tmp_path / "backup")
        first = report("backup", "--to", to, data=s.data)
        second = report("backup", "--to", to, data=s.data)
        stop.set()
        t.join()
        assert first["objects_copied"] > 5 and second["objects_there_already"] >= first["objects_copied"] * 0.9
        third = report("backup", "--to", to, data=s.data)
        again = report("backup", "--to", to, data=s.data)
        assert again["objects_copied"] == 0 and again["objects_there_already"] == third["objects_copied"] + third["objects_there_already"]
        assert s.put("after the backup", b"gone with the machine")[0] == 201
        before = cursor(s)
        # the machine is lost
        s.kill()
        restored = str(tmp_path / "new")
        text = run("restore", "--from", to, data=restored).stdout
        assert "new epoch" in text
        assert run("restore", "--from", to, data=restored, check=False).returncode == 4
        assert run("restore", "--from", str(tmp_path), data=str(tmp_path / "x"), check=False).returncode == 3
        assert report("fsck", data=restored)["problems"] == []
        assert report("scrub", data=restored)["blocks_damaged"] == 0
        shutil.rmtree(s.data)
        shutil.copytree(restored, s.data)
        s.start()
        same(s, made)
        now = cursor(s)
        assert s.get("after the backup")[0] == 404
        assert now["epoch"] != before["epoch"]
        # the cursor of a client that had seen more: 410, and where the lines part
        c = before
        status, _, body = s.call("GET", f"/v1/events?cursor=w:{c['epoch']}:{c['seq']}:{c['mark']}&wait=0")
        gone = json.loads(body)
        assert status == 410 and gone["predecessor"] == c["epoch"] and gone["fork_seq"] == now["seq"] < c["seq"]


def test_restore_of_a_restored_server_knows_every_fork(tmp_path):
    with Server() as s:
        s.put("a", b"1")
        old = cursor(s)
        for k in range(2):
            to = str(tmp_path / f"backup{k}")
            report("backup", "--to", to, data=s.data)
            s.put(f"lost{k}", b"2")
            s.kill()
            shutil.rmtree(s.data)
            run("restore", "--from", to, data=s.data)
            s.start()
            s.put(f"b{k}", b"3")
        status, _, body = s.call("GET", f"/v1/events?cursor=w:{old['epoch']}:{old['seq']}:{old['mark']}&wait=0")
        gone = json.loads(body)
        assert status == 410 and gone["fork_seq"] == old["seq"], gone  # the first fork, not the latest


def test_a_server_rolled_back_by_hand_is_found_out(tmp_path):
    with Server() as s:
        s.put("a", b"1")
        s.stop()
        shutil.copytree(s.data, tmp_path / "copy")
        s.start()
        s.put("b", b"2")
        s.put("c", b"3")
        c = cursor(s)
        s.stop()
        shutil.rmtree(s.data)
        shutil.copytree(tmp_path / "copy", s.data)
        s.start()
        poll = f"/v1/events?cursor=w:{c['epoch']}:{c['seq']}:{c['mark']}&wait=0"
        status, _, body = s.call("GET", poll)
        assert status == 410  # a seq from the future
        for i in range(4):
            s.put(f"other{i}", b"4")
        status, _, body = s.call("GET", poll)
        gone = json.loads(body)
        assert status == 410 and gone["fork_seq"] == 0, gone  # the seq is there, its mark is another: nothing is known about where the lines part


def test_backup_killed_in_the_middle_leaves_the_former_one(tmp_path):
    with Server() as s:
        made = fill(s)
        to = str(tmp_path / "backup")
        report("backup", "--to", to, data=s.data)
        for i in range(6):
            s.put(f"new{i}", random.Random(i).randbytes(1_000_000))
        copy = subprocess.Popen([SERVER, "backup", "--to", to, "--rate", "100K", "--data", s.data], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in deadline(30):
            if os.path.exists(os.path.join(to, "meta.db.new")):
                break
        s.kill()
        copy.communicate(timeout=30)
        restored = str(tmp_path / "new")
        run("restore", "--from", to, data=restored)
        assert report("fsck", data=restored)["problems"] == []
        shutil.rmtree(s.data)
        shutil.copytree(restored, s.data)
        s.start()
        same(s, made)


def test_backup_in_one_file(tmp_path):
    """Online, into a file and to a pipe; killed in the middle; every way in which a file can be cut or damaged is refused before anything is made."""
    with Server() as s:
        made = fill(s)
        file = str(tmp_path / "one")
        first = report("backup", file, data=s.data)
        assert first["objects_copied"] > 0 and first["objects_not_readable"] == 0 and os.listdir(tmp_path) == ["one"]
        whole = open(file, "rb").read()
        # the next one dies: the former is whole
        for i in range(6):
            s.put(f"new{i}", random.Random(i).randbytes(1_000_000))
        copy = subprocess.Popen([SERVER, "backup", file, "--rate", "100K", "--data", s.data], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in deadline(30):
            if os.path.exists(file + ".part"):
                break
        s.kill()
        copy.communicate(timeout=30)
        assert open(file, "rb").read() == whole and os.path.exists(file + ".part")
        # cut, damaged, something else, longer
        bad, rng = str(tmp_path / "bad"), random.Random(5)
        assert run("restore", "--from", file + ".part", data=str(tmp_path / "x"), check=False).returncode != 0
        flipped = bytearray(whole)
        for cut in [0, 5, 19, 60, len(whole) - 1, len(whole) - 40] + [rng.randrange(len(whole)) for _ in range(10)]:
            open(bad, "wb").write(whole[:cut])
            assert run("restore", "--from", bad, data=str(tmp_path / "x"), check=False).returncode != 0, cut
        for at in [0, 30, 65, len(whole) - 1] + [rng.randrange(len(whole)) for _ in range(20)]:
            flipped[at] ^= 1 << rng.randrange(8)
            open(bad, "wb").write(flipped)
            flipped[at] = whole[at]
            done = run("restore", "--from", bad, data=str(tmp_path / "x"), check=False)
            assert done.returncode != 0 and "nothing was touched" in done.stderr, at
        open(bad, "wb").write(whole + b"x")
        assert run("restore", "--from", bad, data=str(tmp_path / "x"), check=False).returncode != 0 and not (tmp_path / "x").exists()
        restored = str(tmp_path / "new")
        run("restore", "--from", file, data=restored)
        assert report("fsck", data=restored)["problems"] == [] and report("scrub", data=restored)["blocks_damaged"] == 0
        shutil.rmtree(s.data)
        shutil.copytree(restored, s.data)
        s.start()
        same(s, made)
        # over what the killed one left; and through a pipe, while it serves
        report("backup", file, data=s.data)
        assert sorted(os.listdir(tmp_path)) == ["bad", "new", "one"]
        piped = str(tmp_path / "piped")
        stream = subprocess.run([SERVER, "backup", "-", "--data", s.data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        assert stream.returncode == 0 and b"objects_copied" in stream.stderr and not [n for n in os.listdir(s.data) if n.startswith("backup-")]
        done = subprocess.run([SERVER, "restore", "--from", "-", "--data", piped], input=stream.stdout[:-1], capture_output=True, timeout=120)
        assert done.returncode != 0 and not os.path.exists(piped)
        done = subprocess.run([SERVER, "restore", "--from", "-", "--data", piped], input=stream.stdout, capture_output=True, timeout=120)
        assert done.returncode == 0 and sorted(os.listdir(tmp_path)) == ["bad", "new", "one", "piped"], done.stderr
        assert report("fsck", data=piped)["problems"] == []
        s.kill()
        shutil.rmtree(s.data)
        shutil.copytree(piped, s.data)
        s.start()
        same(s, made)


def test_killed_at_each_step_of_gc_backup_and_restore(tmp_path):
    """At every named point, offline: what is left is whole, and the same command run again completes it."""
    def killed(point, *words, data):
        done = subprocess.run([SERVER, *words, "--data", str(data)], env={**os.environ, "TARN_FAILPOINTS": point + "=kill"}, capture_output=True, timeout=60)
        if b"no such point" in done.stderr:
            pytest.skip("this build has no failpoints")
        assert done.returncode == -signal.SIGKILL, (point, done)

    with Server() as s:
        made = fill(s)
        s.stop()
        for point in ("gc.marked", "gc.swept", "gc.remove", "commit.group", "commit.done"):
            os.utime(orphan(s.data), (1, 1))
            killed(point, "gc", "--min-age", "0", data=s.data)
            assert report("fsck", data=s.data)["problems"] == []
        run("gc", "--min-age", "0", data=s.data)
        assert report("fsck", data=s.data)["objects_without_row"] == 0
        for point in ("gc.compact.durable", "gc.compact.moved", "gc.compact.remove"):
            s.start()
            made["part"] = make_sparse(s, random.Random(point), "w")
            s.stop()
            killed(point, "gc", "--min-age", "0", "--compact", data=s.data)
            assert report("fsck", data=s.data)["problems"] == []
            done = report("gc", "--min-age", "0", "--compact", data=s.data)
            assert (done["orphans_removed"], done["objects_half_empty"]) == (1, 0) and done["blocks_moved"] >= (1 if point == "gc.compact.durable" else 0)
            assert report("fsck", data=s.data)["objects_without_row"] == 0 and report("scrub", data=s.data)["blocks_damaged"] == 0
        s.start()
        same(s, made)
        s.stop()
        to = str(tmp_path / "backup")
        killed("backup.copied", "backup", "--to", to, data=s.data)
        assert run("restore", "--from", to, data=tmp_path / "none", check=False).returncode in (0, 3)
        shutil.rmtree(tmp_path / "none", ignore_errors=True)
        run("backup", "--to", to, data=s.data)
        killed("backup.switched", "backup", "--to", to, data=s.data)
        file, new = str(tmp_path / "file"), str(tmp_path / "from_file")
        killed("backup.file.synced", "backup", file, data=s.data)
        assert not os.path.exists(file) and os.path.exists(file + ".part")  # no backup yet
        run("backup", file, data=s.data)
        former = os.stat(file).st_ino
        killed("backup.file.synced", "backup", file, data=s.data)
        assert os.stat(file).st_ino == former  # the former one
        killed("backup.file.renamed", "backup", file, data=s.data)
        assert os.stat(file).st_ino != former and not os.path.exists(file + ".part")
        run("restore", "--from", file, data=new)
        assert report("fsck", data=new)["problems"] == [] and report("scrub", data=new)["blocks_damaged"] == 0
        run("backup", file, data=s.data)
        assert not glob.glob(file + ".*")  # nothing is left of those that died
        killed("restore.copied", "restore", "--from", to, data=tmp_path / "half")
        assert run("fsck", data=tmp_path / "half", check=False).returncode == 3  # not a data directory yet
        run("restore", "--from", to, data=tmp_path / "new")
        assert report("fsck", data=tmp_path / "new")["problems"] == []
        shutil.rmtree(s.data)
        shutil.copytree(tmp_path / "new", s.data)
        s.start()
        same(s, made)


def test_a_database_of_schema_1_is_brought_up(tmp_path):
    with Server() as s:
        made = fill(s)
        s.stop()
        db = database(s)
        db.executescript("DROP INDEX block_dead; DROP INDEX block_bad; ALTER TABLE block DROP COLUMN bad_ns; DROP TABLE epoch; UPDATE meta SET value = 1 WHERE key = 'schema'")
        db.close()
        s.start()
        same(s, made)
        assert report("fsck", data=s.data)["problems"] == []
        s.stop()
        db = database(s)
        db.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
        db.close()
        assert run("fsck", data=s.data, check=False).returncode == 6
        database(s).execute("UPDATE meta SET value = 2 WHERE key = 'schema'")


def test_a_directory_is_not_looked_for_in_the_whole_workspace():
    with Server() as s:
        s.put("d/f", b"x")
        s.stop()
        plan = lambda sql: " ".join(row[3] for row in database(s).execute("EXPLAIN QUERY PLAN " + sql))
        assert "entry_name" in plan("SELECT * FROM entry WHERE workspace = 1 AND parent = X'00' ORDER BY id")
        assert "entry_name" in plan("SELECT node FROM entry WHERE workspace = 1 AND parent = X'00'")
        assert "entry_node" in plan("SELECT * FROM entry WHERE workspace = 1 AND node = X'00' ORDER BY id")
        assert "entry_past_node" in plan("SELECT * FROM entry_past WHERE workspace = 1 AND node = X'00' AND until_seq = 5 ORDER BY id")
        assert "workspace=? AND id=?" in plan("SELECT * FROM node WHERE workspace = 1 AND id = X'00'")
        assert "node_deleted" in plan("SELECT * FROM node WHERE workspace = 1 AND deleted = 1 AND seq < 100 ORDER BY seq DESC LIMIT 1")
        assert "id>?" in plan("SELECT * FROM node WHERE workspace = 1 AND id > X'00' AND deleted = 0 ORDER BY id")


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", "-rs", __file__]))
