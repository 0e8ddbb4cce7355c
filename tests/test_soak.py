"""A few rounds of `make soak`, and settings that no machine or method can have."""

import subprocess
import sys
from pathlib import Path

import pytest

from lgqlib.run import Run
from lgqlib.train import train

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "soak.py"


def test_kills_and_damages_lose_nothing():
    command = [sys.executable, str(SCRIPT), "--seed", "5", "--kills", "10", "--damages", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "10 processes killed in" in done.stdout and "120 damages" in done.stdout
    assert done.stdout.count("lost 0") == 2


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("lgq", {"train.lrr": 1}, "train.lrr"),
        ("lgq", {"data.size": 304}, "data.size = 304: a crop of it exceeds"),
        ("lgq", {"data.size": 8}, "data.size"),
        ("lgq", {"quantizer.num_codes": 2**40}, "quantizer.num_codes"),
        ("lgq", {"train.batch_size": 2**40}, "train.batch_size"),
        ("lgq", {"backbone.width": 80_000}, "backbone.width"),
        ("fsq", {"quantizer.num_codes": 34}, "quantizer.num_codes = 34: no levels"),
        ("fsq", {"quantizer.levels": (2, 8)}, "quantizer.levels = (2, 8): each must be at least 3"),
        ("fsq", {"quantizer.levels": (3, 3)}, "quantizer.levels = (3, 3): it must be levels whose"),
        ("lfq", {"quantizer.num_codes": 20}, "quantizer.num_codes = 20: signs need a power of two"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(method, change, says, tiny_config, cache, tmp_path):
    with pytest.raises(ValueError) as refusal:
        config = tiny_config(method, "quantizer.num_codes=16").override(change)
        train(config, Run.create(tmp_path, config), cache=cache, progress=False)
    assert says in str(refusal.value)
