"""A few rounds of `make soak`: kills, damaged files, and configs of any values."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soaking.settings import FIELDS, FITTING, METHODS, attempt, values_of

ROOT = Path(__file__).parent.parent


def test_kills_and_damages_lose_nothing():
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--seed", "5"]
    command += ["--kills", "6", "--damages", "20", "--configs", "0", "--minutes", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "6 processes killed with SIGKILL in" in done.stdout
    assert re.search(r"120 damages .* [1-9]\d+ refused .* read wrongly: 0", done.stdout)


values = st.sampled_from(FIELDS).flatmap(
    lambda field: st.tuples(
        st.just(field),
        st.one_of(st.sampled_from(FITTING[field]), st.sampled_from(values_of(field))),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(method=st.sampled_from(METHODS), pairs=st.lists(values, min_size=1, max_size=4))
def test_a_config_is_refused_by_a_field_s_name_or_trains_two_steps(folder, method, pairs):
    attempt(method, dict(pairs), root=folder, cache=folder / "cache")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"train.lrr": 1}, "train.lrr"),
        ({"quantizer.lgq.engine": "triton"}, "quantizer.lgq.engine"),
        ({"data.size": 304}, "data.size"),
        ({"data.size": 8}, "data.size"),
        ({"quantizer.num_codes": 2**40}, "quantizer.num_codes"),
        ({"train.batch_size": 2**40}, "train.batch_size"),
        ({"backbone.width": 80_000}, "backbone.width"),
    ],
)
def test_what_a_machine_cannot_do_is_refused_by_its_name(folder, change, field):
    outcome, message = attempt("lgq", change, root=folder, cache=folder / "cache")
    assert outcome == "refused" and field in message


@pytest.mark.parametrize(
    ("method", "change", "field"),
    [
        ("fsq", {"quantizer.num_codes": 34}, "quantizer.num_codes = 34: no levels"),
        ("fsq", {"quantizer.levels": (2, 8)}, "quantizer.levels = (2, 8): each must be at least 3"),
        ("fsq", {"quantizer.levels": (3, 3)}, "quantizer.levels = (3, 3): it must be levels whose"),
        ("lfq", {"quantizer.num_codes": 20}, "quantizer.num_codes = 20: signs need a power of two"),
    ],
)
def test_codes_that_a_method_cannot_have_are_refused_by_name(folder, method, change, field):
    outcome, message = attempt(method, change, root=folder, cache=folder / "cache")
    assert outcome == "refused" and field in message
