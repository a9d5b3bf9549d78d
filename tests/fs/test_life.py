# SPDX-License-Identifier: Apache-2.0
"""Mounting, unmounting, remounting; mount points in a bad state; levels of close."""
import ctypes
import errno
import os
import subprocess
import threading
import time

import pytest

from harness import Mount, read, wait_for, write


def mounted(path):
    with open("/proc/self/mountinfo") as f:
        return [line.split(" - ")[1].split()[:2] for line in f if line.split()[4] == path]


def test_shown_in_mountinfo(mount):
    assert mounted(mount.path) == [["fuse.tarn", "http://harness,x/ws"]]
    mount.stop()
    assert mounted(mount.path) == []


def test_numbers_and_times_survive_a_remount(mount):
    os.mkdir(mount / "d")
    write(mount / "d/f", b"hello")
    os.symlink("f", mount / "d/l")
    os.link(mount / "d/f", mount / "d/h")
    os.utime(mount / "d/f", ns=(1, 123456789012345678))
    os.setxattr(mount / "d/f", "user.k", b"v")
    mount.do("create", "r", "/", "remote", "@200000:r")
    assert len(read(mount / "remote")) == 200000

    def shape():
        out = {}
        for base, dirs, files in os.walk(mount.path):
            for n in dirs + files:
                st = os.lstat(os.path.join(base, n))
                out[os.path.join(base, n)] = (st.st_ino, st.st_mode, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
        return out
    before = shape()
    mount.stop()
    assert mount.start().startswith("ready")
    assert shape() == before
    assert read(mount / "d/f") == b"hello" and os.getxattr(mount / "d/f", "user.k") == b"v"
    mount.do("offline")
    assert read(mount / "d/h") == b"hello" and len(read(mount / "remote")) == 200000


def test_kill_9_loses_nothing_that_was_accepted(mount):
    os.mkdir(mount / "d")
    data = os.urandom(300000)
    write(mount / "d/closed", data)
    fd = os.open(mount / "d/open", os.O_CREAT | os.O_WRONLY)
    os.write(fd, data[:70000])
    mount.kill()
    try:
        os.close(fd)
    except OSError:
        pass
    with pytest.raises(OSError) as e:
        os.statvfs(mount.path)
    assert e.value.errno == errno.ENOTCONN
    os.stat(mount.path)  # is still answered from the kernel's cache: the new daemon must not be fooled by it
    assert mount.start().startswith("ready"), "the stale mount point is detached by itself"
    assert read(mount / "d/closed") == data and read(mount / "d/open") == data[:70000]


def test_busy_and_lazy(mount):
    write(mount / "f", b"x")
    fd = os.open(mount / "f", os.O_RDWR)
    assert mount.try_("stop") == "error EBUSY"
    assert mount.stop() == "error EBUSY"
    assert read(mount / "f") == b"x"
    os.write(fd, b"yy")
    assert mount.stop("lazy") == "ok"
    with pytest.raises(OSError) as e:
        os.write(fd, b"z")
    assert e.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    try:
        os.close(fd)
    except OSError:
        pass
    assert mount.start().startswith("ready")
    assert read(mount / "f") == b"yy"


def test_umount_by_others_ends_the_daemon(mount):
    fd = os.open(mount / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 100000)
    os.close(fd)
    subprocess.run(["umount", mount.path], check=True)
    assert mount.stop() == "ok"
    assert mount.start().startswith("ready")
    assert read(mount / "f") == b"x" * 100000


def test_mapped_pages_reach_the_daemon_before_umount(mount):
    import mmap
    write(mount / "f", b"\0" * 8192)
    fd = os.open(mount / "f", os.O_RDWR)
    m = mmap.mmap(fd, 8192)
    m[5000:5005] = b"dirty"
    m.close()
    os.close(fd)
    mount.stop()
    mount.start()
    assert read(mount / "f")[5000:5005] == b"dirty"


def refused(path, *options):
    m = Mount.__new__(Mount)
    import tempfile
    m.top = tempfile.mkdtemp(prefix="tarn-fs-test.")
    m.state, m.path, m.options = m.top + "/state", path, options
    os.mkdir(m.state)
    try:
        first = m.start()
        m.process.stdout.read()
        assert m.process.wait(20) == 1
        m.process.stdin.close()
        m.process = None
        return first
    finally:
        import shutil
        shutil.rmtree(m.top)


def test_bad_mount_points(mount, tmp_path):
    none, full, file = tmp_path / "none", tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "something").write_text("x")
    file.write_text("x")
    assert refused(str(none)) == f"error ENOENT {none}: no such directory; create it first: mkdir -p {none}"
    assert refused(str(file)) == f"error ENOTDIR {file}: is not a directory; give an empty directory"
    assert refused(str(full)) == f"error ENOTEMPTY {full}: is not empty (it has something); give an empty directory, or -o nonempty to hide what is there"
    assert refused(mount.path).startswith(f"error EBUSY {mount.path}: http://harness,x/ws is mounted there already")
    assert read(str(full / "something")) == b"x"


