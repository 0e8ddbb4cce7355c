"""The explorer without a browser: what opens, is computed, is refused, and comes back."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
import vector_quantize_pytorch as vqp
from safetensors.numpy import save_file
from torch import nn

from lgqlib import explore
from lgqlib.config import Config
from lgqlib.explorers import opening
from lgqlib.explorers.layout import arrange, settle, trust
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.opening import from_arrays, opened
from lgqlib.explorers.preparing import prepare
from lgqlib.explorers.runs import open_runs
from lgqlib.quantizers.assignment import soft_assign


def arrays(num=16, dim=3, *, maps=2, side=8, factor=4):
    random = np.random.default_rng(0)
    return {
        "codebook": random.normal(size=(num, dim)).astype(np.float32),
        "latents": random.normal(size=(maps, dim, side, side)).astype(np.float32),
        "images": random.integers(0, 256, (maps, 3, side * factor, side * factor), dtype=np.uint8),
    }


@pytest.fixture(scope="module")
def widget(trained, cache):
    one, two = torch.randint(256, (3, 64, 96), dtype=torch.uint8), torch.zeros(3, 64, 64)
    options = dict(images=[("one", one), ("two", two)], temperatures=4, cache=cache)
    return explore(str(trained("lgq").path), trained("vq"), **options)


def test_layout_gives_every_code_its_own_cell_and_keeps_neighbors():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(150, 2))
    cells = arrange(points)
    assert len(set(cells.tolist())) == 150 and cells.max() < 13**2
    near = np.linalg.norm(points[:, None] - points, axis=2).argsort(1)[:, 1:25]
    kept, there = trust(cells, near)
    shuffled, _ = trust(rng.permutation(169)[:150], near)
    assert kept.sum() > 0.75 * there.sum() > 2.5 * shuffled.sum() and (kept <= there).all()
    assert (settle(points, points, cells) == cells).mean() > 0.9, "laid over itself it stays"


def test_meta_and_blob_hold_what_the_tokenizer_gives(widget):
    meta = widget.meta
    assert [about["K"] for about in meta["tokenizers"]] == [64, 64]
    assert [p["pixels"] for p in meta["photographs"]] == [[64, 96], [64, 64]]
    for m, o in enumerate(widget.tokenizers):
        offset, size, kind = meta["arrays"][f"{m}/i0"]
        grid = np.frombuffer(widget.blob[offset : offset + size], f"<{kind[0]}2").reshape(16, 24)
        assert (grid == o.indices[0].numpy()).all()
        assert widget.tables[m]["count"].sum() == o.num_tokens == 16 * 24 + 16 * 16
        assert sorted(widget.tables[m]["cell"]) == list(range(64))
        about = meta["tokenizers"][m]
        assert 1.0 in about["temperatures"] and about["tau_c"] in about["temperatures"]
    json.dumps(meta, allow_nan=False)
    o = widget.tokenizers[0]
    z, taus = o.points[0].flatten(0, 1), [o.width, 10 * o.width]
    for tau, codes, bits in zip(taus, *o.soften(z, taus), strict=True):
        exact = soft_assign(z, o.sites, tau, energy=o.energy, widths=o.widths)
        torch.testing.assert_close(codes, exact.average, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bits, exact.entropy / math.log(2), rtol=1e-3, atol=1e-4)


def test_selections_come_back_as_tokens_table_and_csv(widget, tmp_path):
    code = int(widget.tables[0]["count"].argmax())
    widget.selection = [code]
    assert len(widget.tokens) == widget.tables[0]["count"][code]
    n, row, column = widget.tokens[0]
    assert widget.tokenizers[0].indices[n][row, column] == code
    assert widget.frame().index.tolist() == [code]
    places = widget.token_frame()
    assert (places["code"] == code).all() and len(places) == len(widget.tokens)
    widget.to_csv(tmp_path / "codes.csv")
    head, row = (tmp_path / "codes.csv").read_text().splitlines()
    assert "entropy_bits" in head and "spacing_rms_errors" in head and row.startswith(f"{code},")
    widget.selection = []
    sums = widget.frame()[["share", "error_share"]].sum()
    assert len(widget.frame()) == 64 and sums.tolist() == pytest.approx([1, 1])


def test_arrays_open_with_and_without_images_and_files_by_name(tmp_path, monkeypatch):
    given = arrays()
    bare = explore(codebook=given["codebook"], latents=torch.tensor(given["latents"]))
    assert bare.meta["tokenizers"][0]["images"] == 0
    about = explore(**given).meta["tokenizers"][0]
    assert about["factor"] == 4 and not about["decodes"]
    np.savez(tmp_path / "a.npz", **given)
    save_file(given, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        o = opened(tmp_path / name)
        assert torch.equal(o.indices[0], from_arrays(**given).indices[0])
    flat = given["latents"].transpose(0, 2, 3, 1).reshape(-1, 3)
    many = from_arrays(given["codebook"], flat)
    assert (many.num_tokens, many.total) == (121, 128), "whole rows of 11 are shown"
    monkeypatch.setattr(opening, "LIMIT", 100)
    about = prepare([from_arrays(given["codebook"], flat)])[0]["tokenizers"][0]
    assert (about["tokens"], about["total"]) == (100, 128), "many are sampled, and it says so"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codebook": None}, "must both be given"),
        ({"latents": np.zeros((5, 4))}, "do not fit: codebook \\[K, C\\]"),
        ({"latents": np.full((5, 3), np.nan)}, "finite"),
        ({"indices": np.zeros((2, 8, 7), int)}, "indices \\(2, 8, 7\\) do not fit"),
        ({"indices": np.full((2, 8, 8), 99)}, "in \\[0, 16\\)"),
        ({"images": np.zeros((2, 3, 30, 32), np.uint8)}, "images of .* do not fit"),
        ({"images": np.zeros((2, 4, 32, 32), np.uint8)}, "must be \\[3, H, W\\]"),
        ({"latents": np.array([["a"]])}, "must hold numbers"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(change, says):
    with pytest.raises(ValueError, match=says):
        from_arrays(**{**arrays(), **change})


def test_pickled_objects_other_files_and_other_objects_are_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", codebook=np.array([{}], dtype=object), latents=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="pickled objects"):
        explore(tmp_path / "bad.npz")
    (tmp_path / "no.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "few.npz", codebook=np.zeros((2, 3)))
    for name, says in (("no.npz", "cannot be read"), ("few.npz", "holds"), ("x.npz", "exist")):
        with pytest.raises(ValueError, match=says):
            explore(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be opened"):
        explore(object())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(ValueError, match=r"photograph broken cannot be read"):
        opening.photographs([tmp_path / "broken.jpg"])


class VQModel(nn.Module):
    """What diffusers' VQModel answers."""

    def __init__(self):
        super().__init__()
        self.quantize = SimpleNamespace(embedding=nn.Embedding(32, 4))
        self.down, self.up = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4)
        self.config = SimpleNamespace(block_out_channels=(1, 1, 1))

    def encode(self, x):
        return SimpleNamespace(latents=self.down(x))

    def decode(self, z, force_not_quantize=False):
        assert force_not_quantize
        return SimpleNamespace(sample=self.up(z).tanh())


