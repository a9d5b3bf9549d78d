#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs one file of tests/fs under pytest; 77 (skip) where there is no FUSE or no pytest."""
import os
import sys

if not os.path.exists("/dev/fuse") or os.geteuid() != 0:
    print("skipped: needs /dev/fuse and root")
    sys.exit(77)
try:
    os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    import pytest
except (OSError, ImportError) as e:
    print(f"skipped: {e}")
    sys.exit(77)
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", here, os.path.join(here, sys.argv[1]), *sys.argv[2:]]))
