# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import tempfile

import pytest

from harness import Mount


MODES = {"one": ("allow_other",), "stored": ("allow_other", "owner_stored"), "fastperm": ("allow_other", "fastperm")}


@pytest.fixture(scope="module", params=MODES)
def shared(request):
    """One mount for all tests of a module that only need a fresh directory in it; once for each way to own."""
    m = Mount(*MODES[request.param])
    m.mode = request.param
    assert m.first.startswith("ready"), m.first
    yield m
    try:
        assert m.stop() == "ok"
    finally:
        m.remove()


@pytest.fixture
def pair(shared, request):
    """(directory in the mount, plain directory), both empty, of the same name."""
    plain_top = tempfile.mkdtemp(prefix="tarn-fs-plain.")
    name = request.node.name.replace("/", "_")[:80]
    inside, plain = shared / name, os.path.join(plain_top, name)
    os.mkdir(inside)
    os.mkdir(plain)
    yield inside, plain
    shutil.rmtree(inside)
    shutil.rmtree(plain_top)


@pytest.fixture
def mount(request):
    """A mount of its own; options by @pytest.mark.options(...)."""
    mark = request.node.get_closest_marker("options")
    m = Mount(*(mark.args if mark else ()))
    try:
        assert m.first.startswith("ready"), m.first
        yield m
        if m.process:
            assert m.stop() == "ok"
    finally:
        m.remove()


def pytest_configure(config):
    config.addinivalue_line("markers", "options(*words): options of the mount")
