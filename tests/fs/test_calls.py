# SPDX-License-Identifier: Apache-2.0
"""One test per system call: the same steps in a directory of the mount and in a plain one; results and errnos must be equal. All of it for each way to own: one owner, stored owners, and
one owner whom the kernel does not check (fastperm)."""
import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
import socket
import subprocess
import stat
import time

import pytest

from harness import name_of, read, write

libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100
UTIME_OMIT = (1 << 30) - 2


def attempt(call, *args, **kw):
    """The result, or the errno's name."""
    try:
        return call(*args, **kw)
    except OSError as e:
        return name_of(e.errno)


def both(pair, steps):
    """Runs steps(directory) in both places; what they return must be equal."""
    results = []
    for d in pair:
        here = os.getcwd()
        os.chdir(d)
        try:
            results.append(steps())
        finally:
            os.chdir(here)
    assert results[0] == results[1], f"mount {results[0]!r}\nplain {results[1]!r}"
    return results[0]


def renameat2(a, b, flags):
    r = libc.syscall(316, AT_FDCWD, a.encode(), AT_FDCWD, b.encode(), flags)
    return "ok" if r == 0 else name_of(ctypes.get_errno())


def link_fd(fd, name):
    r = libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, name.encode(), 0x400)
    return "ok" if r == 0 else name_of(ctypes.get_errno())


def shape(path="."):
    """Everything that stat and read show of a tree, but for times, inode numbers and directory sizes."""
    out = []
    for base, dirs, files in os.walk(path):
        dirs.sort()
        for name in sorted(dirs + files):
            p = os.path.join(base, name)
            st = os.lstat(p)
            kind = stat.S_IFMT(st.st_mode)
            out.append((p, oct(st.st_mode), st.st_nlink if kind != stat.S_IFDIR else None, st.st_size if kind != stat.S_IFDIR else None,
                        read(p) if kind == stat.S_IFREG else os.readlink(p) if kind == stat.S_IFLNK else st.st_rdev))
    return out


def test_open_create_flags(pair):
    def steps():
        out = []
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT | os.O_WRONLY, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_CREAT | os.O_TRUNC | os.O_RDWR, os.O_DIRECTORY,
                      os.O_NOFOLLOW, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC):
            for path in ("none", "file", "dir", "link", "dangling", "none/below", "file/below"):
                if not os.path.lexists("dir"):
                    os.mkdir("dir")
                    os.symlink("file", "link")
                    os.symlink("nowhere", "dangling")
                write("file", b"hello")
                r = attempt(os.open, path, flags, 0o640)
                if isinstance(r, int):
                    st = os.fstat(r)
                    out.append((flags, path, oct(st.st_mode), st.st_size if stat.S_ISREG(st.st_mode) else 0))
                    os.close(r)
                else:
                    out.append((flags, path, r))
                for leftover in ("none", "nowhere"):
                    if os.path.lexists(leftover):
                        os.unlink(leftover)
        return out
    both(pair, steps)


def test_read_write_seek(pair):
    def steps():
        out = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
        out.append(os.write(fd, b"0123456789" * 1000))
        out.append(os.pread(fd, 20, 9990))
        out.append(os.pread(fd, 20, 20000))
        out.append(os.pwrite(fd, b"XYZ", 20000))
        out.append(os.fstat(fd).st_size)
        out.append(os.pread(fd, 30, 19990))
        out.append(attempt(os.lseek, fd, -1, os.SEEK_SET))
        out.append(os.lseek(fd, -3, os.SEEK_END))
        out.append(os.read(fd, 10))
        os.close(fd)
        fd = os.open("f", os.O_WRONLY)
        out.append(attempt(os.read, fd, 1))
        os.close(fd)
        fd = os.open("f", os.O_RDONLY)
        out.append(attempt(os.write, fd, b"x"))
        os.close(fd)
        out.append(read("f"))
        return out
    both(pair, steps)


def test_append(pair):
    def steps():
        write("f", b"one")
        a, b = os.open("f", os.O_WRONLY | os.O_APPEND), os.open("f", os.O_WRONLY | os.O_APPEND)
        for i in range(50):
            os.write(a if i % 2 else b, b"%d," % i)
        os.pwrite(a, b"end", 0)  # Linux appends all the same
        os.close(a)
        os.close(b)
        return read("f")
    both(pair, steps)


