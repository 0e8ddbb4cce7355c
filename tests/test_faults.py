"""What people do to a tokenizer that its own training never does, for every method alike."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from builders import assert_same, folder_of
from safetensors.torch import load_file, save_file

from lgqlib.config import TERMS, DataConfig
from lgqlib.data import load, to_model, whole_images
from lgqlib.evaluate import evaluate_run
from lgqlib.figures.evaluation import code_map, usage_histogram
from lgqlib.files import write_json
from lgqlib.measure.geometry import geometry_table, measure_geometry
from lgqlib.presets import preset
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.base import NonFinite
from lgqlib.run import Run
from lgqlib.tokenizer import SHIPPED, Tokenizer
from lgqlib.train import train

every_method = pytest.mark.parametrize("name", METHODS)
TAU = 0.5


def quantizer(name):
    torch.manual_seed(0)
    config = preset(method=name, num_codes=1024 if name in ("lfq", "bsq") else 64)
    return build(config.quantizer, config.backbone.dim)


@every_method
def test_any_dtype_comes_back_and_what_is_not_finite_is_counted(name):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        q = quantizer(name).to(dtype).train()
        make = torch.Generator().manual_seed(1)
        z = torch.randn(2, q.dim, 4, 4, generator=make).to(dtype)
        out = q(z, TAU)
        assert out.z_q.dtype == dtype and out.z_q.isfinite().all()
        real = [v for v in q.state_dict().values() if v.is_floating_point()]
        assert all(v.dtype in (torch.float32, torch.float64) for v in real)
        assert torch.equal(pickle.loads(pickle.dumps(q)).encode(z), q.encode(z))
    for value in (torch.nan, torch.inf):
        z[0, 0, 0, :3] = value
        with pytest.raises(NonFinite, match="latents hold 3 values"):
            q(z, TAU)


def test_weights_that_do_not_fit_are_named(tmp_path):
    Tokenizer(preset(num_codes=64)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    right = load_file(file)
    for wrong, said in (
        ({k: v for k, v in right.items() if k != "quantizer.codes"}, "quantizer.codes"),
        (right | {"extra": torch.ones(1)}, "extra"),
        (right | {"quantizer.codes": torch.ones(64, 4)}, "size mismatch"),
    ):
        save_file(wrong, file)
        with pytest.raises(ValueError, match=said):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", sorted(file.parent.name for file in SHIPPED.glob("*/config.json")))
def test_a_tokenizer_that_ships_opens_by_its_name(name, cache):
    tokenizer = Tokenizer.from_pretrained(name).eval()
    held_out = load(DataConfig(), "val", cache=cache)
    images = to_model(dict(whole_images(held_out, multiple=4, limit=9))["chelsea"][None])
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.encode(images))
    assert 10 * torch.log10(4 / (decoded - images).square().mean()) > 28
    assert tokenizer.config.data.root == ""


@pytest.fixture
def own_config(tmp_path, tiny_config):
    """Give what makes the config of a run on nine images of one's own, below `tmp_path`."""
    names = [f"{split}/{i}.png" for split, n in (("train", 5), ("val", 4)) for i in range(n)]
    root = folder_of(tmp_path / "my images", *names)
    few = f"data.size=16 data.name=imagefolder data.root='{root}' evaluation.extractor="
    return lambda method="lgq", k=16: tiny_config(method, f"{few} quantizer.num_codes={k}")


def test_what_decides_the_weights_decides_the_name():
    config = preset()
    same = [{"data.eval_crops": 7}, {"evaluation.batch_size": 3, "evaluation.extractor": "lite0"}]
    others = [{"data.content": "other"}, {"train.num_steps": 9}, {"train.after": "a run"}]
    others += [{"data.resize": 64}, {"seed": 1}, *({f"loss.{term}": 0.123} for term in TERMS)]
    assert {config.override(change).run_name for change in same} == {config.run_name}
    names = {config.override(change).run_name for change in others}
    assert len(names - {config.run_name}) == len(others)


