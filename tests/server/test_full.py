# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full: nothing more is taken, what is there is read, and deleting gives the room back, down to zero free bytes."""
import json
import os
import random
import shutil
import subprocess
import tempfile

import frames
import pytest
from support import Server, run, sha


@pytest.fixture
def disk():
    top = tempfile.mkdtemp(prefix="tarn-full-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", top], capture_output=True).returncode != 0:
        shutil.rmtree(top)
        pytest.skip("mounting a tmpfs needs root")
    yield top
    subprocess.run(["umount", top], check=True)
    os.rmdir(top)


def free(top):
    v = os.statvfs(top)
    return v.f_bavail * v.f_frsize


def fill_disk(top):
    """Another program takes the rest, to the last byte."""
    with open(os.path.join(top, "other"), "wb", buffering=0) as f:
        piece = 1 << 20
        while piece:
            try:
                if f.write(b"x" * piece) < piece:
                    piece //= 2
            except OSError:
                piece //= 2
    assert free(top) == 0


def test_a_full_disk(disk):
    rng = random.Random(1)
    with Server(data=os.path.join(disk, "data")) as s:
        files = {}
        for i in range(100):
            data = rng.randbytes(1_500_000)
            status, _, body = s.put(f"f{i}", data)
            if status != 201:
                assert status == 507 and json.loads(body)["code"] == "NO_SPACE"
                break
            files[f"f{i}"] = data
        assert 10 < len(files) < 40
        assert free(disk) >= 500_000  # objects never take the last of it
        fill_disk(disk)
        names = list(files)
        for name in names:
            assert sha(s.get(name)[2]) == sha(files[name])
        gone = names[:5] + names[6:12]
        for name in gone:
            assert s.call("DELETE", s.file(name))[0] == 204, (name, s.log_text()[-500:])
            assert s.get(name)[0] == 404
        status, _, body = s.put("new", b"does not fit")
        assert status == 507
        op, _, create = frames.create(b"made", data=b"inline")
        status, _, body = s.call("POST", "/v1/workspaces/w/commit", body=create, headers={"Content-Type": frames.TYPE})
        assert status == 200 and frames.results(body)[0][1] == frames.QUOTA  # the client keeps it and comes back
        status, _, body = s.call("DELETE", "/v1/workspaces/w/trash")
        assert status == 200 and json.loads(body)["purged"] == len(gone), body
        run("gc", "--min-age", "0", data=s.data)
        assert free(disk) > 10_000_000
        assert s.put("new", rng.randbytes(2_000_000))[0] == 201
        status, _, body = s.call("POST", "/v1/workspaces/w/commit", body=create, headers={"Content-Type": frames.TYPE})
        assert frames.results(body)[0][1] == frames.OK
        for name in set(names) - set(gone):
            assert sha(s.get(name)[2]) == sha(files[name])
        assert run("fsck", data=s.data, check=False).returncode == 0
        os.unlink(os.path.join(disk, "other"))
        assert s.put("more", rng.randbytes(2_000_000))[0] == 201


def test_a_start_on_a_full_disk(disk):
    with Server(data=os.path.join(disk, "data")) as s:
        s.put("f", b"x" * 1000)
        s.stop()
        fill_disk(disk)
        s.start()
        assert s.get("f")[2] == b"x" * 1000
        assert s.put("g", b"y")[0] == 507
        assert s.call("DELETE", s.file("f"))[0] == 204
        os.unlink(os.path.join(disk, "other"))
        assert s.put("g", b"y")[0] == 201


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", "-rs", __file__]))