def test_truncate(pair):
    def steps():
        out = []
        write("f", b"x" * 10000)
        for n in (5000, 0, 12345, 12345, 100):
            os.truncate("f", n)
            out.append((os.stat("f").st_size, read("f")))
        fd = os.open("f", os.O_RDWR)
        os.write(fd, b"hello")
        os.ftruncate(fd, 3)
        out.append(os.pread(fd, 10, 0))
        os.ftruncate(fd, 6)
        out.append(os.pread(fd, 10, 0))
        os.close(fd)
        out.append(attempt(os.truncate, "f", -1))
        os.mkdir("d")
        out.append(attempt(os.truncate, "d", 0))
        out.append(attempt(os.truncate, "none", 0))
        fd = os.open("f", os.O_RDONLY)
        out.append(attempt(os.ftruncate, fd, 0))
        os.close(fd)
        return out
    both(pair, steps)


def test_mkdir_rmdir(pair):
    def steps():
        out = [attempt(os.mkdir, "d", 0o750), attempt(os.mkdir, "d"), attempt(os.mkdir, "no/d")]
        write("f", b"")
        out += [attempt(os.mkdir, "f"), attempt(os.mkdir, "f/d"), attempt(os.rmdir, "f"), attempt(os.rmdir, "none"), os.stat("d").st_nlink]
        os.mkdir("d/e")
        out += [os.stat("d").st_nlink, attempt(os.rmdir, "d"), attempt(os.rmdir, "d/e"), os.stat("d").st_nlink, attempt(os.rmdir, "d")]
        os.mkdir("d")
        out += [attempt(os.rmdir, "d/."), attempt(os.rmdir, "d/..")]
        return out, shape()
    both(pair, steps)


def test_unlink(pair):
    def steps():
        write("f", b"x")
        os.mkdir("d")
        os.symlink("f", "l")
        out = [attempt(os.unlink, p) for p in ("d", "none", "f/x", "l", "f", "f")]
        return out, shape()
    both(pair, steps)


def test_unlinked_open(pair):
    def steps():
        out = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"before")
        os.unlink("f")
        out.append(attempt(os.stat, "f"))
        out.append((os.fstat(fd).st_nlink, os.fstat(fd).st_size))
        os.write(fd, b" after")
        out.append(os.pread(fd, 100, 0))
        os.ftruncate(fd, 4)
        out.append(os.pread(fd, 100, 0))
        os.fchmod(fd, 0o640)
        out.append(oct(os.fstat(fd).st_mode))
        write("f", b"another")
        out.append(read("f"))
        out.append(os.pread(fd, 100, 0))
        os.close(fd)
        out.append(read("f"))
        return out
    both(pair, steps)


def test_replaced_open(pair):
    def steps():
        write("a", b"old")
        write("b", b"new")
        fd = os.open("a", os.O_RDWR)
        os.rename("b", "a")
        out = [os.pread(fd, 10, 0), read("a"), os.fstat(fd).st_nlink]
        os.pwrite(fd, b"OLD+", 0)
        out += [os.pread(fd, 10, 0), read("a")]
        os.close(fd)
        return out, read("a"), shape()
    both(pair, steps)


def test_rename(pair):
    def steps():
        def fresh():
            for p in ("f", "g"):
                write(p, p.encode())
            os.makedirs("d/sub", exist_ok=True)
            os.makedirs("empty", exist_ok=True)
            os.makedirs("full", exist_ok=True)
            write("full/x", b"")
            if not os.path.lexists("l"):
                os.symlink("f", "l")
        out = []
        for a, b in (("f", "h"), ("f", "g"), ("f", "f"), ("f", "d"), ("d", "f"), ("d", "empty"), ("d", "full"), ("d", "d/sub/x"), ("d", "d"), ("none", "x"), ("f", "none/x"),
                     ("l", "g"), ("f", "l"), ("d/sub", "moved"), ("d", "new"), ("f/x", "y"), (".", "x")):
            fresh()
            out.append((a, b, attempt(os.rename, a, b)))
            out.append(shape())
        return out
    both(pair, steps)


def test_rename_flags(pair):
    def steps():
        out = []
        write("a", b"A")
        write("b", b"B")
        os.mkdir("d")
        write("d/x", b"X")
        out.append(renameat2("a", "b", RENAME_NOREPLACE))
        out.append(renameat2("a", "c", RENAME_NOREPLACE))
        out.append(renameat2("c", "b", RENAME_EXCHANGE))
        out.append((read("c"), read("b")))
        out.append(renameat2("c", "d", RENAME_EXCHANGE))
        out.append(shape())
        out.append(renameat2("c", "none", RENAME_EXCHANGE))
        out.append(renameat2("none", "c", RENAME_EXCHANGE))
        out.append(renameat2("c", "c/x", RENAME_EXCHANGE))
        out.append(renameat2("c", "b", RENAME_NOREPLACE | RENAME_EXCHANGE))
        return out
    both(pair, steps)


