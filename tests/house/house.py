#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, checked on the source text.

One rule is one function that yields "file:line: what is wrong". What the compiler checks already (a layer is given only the include directories that
it may see) is checked here again from the include lines, so that a change of meson.build cannot open a door by accident.
"""
import re
import subprocess
import sys
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
LAYERS = {  # layer -> layers whose public headers it may include
    "base": {"base"},
    "api": {"api", "base"},
    "cache": {"cache", "base"},
    "sync": {"sync", "api", "cache", "base"},
    "fs": {"fs", "cache", "base"},
    "server": {"server", "api", "base"},
    "cli": {"base", "api", "cache", "sync", "fs"},
}
ADAPTERS = {  # third-party header -> files that may include it
    r"fuse.*\.h": r"fs/",
    r"curl/.*": r"api/",
    r"microhttpd\.h": r"server/http",
    r"sqlite3\.h": r"(cache/db|server/sql_sqlite|tests/sim/)",
    r"libpq.*": r"server/sql_pg",
    r"openssl/.*": r"base/digest",
    r"xxhash\.h": r"base/digest",
    r"utf8proc\.h": r"base/portable",
    r"zstd.*": r"api/",
    r"sodium.*": r"server/auth",
    r"jansson\.h": r"(include/base/base/json\.h|base/json)",
}
BANNED = r"\b(usleep|nanosleep|clock_nanosleep|sleep|pthread_detach|strcpy|strcat|sprintf|vsprintf|atoi|atol|strtok|gmtime|localtime|gets|tmpnam|mktemp|system|popen)\s*\("
UNFINISHED = r"\b(TODO|FIXME|XXX|HACK|not implemented)\b"


def sources(*suffixes, tests=False):
    names = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True).stdout.split("\n")
    if not any(names):  # a source archive without git
        names = [str(p.relative_to(TOP)) for p in TOP.rglob("*") if p.is_file() and "build" not in p.parts[0:1]]
    for name in names:
        if name.endswith(suffixes) and (tests or not name.startswith(("tests/", "bench/"))) and (TOP / name).is_file():
            yield name


def code_lines(name):
    """Lines without comments and string contents, numbered."""
    text = (TOP / name).read_text(errors="replace")
    blank = lambda m: re.sub(r"[^\n]", " ", m.group(0))
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', lambda m: m.group(0) if "#include" in text[text.rfind("\n", 0, m.start()) + 1:m.start()] else blank(m), text, flags=re.S)
    return enumerate(text.split("\n"), 1)


def layer_of(name):
    parts = name.split("/")
    return parts[1] if parts[0] == "include" else parts[0]


def includes():
    for name in sources(".c", ".h"):
        for number, line in code_lines(name):
            m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if m:
                yield name, number, m.group(1), m.group(2)


class House(unittest.TestCase):
    def none(self, findings):
        findings = list(findings)
        self.assertFalse(findings, "\n" + "\n".join(findings))

    def test_layering(self):
        def findings():
            for name, number, _, path in includes():
                layer, target = layer_of(name), path.split("/")[0]
                if "/" in path and target in LAYERS and layer in LAYERS and target != layer and target not in LAYERS[layer]:
                    yield f"{name}:{number}: {layer}/ must not include {path}"
        self.none(findings())

    def test_one_adapter_for_each_library(self):
        def findings():
            for name, number, kind, path in includes():
                for header, where in ADAPTERS.items():
                    if kind == "<" and re.fullmatch(header, path) and not re.match(where, name):
                        yield f"{name}:{number}: <{path}> belongs to {where}"
        self.none(findings())

    def test_no_include_cycle_and_no_include_across_private_headers(self):
        """Inside a layer, private headers form no cycle."""
        graph = {}
        files = set(sources(".h"))
        for name, _, kind, path in includes():
            if name not in files or kind == "<":
                continue
            for candidate in (f"{name.rsplit('/', 1)[0]}/{path}", f"include/{path.split('/')[0]}/{path}", path):
                if candidate in files:
                    graph.setdefault(name, set()).add(candidate)
        state = {}

        def visit(node, trail):
            if state.get(node) == 2:
                return
            self.assertNotEqual(state.get(node), 1, "include cycle: " + " -> ".join(trail + [node]))
            state[node] = 1
            for child in graph.get(node, ()):
                visit(child, trail + [node])
            state[node] = 2
        for node in graph:
            visit(node, [])

    def test_banned_calls(self):
        def findings():
            for name in sources(".c", ".h"):
                for number, line in code_lines(name):
                    m = re.search(BANNED, line)
                    if m:
                        yield f"{name}:{number}: {m.group(1)}() is not used here"
        self.none(findings())

    def test_no_sleep_in_tests(self):
        def findings():
            for name in sources(".c", ".py", ".sh", tests=True):
                if not name.startswith("tests/") or name.endswith("house.py"):
                    continue
                for number, line in (code_lines(name) if name.endswith(".c") else enumerate((TOP / name).read_text(errors="replace").split("\n"), 1)):
                    if re.search(r"\b(usleep|nanosleep|time\.sleep|sleep)\s*\(|^\s*sleep\s+[\d$]", line) and "deadline-poll" not in line:
                        yield f"{name}:{number}: a test waits on a condition with a deadline, it does not sleep"
        self.none(findings())

    def test_every_descriptor_is_cloexec(self):
        def findings():
            for name in sources(".c"):
                for number, line in code_lines(name):
                    m = re.search(r"\b(open|openat|mkostemp|accept4|socket|eventfd|pipe2|epoll_create1|signalfd|memfd_create)\s*\(", line)
                    if m and re.search(r"(?<![\w_])" + m.group(1) + r"\s*\(", line):
                        text = "\n".join((TOP / name).read_text(errors="replace").split("\n")[number - 1:number + 3])
                        if "CLOEXEC" not in text:
                            yield f"{name}:{number}: {m.group(1)} without O_CLOEXEC"
                    if re.search(r"(?<![\w_])(pipe|accept|epoll_create|dup|creat)\s*\(", line):
                        yield f"{name}:{number}: use the form that sets CLOEXEC"
        self.none(findings())

    def test_unfinished_marks(self):
        def findings():
            for name in sources(".c", ".h", ".py", ".sh", ".md", ".build", tests=True):
                if name.endswith("house.py"):
                    continue
                for number, line in enumerate((TOP / name).read_text(errors="replace").split("\n"), 1):
                    if re.search(UNFINISHED, line):
                        yield f"{name}:{number}: {line.strip()}"
        self.none(findings())

    def test_spdx_line(self):
        self.none(f"{name}: no SPDX line" for name in sources(".c", ".h", ".py", ".sh", "meson.build", tests=True)
                  if "SPDX-License-Identifier: Apache-2.0" not in "\n".join((TOP / name).read_text(errors="replace").split("\n")[:3]))

    def test_file_length(self):
        self.none(f"{name}: {n} lines (800 at most)" for name in sources(".c", ".h")
                  for n in [len((TOP / name).read_text(errors="replace").split("\n"))] if n > 801)

    def test_head_comment(self):
        """Every source file says first what it is."""
        self.none(f"{name}: no head comment after the SPDX line" for name in sources(".c", ".h")
                  if not re.match(r"/\* SPDX[^\n]*\*/\n\s*/\*", (TOP / name).read_text(errors="replace")))

    def test_docs_name_files_that_exist(self):
        def findings():
            for name in sources(".md"):
                for number, line in enumerate((TOP / name).read_text().split("\n"), 1):
                    for path in re.findall(r"`((?:base|api|cache|sync|fs|server|cli|include|tests|docs|bench|packaging)/[\w./-]+\.\w+)`", line):
                        if not (TOP / path).exists():
                            yield f"{name}:{number}: {path} does not exist"
                    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", line):
                        if not ((TOP / name).parent / path).exists():
                            yield f"{name}:{number}: link to {path} leads nowhere"
        self.none(findings())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
