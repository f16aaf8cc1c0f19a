"""Lets the tests of settings name paths that do not exist."""

import pytest

from modeling.settings import parsing


@pytest.fixture(autouse=True)
def any_path(request, monkeypatch):
    """Switches the checks of paths off, unless a test asks for `real_paths`."""
    if "real_paths" not in request.fixturenames:
        monkeypatch.setattr(parsing, "check_paths", lambda arguments: None)


@pytest.fixture
def real_paths():
    """Leaves the checks of paths on."""
