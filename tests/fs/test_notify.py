# SPDX-License-Identifier: Apache-2.0
"""What others change is shown at once, whatever the kernel has cached: names, absences, attributes, listings, pages. Each test warms the caches first and checks
that the warm answer really comes from the kernel (no request reaches the daemon), so that it would fail without the invalidation."""
import ctypes
import errno
import os
import random
import threading

import pytest

from harness import read, wait_for, write


def requests(m):
    return m.counter("fuse_requests")


def shown(m, check):
    """The change was applied; the kernel follows within a moment."""
    return wait_for(check, "the kernel shows the change")


def exists(p):
    return os.path.lexists(p)


def test_warm_answers_come_from_the_kernel(mount):
    mount.do("mkdir", "d", "/", "d")
    for i in range(20):
        mount.do("create", f"f{i}", "d", f"f{i}", f"content{i}")

    def walk():
        return [(e.name, e.stat().st_size) for e in sorted(os.scandir(mount / "d"), key=lambda e: e.name)], exists(mount / "d/none"), read(mount / "d/f7")
    kinds = ("fuse_lookup", "fuse_getattr", "fuse_readdir", "fuse_read", "fuse_open")

    def costs_nothing():  # the invalidations of what was just made, and what the kernel sends of its own accord, come to an end
        before = {k: mount.counter(k) for k in kinds}
        first = walk()
        assert len(first[0]) == 20 and first == walk()
        before["fuse_open"] += 2  # of the file that was read
        return {k: mount.counter(k) for k in kinds} == before
    wait_for(costs_nothing, "all is answered by the kernel")
    assert costs_nothing(), "and stays so"


def test_new_name_replaces_cached_absence_and_listing(mount):
    mount.do("mkdir", "d", "/", "d")
    assert not exists(mount / "d/new")
    for _ in range(3):  # the kernel asks for the atime once after it has read a listing
        assert os.listdir(mount / "d") == []

    def costs_nothing():  # what the kernel still sends of its own accord (an atime, a closed directory) comes to an end
        before = requests(mount)
        assert not exists(mount / "d/new") and os.listdir(mount / "d") == []
        return requests(mount) == before
    wait_for(costs_nothing, "absence and listing are answered by the kernel")
    mount.do("create", "f", "d", "new", "hello")
    shown(mount, lambda: exists(mount / "d/new"))
    shown(mount, lambda: os.listdir(mount / "d") == ["new"])
    assert read(mount / "d/new") == b"hello"


def test_removed_name(mount):
    mount.do("mkdir", "d", "/", "d")
    mount.do("create", "f", "d", "f", "x")
    mount.do("create", "g", "d", "g", "x")
    assert read(mount / "d/f") == b"x" and sorted(os.listdir(mount / "d")) == ["f", "g"]
    mount.do("unlink", "f", "d", "f")
    shown(mount, lambda: not exists(mount / "d/f"))
    shown(mount, lambda: os.listdir(mount / "d") == ["g"])
    with pytest.raises(FileNotFoundError):
        open(mount / "d/f")
    os.mkdir(mount / "d/f")  # the name is free


def test_renamed(mount):
    mount.do("mkdir", "a", "/", "a")
    mount.do("mkdir", "b", "/", "b")
    mount.do("create", "f", "a", "f", "x")
    ino = os.stat(mount / "a/f").st_ino
    assert not exists(mount / "b/g") and os.listdir(mount / "b") == [] and os.listdir(mount / "a") == ["f"]
    mount.do("rename", "f", "b", "g")
    shown(mount, lambda: exists(mount / "b/g") and not exists(mount / "a/f"))
    shown(mount, lambda: os.listdir(mount / "a") == [] and os.listdir(mount / "b") == ["g"])
    assert os.stat(mount / "b/g").st_ino == ino and read(mount / "b/g") == b"x"


def test_renamed_directory(mount):
    mount.do("mkdir", "a", "/", "a")
    mount.do("mkdir", "s", "a", "s")
    mount.do("create", "f", "s", "f", "deep")
    assert read(mount / "a/s/f") == b"deep" and not exists(mount / "moved")
    held = os.open(mount / "a/s", os.O_RDONLY)
    mount.do("rename", "s", "/", "moved")
    shown(mount, lambda: exists(mount / "moved/f") and not exists(mount / "a/s"))
    assert read(mount / "moved/f") == b"deep"
    assert os.listdir(held) == ["f"]
    os.close(held)


