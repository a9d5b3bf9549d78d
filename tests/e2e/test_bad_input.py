# SPDX-License-Identifier: Apache-2.0
"""Every mistake gets one clear line, a documented exit code, and loses nothing."""
import os
import socket
import subprocess

import pytest

from support import EXIT, alive, is_mounted, run, until


def refused(p, code, *words):
    assert p.returncode == EXIT[code], f"exit {p.returncode}, expected {EXIT[code]}: {p.stderr}"
    assert p.stderr.count("\n") == 1, f"not one line: {p.stderr!r}"
    for w in words:
        assert w in p.stderr, f"{w!r} is not in {p.stderr!r}"
    assert p.stderr.startswith("tarn "), p.stderr


def dead_url():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_wrong_urls(world):
    c = world.client(mount=False)
    for url in ("", "nonsense", "ftp://h/w", "http://", "http://h", "http://h/a/b", "http://u:p@h/w"):
        refused(c.tarn("mount", url, c.dir, check=False), "usage")
    refused(c.tarn("login", "nonsense", "--user", "x", "--password-stdin", input="x\n", check=False), "usage", "URL")


def test_not_a_tarn_server(world):
    c = world.client(mount=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
        p = subprocess.Popen([os.environ.get("PYTHON", "/usr/bin/python3"), "-c", "import socket,sys\ns=socket.socket(fileno=int(sys.argv[1]))\nwhile True:\n c,_=s.accept()\n c.recv(9999)\n c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello')\n c.close()", str(s.fileno())], pass_fds=[s.fileno()])
        try:
            refused(c.login(url=url, check=False), "server", "tarn server")
        finally:
            p.kill()
            p.wait()


def test_dead_server(world):
    c = world.client(mount=False)
    refused(c.login(url=dead_url(), check=False), "server", "cannot connect")
    c.login()
    world.server.stop()
    refused(c.mount(check=False), "server", "cannot connect", world.server.url)
    assert not is_mounted(c.dir)
    refused(c.tarn("login", "http://no-such-host.invalid", "--user", "x", "--password-stdin", input="x\n", check=False), "server", "cannot find the host")


def test_wrong_password(world):
    c = world.client(mount=False)
    refused(c.login(password="wrong password", check=False), "sign_in", "wrong user name or password")
    refused(c.login(user="nobody", check=False), "sign_in", "wrong user name or password")
    refused(c.mount(check=False, signed_in=True), "sign_in", "tarn login")
    assert not is_mounted(c.dir)


def test_no_secret_in_arguments_logs_or_readable_files(world):
    c = world.client(options="debug")
    (c.dir / "f").write_text("x")
    c.wait()
    import json
    sessions = list(c.state.glob("session-*.json"))
    assert len(sessions) == 1 and sessions[0].stat().st_mode & 0o777 == 0o600 and c.state.stat().st_mode & 0o077 == 0
    secrets = [json.loads(sessions[0].read_text())[k] for k in ("token", "refresh_token")] + ["correct horse battery"]
    text = c.log_text() + world.server.log.read_text(errors="replace") + open(f"/proc/{c.pid()}/cmdline").read() + open(f"/proc/{c.pid()}/environ").read() + open("/proc/self/mountinfo").read()
    assert "tarn" in text
    for s in secrets:
        assert s not in text
        p = run("grep", "-rlF", "--", s, c.state / "mounts", c.cache, world.server.data, check=False)
        assert p.stdout == "", f"a secret is in {p.stdout}"


def test_login_revoked(world):
    """Also for a mount that runs: it goes on offline, shows it, and a new login brings it back with nothing lost."""
    c = world.client()
    (c.dir / "before").write_text("before")
    c.wait()
    import requests
    token = world.server.token("anna")
    auth = {"Authorization": f"Bearer {token}"}
    devices = requests.get(f"{world.server.url}/v1/devices", headers=auth, timeout=10).json()
    devices = devices.get("devices", devices) if isinstance(devices, dict) else devices
    host = socket.gethostname()
    mine = [d for d in devices if d.get("name") == host or d.get("device") == host]
    assert mine, devices
    for d in mine:
        r = requests.delete(f"{world.server.url}/v1/devices/{d.get('id') or d.get('device_id')}", headers=auth, timeout=10)
        assert r.status_code < 300, r.text
    (c.dir / "after").write_text("after")
    until(lambda: c.status()["state"] == "signed_out", 70, "signed out is shown")
    assert (c.dir / "before").read_text() == "before" and (c.dir / "after").read_text() == "after"
    p = c.tarn("wait", c.dir, check=False)
    refused(p, "sign_in", "tarn login")
    c.login()
    c.wait()
    b = world.client()
    until(lambda: (b.dir / "after").exists() and (b.dir / "after").read_text() == "after", 10)


def test_expired_login_at_first_mount(world):
    c = world.client(mount=False)
    c.login()
    for f in c.state.glob("session-*.json"):
        f.write_text(f.read_text().replace('"token":"', '"token":"x').replace('"token": "', '"token": "x').replace('"refresh_token":"', '"refresh_token":"x').replace('"refresh_token": "', '"refresh_token": "x'))
    refused(c.mount(check=False), "sign_in", "tarn login")


def test_unknown_workspace(world):
    c = world.client(mount=False)
    c.login()
    refused(c.mount("nothing-here", check=False), "workspace", "nothing-here")
    world.server.user("berta")
    b = world.client(mount=False)
    b.login(user="berta")
    refused(b.mount(check=False), "workspace", "work")


def test_tls(bare):
    def openssl(*a):
        run("openssl", *a, cwd=bare.base)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    bare.start(tls=(bare.base / "cert.pem", bare.base / "key.pem"))
    ca, port = bare.base / "cert.pem", bare.server.port
    good, wrong_name = f"https://localhost:{port}", f"https://127.0.0.1:{port}"
    c = bare.client(mount=False)
    refused(c.login(url=good, check=False), "tls", "not trusted")
    refused(c.login(url=wrong_name, check=False, extra=("--ca-file", ca)), "tls", "not trusted")
    refused(c.login(url=f"http://127.0.0.1:{port}", check=False), "server")
    c.login(url=good, extra=("--ca-file", ca))
    c.tarn("mount", f"{good}/work", c.dir)  # the authority is remembered
    (c.dir / "f").write_text("over tls")
    c.wait()
    c.umount()
    refused(c.tarn("mount", f"{good}/work", c.dir, "-o", "ca_file=/nonexistent", check=False), "usage", "ca_file")
    assert not is_mounted(c.dir)


def test_mount_points(world):
    c = world.client(mount=False)
    c.login()
    url = f"{world.server.url}/work"
    refused(c.tarn("mount", url, world.base / "missing", check=False), "mount_point", "mkdir")
    (world.base / "file").write_text("x")
    refused(c.tarn("mount", url, world.base / "file", check=False), "mount_point", "not a directory")
    (world.base / "full").mkdir()
    (world.base / "full" / "x").write_text("x")
    refused(c.tarn("mount", url, world.base / "full", check=False), "mount_point", "not empty")
    assert (world.base / "full" / "x").read_text() == "x"
    refused(c.tarn("umount", world.base / "full", check=False), "not_mounted")
    refused(c.tarn("status", world.base / "full", check=False), "not_mounted")
    refused(c.tarn("wait", world.base / "full", check=False), "not_mounted")


def test_stale_mount_point_is_detached_by_itself(world):
    c = world.client()
    (c.dir / "f").write_text("x")
    c.wait()
    c.kill()
    with pytest.raises(OSError):
        os.listdir(c.dir)
    refused(c.tarn("status", c.dir, check=False), "not_mounted", "daemon")
    c.mount()
    assert (c.dir / "f").read_text() == "x"
    c.kill()
    c.umount()  # and `umount` detaches one as well
    assert not is_mounted(c.dir)


def test_second_daemon_on_the_same_state(world):
    c = world.client()
    other = world.base / "other"
    other.mkdir()
    url = f"{world.server.url}/work"
    refused(c.tarn("mount", url, other, check=False), "in_use", str(c.dir))
    refused(c.tarn("mount", url, c.dir, check=False), "in_use")
    d = world.client(mount=False)  # another state, the same cache
    d.login()
    refused(d.tarn("mount", url, other, "-o", f"cache_dir={c.cache}", check=False), "in_use", "cache")
    assert c.status()["state"] == "online"
    (c.dir / "f").write_text("still fine")
    c.wait()
    # another tarn's mount point
    refused(d.tarn("mount", url, c.dir, check=False), "mount_point")
    assert (c.dir / "f").read_text() == "still fine"


def test_options(world):
    c = world.client(mount=False)
    c.login()
    url = f"{world.server.url}/work"
    refused(c.tarn("mount", url, c.dir, "-o", "nonsense", check=False), "usage", "nonsense")
    refused(c.tarn("mount", url, c.dir, "-o", "cache_szie=1G", check=False), "usage", "cache_size")
    refused(c.tarn("mount", url, c.dir, "-o", "cache_size=huge", check=False), "usage", "cache_size")
    refused(c.tarn("mount", url, c.dir, "-o", "cache_size=1K", check=False), "usage", "cache_size")
    refused(c.tarn("mount", url, c.dir, "-o", "cache_size=19M", check=False), "usage", "at least 20M")
    refused(c.tarn("mount", url, c.dir, "-o", "close=maybe", check=False), "usage", "close")
    refused(c.tarn("mount", url, c.dir, "--wrong", check=False), "usage", "--wrong")
    refused(c.tarn("mount", url, check=False), "usage")
    p = c.tarn("frobnicate", check=False)
    assert p.returncode == EXIT["usage"] and "frobnicate" in p.stderr
    assert not is_mounted(c.dir)
    c.mount(options="_netdev,nofail,noauto,x-systemd.automount,user,rw,close=local")
    (c.dir / "f").write_text("x")
    c.umount()
    c.mount(options="ro")
    assert (c.dir / "f").read_text() == "x"
    with pytest.raises(OSError):
        (c.dir / "g").write_text("x")


def tmpfs(path, size):
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tarn-test", path)


def test_full_disk(world):
    """The disk of the cache is really full: writers get ENOSPC, nothing that was there is lost, and it goes on when there is room."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a tmpfs")
    small = world.base / "small"
    tmpfs(small, "64m")
    try:
        c = world.client(mount=False)
        c.login()
        filler = small / "filler"
        with open(filler, "wb") as f:
            try:
                while True:
                    f.write(b"x" * 65536)
                    f.flush()
            except OSError:
                pass
        c.cache = small / "cache"
        refused(c.mount(check=False), "disk", "full")
        os.truncate(filler, 20 << 20)
        c.mount(options="free_floor=4M,cache_size=32M")
        (c.dir / "kept").write_text("kept")
        c.wait()
        world.server.stop()
        until(lambda: c.status()["state"] == "offline", 40)
        with pytest.raises(OSError) as e:
            with open(c.dir / "large", "wb", buffering=0) as f:
                for _ in range(100):
                    f.write(os.urandom(1 << 20))
        assert e.value.errno in (28, 122), e.value
        assert (c.dir / "kept").read_text() == "kept"
        (c.dir / "large").unlink()  # works without room, and makes some
        until(lambda: c.status()["dirty_bytes"] == 0, 10)
        (c.dir / "offline").write_text("offline")
        world.server.start()
        (c.dir / "more").write_text("more")
        c.wait()
        assert c.status()["state"] == "online"
        c.umount()
        assert not alive(c.pid() or 0)
    finally:
        for cl in world.clients:
            cl.close()
        subprocess.run(["umount", "-l", str(small)], check=False)
