#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Sums test logs of meson (meson-logs/testlog*.json). One program is one test of meson, but most hold several cases: cmocka's and pytest's own counts in
their output are used where there are any. usage: meson-totals.py [--required SUITE,...] LOG...

Prints one line per failed or skipped program and "N passed, N failed" at the end. Exit code 1 if anything failed; with CI=true also if a program of a required suite was
skipped or a required suite did not run at all."""
import argparse
import json
import os
import re
import sys


def counts(test):
    """(passed, failed) cases of one program."""
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    bad = test["result"] not in ("OK", "EXPECTEDFAIL")
    passed = sum(int(n) for n in re.findall(r"^\[  PASSED  \] (\d+) test", text, re.M))
    failed = sum(int(n) for n in re.findall(r"^\[  FAILED  \] (\d+) test", text, re.M))
    for line in re.findall(r"^=*\s*((?:\d+ (?:passed|failed|error|errors|skipped|deselected|warnings?|xfailed|xpassed)(?:, )?)+) in [\d.]+s", text, re.M):
        for n, word in re.findall(r"(\d+) (passed|failed|errors?)", line):
            if word == "passed":
                passed += int(n)
            else:
                failed += int(n)
    for n, rest in re.findall(r"^Ran (\d+) tests? in [^\n]*\n+(OK|FAILED[^\n]*)", text, re.M):  # unittest
        wrong = sum(int(x) for x in re.findall(r"(?:failures|errors)=(\d+)", rest))
        passed += int(n) - wrong
        failed += wrong
    if bad and failed == 0:
        failed = 1  # it crashed, timed out, or failed outside its cases
    if not bad and passed == 0:
        passed = 1
    return passed, failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--required", default="")
    parser.add_argument("logs", nargs="+")
    args = parser.parse_args()
    required = set(filter(None, args.required.split(",")))
    ran, passed, failed, skipped = set(), 0, 0, []
    for log in args.logs:
        with open(log, encoding="utf-8", errors="replace") as f:
            for line in f:
                test = json.loads(line)
                name = test["name"]
                # some versions of meson say the suites apart, some only before the name: "tarn:unit+slow / name"
                suites = {s.split(":")[-1] for s in test.get("suite", []) + (name.split(" / ")[0].split(":")[-1].split("+") if " / " in name else [])}
                if test["result"] == "SKIP":
                    skipped.append((name, suites))
                    print(f"skipped: {name} ({log})")
                    continue
                ran |= suites
                p, n = counts(test)
                passed, failed = passed + p, failed + n
                if n:
                    print(f"FAILED:  {name}: {n} of {p + n} ({log})")
    if os.environ.get("CI") == "true":
        for name, suites in skipped:
            if suites & required:
                print(f"FAILED:  {name} was skipped, and its suite is required")
                failed += 1
        for suite in sorted(required - ran):
            print(f"FAILED:  no test of suite {suite} ran, and it is required")
            failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
