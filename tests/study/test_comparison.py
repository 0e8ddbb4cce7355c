"""Differences between methods: paired, signed, at equal K and at an equal rate."""

import numpy as np
import pytest
from studies import finished_run, study_of

from lgqlib.study.comparison import (
    ablations,
    against,
    at_equal_rate,
    comparison_note,
    comparison_table,
    difference,
    find,
    points,
    tabulated,
)
from lgqlib.study.results import cohorts

SEED_EFFECT = (0.0, 3.0, -2.0)
"""Of seeds on every method alike: pairing must take it out."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Give LGQ and FSQ over three sizes and seeds, and a variant of LGQ.

    PSNR = 6 dB a bit + seed; LGQ is 0.5 dB above at its own rate, which is one bit less. FSQ's
    seeds are written in another order.
    """
    folder = tmp_path_factory.mktemp("study")
    runs = []
    for method, gain, saved, seeds in (("lgq", 0.5, 1.0, (0, 1, 2)), ("fsq", 0.0, 0.0, (2, 0, 1))):
        for num_codes in (1024, 4096, 16384):
            for seed in seeds:
                bits = float(np.log2(num_codes)) - saved
                psnr = 6 * bits + SEED_EFFECT[seed] + gain + 0.01 * seed * gain
                run = finished_run(
                    folder,
                    method=method,
                    num_codes=num_codes,
                    seed=seed,
                    more="backbone.dim=5 backbone.norm=none" if num_codes == 16384 else "",
                    per_image={"psnr": psnr + np.linspace(-1, 1, 8)},
                    numbers={
                        "psnr": psnr,
                        "fd": psnr,
                        "bits_per_token_coded": bits,
                        "active": 2**bits,
                    },
                )
                runs.append((run, ""))
    for seed in (0, 1, 2):
        numbers = {"psnr": 10.0 + seed, "active": 5.0, "bits_per_token_coded": 10.5, "kid": 0.1}
        run = finished_run(folder, seed=seed, more="loss.usage=0", numbers=numbers)
        runs.append((run, "no usage"))
    return cohorts(study_of(folder, runs))


def test_runs_that_differ_in_their_seed_are_one_cohort(found):
    assert len(found) == 7
    assert all(c.seeds == (0, 1, 2) for c in found)
    assert find(found, "lgq", 1024).variant == ""
    assert find(found, "lgq", 1024, "no usage").name == "lgq no usage"
    assert find(found, "lgq", 2048) is None and find(found, "vq", 1024) is None


def test_pairing_takes_out_what_a_seed_does_to_both(found):
    a, b = find(found, "lgq", 1024), find(found, "fsq", 1024)
    d = difference(a, b, "psnr")
    # One bit less is 6 dB less, half a dB is gained back.
    assert d.interval.mean == pytest.approx(-5.495, abs=1e-6)
    assert d.interval.high - d.interval.low < 0.1, "seeds spread over 5 dB, differences do not"
    by_run = difference(a, b, "fd").interval
    assert (by_run.low, by_run.high) == pytest.approx((d.interval.low, d.interval.high))
    assert (d.direction, d.verdict, d.bootstrap.num_images) == (-1, "worse", 8)
    assert difference(b, a, "psnr").verdict == "better"
    assert difference(a, b, "active").verdict == "lower"
    assert difference(a, b, "kid") is None


def test_one_seed_decides_nothing(tmp_path):
    values = (("lgq", 30.0), ("fsq", 10.0))
    runs = [(finished_run(tmp_path, method=m, numbers={"psnr": v}), "") for m, v in values]
    d = difference(*cohorts(study_of(tmp_path, runs)), "psnr")
    assert (d.t, d.direction, d.verdict) == (None, 0, "undecided")


def test_at_an_equal_rate_the_curve_is_read_between_its_points(found):
    """LGQ is at 9, 11, 13 bits, FSQ at 10, 12, 14: two of LGQ's points lie within FSQ's curve."""
    d = at_equal_rate(found, "lgq", "fsq", "psnr", "bits_per_token_coded")
    assert d.interval.mean == pytest.approx(0.505, abs=1e-6)
    assert (d.verdict, d.interval.num_seeds) == ("better", 3)
    by_count = at_equal_rate(found, "lgq", "fsq", "psnr", "active")
    assert by_count.interval.mean == pytest.approx(0.505, abs=1e-6), "counts on a log axis"
    assert at_equal_rate(found, "lgq", "vq", "psnr", "active") is None


def test_a_variant_is_an_ablation_and_no_peer(found):
    assert [d.a for d in ablations(found, ["psnr"])] == ["lgq no usage"]
    peers = against(found, ["psnr"])
    assert len(peers) == 3 and {(d.a, d.b) for d in peers} == {("lgq", "fsq")}
    table = tabulated([*peers, *ablations(found, ["psnr"])])
    assert list(table["seeds"]) == [3] * 4 and set(table["verdict"]) == {"worse"}


def test_points_have_a_mean_an_interval_and_their_runs(found):
    table = points(found, ["psnr", "ssim"])
    row = table[(table["method"] == "fsq") & (table["num_codes"] == 4096)].iloc[0]
    assert row["psnr"] == pytest.approx(72 + np.mean(SEED_EFFECT))
    assert row["psnr.low"] < row["psnr"] < row["psnr.high"]
    assert row["seeds"] == 3 and row["runs"].count("fsq-photos-K4096") == 3
    assert "ssim" not in table, "a number that nobody has is left out"
    assert list(table["ablation"]).count(True) == 1


def test_the_table_has_spreads_and_the_settings_that_differ_within_a_method(found):
    table = comparison_table(found).set_index(["method", "codes"])
    assert table.loc[("FSQ", "4,096"), "PSNR, dB ↑"] == "72.33 ± 2.52"
    assert table.loc[("LGQ no usage", "1,024"), "KID ↓"] == "0.10000 ± 0.00000"
    assert table.loc[("FSQ", "1,024"), "KID ↓"] == "–"
    assert table.loc[("LGQ no usage", "1,024"), "loss.usage"] == "0.0"
    assert {"backbone.dim", "seeds"} < set(table) and "train.lr" not in table
    one = comparison_table([c for c in found if c.num_codes == 4096])
    assert list(one["method"]) == ["LGQ", "FSQ"] and "loss.usage" not in one, (
        "a recipe is no column"
    )


def test_the_comparison_says_what_its_numbers_are_of(found):
    note = comparison_note(found)
    for part in ("256 held-out images", "16,384 tokens", "lite2", "standard deviation"):
        assert part in note
