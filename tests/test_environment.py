"""The environment is one list of exact versions, and everything else points to it."""

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = [Requirement(line) for line in LINES if line and not line.startswith("#")]
PINNED = {canonicalize_name(r.name) for r in LOCK}
HERE = [r for r in LOCK if r.marker is None or r.marker.evaluate()]


def test_the_lock_is_exact_and_complete_and_what_is_installed_for_the_oldest_python():
    oldest = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"]).group(1) + ".0"
    assert all(re.fullmatch(r"==[^*]+", str(requirement.specifier)) for requirement in LOCK)
    for requirement in HERE:
        name, installed = requirement.name, version(requirement.name).split("+")[0]
        assert requirement.specifier.contains(installed), f"{name} {installed}: {requirement}"
        needs = distribution(name).metadata.get("Requires-Python")
        assert needs is None or oldest in SpecifierSet(needs), f"{name} needs Python {needs}"
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in PINNED, f"{name} needs {needed}: no lock"
                found = version(needed.name).split("+")[0]
                assert needed.specifier.contains(found, prereleases=True), text


def test_the_package_needs_only_what_is_locked_and_pins_nothing():
    extras = [item for group in PROJECT["optional-dependencies"].values() for item in group]
    for text in PROJECT["dependencies"] + extras:
        needed = Requirement(text)
        assert canonicalize_name(needed.name) in PINNED, text
        assert not needed.specifier, f"{text}: the lock holds the only pins"