@pytest.mark.options("ro")
def test_read_only(mount):
    mount.do("create", "f", "/", "f", "x")
    assert read(mount / "f") == b"x"
    for call in (lambda: os.mkdir(mount / "d"), lambda: os.unlink(mount / "f"), lambda: write(mount / "f", b"y"), lambda: os.chmod(mount / "f", 0), lambda: os.utime(mount / "f")):
        with pytest.raises(OSError) as e:
            call()
        assert e.value.errno == errno.EROFS
    assert not os.access(mount / "f", os.W_OK)


@pytest.mark.options("owner_stored", "allow_other")
def test_stored_owners(mount):
    os.chmod(mount.top, 0o755)
    os.chmod(mount.path, 0o777)
    os.mkdir(mount / "d")
    os.chown(mount / "d", 1234, 5678)
    os.chmod(mount / "d", 0o2777)
    st = os.stat(mount / "d")
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1234, 5678, 0o2777)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(4321)
            os.setuid(4321)
            write(mount / "d/f", b"x")
            os.mkdir(mount / "d/sub")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    f, sub = os.stat(mount / "d/f"), os.stat(mount / "d/sub")
    assert (f.st_uid, f.st_gid) == (4321, 5678)
    assert (sub.st_uid, sub.st_gid, sub.st_mode & 0o2000) == (4321, 5678, 0o2000)
    os.chmod(mount / "d/f", 0o6755)
    os.chown(mount / "d/f", 1, 1)
    assert os.stat(mount / "d/f").st_mode & 0o7777 == 0o755


@pytest.mark.options("uid=1000", "allow_other")
def test_one_owner_of_another_user(mount):
    write(mount / "f", b"x")
    st = os.stat(mount / "f")
    assert (st.st_uid, st.st_gid) == (1000, 1000)
    os.chown(mount / "f", 1000, 1000)
    with pytest.raises(PermissionError):
        os.chown(mount / "f", 0, 0)


@pytest.mark.options("close=server", "timeout_ms=400")
def test_close_server_reports_that_the_server_did_not_get_it(mount):
    fd = os.open(mount / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    with pytest.raises(OSError) as e:
        os.close(fd)
    assert e.value.errno == errno.ETIMEDOUT
    assert read(mount / "f") == b"x"
    fd = os.open(mount / "f", os.O_RDONLY)
    os.close(fd)


@pytest.mark.options("close=server", "timeout_ms=20000")
def test_close_server_offline_fails_at_once(mount):
    """Known to be offline: no waiting, and the bytes are here. So does one that waits already when the link goes."""
    mount.do("offline")
    fd = os.open(mount / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    begun = time.monotonic()
    with pytest.raises(OSError) as e:
        os.close(fd)
    assert e.value.errno == errno.EHOSTDOWN and time.monotonic() - begun < 5
    assert read(mount / "f") == b"x"
    mount.do("online")
    fd, result = os.open(mount / "g", os.O_CREAT | os.O_WRONLY), []
    os.write(fd, b"y")

    def close():
        try:
            os.close(fd)
        except OSError as e:
            result.append(e.errno)
    t = threading.Thread(target=close)
    t.start()
    wait_for(lambda: int(mount.do("pending")) == 2, "both are pending")
    assert not result
    mount.do("offline")
    t.join(10)
    assert result == [errno.EHOSTDOWN]


@pytest.mark.options("close=server", "timeout_ms=20000")
def test_a_waiting_close_can_be_killed_and_hinders_nobody(mount):
    pids = []
    for i in range(12):
        pid = os.fork()
        if pid == 0:
            write(mount / f"f{i}", b"x")
            os._exit(0)
        pids.append(pid)
    wait_for(lambda: len(os.listdir(mount.path)) == 12 and int(mount.do("pending")) == 12, "all are pending")
    write_ok = []
    t = threading.Thread(target=lambda: write_ok.append(os.mkdir(mount / "d")))
    t.start()
    t.join(5)
    assert write_ok == [None], "workers are free"
    for pid in pids:
        os.kill(pid, 9)
    for pid in pids:
        wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0], "it is gone", 5)
    assert sorted(os.listdir(mount.path)) == sorted(["d"] + [f"f{i}" for i in range(12)])


