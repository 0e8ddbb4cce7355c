"""Differences between methods: paired, signed, at equal K and at an equal rate."""

from itertools import product

import numpy as np
import pytest
from builders import finished_run, study_of

from lgqlib.study.comparison import (
    ablations,
    against,
    at_equal_rate,
    comparison_note,
    comparison_table,
    difference,
    find,
)
from lgqlib.study.results import finished

SEED_EFFECT = (0.0, 3.0, -2.0)
"""Of seeds on every method alike: pairing must take it out."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Give LGQ and FSQ over three sizes and seeds, and a variant of LGQ.

    PSNR = 6 dB a bit + seed; LGQ is 0.5 dB above at its own rate, which is one bit less. FSQ's
    seeds are written in another order.
    """
    folder, made = tmp_path_factory.mktemp("study"), []
    for method, gain, saved, seeds in (("lgq", 0.5, 1.0, (0, 1, 2)), ("fsq", 0.0, 0.0, (2, 0, 1))):
        for num_codes, seed in product((1024, 4096, 16384), seeds):
            bits = float(np.log2(num_codes)) - saved
            psnr = 6 * bits + SEED_EFFECT[seed] + gain + 0.01 * seed * gain
            numbers = {"psnr": psnr, "bits_per_token_coded": bits, "active": 2**bits}
            how = {"method": method, "num_codes": num_codes, "seed": seed}
            made.append((finished_run(folder, numbers=numbers, **how), ""))
    for seed in (0, 1, 2):
        numbers = {"psnr": 10.0 + seed, "active": 5.0, "bits_per_token_coded": 10.5, "kid": 0.1}
        run = finished_run(folder, seed=seed, more="loss.commit=0.5", numbers=numbers)
        made.append((run, "no usage"))
    return finished(study_of(folder, made))


def test_runs_that_differ_in_their_seed_are_one_cohort_and_a_variant_is_no_peer(runs):
    assert list(runs.groupby("cohort")["seed"].agg(tuple)) == [(0, 1, 2)] * 7
    assert [d.a for d in ablations(runs, ["psnr"])] == ["lgq no usage"]
    peers = against(runs, ["psnr"])
    assert len(peers) == 3 and {(d.a, d.b) for d in peers} == {("lgq", "fsq")}


def test_pairing_takes_out_what_a_seed_does_to_both(runs):
    a, b = find(runs, "lgq", 1024), find(runs, "fsq", 1024)
    d = difference(a, b, "psnr")
    # One bit less is 6 dB less, half a dB is gained back.
    assert d.difference == pytest.approx(-5.495, abs=1e-6)
    assert d.high - d.low < 0.1, "seeds spread over 5 dB, differences do not"
    assert d.verdict == "worse" and difference(b, a, "psnr").verdict == "better"
    assert difference(a, b, "active").verdict == "lower" and difference(a, b, "kid") is None
    one = difference(a[:1], b, "psnr")
    assert (one.seeds, one.verdict) == (1, "undecided")


def test_at_an_equal_rate_the_curve_is_read_between_its_points(runs):
    """LGQ is at 9, 11, 13 bits, FSQ at 10, 12, 14: two of LGQ's points lie within FSQ's curve."""
    for rate in ("bits_per_token_coded", "active"):  # counts on a logarithmic axis
        d = at_equal_rate(runs, "lgq", "fsq", "psnr", rate)
        assert d.difference == pytest.approx(0.505, abs=1e-6)
        assert (d.verdict, d.seeds) == ("better", 3)
    assert at_equal_rate(runs, "lgq", "vq", "psnr", "active") is None


def test_the_table_has_spreads_and_the_settings_that_differ_within_a_method(runs):
    table = comparison_table(runs).set_index(["method", "codes"])
    assert table.loc[("FSQ", "4,096"), "PSNR, dB ↑"] == "72.33 ± 2.52"
    assert table.loc[("FSQ", "1,024"), "KID ↓"] == "–"
    assert table.loc[("LGQ no usage", "1,024"), "loss.commit"] == "0.5"
    assert "seeds" in table and "train.lr" not in table
    assert "standard deviation" in comparison_note(runs)
