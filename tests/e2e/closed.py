# SPDX-License-Identifier: Apache-2.0
"""What one writer of a mount remembers of the contents that it closed: the last one of each inode must be a version, unless the writer itself took the file's last name away.

Whether it did cannot be told from the name alone: another mount may have moved another file there in the moment before the call. So the links of every file in question are counted before and
after, by the daemon (what the kernel has cached of them may be old), through handles that the daemon does not know of (O_PATH): looking does not keep a file open. Nor from the links alone: a
deletion that the server refuses, because somebody else changed the file, gives the name back, maybe before they are counted. A file counts as taken away if either says so; how often only one of
them did is counted, for that is where a loss could hide.

Where a version from elsewhere came in the place of one from here in the moment in which the writer closed the next one, the handle is of what the file was before (ESTALE), and tells nothing. The name then
leads to the next one, with the same inode number: if it shows the bytes that were closed last, they are what is taken away.

Who writes over a file went on from his own bytes only if these are what he saw there. If it was something else, others had changed the file meanwhile, and his bytes must be a version."""
import collections
import ctypes
import errno
import hashlib
import os

AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, STATX_NLINK = 0x1000, 0x2000, 0x4
SUPERSEDED = -1
libc = ctypes.CDLL(None, use_errno=True)


def links(fd):
    """Names of the file, as the daemon knows them now; 0 of one that is not there any more."""
    buf = ctypes.create_string_buffer(256)
    if libc.statx(fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, buf) < 0:
        return SUPERSEDED if ctypes.get_errno() == errno.ESTALE else 0
    return int.from_bytes(buf[16:20], "little")


def inode(at):
    """Of a path or handle; None if it is gone."""
    try:
        return os.fstat(at).st_ino if isinstance(at, int) else os.lstat(at).st_ino if at else None
    except OSError:
        return None


def shows(path, digest):
    """A file with these bytes is there."""
    try:
        with open(path, "rb", buffering=0) as f:
            data = f.read()
            return digest == (hashlib.sha256(data).hexdigest() if data else "0" * 64)
    except OSError:
        return False


def taken(handles, act, path=None, source=None, counted=None):
    """Does act(). handles: key -> handle. Those whose files lost their last name by it. One that has none before may get one again: who wants the same name is not decided yet."""
    before = {key: (links(fd), inode(fd)) for key, fd in handles.items()}
    there, moved = inode(path), inode(source)
    act()
    named = there is not None and there != moved
    by_links = {key for key, (n, _) in before.items() if n > 0 and links(handles[key]) == 0}
    by_name = {key for key, (n, ino) in before.items() if named and 0 <= n <= 1 and ino == there}
    if counted is not None:
        counted.update(both=len(by_links & by_name), links=len(by_links - by_name), name=len(by_name - by_links))
    return by_links | by_name


class Closed:
    def __init__(self):
        self.last = {}      # inode -> what was noted of the newest bytes closed on it
        self.watched = {}   # inode -> O_PATH handle, while it has a name
        self.covered = []   # what was noted of bytes that others covered before this one wrote again
        self.told = collections.Counter()  # by what a file counted as taken away

    def note(self, fd, what, over=None):
        """These bytes (what begins with their digest) were written through this handle, and will be closed. over: the digest of what it showed before, if that is known."""
        self.covers(fd, over)
        ino = os.fstat(fd).st_ino
        self.drop(ino)  # the handle of an older incarnation too
        self.last[ino] = what
        self.watched[ino] = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)

    def covers(self, fd, over):
        """Something else will be written through this handle, which shows these bytes (their digest, or None)."""
        ino = os.fstat(fd).st_ino
        if over and ino in self.last and self.last[ino][0] != over:
            self.covered.append(self.last.pop(ino))

    def must(self):
        """What was noted of each content that must be a version."""
        return [*self.last.values(), *self.covered]

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
        there = inode(path)
        unseen = {there} if there in self.last and there not in self.watched and there != inode(source) else set()  # had no name when its handles were made anew, and has one again
        if there in self.last and there in self.watched and links(self.watched[there]) == SUPERSEDED and there != inode(source) and shows(path, self.last[there][0]):
            unseen = {there}
        gone = taken(self.watched, act, path, source, self.told) | unseen
        self.told["unseen"] += len(unseen)
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
