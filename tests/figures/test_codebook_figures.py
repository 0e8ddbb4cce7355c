"""A codebook's way through training keeps one frame, and its codes have examples."""

import numpy as np
from drawn import texts

from lgqlib.figures.codebook import code_examples, timeline


def test_the_timeline_keeps_one_frame():
    places = [np.random.default_rng(i).standard_normal((8, 2)) for i in range(9)]
    fig = timeline(places, range(9), [8] * 9, births=1, deaths=2)
    assert len(fig.data) == 6 and fig.layout.annotations[-1].text == "step 8: 8 active"
    (low, high), last = fig.layout.xaxis.range, fig.layout.xaxis6.range
    assert last == (low, high) and all(low < x < high for trace in fig.data for x in trace.x)
    assert np.allclose(fig.data[-1].y, places[-1][:, 1])


def test_examples_have_a_label_for_each_code():
    rows = [[np.zeros((4, 4, 3), np.uint8)] * n for n in (3, 1)]
    fig = code_examples(rows, [7, 9], [30, 2], total=100)
    assert list(fig.layout.yaxis.ticktext) == ["code 7: 30", "code 9: 2"]
    assert "30.0 % of 100 tokens" in texts(fig)[0]