def test_rename_keeps_inode(pair):
    def steps():
        write("a", b"A")
        write("b", b"B")
        ino = os.stat("a").st_ino
        os.rename("a", "b")
        fd = os.open("b", os.O_RDONLY)
        same = (os.stat("b").st_ino == ino, os.fstat(fd).st_ino == ino)
        os.close(fd)
        return same
    assert both(pair, steps) == (True, True)


def test_save_with_open_temporary(pair):
    """write-temp + rename-over while the writer still has the temporary open, as some editors do."""
    def steps():
        write("doc", b"v1")
        fd = os.open("doc.tmp", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"v2 longer")
        os.rename("doc.tmp", "doc")
        out = [read("doc"), os.fstat(fd).st_size, os.path.samestat(os.stat("doc"), os.fstat(fd))]
        os.write(fd, b" and more")
        out += [read("doc"), os.fstat(fd).st_size]
        os.close(fd)
        return out, shape()
    both(pair, steps)


def test_link(pair):
    def steps():
        write("f", b"x")
        os.mkdir("d")
        os.symlink("f", "s")
        out = [attempt(os.link, "f", "g"), attempt(os.link, "f", "g"), attempt(os.link, "d", "e"), attempt(os.link, "none", "x"), attempt(os.link, "f", "none/x"),
               attempt(os.link, "s", "t", follow_symlinks=False), attempt(os.link, "f", "d/h")]
        out.append(os.stat("f").st_nlink)
        write("g", b"through g")
        out += [read("f"), read("d/h"), os.path.samefile("f", "g")]
        os.unlink("f")
        out += [os.stat("g").st_nlink, read("g")]
        os.rename("g", "d/h")  # two names of one file: nothing happens
        out.append(shape())
        return out
    both(pair, steps)


def test_symlink(pair):
    def steps():
        out = [attempt(os.symlink, "target", "l"), attempt(os.symlink, "x", "l"), attempt(os.symlink, "x" * 4095, "long"), attempt(os.symlink, "", "empty"), os.readlink("l"),
               len(os.readlink("long")), os.lstat("l").st_size, os.lstat("long").st_size, attempt(os.stat, "l"), oct(os.lstat("l").st_mode)]
        write("f", b"")
        out += [attempt(os.readlink, "f"), attempt(os.readlink, "none")]
        os.symlink("loop2", "loop1")
        os.symlink("loop1", "loop2")
        out.append(attempt(os.stat, "loop1"))
        return out
    both(pair, steps)


def test_names(pair):
    def steps():
        out = []
        for name in ("a" * 255, "a" * 256, "a" * 1100, "ü" * 127, " ", "-x", "a\nb", "日本", "a\\b", ".hidden"):
            r = attempt(os.open, name, os.O_CREAT | os.O_WRONLY, 0o600)
            out.append(r if isinstance(r, str) else os.close(r))
            out.append(attempt(lambda n: os.stat(n).st_size, name))
            out.append(attempt(os.mkdir, name + "x"))
        return out, sorted(os.listdir("."))
    both(pair, steps)


def test_names_that_are_no_utf8(pair):
    inside, _ = pair
    assert attempt(os.mkdir, os.fsencode(inside) + b"/\xff\xfe") == "EILSEQ"
    assert attempt(os.stat, os.fsencode(inside) + b"/\xff\xfe") == "ENOENT"


def test_mknod(pair):
    def steps():
        out = [attempt(os.mkfifo, "fifo", 0o640), attempt(os.mkfifo, "fifo"), attempt(os.mknod, "reg", stat.S_IFREG | 0o600), attempt(os.mknod, "chr", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
               attempt(os.mknod, "blk", stat.S_IFBLK | 0o600, os.makedev(7, 300))]
        s = socket.socket(socket.AF_UNIX)
        s.bind("sock")
        s.close()
        out.append([(p, oct(os.lstat(p).st_mode), os.lstat(p).st_rdev, os.lstat(p).st_nlink) for p in sorted(os.listdir("."))])
        rd = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
        wr = os.open("fifo", os.O_WRONLY)
        os.write(wr, b"through the pipe")
        out.append(os.read(rd, 100))
        os.close(rd)
        os.close(wr)
        return out
    both(pair, steps)


def test_umask_and_modes(pair):
    def steps():
        old = os.umask(0o027)
        try:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o777))
            os.mkdir("d", 0o777)
            os.mkfifo("p", 0o666)
        finally:
            os.umask(old)
        out = [shape()]
        for mode in (0o000, 0o4755, 0o2711, 0o1777, 0o7777):
            os.chmod("f", mode)
            os.chmod("d", mode)
            out.append(shape())
        out.append(attempt(os.chmod, "none", 0o600))
        return out
    both(pair, steps)


