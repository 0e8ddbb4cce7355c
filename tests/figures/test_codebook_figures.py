"""Codes lie over latents in one plane."""

import numpy as np
from drawn import named, texts

from lgqlib.figures.codebook import codes_in_plane
from lgqlib.measure.projection import faithfulness, project


def test_every_code_is_drawn_as_large_as_its_use_and_the_loss_is_said():
    rng = np.random.default_rng(0)
    codes, latents = (rng.standard_normal((n, 3)).astype("float32") for n in (40, 300))
    (plane,) = project([codes], [latents])
    kept = faithfulness(codes, plane.codes, num_neighbors=5)
    fig = codes_in_plane(plane, np.arange(40), kept)
    drawn = named(fig, "codes, by use")
    assert np.allclose(drawn.y, plane.codes[:, 1]) and drawn.customdata[39].tolist() == [39, 39]
    assert list(drawn.marker.size) == sorted(drawn.marker.size)
    assert f"{100 * kept.recall:.0f} % of a code's 5 nearest" in texts(fig)[0]
    assert len(named(fig, "chosen").x) == 0
