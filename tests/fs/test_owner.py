# SPDX-License-Identifier: Apache-2.0
"""Who may do what, and whose things are: with owner=stored the mount must answer as a plain directory does, whoever asks."""
import errno
import os
import shutil
import stat
import tempfile

import pytest

from harness import Mount, name_of, read, write

PEOPLE = ((0, 0, ()), (1001, 1001, ()), (1002, 1002, (1003,)), (1004, 1003, ()))


@pytest.fixture(scope="module")
def stored():
    m = Mount("owner_stored", "allow_other", "suid", "dev")
    assert m.first.startswith("ready"), m.first
    os.chmod(m.top, 0o755)
    os.chmod(m.path, 0o755)
    yield m
    try:
        assert m.stop() == "ok"
    finally:
        m.remove()


@pytest.fixture
def places(stored, request):
    plain_top = tempfile.mkdtemp(prefix="tarn-fs-plain.")
    os.chmod(plain_top, 0o755)
    inside, plain = stored / request.node.name, os.path.join(plain_top, request.node.name)
    os.mkdir(inside)
    os.mkdir(plain)
    yield inside, plain
    shutil.rmtree(inside)
    shutil.rmtree(plain_top)


def as_user(uid, gid, groups, call):
    """call() in a process of that user: its result (a line of text), or the errno's name."""
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                said = repr(call())
            except OSError as e:
                said = name_of(e.errno)
            os.write(ends[1], said.encode())
        finally:
            os._exit(0)
    os.close(ends[1])
    with os.fdopen(ends[0], "rb") as f:
        said = f.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def whose(path):
    st = os.lstat(path)
    return oct(st.st_mode), st.st_uid, st.st_gid


def make(kind, path, owner, mode):
    if kind == "file":
        write(path, b"bytes")
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink("nowhere", path)
    else:
        os.mknod(path, mode | {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR, "block": stat.S_IFBLK}[kind], os.makedev(1, 3))
    os.chown(path, *owner, follow_symlinks=False)
    if kind != "symlink":
        os.chmod(path, mode)


KINDS = ("file", "dir", "symlink", "fifo", "socket", "char", "block")


def compare(places, steps):
    results = [steps(d) for d in places]
    for i, (a, b) in enumerate(zip(*results)):
        assert a == b, f"{i}: mount {a!r} plain {b!r}"
    assert len(results[0]) == len(results[1]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_chown(places, kind):
    """Every owner by everybody, and what becomes of set-id bits."""
    def steps(d):
        out = []
        for who in PEOPLE:
            for new in ((-1, -1), (1002, -1), (-1, 1003), (1002, 1003), (-1, 1002), (0, 0)):
                for mode in (0o755, 0o6755, 0o2745, 0o4700, 0o1777):
                    p = d + "/n"
                    make(kind, p, (1002, 1002), mode)
                    said = as_user(*who, lambda: os.chown(p, *new, follow_symlinks=False))
                    if new == (-1, -1) and said == "EPERM" and kind not in ("dir", "symlink"):
                        said = "None"  # the kernel tells a FUSE file system only that nothing is to be set, and asks for no right: it succeeds, and changes nothing all the same
                    out.append((who, new, oct(mode), said, whose(p)))
                    shutil.rmtree(p) if kind == "dir" else os.unlink(p)
        return out
    os.chmod(places[0], 0o777), os.chmod(places[1], 0o777)
    compare(places, steps)


@pytest.mark.parametrize("kind", ("file", "dir", "fifo", "char"))
def test_chmod(places, kind):
    def steps(d):
        out = []
        p = d + "/n"
        make(kind, p, (1002, 1003), 0o640)
        for who in PEOPLE:
            for mode in (0o6777, 0o2770, 0o1755, 0o4000, 0o640):
                said = as_user(*who, lambda: os.chmod(p, mode))
                out.append((who, oct(mode), said, whose(p)))
        return out
    compare(places, steps)


def test_new_nodes(places):
    """Owner, group and mode of what is made, below directories with and without set-gid."""
    def steps(d):
        out = []
        for i, (owner, mode) in enumerate((((0, 0), 0o777), ((1004, 1003), 0o2777), ((1002, 1002), 0o2775), ((1001, 1001), 0o1777))):
            top = f"{d}/{i}"
            make("dir", top, owner, mode)
            for j, who in enumerate(PEOPLE):
                for mask in (0, 0o022, 0o077):
                    for kind in ("file", "dir", "fifo", "socket", "symlink", "tmp", "char"):
                        p = f"{top}/{j}{mask}{kind}"

                        def do():
                            os.umask(mask)
                            if kind == "file":
                                os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o6777))
                            elif kind == "dir":
                                os.mkdir(p, 0o1777)
                            elif kind == "symlink":
                                os.symlink("x", p)
                            elif kind == "char":
                                os.mknod(p, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
                            elif kind == "tmp":
                                os.mknod(p, 0o7777 | stat.S_IFREG)
                            else:
                                os.mknod(p, 0o666 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))
                        said = as_user(*who, do)
                        out.append((i, who, oct(mask), kind, said, whose(p) if os.path.lexists(p) else None))
        return out
    compare(places, steps)