def test_times(pair):
    def steps():
        write("f", b"x")
        os.mkdir("d")
        out = []
        for path in ("f", "d"):
            for ns in (0, 1, 1_234_567_890_123_456_789, -5_000_000_001, 4_000_000_000_000_000_000):
                os.utime(path, ns=(ns, ns))
                out.append(os.stat(path).st_mtime_ns)
        before = time.time_ns()
        os.utime("f")
        out.append(abs(os.stat("f").st_mtime_ns - before) < 5_000_000_000)
        os.symlink("f", "l")
        os.utime("l", ns=(7, 7), follow_symlinks=False)
        out.append(os.lstat("l").st_mtime_ns)
        out.append(attempt(os.utime, "none"))
        return out
    both(pair, steps)


def test_access_times(pair):
    """An access time that a program sets is kept, whatever happens to the other times; reading changes nothing (the plain one is read in a moment in which relatime does not, too)."""
    def steps():
        out = []
        os.mkdir("d")
        os.mkfifo("p")
        os.symlink("f", "l")
        write("f", b"x")

        def look():
            out.append([os.lstat(p).st_atime_ns for p in ("d", "p", "l", "f")])
        for a, m in ((7 * 10**17 + 1, 9 * 10**17), (-5 * 10**9 - 1, 3 * 10**9), (2**33 * 10**9 + 5, 2**32 * 10**9)):
            for p in ("d", "p", "l", "f"):
                os.utime(p, ns=(a, m), follow_symlinks=False)
                out.append(os.lstat(p).st_mtime_ns)
            look()
        os.chmod("f", 0o600)
        with open("f", "ab", buffering=0) as f:
            f.write(b"more")
            out.append(os.fstat(f.fileno()).st_atime_ns)
            os.utime(f.fileno(), ns=(11, 12))
            out.append(os.fstat(f.fileno()).st_atime_ns)
        os.rename("f", "g")
        os.link("g", "f")
        write("d/new", b"")
        look()
        libc.utimensat(AT_FDCWD, b"f", (ctypes.c_long * 4)(13, 14, 0, UTIME_OMIT), 0)
        out.append((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns))
        libc.utimensat(AT_FDCWD, b"f", (ctypes.c_long * 4)(0, UTIME_OMIT, 15, 16), 0)
        out.append((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns))
        before = time.time_ns()
        os.utime("f")
        out.append(abs(os.stat("f").st_atime_ns - before) < 5_000_000_000)
        c = os.stat("f").st_ctime_ns
        while time.time_ns() <= c + 20_000_000:
            os.stat("d")
        libc.utimensat(AT_FDCWD, b"f", (ctypes.c_long * 4)(17, 18, 0, UTIME_OMIT), 0)
        out.append(os.stat("f").st_ctime_ns > c)
        write("of_a_new_file", b"x")
        st = os.stat("of_a_new_file")
        libc.utimensat(AT_FDCWD, b"of_a_new_file", (ctypes.c_long * 4)(0, UTIME_OMIT, 15, 16), 0)
        out.append(abs(os.stat("of_a_new_file").st_atime_ns - st.st_atime_ns))
        return out
    both(pair, steps)


def test_times_move_as_they_should(pair):
    """Which calls change mtime and ctime of what."""
    def steps():
        out = []
        os.mkdir("d")
        write("d/f", b"x")

        def changed(what, *paths):
            for p in paths:
                os.utime(p, ns=(10**18, 10**18))
            before = {p: os.lstat(p) for p in paths}
            c = max(before[p].st_ctime_ns for p in paths)
            while time.time_ns() <= c + 20_000_000:  # a clock tick of the plain file system
                os.stat("d")
            what()
            return [(p, os.lstat(p).st_mtime_ns != before[p].st_mtime_ns, os.lstat(p).st_ctime_ns != before[p].st_ctime_ns) for p in paths if os.path.lexists(p)]
        out.append(changed(lambda: write("d/f", b"y", "r+b"), "d", "d/f"))
        out.append(changed(lambda: write("d/g", b""), "d", "d/f"))
        out.append(changed(lambda: os.link("d/f", "d/h"), "d", "d/f"))
        out.append(changed(lambda: os.unlink("d/h"), "d", "d/f"))
        out.append(changed(lambda: os.chmod("d/f", 0o600), "d", "d/f"))
        out.append(changed(lambda: os.rename("d/g", "d/i"), "d"))
        out.append(changed(lambda: os.mkdir("d/sub"), "d"))
        out.append(changed(lambda: os.rmdir("d/sub"), "d"))
        out.append(changed(lambda: read("d/f"), "d", "d/f"))
        out.append(changed(lambda: os.truncate("d/f", 0), "d", "d/f"))
        out.append(changed(lambda: os.close(os.open("d/f", os.O_WRONLY)), "d", "d/f"))
        out.append(changed(lambda: os.setxattr("d/f", "user.x", b"1"), "d/f"))
        return out
    both(pair, steps)