@pytest.mark.options("close=local")
def test_close_local(mount):
    for i in range(20):
        write(mount / f"f{i}", b"x" * 10000)
        assert os.getxattr(mount / f"f{i}", "user.tarn.state") == b"local"
        assert read(mount / f"f{i}") == b"x" * 10000


def test_many_open_files_and_directories(mount):
    os.mkdir(mount / "d")
    fds = []
    for i in range(300):
        fds.append(os.open(mount / f"d/{i}", os.O_CREAT | os.O_RDWR))
        os.write(fds[-1], b"%d" % i)
    for i in range(0, 300, 2):
        os.unlink(mount / f"d/{i}")
    for i, fd in enumerate(fds):
        assert os.pread(fd, 10, 0) == b"%d" % i
        os.close(fd)
    assert len(os.listdir(mount / "d")) == 150


def test_the_last_handle_is_closed_while_the_name_goes(mount):
    """The handle lets the file go while the name is still there for all to see, and the unlink has found it open: somebody must still put the bytes away."""
    write(mount / "f", b"x" * 200000)
    ino = os.stat(mount / "f").st_ino
    wait_for(lambda: mount.do("open", ino) == "0", "the writer's handle is gone")
    fd = os.open(mount / "f", os.O_RDONLY)
    mount.do("arm", "tree.commit=hold")
    unlink = threading.Thread(target=os.unlink, args=(mount / "f",))
    unlink.start()
    wait_for(lambda: int(mount.do("hits", "tree.commit")), "the unlink has asked who has it open")
    os.close(fd)
    wait_for(lambda: mount.do("open", ino) == "0", "the reader's handle is gone")
    mount.do("arm", "tree.commit=off")
    unlink.join()
    wait_for(lambda: mount.do("dirty") == "0", "its bytes are gone")
    assert mount.do("pending") == "0"


def test_parallel_lookups_in_one_directory(mount):
    os.mkdir(mount / "d")
    for i in range(200):
        write(mount / f"d/{i}", b"")
    bad = []

    def work(k):
        for i in range(200):
            if not os.path.exists(mount / f"d/{(i * 7 + k) % 200}") or os.path.exists(mount / f"d/no-{k}-{i}"):
                bad.append(i)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not bad


def test_unnamed_file_and_a_kill(mount):
    """A file without a name is gone when the daemon was killed; one that got its name is there."""
    fds = [os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(3)]
    for fd in fds:
        os.write(fd, b"x" * 100000)
    assert ctypes.CDLL(None).linkat(-100, f"/proc/self/fd/{fds[1]}".encode(), -100, (mount / "named").encode(), 0x400) == 0
    os.fsync(fds[0])
    mount.do("sync")
    mount.kill()
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass
    assert mount.start().startswith("ready")
    assert os.listdir(mount.path) == ["named"]
    assert read(mount / "named") == b"x" * 100000


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_ubyte * 128)]


