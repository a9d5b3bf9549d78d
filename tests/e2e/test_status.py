# SPDX-License-Identifier: Apache-2.0
"""What `tarn status`, `tarn wait` and the exit of the daemon promise."""
import errno
import json
import os
import socket
import struct
import subprocess
import time

import pytest

from support import EXIT, PATIENCE, TARN, alive, is_mounted, run, until

FIELDS = {"state": str, "pid": int, "mountpoint": str, "pending_files": int, "pending_bytes": int, "oldest_pending_s": int, "parked": list, "cache_bytes": int, "cache_limit_bytes": int,
          "files_accepted": int, "files_local": int, "files_server": int, "cursor": dict, "counters": dict}
COUNTERS = ["http_requests", "bytes_sent", "bytes_received", "sql_transactions", "blocks_fetched", "cache_hits", "events_applied"]


def status_ms(client):
    """The fastest of several, as the daemon answers: the machine is shared, and the start of a program takes what it takes."""
    best = 1e9
    client.status()
    for _ in range(10):
        began = time.monotonic()
        client.ask(cmd="status")
        best = min(best, (time.monotonic() - began) * 1000)
    return best


def test_fields(world):
    a, b = world.client(), world.client()
    (a.dir / "file").write_text("x" * 10000)
    a.wait()
    until(lambda: (b.dir / "file").exists())
    assert (b.dir / "file").read_text() == "x" * 10000
    s, t = a.status(), b.status()
    for name, kind in FIELDS.items():
        assert isinstance(s[name], kind), name
    for name in COUNTERS:
        assert isinstance(s["counters"][name], int), name
    assert s["state"] == "online" and s["pid"] == a.pid() and s["mountpoint"] == str(a.dir)
    assert s["pending_files"] == s["pending_bytes"] == s["oldest_pending_s"] == 0 and s["parked"] == []
    assert (s["files_accepted"], s["files_local"], s["files_server"]) == (0, 0, 1)
    assert s["cursor"]["seq"] > 0 and s["cursor"] == t["cursor"]
    assert s["counters"]["http_requests"] > 2 and s["counters"]["bytes_sent"] > 0 and s["counters"]["bytes_received"] > 0 and s["counters"]["sql_transactions"] > 0
    assert t["counters"]["blocks_fetched"] == 1 and t["counters"]["events_applied"] >= 1
    text = a.tarn("status", a.dir).stdout
    assert "online" in text and "everything is on the server" in text
    assert "online" in a.tarn("status").stdout  # all mounts of this state
    assert json.loads(a.tarn("status", a.dir / "file", "--json").stdout)["pid"] == s["pid"]  # anything in the mount


def test_status_answers_at_once_with_the_server_dead(world):
    a = world.client()
    (a.dir / "warm").write_text("up")
    a.wait()
    world.server.freeze()
    (a.dir / "pending").write_text("x" * 5000)
    until(lambda: a.status()["pending_files"] == 1)
    assert status_ms(a) < 50 * PATIENCE
    world.server.kill()
    until(lambda: a.status()["state"] == "offline", 40)
    assert status_ms(a) < 50 * PATIENCE
    s = a.status()
    assert s["pending_files"] == 1 and s["pending_bytes"] >= 5000
    until(lambda: [a.status()[k] for k in ("files_accepted", "files_local", "files_server")] == [0, 1, 1], 10, "the sync of each second")
    assert os.getxattr(a.dir / "pending", "user.tarn.state") == b"local" and os.getxattr(a.dir / "warm", "user.tarn.state") == b"server"
    assert "1 on the server, 1 local, 0 accepted" in a.tarn("status", a.dir).stdout
    until(lambda: a.status()["oldest_pending_s"] >= 1)
    p = a.tarn("wait", a.dir, "--timeout", "1", check=False)
    assert p.returncode == EXIT["timeout"] and "not on the server yet" in p.stderr and p.stderr.count("\n") == 1
    world.server.start()
    a.wait()
    assert a.status()["pending_files"] == 0 and os.getxattr(a.dir / "pending", "user.tarn.state") == b"server"


