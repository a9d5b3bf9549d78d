# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from support import SERVER, TARN, World


def pytest_collection_modifyitems(items):
    for item in items:
        if not os.path.exists("/dev/fuse"):
            item.add_marker(pytest.mark.skip(reason="there is no /dev/fuse"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        item.failed = outcome.get_result().failed


@pytest.fixture(scope="session")
def report_dir():
    """Every program that a test starts writes what a sanitizer has to say into this directory: a daemon has no other voice."""
    d = Path(tempfile.mkdtemp(prefix="tarn-e2e-reports-"))
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"):
        os.environ[name] = f"{os.environ.get(name, '')}:log_path={d}/{name[:4].lower()}"
    yield d
    shutil.rmtree(d)


@pytest.fixture(autouse=True)
def no_sanitizer_report(report_dir):
    """Set up first, hence looks last, when the daemons and the server of the test are gone."""
    yield
    reports = sorted(report_dir.iterdir())
    text = "\n".join(p.read_text(errors="replace")[:8000] for p in reports)
    for p in reports:
        p.unlink()
    assert not text, f"a sanitizer found something:\n{text}"


@pytest.fixture
def bare(request):
    """A world without a server."""
    assert TARN.exists() and SERVER.exists(), f"{TARN} and {SERVER} are not built"
    w = World()
    try:
        yield w
    finally:
        w.close(getattr(request.node, "failed", False))


@pytest.fixture
def world(bare):
    """A server with a user and a workspace; no client yet."""
    return bare.start()