def test_set_id_goes_with_a_write(places):
    def steps(d):
        out = []
        changes = (lambda p: os.truncate(p, 3), lambda p: os.truncate(p, 5), lambda p: write(p, b"new"), lambda p: write(p, b"", "ab"), lambda p: write(p, b"more", "ab"), read,
                   lambda p: os.close(os.open(p, os.O_RDWR)), lambda p: os.setxattr(p, "user.x", b"1"))
        for who in PEOPLE:
            for mode in (0o6777, 0o2767, 0o4776, 0o777):
                for i, change in enumerate(changes):
                    p = d + "/n"
                    make("file", p, (1002, 1003), mode)
                    said = as_user(*who, lambda: change(p))
                    out.append((who, oct(mode), i, said if i != 5 else None, whose(p)))
                    os.unlink(p)
        return out
    os.chmod(places[0], 0o777), os.chmod(places[1], 0o777)
    compare(places, steps)


def test_sticky(places):
    """Who may take a name out of a directory with the sticky bit, or put another node under it."""
    def steps(d):
        out = []
        for mode in (0o1777, 0o775):
            for dir_owner in (0, 1001):
                for owner in (1001, 1002):
                    for kind in ("file", "dir"):
                        for who in PEOPLE:
                            for how in ("remove", "rename", "over", "exchange"):
                                top = d + "/t"
                                make("dir", top, (dir_owner, 0), mode)
                                make(kind, top + "/n", (owner, owner), 0o777)
                                make(kind, top + "/m", (1004, 1003), 0o777)

                                def do():
                                    if how == "remove":
                                        return os.rmdir(top + "/n") if kind == "dir" else os.unlink(top + "/n")
                                    if how == "exchange":
                                        return exchange(top + "/n", top + "/m")
                                    return os.rename(top + "/n", top + ("/m" if how == "over" else "/o"))
                                out.append((oct(mode), dir_owner, owner, kind, who, how, as_user(*who, do), sorted(os.listdir(top))))
                                shutil.rmtree(top)
        return out
    compare(places, steps)


def exchange(a, b):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def test_times_of_others(places):
    def steps(d):
        out = []
        p = d + "/n"
        for mode in (0o644, 0o666, 0o600):
            make("file", p, (1002, 1002), mode)
            for who in PEOPLE:
                out.append((oct(mode), who, as_user(*who, lambda: os.utime(p)), as_user(*who, lambda: os.utime(p, ns=(1, 1))), os.stat(p).st_mtime_ns == 1))
            os.unlink(p)
        return out
    compare(places, steps)


def test_owners_survive(stored):
    """What was stored is there after a remount, and a mode that another client sets is seen at once."""
    p = stored / "kept"
    make("char", p, (12345, 54321), 0o6751)
    make("file", stored / "kept2", (70000, 80000), 0o640)
    os.utime(stored / "kept2", ns=(5, 6))
    assert stored.stop() == "ok"
    assert stored.start().startswith("ready")
    assert whose(p) == (oct(stat.S_IFCHR | 0o6751), 12345, 54321) and os.stat(p).st_rdev == os.makedev(1, 3)
    assert whose(stored / "kept2") == (oct(stat.S_IFREG | 0o640), 70000, 80000)
    st = os.stat(stored / "kept2")
    assert (st.st_atime_ns, st.st_mtime_ns) == (5, 6)
    stored.do("create", "theirs", "/", "theirs", "x")
    os.stat(stored / "theirs")
    stored.do("chmod", "theirs", "640")
    stored.do("chown", "theirs", "77", "88")
    assert read(stored / "theirs") == b"x"
    from harness import wait_for
    wait_for(lambda: whose(stored / "theirs") == (oct(stat.S_IFREG | 0o640), 77, 88))
    assert as_user(99, 99, (), lambda: read(stored / "theirs")) == "EACCES"
    assert as_user(77, 99, (), lambda: read(stored / "theirs")) == "b'x'"


