"""Quantizers on fixed latents: known geometry, fits that reach k-means, honest verdicts."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from laws import zador_distortion

from lgqlib.figures import fixed_latents as figures
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import participation_ratio
from lgqlib.study import fixed_latents as study
from lgqlib.study.fixed_latents import Experiment, compare, effect, effects, fit, kmeans, measure
from lgqlib.study.latents import gaussian_latents, geometric_spectrum, given_latents

SMALL = Experiment(num_codes=32, num_steps=120, batch_size=256, lr=0.1)
QUICK = Experiment(num_codes=16, num_steps=3, batch_size=64, lr=0.05)
AUTHORS = study.lgq_variants()[0]


@pytest.fixture(scope="module")
def latents():
    return gaussian_latents(2048, geometric_spectrum(6, 4), seed=0)


class TestLatents:
    @pytest.mark.parametrize("dim, participation", [(5, 1), (16, 10), (64, 10), (8, 8)])
    def test_a_spectrum_has_the_dimension_asked_for(self, dim, participation):
        values = geometric_spectrum(dim, participation)
        assert participation_ratio(values) == pytest.approx(participation, rel=1e-6)
        assert values.sum() == pytest.approx(dim) and (np.diff(values) <= 0).all()

    @pytest.mark.parametrize("separation", [0.0, 3.0])
    def test_they_have_variance_one_a_channel(self, separation):
        values = geometric_spectrum(8, 5)
        drawn = gaussian_latents(20_000, values, seed=1, separation=separation)
        assert drawn.spectrum.total == pytest.approx(8, rel=0.03)
        if not separation:
            assert drawn.spectrum.eigenvalues == pytest.approx(values, rel=0.08)

    def test_two_clusters_are_two(self):
        drawn = gaussian_latents(4000, np.full(3, 1.0), seed=2, separation=4.0)
        along = drawn.points @ drawn.spectrum.axes[:, 0].astype(np.float32)
        assert abs((along > 0).mean() - 0.5) < 0.03
        assert (np.abs(along) < 0.5 * np.abs(along).mean()).mean() < 0.05

    def test_given_ones_are_centered_and_scaled_by_those_fitted_on(self):
        rng = np.random.default_rng(3)
        given = given_latents(rng.normal(5, 3, (500, 4)), rng.normal(5, 3, (200, 4)), name="given")
        assert given.points.mean(0) == pytest.approx(np.zeros(4), abs=1e-5)
        assert np.square(given.points).mean() == pytest.approx(1, rel=1e-5)
        assert 0 < abs(given.held_out.mean()) < 0.2

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="participation = 9"):
            geometric_spectrum(8, 9)
        with pytest.raises(ValueError, match="positive eigenvalues"):
            gaussian_latents(10, np.array([1.0, 0.0]))
        with pytest.raises(ValueError, match="do not vary"):
            given_latents(np.ones((5, 2)), np.ones((5, 2)), name="constant")


class TestFit:
    def test_kmeans_lies_between_the_bounds(self):
        values = geometric_spectrum(2, 1.8)
        drawn = gaussian_latents(16_384, values, seed=4)
        found = kmeans(drawn, 128)
        zador = zador_distortion(values, 128) / values.sum()
        assert 0.97 * zador < found["distortion"] < 1.15 * zador
        assert (
            found["distortion"] > study.bounds(drawn, 128)["distortion"] and found["efficiency"] < 1
        )

    def test_annealed_free_energy_forgets_a_bad_start_and_the_authors_setting_does_not(self):
        drawn = gaussian_latents(2048, geometric_spectrum(32, 4), seed=0)
        assert critical_temperature(drawn.points) > 20  # so that tau = 1 is cold
        reference = kmeans(drawn, 32)["distortion"]
        longer = replace(SMALL, num_steps=150, lr=0.2)
        ours = measure(fit(study.together(), drawn, longer, start="cluster")[0], drawn)
        theirs = measure(fit(AUTHORS, drawn, longer, start="cluster")[0], drawn)
        assert ours["distortion"] < 1.03 * reference and ours["active"] == 32
        assert theirs["distortion"] > 1.1 * reference

    @pytest.mark.parametrize("variant", [AUTHORS, *study.peer_variants()], ids=lambda v: v.name)
    def test_a_seed_gives_the_same_fit_and_leaves_the_global_stream(self, variant, latents):
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        a, _ = fit(variant, latents, QUICK, seed=1)
        assert torch.equal(torch.rand(2), expected)
        others = [fit(variant, latents, QUICK, seed=seed)[0] for seed in (1, 2)]
        a, b, c = (bench.decode(torch.arange(16)) for bench in (a, *others))
        assert torch.equal(a, b) and not torch.equal(a, c)

    def test_every_variant_of_a_seed_starts_from_the_same_codes(self, latents):
        still = Experiment(num_codes=16, num_steps=1, batch_size=8, lr=1e-12)
        chosen = [AUTHORS, *study.peer_variants(("vq", "vq_ema"))]
        books = [fit(v, latents, still, start="gaussian", seed=3)[0] for v in chosen]
        first, *rest = (bench.quantizer.codebook.sort(0).values for bench in books)
        assert torch.allclose(rest[0], first, atol=1e-6)

    @pytest.mark.parametrize("how", study.STARTS)
    def test_only_a_cluster_is_in_one_place(self, how):
        codes = study.start_codes(torch.randn(500, 3), 20, how)
        assert codes.shape == (20, 3) and (codes.std(0).max() < 0.2) == (how == "cluster")

    def test_a_linear_encoder_learns_and_keeps_rows_of_norm_one(self, latents):
        narrow = Experiment(num_codes=16, num_steps=20, batch_size=128, lr=0.02, encoder_dim=2)
        bench, history = fit(study.together(encoder=True), latents, narrow)
        assert bench.quantizer.codebook.shape == (16, 2)
        z = bench.latents(torch.eye(6))
        assert z.square().sum(0).sqrt().tolist() == pytest.approx([1, 1])
        assert history["distortion"].iloc[-1] < history["distortion"].iloc[0]
        elsewhere = replace(latents, points=2 * latents.points)
        assert measure(bench, elsewhere) == measure(bench, latents), "on the held-out ones"

    @pytest.mark.parametrize("encoder", [False, True])
    def test_every_variant_runs_and_none_passes_the_bound(self, latents, encoder):
        variants = [*study.lgq_variants(encoder=encoder), *study.peer_variants()]
        variants += [] if encoder else [*study.energy_variants(), *study.schedule_variants()]
        least = study.bounds(latents, 16)["distortion"]
        for variant in variants:
            experiment = replace(QUICK, encoder_dim=6 if encoder else 0)
            error = measure(fit(variant, latents, experiment)[0], latents)["distortion"]
            assert math.isfinite(error) and error > least

    def test_the_learning_rate_that_errs_least_is_chosen(self, latents):
        variants, how = study.peer_variants(["vq"]), {"starts": ("cluster",), "progress": False}
        (chosen,) = study.tuned(variants, latents, QUICK, (1e-5, 0.05), **how)
        assert chosen.lr == 0.05

    def test_bad_values_are_refused_by_their_names(self, latents):
        with pytest.raises(ValueError, match=r"quantizer.num_codes = 0"):
            fit(AUTHORS, latents, replace(QUICK, num_codes=0))
        with pytest.raises(ValueError, match=r"train.batch_size = 0"):
            fit(AUTHORS, latents, replace(QUICK, batch_size=0))
        with pytest.raises(ValueError, match="start = 'elsewhere'"):
            fit(AUTHORS, latents, QUICK, start="elsewhere")
        with pytest.raises(ValueError, match="unknown field"):
            fit(study.Variant("wrong", changes={"loss.luck": 1.0}), latents, QUICK)


def trials_of(**columns) -> pd.DataFrame:
    """Give fits of some variants with these distortions, one a seed, in no order."""
    rows = [
        {"variant": name, "method": "lgq", "start": start, "seed": seed, "distortion": value}
        for name, values in columns.items()
        for start in ("random", "cluster")
        for seed, value in enumerate(values[start] if isinstance(values, dict) else values)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


class TestVerdicts:
    def test_effects_are_paired_by_seed_and_less_error_is_better(self):
        authors = np.array([1.0, 2.0, 3.0])  # seeds differ by far more than the settings do
        trials = trials_of(
            authors=authors, less=0.9 * authors, noisy=authors + np.array([0.5, -0.6, 0.2])
        )
        judged = study.effects_against(trials, "authors").set_index(["variant", "start"])
        assert judged.loc[("less", "random"), "change"] == pytest.approx(-10)
        assert judged.loc[("less", "random"), "verdict"] == "better"
        assert judged.loc[("noisy", "cluster"), "verdict"] == "undecided"
        assert study.effects_against(trials, "less").iloc[0]["verdict"] == "worse"
        more = trials.rename(columns={"distortion": "active_share"})
        row = effect(more, "less", "authors", start="random", measure="active_share")
        assert row["verdict"] == "worse", "fewer codes in use"

    def test_each_hypothesis_is_asked_alone_and_last(self):
        names = ("authors", "+ annealing", "all together", "all but annealing")
        trials = trials_of(**{n: [1.0 + 0.1 * i, 1.01 + 0.1 * i] for i, n in enumerate(names)})
        asked = effects(trials)
        assert set(zip(asked["variant"], asked["against"], strict=True)) == {
            ("all together", "authors"),
            ("+ annealing", "authors"),
            ("all together", "all but annealing"),
        }
        assert all(s.endswith(("better.", "worse.", "undecided.")) for s in study.sentences(asked))

    def test_spread_is_the_worst_start_over_the_best(self):
        trials = trials_of(a={"random": [1.0, 1.0], "cluster": [2.0, 3.0]})
        assert study.spreads(trials).set_index("seed")["spread"].to_dict() == {0: 2.0, 1: 3.0}

    @pytest.mark.parametrize("b", [[1.0], []])
    def test_other_seeds_cannot_be_compared(self, b):
        with pytest.raises(ValueError, match="must be the same"):
            effect(trials_of(a=[1.0, 2.0], b=b), "a", "b", start="random", measure="distortion")


def ends_of(trace):
    return zip(trace.x, trace.error_x.array, trace.error_x.arrayminus, strict=True)


def test_figures_say_what_the_fits_say(latents):
    chosen = [AUTHORS, *study.peer_variants(["vq"]), study.together()]
    pair = ("random", "cluster")
    trials = compare({0: latents, 1: latents}, chosen, QUICK, starts=pair, progress=False)
    assert len(trials) == 2 * (2 * 3 + 1)
    assert set(study.summary(trials)["variant"]) == set(trials["variant"])
    ladder = figures.ladder(trials, study.bounds(latents, 16)["distortion"], what="Fixed latents")
    means = trials[trials["variant"] != "k-means"].groupby("variant")["distortion"].mean()
    assert f"{means.idxmin()} errs least" in ladder.layout.title.text.replace("<br>", " ")
    assert sum(len(trace.x) for trace in ladder.data if trace.mode == "markers") == 12
    judged = effects(trials)
    fig = figures.effects(judged, what="Fixed")
    assert f"{(judged['verdict'] == 'undecided').sum()} undecided" in fig.layout.title.text
    drawn = [(x + e, x - a) for t in fig.data for x, e, a in ends_of(t)]
    np.testing.assert_allclose(
        sorted(drawn), sorted(zip(judged["high"], judged["low"], strict=True))
    )
    histories = {v.name: fit(v, latents, QUICK, start="cluster")[1] for v in chosen}
    assert len(figures.cooling(histories).data) == 6
    assert len(figures.starts(trials, ["authors", "all together"]).data) == 4
    assert figures.rate_distortion(trials, latents.spectrum.eigenvalues).data[0].name