def test_a_run_is_its_images_wherever_they_lie(own_config, tmp_path, cache):
    own = own_config()
    run, root, other = Run.create(tmp_path / "runs", own), Path(own.data.root), tmp_path / "other"
    train(own, run, cache=cache, progress=False)
    saved = [file.stat().st_mtime_ns for file in run.path.glob("checkpoints/*")]
    root.rename(other)
    with pytest.raises(ValueError, match=r"data.root = .*my images.*Run\(\.\.\.\)\.moved"):
        evaluate_run(run, cache=cache, train_batches=1, progress=False)
    run = Run(run.path).moved(other)
    assert evaluate_run(Run(run.path), cache=cache, train_batches=1, progress=False).held_out.any()

    # The same config at the new place is the same run; more crops are evaluated, not trained.
    there = own.override({"data.root": str(other), "data.eval_crops": 2})
    again = Run.create(tmp_path / "runs", there)
    assert again.path == run.path and again.is_complete and not again.is_evaluated
    train(there, again, cache=cache, progress=False)
    few = evaluate_run(again, cache=cache, train_batches=1, progress=False)
    assert few.numbers["num_images"] == 2 and again.is_evaluated and not run.is_evaluated
    assert saved == [file.stat().st_mtime_ns for file in run.path.glob("checkpoints/*")]

    folder_of(root, "train/0.png", "val/1.png")
    assert Run.create(tmp_path / "runs", own).path != run.path
    with pytest.raises(ValueError, match="must hold the images of this run"):
        run.moved(root)


CONSTANT = (
    "train.decay=constant train.warmup=0 temperature.kind=constant train.num_snapshots=0 "
    "train.ema=0.9 loss.adversarial=0.1 loss.adversarial_start=0"
)


@pytest.mark.parametrize("method", ["lgq", "vq_ema"])
def test_going_on_after_a_finished_run_equals_one_longer_run(
    method, tiny_config, trained_in, tmp_path
):
    short = tiny_config(method, CONSTANT)
    first = trained_in("runs", short)
    whole = trained_in("runs", short.override("train.num_steps=16"))
    after = first.config.override({"train.num_steps": 16, "train.after": first.name})
    for config in (after.override("train.num_steps=8"), after.override("train.after=nowhere")):
        with pytest.raises(ValueError, match=r"train.after = .*fewer steps than|nowhere"):
            Run.create(tmp_path / "runs", config)
    longer = trained_in("runs", after)
    assert first.step == 8 and longer.step == 16 and longer.path != whole.path
    assert_same(whole, longer)
    losses = [run.metrics().query("split == 'train'").loss.tolist() for run in (whole, longer)]
    assert losses[0] == losses[1] and len(losses[0]) == 8


@every_method
def test_one_or_two_codes_train_and_evaluate_or_are_refused(name, own_config, trained_in, cache):
    """Also with fewer images than a batch, and four that are held out."""
    if name in ("fsq", "ifsq", "lfq", "bsq"):
        with pytest.raises(ValueError, match="num_codes = 1:"):
            trained_in("runs", own_config(name, 1))
        return
    for num_codes in (1, 2):
        run = trained_in("runs", own_config(name, num_codes))
        found = evaluate_run(run, cache=cache, train_batches=1, progress=False)
        assert (found.numbers["bits_per_token_coded"] == 0) == (num_codes == 1)
        assert (found.numbers["bits_per_token_prior"] == 0) == (num_codes == 1)
        assert any("costs no bit" in said for said in found.caveats) == (num_codes == 1)
        sites = found.tokenizer.quantizer.sites.detach()
        code_map(found.held_out[0] / 255, found.evaluation.indices[0], sites)
        usage_histogram(found.evaluation.counts, method=name)
        z = found.tokenizer.latents(to_model(found.held_out))
        z = found.tokenizer.quantizer.points(z).detach().flatten(0, -2).numpy()
        geometry_table({name: measure_geometry(sites.numpy(), z, found.evaluation.indices.ravel())})


def test_few_held_out_images_say_what_their_numbers_mean(copied, cache):
    run = copied()
    for num_images in (1, 2, 3):
        run.config = run.config.override({"data.eval_crops": num_images})
        found = evaluate_run(run, cache=cache, train_batches=1, progress=False)
        assert {"psnr", "ssim", "perceptual", "bits_per_token_coded"} <= found.numbers.keys()
        assert ("kid" in found.numbers, "fd" in found.numbers) == (num_images > 2, num_images > 1)
        assert f"{num_images} held-out image" in found.caveats[0]


def test_a_run_on_a_read_only_disk_is_looked_at_and_nothing_is_written(copied, monkeypatch, caplog):
    run, access = copied(), os.access
    disk = run.path.parent
    before = sorted(disk.rglob("*"))
    on_disk = lambda path, mode: disk.name not in Path(path).parts and access(path, mode)  # noqa: E731
    monkeypatch.setattr(os, "access", on_disk)
    found = evaluate_run(run, cache=disk / "cache", train_batches=1, progress=False)
    write_json(run.notebooks / "03_geometry.json", {"x": 1})
    assert found.numbers["num_images"] == 32
    assert sorted(disk.rglob("*")) == before
    assert caplog.text.count("cannot be written") == 1
