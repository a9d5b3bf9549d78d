# SPDX-License-Identifier: Apache-2.0
"""The worlds of tests/e2e, for tests that break things."""
import importlib.util
import sys
from pathlib import Path

E2E = Path(__file__).resolve().parents[1] / "e2e"
sys.path[:0] = [str(E2E), str(E2E.parent / "proxy")]
spec = importlib.util.spec_from_file_location("e2e_conftest", E2E / "conftest.py")
e2e = importlib.util.module_from_spec(spec)
spec.loader.exec_module(e2e)
pytest_collection_modifyitems, pytest_runtest_makereport = e2e.pytest_collection_modifyitems, e2e.pytest_runtest_makereport
report_dir, no_sanitizer_report, bare, world = e2e.report_dir, e2e.no_sanitizer_report, e2e.bare, e2e.world
