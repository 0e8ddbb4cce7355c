"""Quantizers on fixed latents: fits that reach k-means. Notebook 07 fits every setting."""

from lgqlib.measure.temperature import critical_temperature
from lgqlib.study import fixed_latents as lab


def test_annealed_free_energy_forgets_a_bad_start_and_the_authors_setting_does_not():
    drawn = lab.gaussian_latents(2048, lab.geometric_spectrum(32, 4), seed=0)
    assert critical_temperature(drawn.points) > 20  # so that tau = 1 is cold
    common = {"quantizer.num_codes": 32, "train.num_steps": 150, "train.lr": 0.2}
    settings = {name: lab.lgq_settings()[name] for name in ("authors", lab.WHOLE)}
    common |= {"train.batch_size": 256}
    trials = lab.compare({0: drawn}, settings, common, starts=["cluster"]).set_index("setting")
    error = trials["distortion"]
    assert error[lab.WHOLE] < 1.03 * error["k-means"] and error["authors"] > 1.1 * error["k-means"]
    assert trials["active_share"][lab.WHOLE] == 1
