# SPDX-License-Identifier: Apache-2.0
"""2,000 changes without a server, a remount in the middle of it, and then the server is back."""
import os
import random

from support import until


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