def test_mtime_survives_close(pair):
    """Times set while the file is open for writing are what is there after close (tar, cp -p, rsync)."""
    def steps():
        fd = os.open("f", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"data")
        os.utime(fd, ns=(5 * 10**17, 5 * 10**17))
        a = os.fstat(fd).st_mtime_ns
        os.close(fd)
        return a, os.stat("f").st_mtime_ns
    both(pair, steps)


def test_chown(shared, pair):
    """As elsewhere where owners are stored. Else only to the owner that it has: what the server says is never altered."""
    def steps():
        write("f", b"")
        out = []
        for uid, gid in ((0, 0), (-1, 0), (-1, -1), (1, 0), (-1, 5), (0, 0)):
            out.append((attempt(os.chown, "f", uid, gid), os.stat("f").st_uid, os.stat("f").st_gid))
        return out
    if shared.mode == "stored":
        both(pair, steps)
        return
    inside, _ = pair
    write(inside + "/f", b"")
    assert attempt(os.chown, inside + "/f", 0, 0) is None
    assert attempt(os.chown, inside + "/f", -1, 0) is None
    assert attempt(os.chown, inside + "/f", -1, -1) is None
    assert attempt(os.chown, inside + "/f", 1, 0) == "EPERM"
    assert attempt(os.chown, inside + "/f", -1, 5) == "EPERM"
    st = os.stat(inside + "/f")
    assert (st.st_uid, st.st_gid) == (0, 0)


def as_user(uid, steps):
    """steps() in a child with that uid; its result, by its repr."""
    rd, wr = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = repr(steps())
        except BaseException as e:  # noqa: B036: the parent must hear of it
            text = "exception " + repr(e)
        os.write(wr, text.encode())
        os._exit(0)
    os.close(wr)
    with os.fdopen(rd, "rb") as f:
        text = f.read().decode()
    os.waitpid(pid, 0)
    return text


def test_permissions(shared, pair):
    for d in pair:
        os.chmod(d, 0o755)
        os.chmod(os.path.dirname(d), 0o755)

    def steps():
        write("secret", b"x")
        os.chmod("secret", 0o600)
        write("shared", b"x")
        os.chmod("shared", 0o666)
        os.mkdir("private", 0o700)
        os.mkdir("sticky", 0o777)
        os.chmod("sticky", 0o1777)
        write("sticky/roots", b"")
        os.chmod("sticky/roots", 0o4755)

        def child():
            return [attempt(lambda: read("secret")), attempt(lambda: write("shared", b"y", "r+b")), attempt(os.listdir, "private"), attempt(os.mkdir, "new"), attempt(os.unlink, "shared"),
                    attempt(os.chmod, "shared", 0o600), attempt(os.unlink, "sticky/roots"), os.access("secret", os.R_OK), os.access("shared", os.W_OK), attempt(os.utime, "secret"),
                    attempt(os.truncate, "secret", 0), attempt(os.rename, "shared", "x"), attempt(os.link, "secret", "sticky/l") in (None, "EPERM")]
        return as_user(65534, child)
    if shared.mode != "fastperm":
        assert "exception" not in both(pair, steps)
        return
    os.chdir(pair[0])  # nobody asks who may: only for a mount that nobody else can look into
    try:
        assert steps() == repr([b"x", None, [], None, None, "ENOENT", None, True, False, None, None, "ENOENT", True])
    finally:
        os.chdir("/")


def test_suid_goes_with_a_write(pair):
    for d in pair:
        os.chmod(d, 0o755)

    def steps():
        out = []
        for what in ("write", "truncate", "open_trunc"):
            write("f", b"xxx")
            os.chmod("f", 0o6777)

            def child():
                if what == "write":
                    write("f", b"y", "r+b")
                elif what == "truncate":
                    os.truncate("f", 1)
                else:
                    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
            as_user(65534, child)
            out.append(oct(os.stat("f").st_mode))
        return out
    both(pair, steps)