def test_wait_returns_when_everything_is_there_and_not_before(world):
    a = world.client()
    world.server.freeze()
    (a.dir / "f").write_text("x")
    p = a.tarn("wait", a.dir, "--timeout", "1", check=False)
    assert p.returncode == EXIT["timeout"]
    world.server.freeze(False)
    a.wait()
    token = world.server.token("anna")
    import requests
    r = requests.get(f"{world.server.url}/v1/workspaces/work/files/f", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert r.status_code == 200 and r.text == "x"


def test_umount_is_busy_while_files_are_open(world):
    a = world.client()
    with open(a.dir / "open", "w") as f:
        f.write("x")
        p = a.umount(check=False)
        assert p.returncode == EXIT["mount_point"] and "busy" in p.stderr and p.stderr.count("\n") == 1
        assert a.status()["state"] == "online"
    pid = a.pid()
    a.umount()
    assert not os.path.ismount(a.dir)
    until(lambda: not alive(pid), 5, "the daemon's end: umount returns after it")
    p = a.tarn("status", a.dir, check=False)
    assert p.returncode == EXIT["not_mounted"]
    a.mount()
    assert (a.dir / "open").read_text() == "x"


def test_umount_offline_says_what_is_left_and_loses_nothing(world):
    a = world.client()
    world.server.stop()
    (a.dir / "later").write_text("later")
    until(lambda: a.status()["state"] == "offline", 30)
    p = a.umount()
    assert "not on the server yet" in p.stderr
    world.server.start()
    a.mount()
    a.wait()
    b = world.client()
    assert (b.dir / "later").read_text() == "later"


def test_fusermount_ends_the_daemon_too(world):
    a = world.client()
    pid = a.pid()
    (a.dir / "f").write_text("x")
    os.system(f"fusermount3 -u '{a.dir}'")
    until(lambda: not alive(pid), 40, "the end of the daemon")
    a.mount()
    assert (a.dir / "f").read_text() == "x"


def commands_that_find(a):
    """Whoever sees the mount may use it at once: each command finds its daemon."""
    assert a.status()["pid"] == a.pid() and a.status()["mountpoint"] == str(a.dir)
    a.wait()
    for command in ("conflicts", "accept", "undelete"):
        a.tarn(command, a.dir)


def test_foreground(world):
    a = world.client(mount=False)
    p = a.mount_in_foreground()
    until(lambda: os.path.ismount(a.dir), 20)
    commands_that_find(a)
    (a.dir / "f").write_text("x")
    assert a.status()["pid"] == p.pid and a.status()["mounted"]
    p.terminate()
    assert p.wait(40 * PATIENCE) == 0, a.log_text()


@pytest.mark.parametrize("point", ["mount.visible", "mount.answers"])
def test_the_account_of_a_mount_is_there_before_the_mount(world, point):
    """The daemon is held between the kernel's mount and the end of its start: every command finds it, and an unmount waits for the rest of the start."""
    a = world.client(mount=False)
    p = a.mount_in_foreground(failpoints=f"{point}=hold")
    until(lambda: is_mounted(a.dir), 20)
    commands_that_find(a)
    assert not a.status()["mounted"] and "just being made" in a.tarn("status").stdout
    with control(a) as umount:
        umount.sendall(b'{"cmd": "umount"}\n')
        assert a.status()["pid"] == p.pid and is_mounted(a.dir)  # one thread answers both, in this order
        with pytest.raises(BlockingIOError):
            umount.recv(1, socket.MSG_DONTWAIT)
        assert a.ask(cmd="failpoint", arm=f"{point}=off") == {"ok": True}
        umount.settimeout(60 * PATIENCE)
        answer = umount.makefile()
        assert json.loads(answer.readline()) == {"ok": True} and json.loads(answer.readline())["pending_items"] == 0
    assert p.wait(40 * PATIENCE) == 0 and not is_mounted(a.dir), a.log_text()
    assert a.tarn("status", a.dir, check=False).returncode == EXIT["not_mounted"]
    a.mount()


def test_a_signal_while_the_mount_is_made_ends_it(world):
    a = world.client(mount=False)
    p = a.mount_in_foreground(failpoints="mount.visible=hold")
    until(lambda: is_mounted(a.dir), 20)
    p.terminate()
    until(lambda: "ending" in a.foreground_log.read_text(), 10, "the signal is seen")
    a.ask(cmd="failpoint", arm="*=off")
    assert p.wait(40 * PATIENCE) == 0 and not is_mounted(a.dir), a.log_text()


def test_umount_of_a_mount_that_still_loads_gives_it_up(world):
    a = world.client(mount=False)
    p = a.mount_in_foreground(failpoints="load.page=hold")
    until(lambda: a.pid() == p.pid, 20, "its account is there")
    s = until(lambda: a.tarn("status", a.dir, "--json", check=False).stdout, 20, "its daemon answers")
    assert not json.loads(s)["mounted"] and not is_mounted(a.dir)
    with control(a) as umount:
        umount.sendall(b'{"cmd": "umount"}\n')
        umount.settimeout(60 * PATIENCE)
        assert json.loads(umount.makefile().readline()) == {"ok": True}
        a.ask(cmd="failpoint", arm="load.page=off")
    assert p.wait(60 * PATIENCE) == EXIT["other"] and not is_mounted(a.dir) and a.pid() is None, a.log_text()


def test_what_a_mount_that_did_not_come_up_leaves_confuses_nobody(world):
    a = world.client(mount=False)
    other = world.base / "other"
    other.mkdir()
    # killed between the kernel's mount and its answer: a dead mount and an account of it
    p = a.mount_in_foreground(failpoints="mount.visible=kill")
    p.wait(60 * PATIENCE)
    assert a.pid() == p.pid
    q = a.tarn("status", a.dir, check=False)
    assert q.returncode == EXIT["not_mounted"] and "is gone: mount again" in q.stderr
    # mounted elsewhere: the old place is nobody's, and its unmount takes only the dead mount away
    a.tarn("mount", f"{world.server.url}/work", other, "-o", f"cache_dir={a.cache}")
    try:
        assert json.loads(a.tarn("status", other, "--json").stdout)["mountpoint"] == str(other)
        assert a.tarn("status", a.dir, check=False).returncode == EXIT["not_mounted"]
        a.umount()
        assert not is_mounted(a.dir) and is_mounted(other)
        assert a.umount(check=False).returncode == EXIT["not_mounted"]
    finally:
        a.tarn("umount", other)
    # a start that fails leaves no account
    q = subprocess.run([str(TARN), "mount", f"{world.server.url}/work", str(a.dir)], env=dict(a.env, TARN_FAILPOINTS="mount.answers=error:EIO"), capture_output=True, text=True, timeout=60 * PATIENCE)
    assert q.returncode == EXIT["mount_point"] and not is_mounted(a.dir) and a.pid() is None, q.stderr
    a.mount()
    commands_that_find(a)


def test_close_server_means_what_it_says(world):
    """With -o close=server a close that returned is on the server, without a wait; offline it returns too, and the change is kept."""
    import requests
    a = world.client(options="close=server")
    auth = {"Authorization": f"Bearer {world.server.token('anna')}"}
    for i in range(5):
        with open(a.dir / "f", "w") as f:
            f.write(f"text {i}")
        r = requests.get(f"{world.server.url}/v1/workspaces/work/files/f", headers=auth, timeout=10)
        assert r.status_code == 200 and r.text == f"text {i}"


def test_called_by_mount(world):
    """As mount(8) calls it: mount.tarn SOURCE DIR -o OPTIONS, with options that are mount(8)'s own."""
    a = world.client(mount=False)
    a.login()
    helper = world.base / "mount.tarn"
    os.symlink(TARN, helper)
    run(helper, f"{world.server.url}/work", a.dir, "-n", "-o", "rw,noauto,_netdev,x-systemd.automount", "-o", f"cache_dir={a.cache}", env=a.env)
    (a.dir / "f").write_text("x")
    assert a.status()["cache_dir"] == str(a.cache)
    with open("/proc/self/mountinfo") as f:
        line = next(x for x in f if f" {a.dir} " in x)
    assert " fuse.tarn " in line and world.server.url in line
    p = run(helper, f"{world.server.url}/work", a.dir, "-o", "nonsense", env=a.env, check=False)
    assert p.returncode == EXIT["usage"]


def shown(path):
    """(mount options, type, options of the file system) of the topmost mount at path."""
    with open("/proc/self/mountinfo") as f:
        line = [x.split() for x in f if x.split()[4] == str(path)][-1]
    return line[5].split(","), line[line.index("-") + 1], line[-1].split(",")


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) is root's")
def test_remount(world):
    """mount -o remount changes what the kernel decides, again and again, and leaves the rest; a mount made with `ro` stays so."""
    a = world.client(mount=False)
    a.login()
    helper = world.base / "mount.tarn"
    os.symlink(TARN, helper)
    url = f"{world.server.url}/work"

    def remount(options, ok=True):
        p = run(helper, url, a.dir, "-o", f"remount,{options}", env=a.env, check=False)
        assert (p.returncode == 0) == ok, p.stderr
        return shown(a.dir) if ok else None
    remount("ro", ok=False)  # nothing is there
    run(helper, url, a.dir, "-o", "noexec,nofail,_netdev,x-gvfs-show,nosubtype", env=a.env)
    options, kind, _ = shown(a.dir)
    assert kind == "fuse" and {"rw", "nosuid", "nodev", "noexec"} <= set(options)
    (a.dir / "f").write_text("x")
    for i in range(5):
        options, _, of_fs = remount("ro,_netdev,x-anything=1")
        assert "ro" in of_fs and {"nosuid", "nodev"} <= set(options) and ("noexec" in options) == (i == 0)
        with pytest.raises(OSError) as e:
            (a.dir / "f").write_text("y")
        assert e.value.errno == errno.EROFS
        options, _, of_fs = remount("rw,exec")
        assert "rw" in of_fs and "noexec" not in options and "nosuid" in options
        (a.dir / "f").write_text("y")
    a.umount()
    run(helper, url, a.dir, "-o", "ro", env=a.env)
    remount("rw")
    for change in (lambda: (a.dir / "f").write_text("z"), lambda: (a.dir / "f").unlink(), lambda: (a.dir / "d").mkdir(), lambda: os.chmod(a.dir / "f", 0), lambda: os.setxattr(a.dir / "f", "user.x", b""),
                   lambda: os.utime(a.dir / "f"), lambda: os.truncate(a.dir / "f", 0)):
        with pytest.raises(OSError) as e:
            change()
        assert e.value.errno == errno.EROFS
    assert (a.dir / "f").read_text() == "y"


