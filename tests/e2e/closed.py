# SPDX-License-Identifier: Apache-2.0
"""What one writer of a mount remembers of the contents that it closed: the last one of each inode must be a version, unless the writer itself took the file's last name away.

Whether it did cannot be told from the name alone: another mount may have moved another file there in the moment before the call. So the links of every file in question are counted before and
after, by the daemon (what the kernel has cached of them may be old), through handles that the daemon does not know of (O_PATH): looking does not keep a file open. Nor from the links alone: a
deletion that the server refuses, because somebody else changed the file, gives the name back, maybe before they are counted. A file counts as taken away if either says so."""
import ctypes
import os

AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, STATX_NLINK = 0x1000, 0x2000, 0x4
libc = ctypes.CDLL(None, use_errno=True)


def links(fd):
    """Names of the file, as the daemon knows them now; 0 of one that is not there any more."""
    buf = ctypes.create_string_buffer(256)
    if libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, buf) < 0:
        return 0
    return int.from_bytes(buf[16:20], "little")


def inode(at):
    """Of a path or handle; None if it is gone."""
    try:
        return os.fstat(at).st_ino if isinstance(at, int) else os.lstat(at).st_ino if at else None
    except OSError:
        return None


def taken(handles, act, path=None, source=None):
    """Does act(). handles: key -> handle. Those whose files lost their last name by it. One that has none before may get one again: who wants the same name is not decided yet."""
    before = {key: (links(fd), inode(fd)) for key, fd in handles.items()}
    there, moved = inode(path), inode(source)
    act()
    named = there is not None and there != moved
    return [key for key, (n, ino) in before.items() if (n and not links(handles[key])) or (named and n <= 1 and ino == there)]


class Closed:
    def __init__(self):
        self.last = {}      # inode -> what was noted of the newest bytes closed on it
        self.watched = {}   # inode -> O_PATH handle, while it has a name

    def note(self, fd, what):
        """These bytes were written through this handle, and will be closed."""
        ino = os.fstat(fd).st_ino
        self.drop(ino)  # the handle of an older incarnation too
        self.last[ino] = what
        self.watched[ino] = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)

    def forget(self, fd):
        self.drop(os.fstat(fd).st_ino)

    def drop(self, ino):
        self.last.pop(ino, None)
        self.unwatch(ino)

    def unwatch(self, ino):
        fd = self.watched.pop(ino, -1)
        if fd >= 0:
            os.close(fd)

    def take_away(self, act, path=None, source=None):
        """act() may take the last name from a file: the one at this path, in whose place source may come. Returns the inodes of which it did."""
        gone = taken(self.watched, act, path, source)
        for ino in gone:
            self.drop(ino)
        return gone

    def killed(self, root):
        """The daemon died and is there again: its inodes have the numbers that they had."""
        for ino in list(self.watched):
            self.unwatch(ino)
        for at, _, files in os.walk(root):
            for name in files:
                try:
                    fd = os.open(os.path.join(at, name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:  # others take names away meanwhile
                    continue
                ino = os.fstat(fd).st_ino
                if ino in self.last and ino not in self.watched:
                    self.watched[ino] = fd
                else:
                    os.close(fd)

    def close(self):
        """No more calls: the handles go, what must be there stays."""
        for ino in list(self.watched):
            self.unwatch(ino)
