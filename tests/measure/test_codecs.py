"""JPEG and WebP: more bits are fewer errors, and a file of at most so many bits is the best one."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from lgqlib.measure.codecs import CODECS, QUALITIES, at_rate, coded, curve
from lgqlib.measure.images import psnr

IMAGE = np.ascontiguousarray(astronaut()[64:192, 128:288])


@pytest.mark.parametrize("codec", CODECS)
def test_a_curve_rises_and_the_best_file_of_a_rate_is_found(codec):
    points = curve(IMAGE, codec)
    assert points.shape == (len(QUALITIES), 2)
    more_bits, better = np.diff(points, axis=0).T
    assert (better > 0).all() and (more_bits >= 0).all()
    bits, decoded = coded(IMAGE, codec, QUALITIES[5])
    x, y = (torch.from_numpy(z).permute(2, 0, 1)[None] / 255 for z in (decoded, IMAGE))
    assert points[5] == pytest.approx([bits, psnr(x, y).item()], rel=1e-6)
    sizes = [coded(IMAGE, codec, quality)[0] for quality in range(1, 96)]
    for rate in (points[8, 0] + 1e-9, 1.0):
        assert at_rate(IMAGE, codec, rate)[0] == max(size for size in sizes if size <= rate)