@pytest.mark.skipif(os.geteuid() != 0, reason="for a mount by root")
def test_links_of_a_mount_for_everybody_stay_inside(world):
    a = world.client(options="allow_other")
    for name, target in (("in", "f"), ("out", "/etc/passwd"), ("up", "../x")):
        os.symlink(target, a.dir / name)
    assert os.readlink(a.dir / "in") == "f"
    for name in ("out", "up"):
        for call in (os.readlink, os.stat):
            with pytest.raises(PermissionError):
                call(a.dir / name)
    b = world.client(options="allow_other,symlinks=any")
    until(lambda: os.path.lexists(b.dir / "out"), what="the link is there")
    assert os.readlink(b.dir / "out") == "/etc/passwd"
    c = world.client(mount=False)
    c.login()
    p = c.tarn("mount", f"{world.server.url}/work", c.dir, "-o", "symlinks=some", check=False)
    assert p.returncode == EXIT["usage"] and "any, inside, none" in p.stderr


def test_state_directories_keep_clients_apart_and_paths_may_be_long(world):
    deep = world.base / ("d" * 120) / ("e" * 120)
    a = world.client(mount=False)
    a.state = deep / "state"
    a.env["TARN_STATE_DIR"] = str(a.state)
    a.mount()
    assert a.status()["state"] == "online"  # its socket's path is longer than a socket address
    b = world.client()
    assert {s["mountpoint"] for s in map(json.loads, a.tarn("status", "--json").stdout.splitlines())} == {str(a.dir)}
    assert b.tarn("status", a.dir, check=False).returncode == EXIT["not_mounted"]


