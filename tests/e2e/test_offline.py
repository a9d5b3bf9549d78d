# SPDX-License-Identifier: Apache-2.0
"""2,000 changes without a server, a remount in the middle of it, and then the server is back."""
import os
import random
import time

from support import PATIENCE, SCALE, until


def test_two_thousand_changes_and_a_remount_without_a_server(world):
    seed = int(os.environ.get("TARN_TEST_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")
    r = random.Random(seed)
    a = world.client("a")
    d = a.dir / "base"
    d.mkdir()
    model = {f"f{i}": r.randbytes(r.choice((10, 5000, 200000))) for i in range(300)}
    for name, content in model.items():
        (d / name).write_bytes(content)
    a.wait()
    world.server.stop()
    done = 0
    while done < 2000:
        kind, name = r.choice(("write", "write", "save", "unlink", "rename", "append")), f"f{r.randrange(400)}"
        if kind == "write":
            model[name] = r.randbytes(r.choice((10, 5000, 50000)))
            (d / name).write_bytes(model[name])
        elif kind == "save":
            model[name] = r.randbytes(3000)
            (d / ".t.tmp").write_bytes(model[name])
            os.rename(d / ".t.tmp", d / name)
        elif name not in model:
            continue
        elif kind == "unlink":
            os.unlink(d / name)
            del model[name]
        elif kind == "rename":
            to = f"f{r.randrange(400)}"
            os.rename(d / name, d / to)
            model[to] = model.pop(name)
        else:
            with open(d / name, "ab") as f:
                f.write(b"zz")
            model[name] += b"zz"
        done += 1

    def differences(at):
        got = {f.name: f.read_bytes() for f in at.iterdir()}
        return [n for n in sorted(set(got) | set(model)) if got.get(n) != model.get(n)]
    assert a.status()["pending_items"] > 300
    assert not differences(d)
    a.umount()
    a.mount(signed_in=True)
    assert a.status()["pending_items"] > 300
    assert not differences(d)
    world.server.start()
    a.wait(60)
    s = a.status()
    assert s["pending_items"] == 0 and not s["parked"], s
    b = world.client("b")
    until(lambda: not differences(b.dir / "base"), 20, "the other client shows the same")
    assert os.listdir(b.dir) == ["base"] and not differences(d)


def test_ten_thousand_operations_are_sent_when_the_server_is_back(world):
    """All within 30 s."""
    a = world.client("a")
    d = a.dir / "d"
    d.mkdir()
    a.wait()
    world.server.stop()
    names = int(2500 * SCALE)
    for i in range(names):  # four operations that do not cancel each other: create, save, link, rename
        (d / f"f{i}").write_bytes(b"%d" % i)
        os.link(d / f"f{i}", d / f"l{i}")
        os.rename(d / f"f{i}", d / f"g{i}")
        os.chmod(d / f"g{i}", 0o600)
    pending = a.status()["pending_items"]
    world.server.start()
    began = time.monotonic()
    a.wait(180)
    took = time.monotonic() - began
    most = 30 * max(1, SCALE) * (PATIENCE if PATIENCE > 1 else max(1, os.getloadavg()[0] / 4))  # 10,000 within 30 s; a machine that does eight things at a time has twice as long
    print(f"{names * 4} operations offline, {pending} pending when the server came back, sent in {took:.1f} s")
    assert took < most, f"{took:.1f} s instead of {most:.0f}"
    assert pending >= names * 2, "void: they were sent or cancelled before"
    b = world.client("b")
    until(lambda: len(os.listdir(b.dir / "d")) == names * 2, 60, "the other client shows them")
    for i in range(0, names, 7):
        assert (b.dir / "d" / f"g{i}").read_bytes() == b"%d" % i and os.stat(b.dir / "d" / f"l{i}").st_nlink == 2
