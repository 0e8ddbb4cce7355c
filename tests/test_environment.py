"""The environment is one list of exact versions, and everything else points to it."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]
PINNED = {canonicalize_name(r.name): r for r in LOCK}


def test_every_line_of_the_lock_is_exact():
    for requirement in LOCK:
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), str(requirement)
    assert str(PINNED["torch"].specifier) == "==2.13.0"


def test_what_is_installed_here_is_the_lock():
    for name, requirement in PINNED.items():
        if requirement.marker is None or requirement.marker.evaluate():
            installed = version(name).split("+")[0]
            assert requirement.specifier.contains(installed), f"{name} {installed}: {requirement}"


def test_the_lock_installs_on_the_oldest_python_that_the_package_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = re.fullmatch(r">=(3\.\d+)", project["requires-python"]).group(1) + ".0"
    for name, requirement in PINNED.items():
        if requirement.marker is None or requirement.marker.evaluate():
            needs = distribution(name).metadata.get("Requires-Python")
            assert needs is None or oldest in SpecifierSet(needs), f"{name} needs Python {needs}"


def test_the_lock_is_complete():
    """Everything that an installed package needs, directly or not, is pinned."""
    for name, requirement in PINNED.items():
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                key = canonicalize_name(needed.name)
                assert key in PINNED, f"{name} needs {needed}, which is not in the lock"
                assert needed.specifier.contains(version(key).split("+")[0], prereleases=True), text


def test_the_package_needs_only_what_is_locked_and_pins_nothing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    for text in project["dependencies"] + extras:
        needed = Requirement(text)
        assert canonicalize_name(needed.name) in PINNED, text
        assert not needed.specifier, f"{text}: the lock holds the only pins"


def test_conda_s_environment_is_python_the_lock_and_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [item.split("=")[0] for item in conda] == ["python", "pip"]
    assert pip["pip"] == ["-r requirements.lock", "-e ."]


def test_conda_s_pip_section_installs_as_written_and_agrees_with_the_lock(tmp_path):
    """In an environment that the lock made, nothing is left to install, from nowhere, but the
    package itself.
    """
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = tmp_path / "pip.txt"
    quoted = "\n".join(pip["pip"]).replace("-r requirements.lock", f'-r "{ROOT}/requirements.lock"')
    lines.write_text(quoted)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    command += ["--no-build-isolation", "--quiet", "--report", "-", "-r", str(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    would = {item["metadata"]["name"] for item in json.loads(done.stdout)["install"]}
    assert would <= {"lgqlib"}