def test_xattr(pair):
    def steps():
        write("f", b"")
        os.mkdir("d")
        out = []
        for p in ("f", "d"):
            out += [attempt(os.setxattr, p, "user.a", b"one"), attempt(os.setxattr, p, "user.empty", b""), attempt(os.setxattr, p, "user.a", b"two", os.XATTR_CREATE),
                    attempt(os.setxattr, p, "user.none", b"x", os.XATTR_REPLACE), attempt(os.setxattr, p, "user.a", b"three", os.XATTR_REPLACE), attempt(os.getxattr, p, "user.a"),
                    attempt(os.getxattr, p, "user.empty"), attempt(os.getxattr, p, "user.none"), sorted(x for x in os.listxattr(p) if x.startswith("user.")),
                    attempt(os.removexattr, p, "user.a"), attempt(os.removexattr, p, "user.a"), sorted(x for x in os.listxattr(p) if x.startswith("user.")),
                    attempt(os.setxattr, p, "bogus.a", b"x")]
            buf = ctypes.create_string_buffer(2)
            os.setxattr(p, "user.long", b"12345")
            out.append((libc.getxattr(p.encode(), b"user.long", buf, 2), name_of(ctypes.get_errno())))
            out.append(libc.getxattr(p.encode(), b"user.long", None, 0))
        out.append(attempt(os.getxattr, "none", "user.a"))
        return out
    both(pair, steps)


def test_xattr_state(pair):
    inside, _ = pair
    f = inside + "/f"
    with open(f, "wb", buffering=0) as h:
        h.write(b"x")
        assert os.getxattr(f, "user.tarn.state") in (b"accepted", b"local")  # the sync of each second may have come in between
    from harness import wait_for
    wait_for(lambda: os.getxattr(f, "user.tarn.state") == b"local", "the sync of each second", 5)
    assert os.listxattr(f) == []
    assert attempt(os.setxattr, f, "user.tarn.state", b"server") == "EPERM"
    assert attempt(os.getxattr, f, "user.tarn.other") == "ENODATA"


def test_local_is_reached_when_the_call_returns(pair):
    """fsync, fdatasync, O_SYNC, O_DSYNC, msync and fsync of a directory: from their return on, without waiting for the sync of each second. 30 files each: by chance all would not be."""
    inside, _ = pair

    def state(p):
        return os.getxattr(p, "user.tarn.state")
    seen = set()
    for i in range(30):
        f = f"{inside}/f{i}"
        fd = os.open(f, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * (10 if i % 2 else 200000))
        seen.add(state(f))
        (os.fsync if i % 3 else os.fdatasync)(fd)
        assert state(f) == b"local", i
        os.close(fd)
        assert state(f) == b"local", "closing takes nothing back"
        fd = os.open(f"{inside}/s{i}", os.O_WRONLY | os.O_CREAT | (os.O_SYNC if i % 2 else os.O_DSYNC))
        os.write(fd, b"synced")
        assert state(f"{inside}/s{i}") == b"local"
        os.close(fd)
        with open(f, "r+b") as h, mmap.mmap(h.fileno(), 10) as m:
            m[3:6] = b"map"
            m.flush()
            assert state(f) == b"local" and os.pread(h.fileno(), 6, 0) == b"xxxmap"
        os.mkdir(f"{inside}/d{i}")
        os.mknod(f"{inside}/d{i}/empty")
        d = os.open(f"{inside}/d{i}", os.O_RDONLY)
        os.fsync(d)
        os.close(d)
        assert state(f"{inside}/d{i}") == state(f"{inside}/d{i}/empty") == b"local"
    assert b"accepted" in seen


def test_fallocate(pair):
    def fallocate(fd, mode, off, n):
        r = libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(n))
        return "ok" if r == 0 else name_of(ctypes.get_errno())

    # tmpfs, where the plain directory may be, cannot zero a range
    with tempfile.TemporaryFile(dir=pair[1]) as probe:
        probe.write(b"x" * 100)
        probe.flush()
        zero_range = fallocate(probe.fileno(), 0x10, 0, 10) == "ok"

    def steps():
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"x" * 100000)
        out = []
        for mode, off, n in ((0, 0, 50), (0, 90000, 30000), (1, 100000, 1000000), (3, 10000, 20000), (0x10, 50000, 1000), (0x11, 119000, 5000), (0x10, 119000, 5000), (0, 0, 0), (0x40, 0, 10)):
            if mode & 0x10 and not zero_range:
                continue
            r = fallocate(fd, mode, off, n)
            st = os.fstat(fd)
            out.append((mode, r if mode != 0x40 else "-", st.st_size, os.pread(fd, 200000, 0)))
        os.close(fd)
        return out, read("f")
    both(pair, steps)


