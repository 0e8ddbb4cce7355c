"""A method and a metric are one row of a table each: everything else follows from it."""

import shutil

import torch
from torch import nn

from lgqlib import quantizers
from lgqlib.config import QuantizerConfig
from lgqlib.figures import comparison as figures
from lgqlib.figures.style import color_of, dash_of, name_of
from lgqlib.quantizers import METHODS, Method
from lgqlib.quantizers.base import Quantized, Quantizer, straight_through
from lgqlib.study.comparison import against, comparison_table, points, tabulated
from lgqlib.study.results import finished


class Toy(Quantizer):
    """Quantize to the nearest row of a table that only commits."""

    def __init__(self, config: QuantizerConfig, dim: int):
        super().__init__(config.num_codes, dim)
        self.codes = nn.Parameter(torch.randn(config.num_codes, dim))

    @property
    def codebook(self):
        return self.codes

    def forward(self, latents, tau):
        indices = self.encode(latents)
        codes = self.lookup(indices)
        commit = (latents - codes).square().mean()
        return Quantized(straight_through(latents, codes), indices, {"commit": commit})


def test_a_method_of_one_row_trains_is_evaluated_compared_and_keeps_its_color(
    monkeypatch, trained, tmp_path
):
    row = Method("toy", Toy, "Toy VQ", "#123456", {"loss.commit": 0.5})
    monkeypatch.setitem(METHODS, "toy", row)
    runs = [trained(method) for method in ("toy", "lgq")]
    assert runs[0].is_complete and runs[0].config.loss.commit == 0.5
    assert runs[0].evaluation()["psnr"] > 5 and runs[0].name.startswith("toy-photos-K64-s0-")
    for run in runs:
        shutil.copytree(run.path, tmp_path / run.name)
    found = finished(tmp_path)
    assert set(comparison_table(found)["method"]) == {"Toy VQ", "LGQ"}
    drawn = points(found, ["psnr", "active", "bits_per_token_entropy", "images_per_second"])
    for fig in (figures.rate_distortion(drawn), figures.cost(drawn)):
        (color,) = {trace.marker.color for trace in fig.data if trace.name == "Toy VQ"}
        assert color == color_of("toy") == "#123456"
    forest = figures.forest(tabulated(against(found, ["psnr"])), ["psnr"], of="LGQ")
    assert list(forest.data[0].marker.color) == ["#123456"]
    assert name_of("toy seed 1") == "Toy VQ seed 1"
    for i in range(20):  # any number of methods has a dash
        monkeypatch.setitem(METHODS, f"m{i}", Method(f"m{i}", Toy, f"M{i}", f"#{i:06d}"))
    assert all(dash_of(name) for name in METHODS) and quantizers.known("m19") == "m19"
