#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How fast is the mount beside a local file system? Both in one run, in turn, each on a fresh ext4 in an image of its own on the same disk.

  bench/local.py [--rounds 5] [--files 20000] [--megabytes 256] [--rows create,find] [--build DIR] [--out DIR]      (as root: loop devices)

A round is: ext4, then tarn (the next round: the other way round), through the same steps. The server of the drive and its data, the cache and the state of the client lie on tarn's image: nothing of what
it costs happens elsewhere. What is timed is timed outside of both: `bench/calls` for single calls, whole commands (find, ls, git) for walks. Printed for each row: both medians, the median of the rounds'
ratios (tarn's rate / ext4's rate: 1 is as fast as ext4, 0.5 needs twice the time), their range, the goal, and whether it is reached. OUT (default: none) gets results.json with every single figure, table.md and
plot.svg (one dot for each round, a line where the goal is). A debug build is measured as well as a release build, and is said in the table's head.

`drop`: /proc/sys/vm/drop_caches before the step; if it cannot be written, rows that need it are left out, and this is said."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
CLOCK = os.sysconf("SC_CLK_TCK")

# row: (what it is, goal as a ratio of rates tarn / ext4, or None).
ROWS = {
    "create": ("create + 4 KiB + close", 0.3), "durable": ("the same with an fsync before the close", 1.0), "stat": ("lstat, warm", 0.8), "find": ("find, warm", 1 / 1.2), "ls": ("ls -lR, warm", 1 / 1.2),
    "first-ls": ("first ls -lR after a mount (ext4: warm)", 1 / 1.5), "remount-find": ("find after that", 1 / 1.2), "mount": ("mount to first ls of the root, in ms", None), "git": ("git status, warm", 1 / 1.2),
    "remount-git": ("git status, second one after a remount", 1 / 1.2), "rename": ("rename", 0.4), "unlink": ("unlink", 0.4), "mkdir": ("mkdir", 0.4), "rmdir": ("rmdir", 0.4),
    "write": ("write in pieces of 1 MiB, close", 0.2), "write-4k": ("write in pieces of 4 KiB, close", 0.1), "read": ("read again, page cache", 0.3), "read-drop": ("read, page cache dropped", 0.6), "cpu": ("daemon's CPU seconds per GB of read-drop", None),
    "random": ("4 KiB random reads, page cache dropped", 0.15),
}


def run(*argv, **kw):
    return subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw).stdout


def timed(*argv):
    began = time.perf_counter()
    subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def drop():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Image:
    """A fresh ext4."""
    def __init__(self, base, name, gigabytes=12):
        self.file, self.dir = base / f"{name}.img", base / name
        self.dir.mkdir()
        with open(self.file, "wb") as f:
            f.truncate(gigabytes << 30)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.file)
        self.mount()

    def mount(self):
        run("mount", "-o", "loop,nosuid,nodev", self.file, self.dir)

    def close(self):
        while subprocess.run(["umount", self.dir], stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.1)
        self.file.unlink()


class Ext4:
    name = "ext4"

    def __init__(self, base):
        self.image = Image(base, "ext4")
        self.dir = self.image.dir / "work"
        self.dir.mkdir()

    def settle(self):
        os.sync()

    def remount(self):
        """Seconds until the first ls."""
        return None

    def cpu(self):
        return None

    def close(self):
        self.image.close()