def test_seek_data_hole(pair):
    inside, _ = pair
    fd = os.open(inside + "/f", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, b"x" * 4096, 0)
    os.pwrite(fd, b"y" * 4096, 1 << 20)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    hole = os.lseek(fd, 0, os.SEEK_HOLE)
    assert 4096 <= hole <= (1 << 20) + 4096
    assert os.lseek(fd, (1 << 20) + 5, os.SEEK_DATA) == (1 << 20) + 5
    assert os.lseek(fd, (1 << 20) + 5, os.SEEK_HOLE) == (1 << 20) + 4096
    assert attempt(os.lseek, fd, 2 << 20, os.SEEK_DATA) == "ENXIO"
    os.close(fd)


def test_copy_file_range(pair):
    def steps():
        write("a", bytes(range(256)) * 1000)
        a, b = os.open("a", os.O_RDONLY), os.open("b", os.O_RDWR | os.O_CREAT, 0o600)
        n = 0
        while n < 200000:
            n += os.copy_file_range(a, b, 200000 - n)
        os.close(a)
        os.close(b)
        return read("b")
    both(pair, steps)


def test_mmap(pair):
    def steps():
        write("f", b"\0" * 20000)
        fd = os.open("f", os.O_RDWR)
        m = mmap.mmap(fd, 20000)
        m[5000:5005] = b"hello"
        out = [os.pread(fd, 5, 5000)]
        m.flush()
        out.append(read("f")[5000:5005])
        os.pwrite(fd, b"there", 100)
        out.append(bytes(m[100:105]))
        m[19990:] = b"0123456789"
        m.close()
        os.close(fd)
        out.append(read("f"))
        p = os.open("f", os.O_RDONLY)
        private = mmap.mmap(p, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        private[0:3] = b"abc"
        out.append(read("f")[:3])
        private.close()
        os.close(p)
        return out
    both(pair, steps)


def test_fsync(pair):
    def steps():
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"x")
        out = [attempt(os.fsync, fd), attempt(os.fdatasync, fd)]
        os.close(fd)
        d = os.open(".", os.O_RDONLY)
        out.append(attempt(os.fsync, d))
        os.close(d)
        fd = os.open("s", os.O_WRONLY | os.O_CREAT | os.O_SYNC, 0o600)
        out.append(os.write(fd, b"synced"))
        os.close(fd)
        return out, read("s")
    both(pair, steps)


def test_listing(pair):
    def steps():
        for i in range(700):
            write(f"file-{i:04}", b"")
        out = [sorted(os.listdir("."))]
        fd = os.open(".", os.O_RDONLY)
        entries = {e.name: e.is_file() for e in os.scandir(fd)}
        os.close(fd)
        out.append(len(entries))
        with os.scandir(".") as it:  # removing what was listed while listing
            for k, e in enumerate(it):
                if k % 2:
                    os.unlink(e.name)
        out.append(len(os.listdir(".")))
        for i in range(700):
            if os.path.exists(f"file-{i:04}"):
                os.rename(f"file-{i:04}", f"renamed-{i:04}")
        out.append(len(os.listdir(".")))
        os.mkdir("sub")
        a, b, c = os.stat("sub/.."), os.stat("."), os.stat("sub/.")
        out.append((a.st_ino == b.st_ino, c.st_ino == os.stat("sub").st_ino))
        return out
    both(pair, steps)


def test_listing_numbers(pair):
    """d_ino of readdir is st_ino."""
    inside, _ = pair
    os.mkdir(inside + "/d")
    write(inside + "/f", b"")
    for e in os.scandir(inside):
        assert e.inode() == e.stat(follow_symlinks=False).st_ino == os.lstat(e.path).st_ino


def test_unnamed_file(pair):
    """O_TMPFILE: a file without a name, which goes with its last descriptor unless it is given one."""
    def steps():
        out = []
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
        out.append((os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode), os.listdir(".")))
        os.write(fd, b"bytes" * 30000)
        os.fsync(fd)
        out.append(os.pread(fd, 10, 149995))
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        out.append(os.pread(again, 5, 5))
        out.append(link_fd(fd, "named"))
        out.append((os.fstat(fd).st_nlink, os.stat("named").st_ino == os.fstat(fd).st_ino, os.stat("named").st_size, read("named") == b"bytes" * 30000))
        out.append(link_fd(fd, "named"))
        os.write(fd, b"more")
        os.close(fd)
        os.close(again)
        out.append((read("named") == b"bytes" * 30000 + b"more", os.stat("named").st_nlink))
        os.rename("named", "renamed")
        os.unlink("renamed")
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
        out.append(link_fd(fd, "never"))
        os.close(fd)
        fds = [os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(50)]
        for i, fd in enumerate(fds):
            os.write(fd, b"%d" % i)
        out.append([os.pread(fd, 9, 0) for fd in fds])
        for fd in fds:
            os.close(fd)
        out.append(attempt(os.open, ".", os.O_TMPFILE | os.O_RDONLY, 0o600))
        out.append(attempt(os.open, "none", os.O_TMPFILE | os.O_RDWR, 0o600))
        out.append(os.listdir("."))
        return out
    both(pair, steps)


