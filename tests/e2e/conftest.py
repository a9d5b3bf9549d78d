# SPDX-License-Identifier: Apache-2.0
import os

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