def test_content(mount):
    mount.do("create", "f", "/", "f", "one")
    assert read(mount / "f") == b"one" and read(mount / "f") == b"one"
    ino = os.stat(mount / "f").st_ino
    mount.do("content", "f", "two-longer")
    shown(mount, lambda: read(mount / "f") == b"two-longer")
    shown(mount, lambda: os.stat(mount / "f").st_size == 10)
    mount.do("content", "f", "abc")  # shorter
    shown(mount, lambda: read(mount / "f") == b"abc")
    assert os.stat(mount / "f").st_ino == ino


def test_content_of_an_open_file(mount):
    """As if the file had been replaced by rename: the open handle keeps the old bytes, a new open has the new ones, st_ino stays."""
    mount.do("create", "f", "/", "f", "@300000:a")
    old = os.open(mount / "f", os.O_RDONLY)
    first = os.pread(old, 1000, 0)
    ino = os.fstat(old).st_ino
    mount.do("content", "f", "@200000:b")
    shown(mount, lambda: os.stat(mount / "f").st_size == 200000)
    assert os.pread(old, 1000, 0) == first
    assert os.pread(old, 1000, 250000)[:1] == b"a", "bytes that were not in any cache are the old ones too"
    assert os.fstat(old).st_size == 300000
    new = os.open(mount / "f", os.O_RDONLY)
    assert os.pread(new, 10, 100)[:1] == b"b" and os.fstat(new).st_ino == ino
    assert os.pread(old, 10, 100)[:1] == b"a"
    os.close(new)
    os.close(old)
    assert read(mount / "f")[100:101] == b"b"


def size_now(fd):
    """As the daemon says it in this moment, whatever the kernel has cached."""
    buf = ctypes.create_string_buffer(256)
    at_empty_path, at_statx_force_sync, statx_size = 0x1000, 0x2000, 0x200
    assert ctypes.CDLL(None).statx(fd, b"", at_empty_path | at_statx_force_sync, statx_size, buf) == 0
    return int.from_bytes(buf[40:48], "little")


def copies(mount):
    return [n for n in os.listdir(mount.path) if "(conflict " in n]


def the_copy(mount):
    """The listing may be cached: the name of the copy is shown in a moment, as what others change is."""
    [name] = shown(mount, lambda: copies(mount))
    return name


def test_a_write_through_a_superseded_handle_makes_the_conflict_copy(mount):
    """What is written belongs to the handle's version: a copy beside the file, which all handles of that version are from then on; st_ino stays for who asks the handle."""
    mount.do("create", "f", "/", "f", "@300000:a")
    writer, reader = os.open(mount / "f", os.O_RDWR), os.open(mount / "f", os.O_RDONLY)
    old, ino = os.pread(writer, 300000, 0), os.fstat(writer).st_ino
    mount.do("content", "f", "@200000:b")
    shown(mount, lambda: os.stat(mount / "f").st_size == 200000)
    new = read(mount / "f")
    assert copies(mount) == []
    assert os.pwrite(writer, b"mine", 300000) == 4
    assert read(mount / "f") == new and os.fstat(writer).st_size == 300004 and os.fstat(reader).st_ino == ino
    shown(mount, lambda: os.fstat(reader).st_size == 300004)
    assert os.pread(reader, 10, 299998) == old[299998:] + b"mine"
    os.fchmod(writer, 0o600)
    os.utime(writer, ns=(5_000_000_000, 7_000_000_000))
    assert os.fstat(writer).st_mtime_ns == 7_000_000_000 and os.stat(mount / "f").st_mtime_ns != 7_000_000_000
    os.close(writer)
    name = the_copy(mount)
    st = os.stat(mount / name)
    assert read(mount / name) == old + b"mine" and st.st_mode & 0o777 == 0o600 and st.st_mtime_ns == 7_000_000_000 and st.st_ino != ino
    assert os.pread(reader, 10, 299998) == old[299998:] + b"mine"
    os.close(reader)
    assert read(mount / "f") == new and os.stat(mount / "f").st_mode & 0o777 == 0o644


def test_a_size_that_is_asked_for_while_the_file_becomes_a_conflict_copy(mount):
    """The row was read before, the bytes that are written are looked for after: what was written before the answer is in it."""
    mount.do("create", "f", "/", "f", "@300000:a")
    writer = os.open(mount / "f", os.O_RDWR)
    assert os.pread(writer, 1, 0)
    mount.do("arm", "attr.row=hold")
    asked = []
    thread = threading.Thread(target=lambda: asked.append(size_now(writer)))
    thread.start()
    wait_for(lambda: int(mount.do("hits", "attr.row")) >= 1, "the row was read")
    mount.do("content", "f", "@200000:b")
    assert os.pwrite(writer, b"mine", 300000) == 4
    mount.do("arm", "attr.row=off")
    thread.join(30)
    assert asked == [300004]
    os.close(writer)
    assert os.stat(mount / the_copy(mount)).st_size == 300004