def control(client):
    """A bare connection to the daemon's control socket."""
    s = socket.socket(socket.AF_UNIX)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
    s.connect(str(next(client.state.glob("mounts/*/control.sock"))))
    return s


def test_control_socket_survives_its_clients(world):
    a = world.client()
    idle = [control(a) for _ in range(60)]  # more than it keeps
    assert a.status()["state"] == "online"
    for s in idle:
        s.close()
    for line in (b"\n", b"{\n", b"[]\n", b'{"cmd": 1}\n', b'{"cmd": "nonsense"}\n', b"\x00\xff\n", b'{"cmd":"wait","timeout_ms":-1}\n'):
        s = control(a)
        s.sendall(line)
        answer = s.makefile().readline()
        assert json.loads(answer).keys() & {"error", "ok"}, (line, answer)
        s.close()
    s = control(a)
    try:
        s.sendall(b"x" * 40000)  # a line without end, longer than any that it takes (LINE_MAX_BYTES): dropped, not kept until it has been idle for long
        assert s.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        pass
    s.close()
    world.server.freeze()
    (a.dir / "f").write_text("x")
    s = control(a)
    s.sendall(b'{"cmd": "wait"}\n')
    s.close()  # gives up waiting
    world.server.freeze(False)
    a.wait()
    mode = next(a.state.glob("mounts/*/control.sock")).stat().st_mode
    assert mode & 0o077 == 0
    assert a.status()["state"] == "online"
