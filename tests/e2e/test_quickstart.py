# SPDX-License-Identifier: Apache-2.0
"""quickstart.sh as a user runs it, with its places in a temporary directory and the build that is there."""
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from support import BUILD, PATIENCE, TOP, is_mounted


def test_quickstart_twice_and_stop():
    base = Path(tempfile.mkdtemp(prefix="tarn-quick-"))
    env = dict(os.environ, TARN_DIR=str(base / "Tarn"), TARN_DATA=str(base / "data"), TARN_BUILD=str(BUILD))
    for name in ("TARN_STATE_DIR", "TARN_PORT"):
        env.pop(name, None)

    def quickstart(*argv, timeout=300):
        # output into a file: a server or daemon that kept our pipe open would make us wait for it
        with open(base / "out", "w+") as out:
            p = subprocess.run([str(TOP / "quickstart.sh"), *argv], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=timeout * PATIENCE)
            out.seek(0)
            return p.returncode, out.read()
    try:
        code, text = quickstart()
        assert code == 0, text
        assert str(base / "Tarn") in text and "quickstart.sh stop" in text and "status" in text
        assert (base / "Tarn" / "hello.txt").read_text().startswith("Hello from ")
        (base / "Tarn" / "mine").write_text("mine")
        began = time.monotonic()
        code, text = quickstart()
        assert code == 0, text
        assert time.monotonic() - began < 5 * PATIENCE, "with everything there it takes less than 5 s"
        code, text = quickstart("status")
        assert code == 0 and "online" in text, text
        code, text = quickstart("stop")
        assert code == 0, text
        assert not is_mounted(base / "Tarn")
        code, text = quickstart()
        assert code == 0, text
        assert (base / "Tarn" / "mine").read_text() == "mine"
    finally:
        code, text = quickstart("stop")
        if is_mounted(base / "Tarn"):
            subprocess.run(["fusermount3", "-uz", str(base / "Tarn")])
        shutil.rmtree(base, ignore_errors=True)
    assert code == 0, text