@pytest.mark.parametrize("size", [0, 1000, 400000])
def test_ftruncate_goes_by_the_handle(mount, size):
    mount.do("create", "f", "/", "f", "@300000:a")
    fd = os.open(mount / "f", os.O_RDWR)
    old = os.pread(fd, 300000, 0)
    mount.do("content", "f", "@200000:b")
    shown(mount, lambda: os.stat(mount / "f").st_size == 200000)
    new = read(mount / "f")
    os.ftruncate(fd, size)
    assert os.fstat(fd).st_size == size and read(mount / "f") == new and os.stat(mount / "f").st_size == 200000
    want = old[:size] + bytes(max(0, size - 300000))
    assert os.pread(fd, 1 << 20, 0) == want
    os.close(fd)
    name = the_copy(mount)
    assert read(mount / name) == want and read(mount / "f") == new


def test_truncate_by_path_is_about_the_new_version(mount):
    mount.do("create", "f", "/", "f", "@300000:a")
    fd = os.open(mount / "f", os.O_RDONLY)
    os.pread(fd, 10, 0)
    mount.do("content", "f", "@200000:b")
    shown(mount, lambda: os.stat(mount / "f").st_size == 200000)
    os.truncate(mount / "f", 150000)
    assert read(mount / "f")[100:101] == b"b" and os.stat(mount / "f").st_size == 150000 and copies(mount) == []
    assert os.fstat(fd).st_size == 300000 and os.pread(fd, 10, 250000)[:1] == b"a"
    os.close(fd)


def test_each_open_handle_keeps_its_own_version(mount):
    """One handle per version, and all of them read their own to the end, whatever comes; the pages of one never show up in another."""
    mount.do("create", "f", "/", "f", "@100000:a")
    fds = []
    for k, letter in enumerate("abcdefgh"):
        if k:
            mount.do("content", "f", f"@{100000 + 1000 * k}:{letter}")
            shown(mount, lambda: os.stat(mount / "f").st_size == 100000 + 1000 * k)
        fds.append(os.open(mount / "f", os.O_RDONLY))
        assert os.pread(fds[-1], 1, 100) == letter.encode()
    for k, fd in enumerate(fds):
        letter = "abcdefgh"[k].encode()
        assert os.fstat(fd).st_size == 100000 + 1000 * k
        data = os.pread(fd, 1 << 20, 0)
        assert len(data) == 100000 + 1000 * k and set(data[20:4096]) == set(letter)
        os.close(fd)


@pytest.mark.options("cache=2000000")
def test_old_bytes_stay_readable_when_the_cache_is_full(mount):
    """The old version may lose its blocks like any clean data; then they are fetched again. Offline those that are here are read, and what is not is an error, never other bytes."""
    mount.do("create", "f", "/", "f", "@400000:a")
    fd = os.open(mount / "f", os.O_RDONLY)
    first = os.pread(fd, 400000, 0)
    mount.do("content", "f", "@400000:b")
    shown(mount, lambda: read(mount / "f")[100:101] == b"b")
    for i in range(12):
        mount.do("create", f"g{i}", "/", f"g{i}", f"@400000:{chr(ord('c') + i)}")
        read(mount / f"g{i}")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 400000, 0) == first
    mount.do("offline")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        assert os.pread(fd, 400000, 0) == first
    except OSError as e:
        assert e.errno == errno.EHOSTDOWN
    mount.do("online")
    os.close(fd)


def test_attributes(mount):
    mount.do("create", "f", "/", "f", "x")
    assert os.stat(mount / "f").st_mode & 0o777 == 0o644
    mount.do("chmod", "f", "600")
    shown(mount, lambda: os.stat(mount / "f").st_mode & 0o777 == 0o600)
    mount.do("mtime", "f", 1234567890123456789)
    shown(mount, lambda: os.stat(mount / "f").st_mtime_ns == 1234567890123456789)


def test_hard_link_counts(mount):
    mount.do("create", "f", "/", "f", "x")
    assert os.stat(mount / "f").st_nlink == 1 and not exists(mount / "g")
    mount.do("link", "f", "/", "g")
    shown(mount, lambda: exists(mount / "g") and os.stat(mount / "f").st_nlink == 2)
    mount.do("unlink", "f", "/", "f")
    shown(mount, lambda: not exists(mount / "f") and os.stat(mount / "g").st_nlink == 1)