def test_open_by_handle(mount):
    """A file handle leads to its node after all names in the kernel are gone, after a rename and after a remount, and to nothing once the node is deleted."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("a", "d/b", "d/sub/c", "gone"):
        os.makedirs(os.path.dirname(mount / name), exist_ok=True)
        write(mount / name, name.encode())

    def handle(path):
        h, unused = Handle(bytes=128), ctypes.c_int()
        assert libc.name_to_handle_at(-100, path.encode(), ctypes.byref(h), ctypes.byref(unused), 0) == 0, ctypes.get_errno()
        return h

    def by_handle(h, flags=os.O_RDONLY):
        top = os.open(mount.path, os.O_RDONLY)
        try:
            fd = libc.open_by_handle_at(top, ctypes.byref(h), flags)
            if fd < 0:
                return errno.errorcode[ctypes.get_errno()]
            return fd
        finally:
            os.close(top)
    handles = {n: handle(mount / n) for n in ("a", "d/b", "d/sub/c", "gone", "d/sub")}
    os.rename(mount / "a", mount / "d/renamed")
    os.unlink(mount / "gone")
    for remount in (False, True):
        if remount:
            assert mount.stop() == "ok"
            assert mount.start().startswith("ready")
        for name in ("a", "d/b", "d/sub/c"):
            fd = by_handle(handles[name])
            assert isinstance(fd, int), (remount, name, fd)
            with os.fdopen(fd, "rb") as f:
                assert f.read() == name.encode()
        fd = by_handle(handles["d/sub"], os.O_RDONLY | os.O_DIRECTORY)
        assert isinstance(fd, int), fd
        assert os.listdir(fd) == ["c"]
        assert os.stat("../..", dir_fd=fd).st_ino == os.stat(mount.path).st_ino
        os.close(fd)
        assert by_handle(handles["gone"]) == "ESTALE"


@pytest.mark.options("symlinks=inside")
def test_links_that_lead_out(mount):
    """symlinks=inside: what may lead out of the mount is not read, whatever it is called and wherever it is moved; what leads inside is as ever."""
    os.makedirs(mount / "a/b/c")
    write(mount / "f", b"top")
    write(mount / "a/f", b"deep")
    inside = {"1": "f", "a/2": "../f", "a/b/3": "../../f", "a/b/4": "./../f", "5": mount / "f", "6": mount.path, "a/7": "b/./c/", "8": "dangling"}
    outside = {"o1": "/etc/passwd", "o2": "../etc", "a/o3": "../../x", "a/o4": "b/../../..", "o5": mount.path + "2", "o6": mount / "../x", "a/o7": "b/../f", "o8": "/", "o9": "a/.."}
    for name, target in {**inside, **outside}.items():
        os.symlink(target, mount / name)
    for _ in range(2):
        for name, target in inside.items():
            assert os.readlink(mount / name) == target
        for name in outside:
            assert os.path.islink(mount / name)
            for call in (os.readlink, os.stat, os.listdir):
                with pytest.raises(PermissionError):
                    call(mount / name)
    assert read(mount / "a/b/3") == b"top" and read(mount / "a/b/4") == b"deep"
    os.rename(mount / "a/b", mount / "b")  # less deep now
    assert read(mount / "b/4") == b"top"
    with pytest.raises(PermissionError):
        os.readlink(mount / "b/3")
    os.link(mount / "a/2", mount / "2", follow_symlinks=False)  # two places
    with pytest.raises(PermissionError):
        os.readlink(mount / "a/2")
    assert mount.stop() == "ok"
    assert mount.start("symlinks=any").startswith("ready")
    assert os.readlink(mount / "o1") == "/etc/passwd"


@pytest.mark.options("symlinks=none", "noexec")
def test_no_link_is_followed(mount):
    os.symlink("f", mount / "l")
    write(mount / "f", b"x")
    os.chmod(mount / "f", 0o755)
    assert os.readlink(mount / "l") == "f"
    with pytest.raises(OSError) as e:
        os.stat(mount / "l")
    assert e.value.errno == errno.ELOOP
    flags = os.statvfs(mount.path).f_flag
    assert flags & os.ST_NOSUID and flags & os.ST_NODEV and flags & os.ST_NOEXEC


def test_free_space(mount):
    """The quota is the size; used is what the server said and what is here and not there yet."""
    MiB = 1 << 20

    def free():
        v = os.statvfs(mount.path)
        assert v.f_frsize == 4096 and v.f_bfree == v.f_bavail and v.f_bavail <= v.f_blocks
        return v.f_blocks * 4096, v.f_bavail * 4096
    assert free() == (1 << 50, 1 << 50)  # no quota
    mount.do("space", 0, 5 * MiB)
    assert free() == (1 << 50, (1 << 50) - 5 * MiB)
    mount.do("space", 100 * MiB, 30 * MiB)
    assert free() == (100 * MiB, 70 * MiB)
    transactions = mount.counter("sql_transactions")
    for _ in range(100):
        free()
    assert mount.counter("sql_transactions") - transactions <= 2, "a second's flush at most"
    write(mount / "f", b"x" * (8 * MiB))
    assert free() == (100 * MiB, 62 * MiB)  # at once, whoever has sent it
    os.unlink(mount / "f")
    wait_for(lambda: free() == (100 * MiB, 70 * MiB), "what was never sent takes no room")
    mount.do("space", 100 * MiB, 120 * MiB)  # lowered below what is there
    assert free() == (100 * MiB, 0)
    mount.do("space", (1 << 64) - 1, (1 << 64) - 1)
    assert free() == (((1 << 64) - 1) // 4096 * 4096, 0)
