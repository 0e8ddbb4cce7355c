"""What people do to a tokenizer that its own training never does, for every method alike."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lgqlib.presets import preset
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.base import NonFinite
from lgqlib.quantizers.lgq import LGQ
from lgqlib.tokenizer import Tokenizer

every_method = pytest.mark.parametrize("name", METHODS)
TAU = 0.5


def quantizer(name):
    torch.manual_seed(0)
    config = preset(method=name, num_codes=1024 if name in ("lfq", "bsq") else 64)
    return build(config.quantizer, config.backbone.dim)


def latents(q, *shape):
    return torch.randn(shape[0], q.dim, *shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(preset(num_codes=64)).eval()


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_any_dtype_comes_back_and_weights_keep_at_least_float32(name, dtype):
    q = quantizer(name).to(dtype).train()
    z = latents(q, 2, 4, 4)
    out = q(z.to(dtype), TAU)
    assert out.z_q.dtype == dtype and out.z_q.isfinite().all()
    real = [v for v in q.state_dict().values() if v.is_floating_point()]
    assert all(v.dtype in (torch.float32, torch.float64) for v in real)


@every_method
def test_latents_of_any_rank_are_the_same_tokens(name):
    q = quantizer(name).eval()
    z = latents(q, 2, 4, 6)
    indices = q.encode(z)
    flat = z.movedim(1, -1).flatten(0, 2)
    assert torch.equal(q.encode(flat), indices.flatten())
    assert torch.equal(q.encode(z.flatten(2)), indices.flatten(1))
    assert torch.equal(q.encode(z[:, :, None]), indices[:, None])
    assert torch.equal(q.encode(z.movedim(1, -1), channels_last=True), indices)
    assert torch.equal(q.encode(z.to(memory_format=torch.channels_last)), indices)
    out = q.train()(z.movedim(1, -1), TAU, channels_last=True)
    assert out.z_q.shape == (2, 4, 6, q.dim) and out.indices.shape == (2, 4, 6)
    assert q(z[:0], TAU).z_q.shape == z[:0].shape and q(z[:1, :, :1, :1], TAU).indices.numel() == 1
    with pytest.raises(ValueError, match=f"C = {q.dim}"):
        q(z[:, 1:], TAU)


@every_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_are_counted(name, value):
    q = quantizer(name)
    z = latents(q, 2, 4, 4)
    z[0, 0, 0, :3] = value
    with pytest.raises(NonFinite, match="latents hold 3 values"):
        q.train()(z, TAU)


@every_method
def test_copies_and_pickles_choose_the_same_codes(name):
    q = quantizer(name).eval()
    z = latents(q, 2, 4, 4)
    for again in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(again.encode(z), q.encode(z))


@pytest.mark.parametrize("name", ["lgq", "fsq", "simvq"])
def test_encode_and_decode_are_exported(name):
    torch.manual_seed(0)
    tokenizer = Tokenizer(preset(method=name, num_codes=64)).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    indices = tokenizer.encode(images)
    for method, given in (("encode", images), ("decode", indices)):
        module = torch.nn.Module()
        module.tokenizer = tokenizer
        module.forward = getattr(tokenizer, method)
        program = torch.export.export(module.eval(), (given,)).module()
        assert torch.allclose(program(given), getattr(tokenizer, method)(given))


def test_indices_of_any_integer_type(tokenizer):
    indices = torch.randint(64, (2, 8, 8))
    images = tokenizer.decode(indices)
    for given in (indices.int(), indices.numpy(), indices.numpy().astype(np.uint16)):
        assert torch.equal(tokenizer.decode(given), images)
    with pytest.raises(ValueError, match="must be integers"):
        tokenizer.decode(indices.float())
    counts = np.arange(64)
    assert tokenizer.pruned(counts)[0].num_codes == tokenizer.pruned(counts.tolist())[0].num_codes
    with pytest.raises(ValueError, match="must be integers"):
        tokenizer.pruned(counts / 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codebook_loss": "free-energy"},
        {"usage": "entropyy"},
        {"identity": 5.0},
        {"energy": "euclid"},
        {"num_nearest": -1},
        {"active_floor": -1.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_arguments_are_refused_by_their_values(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} = {value!r}: it must be"):
        LGQ(8, 4, **wrong)
    with pytest.raises(ValueError, match="tau = None"):
        LGQ(8, 4).train()(torch.randn(2, 4))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda w: {k: v for k, v in w.items() if k != "quantizer.codes"}, "quantizer.codes"),
        (lambda w: w | {"extra": torch.ones(1)}, "extra"),
        (lambda w: w | {"quantizer.codes": torch.ones(64, 4)}, "size mismatch"),
    ],
    ids=["missing", "besides", "shape"],
)
def test_weights_that_do_not_fit_are_named(tokenizer, tmp_path, change, said):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(ValueError, match=said):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["lgq-f4-1024", "vq-f4-1024"])
def test_a_tokenizer_that_ships_opens_by_its_name(name, cache):
    from lgqlib.config import DataConfig
    from lgqlib.data import load, to_model, whole_images

    tokenizer = Tokenizer.from_pretrained(name).eval()
    held_out = load(DataConfig(), "val", cache=cache)
    images = to_model(dict(whole_images(held_out, multiple=4, limit=9))["chelsea"][None])
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.encode(images))
    assert 10 * torch.log10(4 / (decoded - images).square().mean()) > 28
    assert tokenizer.config.data.root == ""