class Tarn:
    name = "tarn"

    def __init__(self, base, support):
        self.image = Image(base, "tarn")
        tempfile.tempdir = str(self.image.dir)
        self.world = support.World().start()
        tempfile.tempdir = None
        self.client = self.world.client("drive", options="cache_size=8G")
        self.dir = self.client.dir

    def settle(self):
        self.client.wait(600)
        os.sync()

    def remount(self):
        self.client.umount()
        began = time.perf_counter()
        self.client.mount(signed_in=True, options="cache_size=8G")
        os.listdir(self.dir)
        return time.perf_counter() - began

    def cpu(self):
        words = Path(f"/proc/{self.client.pid()}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / CLOCK

    def close(self):
        self.world.close()
        self.image.close()


def steps(side, calls, o, dropping):
    """row -> seconds for its work; the same work on both sides."""
    t, d = {}, side.dir
    call = lambda *words: float(run(calls, *words))
    many, few = o.files, max(1, o.files // 10)
    for name in ("many", "sync", "dirs"):
        (d / name).mkdir()
    t["create"] = call("create", d / "many", many, 4096)
    t["durable"] = call("durable", d / "sync", few, 4096)
    side.settle()
    for _ in range(2):  # the first one is not warm
        t["find"] = timed("find", d / "many", "-size", "+1M")
        t["ls"] = timed("ls", "-lR", d / "many")
        t["stat"] = call("stat", d / "many", many)
    repository = d / "repository"
    repository.mkdir()
    run(calls, "create", repository, many // 8, 1000)
    git = ["git", "-C", repository, "-c", "user.name=b", "-c", "user.email=b@example.org"]
    run(*git, "init", "-q")
    run(*git, "add", ".")
    run(*git, "commit", "-qm", "all")
    side.settle()
    for _ in range(2):
        t["git"] = timed(*git, "status", "-s")
    mount = side.remount()
    if mount is None:
        t["first-ls"], t["remount-find"], t["remount-git"] = t["ls"], t["find"], t["git"]
    else:
        t["mount"] = mount
        t["first-ls"] = timed("ls", "-lR", d / "many")
        t["remount-find"] = timed("find", d / "many", "-size", "+1M")
        timed(*git, "status", "-s")
        t["remount-git"] = timed(*git, "status", "-s")
    t["rename"] = call("rename", d / "many", many)
    t["unlink"] = call("unlink", d / "many", many)
    t["mkdir"] = call("mkdir", d / "dirs", few)
    t["rmdir"] = call("rmdir", d / "dirs", few)
    side.settle()
    size = o.megabytes << 20
    t["write"] = call("write", d / "big", size, 1 << 20)
    side.settle()
    t["write-4k"] = call("write", d / "small-pieces", size // 4, 4096)
    side.settle()
    run(calls, "read", d / "big", size, 1 << 20)
    t["read"] = call("read", d / "big", size, 1 << 20)
    if dropping:
        drop()
        used = side.cpu()
        t["read-drop"] = call("read", d / "big", size, 1 << 20)
        if used is not None:
            t["cpu"] = (side.cpu() - used) / (size / 1e9)
        drop()
        t["random"] = call("random", d / "big", 10000, 4096)
    return t


def draw(rows, path):
    """A dot for each round on a logarithmic axis, a bar where the goal is: an SVG without any library, because it is thirty lines."""
    from math import log10
    left, width, line, low, high = 330, 560, 24, -2.0, 1.0
    x = lambda v: left + (min(max(log10(v), low), high) - low) / (high - low) * width
    h = line * len(rows) + 60
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{h}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>']
    for v in (0.01, 0.03, 0.1, 0.3, 1, 3, 10):
        out.append(f'<line x1="{x(v):.0f}" x2="{x(v):.0f}" y1="24" y2="{h - 30}" stroke="{"#555" if v == 1 else "#ddd"}"/><text x="{x(v):.0f}" y="{h - 14}" text-anchor="middle">{v:g}</text>')
    out.append(f'<text x="{left}" y="14">rate of tarn / rate of ext4; a dot is a round, the bar is the goal</text>')
    for i, (what, goal, ratios) in enumerate(rows):
        y = 36 + i * line
        out.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{what}</text>')
        good = goal is None or statistics.median(ratios) >= goal
        if goal:
            out.append(f'<line x1="{x(goal):.1f}" x2="{x(goal):.1f}" y1="{y - 8}" y2="{y + 8}" stroke="black" stroke-width="3"/>')
        out += [f'<circle cx="{x(r):.1f}" cy="{y}" r="4" fill="{"#2a7" if good else "#c33"}" fill-opacity="0.6"/>' for r in ratios]
    Path(path).write_text("\n".join(out) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--files", type=int, default=20000)
    p.add_argument("--megabytes", type=int, default=256)
    p.add_argument("--rows", default="")
    p.add_argument("--build", type=Path, default=TOP / "build-release")
    p.add_argument("--out", type=Path)
    p.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where the images lie")
    o = p.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/local.py needs root: it mounts images")
    if not (o.build / "build.ninja").exists():
        run("meson", "setup", "--buildtype=release", o.build, TOP)
    subprocess.run(["ninja", "-C", str(o.build), "cli/tarn", "server/tarn-server", "bench/calls"], check=True, stdout=subprocess.DEVNULL)
    os.environ["TARN_BUILD_ROOT"] = str(o.build)
    sys.path.insert(0, str(TOP / "tests" / "e2e"))
    import support
    dropping = os.access("/proc/sys/vm/drop_caches", os.W_OK)
    rounds = []
    for i in range(o.rounds):
        base = Path(tempfile.mkdtemp(prefix="tarn-bench-", dir=o.dir))
        both = {}
        try:
            for make in (Ext4, Tarn)[::-1 if i % 2 else 1]:
                side = make(base) if make is Ext4 else make(base, support)
                try:
                    both[side.name] = steps(side, o.build / "bench" / "calls", o, dropping)
                finally:
                    side.close()
        finally:
            shutil.rmtree(base, ignore_errors=True)
        rounds.append(both)
        print(f"round {i + 1}: create {both['ext4']['create']:.2f} / {both['tarn']['create']:.2f} s", file=sys.stderr)
    kind = next(b["value"] for b in json.loads(run("meson", "introspect", "--buildoptions", o.build)) if b["name"] == "buildtype")
    table = [f"{kind} build, {o.files} files, {o.megabytes} MiB, {o.rounds} rounds, load {os.getloadavg()[1]:.1f}, kernel {os.uname().release}{'' if dropping else '; caches cannot be dropped here'}", "",
             "| what | ext4 | tarn | ratio of rates | range | goal | |", "|---|---|---|---|---|---|---|"]
    plotted = []
    for row, (what, goal) in ROWS.items():
        if o.rows and row not in o.rows.split(",") or row not in rounds[0]["tarn"]:
            continue
        mine = statistics.median(r["tarn"][row] for r in rounds)
        if row not in rounds[0]["ext4"]:
            table.append(f"| {what} | | {mine * 1000:.0f} ms | | | | |" if row == "mount" else f"| {what} | | {mine:.2f} s | | | 0.8 | {'reached' if mine <= 0.8 else '**not reached**'} |")
            continue
        ratios = [r["ext4"][row] / r["tarn"][row] for r in rounds]
        other, ratio = statistics.median(r["ext4"][row] for r in rounds), statistics.median(ratios)
        table.append(f"| {what} | {other:.3f} s | {mine:.3f} s | {ratio:.2f} | {min(ratios):.2f} - {max(ratios):.2f} | {goal:.2f} | {'reached' if ratio >= goal else '**not reached**'} |")
        plotted.append((what, goal, ratios))
    print("\n".join(table))
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / "results.json").write_text(json.dumps(rounds, indent=1))
        (o.out / "table.md").write_text("\n".join(table) + "\n")
        draw(plotted, o.out / "plot.svg")


if __name__ == "__main__":
    main()
