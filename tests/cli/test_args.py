#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The command line as far as it needs no server: help, exit codes, the manual. usage: test_args.py TARN MANUAL"""
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TARN, MANUAL = sys.argv[1], sys.argv[2]


class Args(unittest.TestCase):
    def setUp(self):
        self.state = tempfile.TemporaryDirectory(prefix="tarn-args-")
        self.addCleanup(self.state.cleanup)

    def tarn(self, *argv, **kw):
        env = {"PATH": "/usr/bin:/bin", "TARN_STATE_DIR": self.state.name, "HOME": "/nonexistent"}
        return subprocess.run([TARN, *argv], env=env, capture_output=True, text=True, timeout=60, **kw)

    def test_help_names_every_command_and_exit_code(self):
        p = self.tarn("--help")
        self.assertEqual(p.returncode, 0)
        for word in ("login", "mount", "umount", "status", "wait", "doctor", "scrub", "accept", "retry"):
            self.assertIn(f"tarn {word}", p.stdout)
            q = self.tarn(word, "--help")
            self.assertEqual(q.returncode, 0, q.stderr)
            self.assertIn("Exit codes:", q.stdout)
        codes = re.findall(r"^ +(\d+)  (.+)$", p.stdout[p.stdout.index("Exit codes:"):], re.M)
        self.assertEqual([int(n) for n, _ in codes], list(range(13)))
        manual = Path(MANUAL).read_text()
        for n, text in codes:
            self.assertRegex(manual, rf"(?m)^ ?{n}  {re.escape(text)}$")

    def test_manual_has_every_mount_option(self):
        p = self.tarn("mount", "--help")
        manual = Path(MANUAL).read_text()
        line = next(l for l in p.stdout.split("\n") if "--options" in l)
        options = re.findall(r"\b([a-z_]+)(?==| )", line.split("cache_dir")[1]) + ["cache_dir", "debug"]
        for name in set(options) - {"fast", "local", "server", "stored"}:
            self.assertIn(name, manual)

    def test_usage_errors_are_one_line(self):
        for argv in (["frobnicate"], ["mount"], ["mount", "http://h/w"], ["mount", "--wrong", "http://h/w", "/tmp"], ["login", "http://h"], ["login", "--user", "x"],
                     ["login", "h", "--user", "x", "--password-stdin"], ["wait", "--timeout", "soon"], ["mount", "http://h/w", "/tmp", "-o", "cache_size=x"], ["umount"]):
            p = self.tarn(*argv, input="")
            self.assertEqual(p.returncode, 2, (argv, p.stderr))
            self.assertEqual(p.stderr.count("\n"), 1, (argv, p.stderr))

    def test_nothing_mounted(self):
        for argv in (["status"], ["status", "/tmp"], ["wait"], ["wait", "/tmp"], ["umount", "/tmp"]):
            p = self.tarn(*argv)
            self.assertEqual(p.returncode, 11, (argv, p.stderr))
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)

    def test_not_signed_in(self):
        with tempfile.TemporaryDirectory() as d:
            p = self.tarn("mount", "http://127.0.0.1:1/w", d)
            self.assertEqual(p.returncode, 4)
            self.assertIn("tarn login http://127.0.0.1:1 --user", p.stderr)

    def test_state_dir_is_an_option_too(self):
        with tempfile.TemporaryDirectory() as d:
            for argv in (["--state-dir", d, "status"], ["status", "--state-dir", d]):
                p = self.tarn(*argv)
                self.assertEqual(p.returncode, 11)
                self.assertIn(d, p.stderr)


unittest.main(argv=[sys.argv[0]])
