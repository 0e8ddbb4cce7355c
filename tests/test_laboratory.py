"""The quantizer laboratory: clouds of known geometry, fits that reach k-means, honest verdicts."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lgqlib.figures import fixed_latents as laboratories
from lgqlib.measure.intervals import Interval
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import participation_ratio, zador_distortion
from lgqlib.presets import AUTHORS_LGQ
from lgqlib.study import fixed_latents as laboratory
from lgqlib.study import hypotheses, variants
from lgqlib.study.fixed_latents import STARTS, Experiment, fit, kmeans, measure, start_codes
from lgqlib.study.latents import gaussian_latents, geometric_spectrum, given_latents
from lgqlib.study.variants import Variant, lgq_variants, peer_variants, together

SMALL = Experiment(num_codes=32, num_steps=120, batch_size=256, lr=0.1)
QUICK = Experiment(num_codes=16, num_steps=3, batch_size=64, lr=0.05)
AUTHORS = lgq_variants()[0]


@pytest.fixture(scope="module")
def cloud():
    return gaussian_latents(2048, geometric_spectrum(6, 4), seed=0)


class TestClouds:
    @pytest.mark.parametrize("dim, participation", [(5, 1), (16, 10), (64, 10), (8, 8)])
    def test_a_spectrum_has_the_dimension_asked_for(self, dim, participation):
        values = geometric_spectrum(dim, participation)
        assert participation_ratio(values) == pytest.approx(participation, rel=1e-6)
        assert values.sum() == pytest.approx(dim) and (np.diff(values) <= 0).all()

    @pytest.mark.parametrize("separation", [0.0, 3.0])
    def test_a_cloud_has_variance_one_a_channel(self, separation):
        values = geometric_spectrum(8, 5)
        cloud = gaussian_latents(20_000, values, seed=1, separation=separation)
        assert cloud.spectrum.total == pytest.approx(8, rel=0.03)
        if not separation:
            assert cloud.spectrum.eigenvalues == pytest.approx(values, rel=0.08)

    def test_two_clusters_are_two(self):
        cloud = gaussian_latents(4000, np.full(3, 1.0), seed=2, separation=4.0)
        along = cloud.points @ cloud.spectrum.axes[:, 0].astype(np.float32)
        assert abs((along > 0).mean() - 0.5) < 0.03
        assert (np.abs(along) < 0.5 * np.abs(along).mean()).mean() < 0.05

    def test_given_latents_are_centered_and_scaled_by_those_fitted_on(self):
        rng = np.random.default_rng(3)
        cloud = given_latents(rng.normal(5, 3, (500, 4)), rng.normal(5, 3, (200, 4)), name="given")
        assert cloud.points.mean(0) == pytest.approx(np.zeros(4), abs=1e-5)
        assert np.square(cloud.points).mean() == pytest.approx(1, rel=1e-5)
        assert abs(cloud.held_out.mean()) < 0.2

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="participation = 9"):
            geometric_spectrum(8, 9)
        with pytest.raises(ValueError, match="positive eigenvalues"):
            gaussian_latents(10, np.array([1.0, 0.0]))
        with pytest.raises(ValueError, match="do not vary"):
            given_latents(np.ones((5, 2)), np.ones((5, 2)), name="constant")


class TestReference:
    def test_kmeans_lies_between_the_bounds_and_twice_them(self):
        values = geometric_spectrum(2, 1.8)
        cloud = gaussian_latents(16_384, values, seed=4)
        found = kmeans(cloud, 128)
        zador = zador_distortion(values, 128) / values.sum()
        assert 0.97 * zador < found["distortion"] < 1.15 * zador
        assert found["distortion"] > laboratory.bounds(cloud, 128)["distortion"]
        assert found["efficiency"] < 1

    def test_no_fit_passes_the_bound(self, cloud):
        least = laboratory.bounds(cloud, 32)["distortion"]
        for variant in (AUTHORS, together(bench="fixed"), *peer_variants()):
            numbers = measure(fit(variant, cloud, replace(SMALL, num_steps=30))[0], cloud)
            assert least < numbers["distortion"] < 1 and numbers["efficiency"] < 1


class TestFit:
    def test_annealed_free_energy_forgets_a_bad_start_and_the_authors_setting_does_not(self):
        cloud = gaussian_latents(2048, geometric_spectrum(32, 4), seed=0)
        assert critical_temperature(cloud.points) > 20  # so that tau = 1 is cold
        reference = kmeans(cloud, 32)["distortion"]
        longer = replace(SMALL, num_steps=150, lr=0.2)
        ours = measure(fit(together(bench="fixed"), cloud, longer, start="cluster")[0], cloud)
        theirs = measure(fit(AUTHORS, cloud, longer, start="cluster")[0], cloud)
        assert ours["distortion"] < 1.03 * reference and ours["active"] == 32
        assert theirs["distortion"] > 1.1 * reference

    @pytest.mark.parametrize("variant", [AUTHORS, *peer_variants()], ids=lambda v: v.name)
    def test_a_seed_gives_the_same_fit_and_leaves_the_global_stream(self, variant, cloud):
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        a, _ = fit(variant, cloud, QUICK, seed=1)
        assert torch.equal(torch.rand(2), expected)
        b, _ = fit(variant, cloud, QUICK, seed=1)
        c, _ = fit(variant, cloud, QUICK, seed=2)
        a, b, c = (bench.decode(torch.arange(16)) for bench in (a, b, c))
        assert torch.equal(a, b) and not torch.equal(a, c)

    def test_every_variant_of_a_seed_starts_from_the_same_codes(self, cloud):
        still = Experiment(num_codes=16, num_steps=1, batch_size=8, lr=1e-12)
        chosen = [v for v in [AUTHORS, *peer_variants()] if v.method in ("lgq", "vq", "vq_ema")]
        books = [fit(v, cloud, still, start="gaussian", seed=3)[0] for v in chosen]
        first = books[0].quantizer.codebook.sort(0).values
        assert torch.allclose(books[1].quantizer.codebook.sort(0).values, first, atol=1e-6)

    def test_starts(self):
        latents = torch.randn(500, 3)
        for how in STARTS:
            codes = start_codes(latents, 20, how)
            assert codes.shape == (20, 3)
            assert (codes.std(0).max() < 0.2) == (how == "cluster")
        with pytest.raises(ValueError, match="start = 'elsewhere'"):
            start_codes(latents, 20, "elsewhere")

    def test_the_linear_bench_learns_its_encoder_and_keeps_rows_of_norm_one(self, cloud):
        linear = Experiment(num_codes=16, num_steps=20, batch_size=128, lr=0.02, bench="linear")
        narrow = replace(linear, dim=2)
        bench, history = fit(together(), cloud, narrow)
        assert bench.quantizer.codebook.shape == (16, 2)
        z = bench.latents(torch.eye(6))
        assert z.square().sum(0).sqrt().tolist() == pytest.approx([1, 1])
        assert history["distortion"].iloc[-1] < history["distortion"].iloc[0]

    def test_every_variant_runs(self, cloud):
        settings = [*variants.energy_variants(), *variants.schedule_variants()]
        for variant in [*lgq_variants("fixed"), *settings]:
            assert math.isfinite(measure(fit(variant, cloud, QUICK)[0], cloud)["distortion"])
        linear = replace(QUICK, bench="linear")
        for variant in [*lgq_variants("linear"), *peer_variants()]:
            assert math.isfinite(measure(fit(variant, cloud, linear)[0], cloud)["distortion"])

    def test_the_authors_setting_is_the_preset(self):
        assert dict(AUTHORS.changes) == AUTHORS_LGQ
        config = QUICK.config(AUTHORS, 6)
        assert (config.temperature.start, config.temperature.end) == (1.0, 0.1)

    def test_bad_arguments_are_refused(self, cloud):
        with pytest.raises(ValueError, match="num_codes = 0"):
            Experiment(num_codes=0)
        with pytest.raises(ValueError, match="bench = 'round'"):
            Experiment(bench="round")
        with pytest.raises(ValueError, match="without = 'luck'"):
            together(without="luck")
        with pytest.raises(ValueError, match="unknown field"):
            fit(Variant("wrong", changes={"loss.luck": 1.0}), cloud, QUICK)

    def test_the_learning_rate_that_errs_least_is_chosen(self, cloud):
        (chosen,) = laboratory.tuned(
            [Variant("VQ", "vq")], cloud, QUICK, (1e-5, 0.05), starts=("cluster",), progress=False
        )
        assert chosen.lr == 0.05


def table(**columns) -> pd.DataFrame:
    """Give fits of two variants with these distortions, one a seed."""
    rows = [
        {"variant": name, "method": "lgq", "start": start, "seed": seed, "distortion": value}
        for name, values in columns.items()
        for start in ("random", "cluster")
        for seed, value in enumerate(values[start] if isinstance(values, dict) else values)
    ]
    return pd.DataFrame(rows)


class TestVerdicts:
    @pytest.mark.parametrize(
        "low, high, sign, expected",
        [
            (-2, -1, -1, "better"),
            (-2, -1, 1, "worse"),
            (1, 2, -1, "worse"),
            (1, 2, 1, "better"),
            (-1, 1, 1, "undecided"),
            (0, 1, 1, "undecided"),
        ],
    )
    def test_a_verdict_is_whether_the_interval_excludes_zero(self, low, high, sign, expected):
        interval = Interval((low + high) / 2, low, high, 0.95, 3, 1, "t")
        assert hypotheses.verdict(interval, sign=sign) == expected

    def test_effects_are_paired_by_seed(self):
        authors = np.array([1.0, 2.0, 3.0])  # seeds differ by far more than the settings do
        trials = table(
            authors=authors, better=0.9 * authors, noisy=authors + np.array([0.5, -0.6, 0.2])
        )
        trials = trials.sample(frac=1, random_state=0)
        judged = hypotheses.against(trials, "authors").set_index(["variant", "start"])
        assert judged.loc[("better", "random"), "change"] == pytest.approx(-10)
        assert judged.loc[("better", "random"), "verdict"] == "better"
        assert judged.loc[("noisy", "cluster"), "verdict"] == "undecided"

    def test_each_hypothesis_is_asked_alone_and_last(self):
        names = ("authors", "+ annealing", "all together", "all but annealing")
        trials = table(**{n: [1.0 + 0.1 * i, 1.01 + 0.1 * i] for i, n in enumerate(names)})
        asked = hypotheses.effects(trials, ["annealing", "identity"])
        assert set(zip(asked["variant"], asked["against"], strict=True)) == {
            ("all together", "authors"),
            ("+ annealing", "authors"),
            ("all together", "all but annealing"),
        }
        assert all(
            s.endswith(("better.", "worse.", "undecided.")) for s in hypotheses.sentences(asked)
        )

    def test_spread_is_the_worst_start_over_the_best(self):
        trials = table(a={"random": [1.0, 1.0], "cluster": [2.0, 3.0]})
        assert hypotheses.spreads(trials)["spread"].tolist() == [2.0, 3.0]

    def test_what_cannot_be_compared_is_refused(self):
        trials = table(a=[1.0, 2.0], b=[1.0])
        with pytest.raises(ValueError, match="must be the same"):
            hypotheses.relative_difference(trials, "a", "b", start="random")
        with pytest.raises(ValueError, match="measure = 'luck'"):
            hypotheses.relative_difference(trials, "a", "a", "luck", start="random")
        with pytest.raises(ValueError, match="sign = 0"):
            hypotheses.verdict(Interval(0, 0, 0, 0.95, 2, 1, "t"), sign=0)
        with pytest.raises(ValueError, match="reference = 'c'"):
            hypotheses.against(trials, "c")


def test_figures_say_what_the_fits_say(cloud):
    chosen = [AUTHORS, Variant("VQ", "vq"), together(bench="fixed")]
    clouds = {seed: cloud for seed in (0, 1)}
    trials = laboratory.run(clouds, chosen, QUICK, starts=("random", "cluster"), progress=False)
    assert len(trials) == 2 * (2 * 3 + 1)
    least = laboratory.bounds(cloud, 16)["distortion"]
    ladder = laboratories.ladder(trials, least, what="Fixed latents")
    means = trials[trials["variant"] != "k-means"].groupby("variant")["distortion"].mean()
    assert f"{means.idxmin()} errs least" in ladder.layout.title.text.replace("<br>", " ")
    assert sum(len(trace.x) for trace in ladder.data if trace.mode == "markers") == 12
    judged = hypotheses.effects(trials, ["annealing"])
    title = laboratories.effects(judged, what="Fixed").layout.title.text
    assert f"{(judged['verdict'] == 'undecided').sum()} undecided" in title
    histories = {v.name: fit(v, cloud, QUICK, start="cluster")[1] for v in chosen}
    assert len(laboratories.cooling(histories).data) == 6
    assert len(laboratories.starts(trials, ["authors", "all together"]).data) == 4
    assert laboratories.rate_distortion(trials, cloud.spectrum.eigenvalues).data[0].name
    assert set(hypotheses.summary(trials)["variant"]) == set(trials["variant"])
