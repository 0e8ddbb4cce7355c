"""A few rounds of `make soak`."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "soak.py"


def test_kills_and_damages_lose_nothing():
    command = [sys.executable, str(SCRIPT), "--seed", "5", "--kills", "10", "--damages", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "10 processes killed in" in done.stdout and "120 damages" in done.stdout
    assert done.stdout.count("lost 0") == 2
