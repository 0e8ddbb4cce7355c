"""What tests share: few threads, and small trained runs."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("lgqlib", "shapes.checked")

from lgqlib.evaluate import evaluate_run
from lgqlib.files import locked
from lgqlib.presets import preset
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.train import train

TINY = (
    "data.eval_crops=32 backbone.width=16 backbone.depth=1 quantizer.num_codes=64 "
    "train.num_steps=8 train.batch_size=8 train.log_every=2 train.eval_every=4 "
    "train.checkpoint_every=4 train.num_snapshots=4 train.probe=1024 "
    "evaluation.prior_steps=2 evaluation.photographs=2"
)
"""Overrides under which a run takes seconds and still does all that a run does."""
GROUPS = ("nbval", "browser", "papermill", "distributed")
"""What takes minutes, the longest first; one after the other the rest fills both workers."""


def pytest_collection_modifyitems(items):
    """Let the longest groups begin first; `make test` keeps this order."""
    marks = {item: item.get_closest_marker("xdist_group") for item in items}
    items.sort(key=lambda item: GROUPS.index(marks[item].args[0]) if marks[item] else len(GROUPS))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Folder of this session that all its workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def cache(shared) -> Path:
    """Folder of decoded images."""
    return shared / "cache"


@pytest.fixture(scope="session")
def tiny_config():
    """Give a tiny run's config for a method, with further overrides."""

    def config(method: str = "lgq", more: str = ""):
        start = {"train.num_steps": 0} if METHODS[method].baseline else {}
        return preset("laptop", method=method).override(TINY).override(start).override(more)

    return config


@pytest.fixture(scope="session")
def trained(shared, cache, tiny_config):
    """Give a trained and evaluated tiny run of a method, trained once; tests only read it."""

    @functools.cache
    def give(method: str = "lgq") -> Run:
        # Features cost seconds: one method is enough to see that they reach the evaluation.
        config = tiny_config(method, "" if method == "lgq" else "evaluation.extractor=")
        run = Run.create(shared / "runs", config)
        with locked(shared / f"{method}.lock"):
            train(config, run, cache=cache, progress=False)  # nothing, where it is done already
            if not run.is_evaluated:
                evaluate_run(run, cache=cache, train_batches=2, progress=False)
        return run

    return give


@pytest.fixture
def copied(trained, tmp_path):
    """Give a copy of the run of a method, to be spoiled."""

    def give(method: str = "lgq") -> Run:
        path = trained(method).path
        return Run(shutil.copytree(path, tmp_path / "copies & more" / path.name))

    return give


@pytest.fixture
def trained_in(tmp_path, cache):
    """Give what trains a config in a folder of its own, or goes on there."""

    def give(name: str, config) -> Run:
        run = Run.create(tmp_path / name, config)
        train(config, run, cache=cache, progress=False)
        return run

    return give