def test_removed_directory(pair):
    def steps():
        os.mkdir("d")
        fd = os.open("d", os.O_RDONLY)
        os.rmdir("d")
        out = [attempt(os.listdir, fd), attempt(os.open, "x", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd), attempt(os.mkdir, "y", dir_fd=fd)]
        os.close(fd)
        return out
    both(pair, steps)


def test_locks(pair):
    def steps():
        write("f", b"x" * 100)
        a, b = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
        out = [attempt(fcntl.flock, a, fcntl.LOCK_EX | fcntl.LOCK_NB), attempt(fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)]
        fcntl.flock(a, fcntl.LOCK_UN)
        out.append(attempt(fcntl.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.lockf(a, fcntl.LOCK_EX, 10, 0)
        out.append(as_user(0, lambda: attempt(fcntl.lockf, os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)))
        out.append(as_user(0, lambda: attempt(fcntl.lockf, os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 50)))
        os.close(a)
        os.close(b)
        return out
    both(pair, steps)


def test_too_large(pair):
    """Nothing grows beyond 8 TiB (the plain file system has a limit of its own); what was there stays."""
    inside, _ = pair
    f = inside + "/f"
    write(f, b"x")
    fd = os.open(f, os.O_RDWR)
    limit = 8 << 40
    for size in (limit + 1, 999999999999999, (1 << 63) - 1):
        assert attempt(os.truncate, f, size) == "EFBIG"
        assert attempt(os.ftruncate, fd, size) == "EFBIG"
    assert attempt(os.pwrite, fd, b"xx", limit) == "EFBIG"
    assert attempt(os.pwrite, fd, b"x" * 8192, limit - 100) in (100, "EFBIG")  # the kernel may send it page by page
    os.ftruncate(fd, 1)
    assert attempt(os.posix_fallocate, fd, limit, 1) == "EFBIG"
    assert os.fstat(fd).st_size == 1 and read(f) == b"x"
    os.ftruncate(fd, limit)
    assert os.pread(fd, 5, limit - 3) == b"\0\0\0"
    os.ftruncate(fd, 0)
    os.close(fd)


def test_unsupported_is_never_eio(shared, pair):
    inside, _ = pair
    f = inside + "/f"
    write(f, b"x")
    fd = os.open(f, os.O_RDWR)
    assert attempt(fcntl.ioctl, fd, 0x12345678) == "ENOTTY"
    assert attempt(os.setxattr, f, "security.x", b"") == (None if shared.mode == "stored" else "EOPNOTSUPP")
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        assert attempt(os.getxattr, inside, name) == attempt(os.setxattr, inside, name, b"\2\0\0\0") == "EOPNOTSUPP"
    p = subprocess.run(["setfacl", "-m", "u:1:r", f], capture_output=True, text=True)
    assert p.returncode == 1 and "not supported" in p.stderr
    assert "user::rw-" in subprocess.run(["getfacl", "-c", f], capture_output=True, text=True, check=True).stdout
    subprocess.run(["cp", "-a", f, f + "-copy"], check=True)
    assert renameat2(f, f + "2", RENAME_WHITEOUT) == "EINVAL"
    os.close(fd)


def test_statfs(pair):
    inside, _ = pair
    v = os.statvfs(inside)
    assert v.f_namemax == 255 and v.f_bavail > 0 and v.f_blocks >= v.f_bavail


def test_times_of_a_year(pair):
    """st_blocks covers the size; st_ino is never 0; root is 1."""
    inside, _ = pair
    write(inside + "/f", b"x" * 5000)
    st = os.stat(inside + "/f")
    assert st.st_blocks * 512 >= 5000 and st.st_ino > 1
    assert os.stat(os.path.dirname(inside)).st_ino == 1


@pytest.mark.parametrize("n", [1, 4096, 131072, 1 << 20, (1 << 20) + 1, 5_000_001])
def test_sizes(pair, n):
    def steps():
        data = bytes(range(251)) * (n // 251 + 1)
        write("f", data[:n])
        return read("f") == data[:n], os.stat("f").st_size
    assert both(pair, steps) == (True, n)