def test_set_id_and_devices_need_to_be_asked_for():
    m = Mount("owner_stored", "allow_other")
    try:
        flags = os.statvfs(m.path).f_flag
        assert flags & os.ST_NOSUID and flags & os.ST_NODEV
        make("char", m / "null", (0, 0), 0o666)
        with pytest.raises(PermissionError):
            os.open(m / "null", os.O_RDONLY)
        assert m.stop() == "ok"
        assert m.start("owner_stored", "allow_other", "dev", "suid").startswith("ready")
        flags = os.statvfs(m.path).f_flag
        assert not flags & (os.ST_NOSUID | os.ST_NODEV)
        assert read(m / "null") == b""
        assert m.stop() == "ok"
    finally:
        m.remove()


def test_attributes_of_the_system(stored):
    """trusted.* and security.* are kept with owner=stored, where root is who it says; else nobody may set them."""
    write(stored / "x", b"")
    os.setxattr(stored / "x", "trusted.t", b"1")
    os.setxattr(stored / "x", "security.s", b"2")
    assert os.getxattr(stored / "x", "security.s") == b"2"
    assert sorted(os.listxattr(stored / "x")) == ["security.s", "trusted.t"]
    os.chmod(stored / "x", 0o666)
    assert as_user(1001, 1001, (), lambda: os.setxattr(stored / "x", "trusted.t", b"3")) == "EPERM"
    assert as_user(1001, 1001, (), lambda: os.setxattr(stored / "x", "user.u", b"3")) == "None"
    m = Mount("allow_other")
    try:
        write(m / "x", b"")
        for name in ("trusted.t", "security.s", "system.s"):
            with pytest.raises(OSError) as e:
                os.setxattr(m / "x", name, b"1")
            assert e.value.errno == errno.EOPNOTSUPP, name
        assert m.stop() == "ok"
    finally:
        m.remove()


def test_mapped_ids():
    """-o idmap=: ids of the server are others here; what has none here is nobody's, and stays what it is."""
    m = Mount("owner_stored", "allow_other", "idmap=u:0:0:1+u:1000:5000:10+g:0:0:1+g:1000:6000:10")
    try:
        os.chmod(m.top, 0o755)
        os.chmod(m.path, 0o777)
        m.do("create", "theirs", "/", "theirs", "x")
        m.do("chown", "theirs", "1003", "1004")
        m.do("create", "far", "/", "far", "x")
        m.do("chown", "far", "77", "1000")
        assert whose(m / "theirs")[1:] == (5003, 6004)
        assert whose(m / "far")[1:] == (65534, 6000)
        os.chown(m / "far", 65534, 6001)
        assert whose(m / "far")[1:] == (65534, 6001)
        assert as_user(5001, 6001, (), lambda: write(m / "new", b"")) == "None"
        assert whose(m / "new")[1:] == (5001, 6001)
        assert as_user(4999, 6001, (), lambda: write(m / "no", b"")) == "EOVERFLOW"
        assert as_user(5001, 5, (), lambda: os.mkdir(m / "no")) == "EOVERFLOW"
        assert as_user(0, 0, (), lambda: os.chown(m / "new", 4999, -1)) == "EINVAL"
        assert as_user(0, 0, (), lambda: os.chown(m / "new", 5002, -1)) == "None"
        assert m.stop() == "ok"
        assert m.start("owner_stored", "allow_other").startswith("ready")  # as the server has them
        assert [whose(m / n)[1:] for n in ("theirs", "far", "new")] == [(1003, 1004), (77, 1001), (1002, 1001)]
        assert m.stop() == "ok"
    finally:
        m.remove()


def test_capabilities_go_with_a_write():
    m = Mount("owner_stored", "allow_other", "suid")
    cap = bytes.fromhex("0000000200200000000000000000000000000000")
    try:
        for i, change in enumerate((lambda p: write(p, b"y", "ab"), lambda p: write(p, b"y"), lambda p: os.truncate(p, 0), lambda p: os.chown(p, 5, 5), lambda p: os.chmod(p, 0o700))):
            p = m / f"f{i}"
            write(p, b"x")
            os.setxattr(p, "security.capability", cap)
            if i % 2:
                assert m.stop() == "ok"
                assert m.start().startswith("ready")
            assert os.getxattr(p, "security.capability") == cap
            change(p)
            assert ("security.capability" in os.listxattr(p)) == (i == 4), i
        assert m.stop() == "ok"
    finally:
        m.remove()