def test_a_model_like_diffusers_opens():
    images = np.random.default_rng(0).random((2, 3, 40, 48), dtype=np.float32)
    about = explore(VQModel(), images=images, temperatures=3).meta["tokenizers"][0]
    assert (about["K"], about["C"], about["grids"][0]) == (32, 4, [10, 12])
    assert about["decodes"] and about["pixels"]
    with pytest.raises(ValueError, match="needs images"):
        explore(VQModel())


def test_runs_are_keyed_by_method_and_numbered(trained, cache):
    lgq, fsq = trained("lgq"), trained("fsq")
    others, root = f"{fsq.path} {lgq.name}", lgq.path.parent
    runs = open_runs(str(lgq.path), others, runs=root, cache=cache, num_images=2)
    assert list(runs) == ["lgq", "fsq", "lgq 2"]
    assert math.isfinite(runs["lgq"].tau) and math.isnan(runs["fsq"].tau)
    first, *others = runs.values()
    assert all(each.names == first.names for each in others), "all see the same photographs"


def test_curves_follow_the_log_and_no_failure_to_draw_reaches_the_training():
    run, columns = SimpleNamespace(config=Config(), rows=[]), ["step", "split", "loss", "tau"]
    run.metrics = lambda: pandas.DataFrame(run.rows, columns=columns)
    with LiveCurves(run, interval=0.001) as live:
        run.rows += [(1, "train", 1.0, 0.5), (2, "train", 0.5, 0.5)]
    assert live.failure is None
    assert list(next(t for t in live.widget.data if t.name == "loss").x) == [1, 2]
    with LiveCurves(run, interval=0.001) as live:
        rows = vars(run).pop("rows")
        live._thread.join(timeout=5)
        run.rows = rows
    assert isinstance(live.failure, AttributeError)
    with pytest.raises(KeyboardInterrupt), LiveCurves(run, interval=0.01):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "module",
    [
        vqp.VectorQuantize(8, 32, codebook_dim=4, accept_image_fmap=True),
        vqp.VectorQuantize(8, 32, codebook_dim=4, accept_image_fmap=True, use_cosine_sim=True),
        vqp.SimVQ(8, 32, channel_first=True),
    ],
    ids=["projected", "cosine", "simvq"],
)
def test_modules_of_vector_quantize_pytorch_choose_the_same_codes(module):
    module.eval()
    latents = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        indices = module(latents)[1]
        o = opened(module, latents=latents)
    assert torch.equal(torch.stack(o.indices), indices)