def test_removed_while_open(mount):
    mount.do("create", "f", "/", "f", "still-here")
    fd = os.open(mount / "f", os.O_RDONLY)
    mount.do("unlink", "f", "/", "f")
    shown(mount, lambda: not exists(mount / "f"))
    assert os.pread(fd, 100, 0) == b"still-here"
    os.close(fd)


def test_directory_mtime(mount):
    mount.do("mkdir", "d", "/", "d")
    before = os.stat(mount / "d").st_mtime_ns
    mount.do("create", "f", "d", "f", "x")
    shown(mount, lambda: os.stat(mount / "d").st_mtime_ns > before)


def test_nothing_old_is_seen_after_something_new(mount):
    """Readers hammer while events come. Now and then they rest until the kernel shows what is there; from then on nobody sees anything older, whatever was cached or in flight before, nor misses
    what is there. This is where a reply that overtakes an invalidation would leave a stale cache."""
    seed = int(os.environ.get("TARN_TEST_SEED", "0"), 0) or random.randrange(1 << 32)
    print(f"TARN_TEST_SEED={seed}")
    rng = random.Random(seed)
    mount.do("mkdir", "d", "/", "d")
    for i in range(4):
        mount.do("create", f"f{i}", "d", f"f{i}-0", "0")
    stop, problems, looks = threading.Event(), [], [0] * 3
    numbers, settled = [0] * 4, [0] * 4  # what was begun, and what the kernel has shown
    steps = [threading.Lock() for _ in range(4)]  # a reader holds its own while it looks

    def listed(i):
        return [int(n.split("-")[1]) for n in os.listdir(mount / "d") if n.startswith(f"f{i}-")]

    def look(r):
        i, how = r.randrange(4), r.randrange(3)
        least = settled[i]
        if how == 0:
            seen = listed(i)
            wrong = any(n < least for n in seen) or (not seen and numbers[i] == least)
        elif how == 1:
            seen = exists(mount / f"d/f{i}-{least}")
            wrong = not seen and numbers[i] == least
        else:
            old, new = r.randrange(max(0, least - 3), least + 1) - 1, numbers[i] + 1
            exists(mount / f"d/f{i}-{new}")  # absences are cached and must go
            seen = exists(mount / f"d/f{i}-{old}")
            wrong = seen and old < least
        looks[how] += 1
        if wrong:
            problems.append(f"f{i}: {('listed', 'there', 'an older one there')[how]}: {seen}, although {least} had been shown")

    def reader(me):
        r = random.Random(seed + me)
        try:
            while not stop.is_set():
                with steps[me]:
                    look(r)
        except BaseException as e:
            problems.append(repr(e))
            raise

    def shows(i):
        seen, n = listed(i), numbers[i]
        return seen == [n] and exists(mount / f"d/f{i}-{n}") and not any(exists(mount / f"d/f{i}-{k}") for k in range(settled[i], n))
    threads = [threading.Thread(target=reader, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    try:
        for _ in range(400):
            i = rng.randrange(4)
            numbers[i] += 1
            mount.do("rename", f"f{i}", "d", f"f{i}-{numbers[i]}")
            if rng.randrange(8) == 0:
                for lock in steps:
                    lock.acquire()
                try:
                    for k in range(4):
                        shown(mount, lambda: shows(k))
                        settled[k] = numbers[k]
                finally:
                    for lock in steps:
                        lock.release()
    except AssertionError as e:
        problems.append(str(e))
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not problems, f"{len(problems)} problems: {problems[:10]}"
    assert min(looks) > 20, f"void: {looks}"
    want = sorted(f"f{i}-{numbers[i]}" for i in range(4))
    shown(mount, lambda: sorted(os.listdir(mount / "d")) == want)
    # a note that had to wait for a reader's answer may come after the listing's
    shown(mount, lambda: [(i, n) for i in range(4) for n in range(numbers[i] + 2) if exists(mount / f"d/f{i}-{n}") != (n == numbers[i])] == [])


@pytest.mark.parametrize("change", ["rmdir", "rename", "rename over"])
def test_a_name_that_is_another_directory_since(mount, change):
    """Between a remote change and the note about it the kernel means the old directory: it must not be marked as dead, nor be shown under a name that another one has."""
    mount.do("mkdir", "A", "/", "x")
    mount.do("create", "f", "A", "inside", "text")
    os.mkdir(mount / "o")
    os.mkdir(mount / "empty")
    fd = os.open(mount / "o/f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"bytes")
    assert os.listdir(mount / "x") == ["inside"]
    known = os.open(mount / "x", os.O_PATH)  # the kernel does not forget it
    mount.do("arm", "file.freeze=hold")  # a request that is under way holds the notes back
    held = threading.Thread(target=os.rename, args=(mount / "o/f", mount / "o/g"))
    held.start()
    wait_for(lambda: int(mount.do("hits", "file.freeze")), "the request is held")
    mount.do("rename", "A", "/", "y")
    mount.do("mkdir", "B", "/", "x")
    if change == "rmdir":
        os.rmdir(mount / "x")
    elif change == "rename":
        os.rename(mount / "x", mount / "z")
    else:
        os.rename(mount / "x", mount / "empty")
    mount.do("arm", "file.freeze=off")
    held.join()
    os.close(fd)
    shown(mount, lambda: not exists(mount / "x"))
    if change != "rmdir":  # first, and no listing of the root: a look at y, which is the other one, would tell the kernel
        assert os.listdir(mount / ("z" if change == "rename" else "empty")) == []
    assert os.listdir(mount / "y") == ["inside"] and read(mount / "y/inside") == b"text"
    os.close(known)


def test_events_while_names_change_here(mount):
    """The deadlock of libfuse's own warning: invalidations of a directory while its names are created and removed here. Everything ends, and nobody waits for anybody."""
    mount.do("mkdir", "d", "/", "d")
    mount.do("create", "r", "d", "remote-0", "x")
    done = threading.Event()

    def local(k):
        for i in range(150):
            p = mount / f"d/local-{k}-{i}"
            write(p, b"x")
            exists(mount / f"d/absent-{i}")
            os.rename(p, p + "b")
            os.unlink(p + "b")
    threads = [threading.Thread(target=local, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for i in range(300):
        mount.do("rename", "r", "d", f"remote-{i + 1}")
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    done.set()
    shown(mount, lambda: os.listdir(mount / "d") == ["remote-300"])


def test_one_parked_read_stalls_only_itself(mount):
    mount.do("create", "slow", "/", "slow", "@300000:s")
    mount.do("create", "f", "/", "f", "one")
    assert read(mount / "f") == b"one"
    mount.do("stall")
    got = []
    t = threading.Thread(target=lambda: got.append(read(mount / "slow")))
    t.start()
    wait_for(lambda: int(mount.do("stalled")) > 0, "the wish")
    mount.do("chmod", "f", "600")
    shown(mount, lambda: os.stat(mount / "f").st_mode & 0o777 == 0o600)
    mount.do("mkdir", "d", "/", "fresh")
    shown(mount, lambda: exists(mount / "fresh"))
    assert not got
    mount.do("online")
    t.join(20)
    assert len(got[0]) == 300000


def test_offline_read_fails_at_once(mount):
    mount.do("create", "f", "/", "f", "@100000:x")
    mount.do("offline")
    with pytest.raises(OSError) as e:
        read(mount / "f")
    assert e.value.errno == errno.EHOSTDOWN
    assert os.stat(mount / "f").st_size == 100000
    mount.do("online")
    assert len(read(mount / "f")) == 100000


@pytest.mark.options("timeout_ms=300")
def test_a_read_ends_after_net_timeout(mount):
    mount.do("create", "f", "/", "f", "@100000:x")
    mount.do("stall")
    with pytest.raises(OSError) as e:
        read(mount / "f")
    assert e.value.errno in (errno.ETIMEDOUT, errno.EHOSTDOWN)
    mount.do("online")
    assert len(read(mount / "f")) == 100000


def test_kill_of_a_blocked_reader(mount):
    mount.do("create", "f", "/", "f", "@100000:x")
    mount.do("stall")
    pid = os.fork()
    if pid == 0:
        read(mount / "f")
        os._exit(0)
    wait_for(lambda: int(mount.do("stalled")) > 0, "the wish")
    os.kill(pid, 9)
    status = wait_for(lambda: os.waitpid(pid, os.WNOHANG) if True else None, "the reader is gone", 2)
    while status[0] == 0:
        status = wait_for(lambda: os.waitpid(pid, os.WNOHANG), "the reader is gone", 2)
    assert os.WTERMSIG(status[1]) == 9
    mount.do("online")
    assert len(read(mount / "f")) == 100000
