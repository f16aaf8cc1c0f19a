"""Versions of packages are recorded, and a package that is not installed is no error."""

from importlib.metadata import PackageNotFoundError

from modeling.judging.provenance import describe_evaluation
from modeling.runtime import packages
from modeling.runtime.packages import find_version
from tests.helpers import REPOSITORY


def test_a_missing_package_has_no_version():
    assert find_version("torch").startswith("2.") and find_version("no-such-package") == "not installed"


def test_a_clone_that_is_not_installed_can_record_its_versions(monkeypatch):
    """A training in such a clone once ended with an error after its last step, before the member was saved."""
    installed = packages.version

    def hide(name: str) -> str:
        if name == "bothways":
            raise PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(packages, "version", hide)
    versions = describe_evaluation()["versions"]
    assert versions["bothways"] == "not installed" and versions["torch"] == installed("torch")


def test_versions_are_asked_for_in_one_place():
    """But for the command `bothways`, which exists only where the package is installed."""
    modules = (REPOSITORY / "modeling").rglob("*.py")
    asking = {path.name for path in modules if "importlib.metadata" in path.read_text(encoding="utf-8")}
    assert asking == {"packages.py", "cli.py"}
