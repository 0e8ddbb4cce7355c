"""What the tokens of a trained run cost under a prior, and its files against JPEG and WebP.

    python benchmarks/prior.py RUN --images FOLDER --cache FOLDER [--steps 2000] [--limit 3000]

The prior learns from the embedded training photographs, whole and at 256 pixels, and from training
images of FOLDER (train/ and val/ with a folder a class), if given. It is measured on the nine
held-out photographs, at both sizes, and on 100 held-out images of FOLDER. RUN may also be a name in
lgqlib/pretrained, whose prior is then taken as it is with `--steps 0`. `--save FILE` writes the
prior; `--weight 0.5` also encodes by `closer_tokens`, with that weight of bits.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from lgqlib import Run, Tokenizer, preset
from lgqlib import prior as room
from lgqlib.data import ImageSet, load, whole_images
from lgqlib.measure.codecs import CODECS
from lgqlib.tokenizer import SHIPPED


def spread(images: ImageSet, limit: int, *, largest: int = 1024) -> dict:
    """Give up to `limit` images, spread over the set, with sides of whole tokens."""
    return dict(whole_images(images, multiple=4, limit=limit, largest=largest))


def main() -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    asked = {"images": "", "cache": Path("data/cache"), "steps": 2000, "limit": 3000, "seed": 0}
    for name, default in {**asked, "save": "", "weight": -1.0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    is_run, photos = (Path(asked.run) / "checkpoints").is_dir(), preset("laptop")
    tokenizer = Run(asked.run).tokenizer() if is_run else Tokenizer.from_pretrained(asked.run)
    small = photos.override({"data.resize": 256})
    kinds = {"photographs at 256": small.data, "photographs, whole": photos.data}
    if asked.images:
        folder = {"data.name": "imagefolder", "data.root": asked.images}
        kinds["images of the folder"] = photos.override(folder).data
    shown = [spread(load(data, "train", cache=asked.cache), asked.limit) for data in kinds.values()]
    maps = [room.tokens_of(tokenizer, image) for images in shown for image in images.values()]
    start = time.process_time()
    if asked.steps:
        how = {"num_steps": asked.steps, "seed": asked.seed, "progress": False}
        prior = room.fit(tokenizer.codebook, maps, **how)
    else:
        tokenizer, prior = room.pretrained(SHIPPED / asked.run)
    took = time.process_time() - start
    paid = {"prior": prior if asked.weight > 0 else None, "weight": asked.weight}
    encode = partial(room.closer_tokens, tokenizer, **paid) if asked.weight >= 0 else None
    print(f"{asked.run}: K = {tokenizer.num_codes}, {len(maps)} images, {took:.0f} s of one core")
    print("| | n | PSNR | counts | left neighbor | prior | bits a pixel | JPEG | WebP | excess |")
    if asked.save:
        prior.save(asked.save)
    for name, data in kinds.items():
        size = 256 if data.resize else 1024
        images = spread(load(data, "val", cache=asked.cache), 100, largest=size)
        tested = [room.tokens_of(tokenizer, image) for image in images.values()]
        zero, left = (
            room.count_bits(maps, tested, tokenizer.codebook, clusters=n).mean() for n in (1, 256)
        )
        files = room.file_rates(tokenizer, prior, images, encode=encode)
        mean = files.mean(numeric_only=True)
        error = files["bits_per_token"].std() / len(files) ** 0.5
        row = [name, str(len(files)), f"{mean['psnr']:.2f}", f"{zero:.2f}", f"{left:.2f}"]
        row += [f"{mean['bits_per_token']:.2f} ± {error:.2f}", f"{mean['bits_per_pixel']:.3f}"]
        for codec in CODECS:
            gain = files["psnr"] - files[codec]
            row.append(f"{gain.mean():+.2f} ({(gain > 0).sum()} of {len(gain)})")
        print("|", " | ".join([*row, f"{files['excess'].max():.2%}"]), "|", flush=True)
    image = next(iter(spread(load(small.data, "val", cache=asked.cache), 1, largest=256).values()))
    for _ in range(2):  # the first one warms up
        start = time.process_time()
        content = room.compress(tokenizer, prior, image)
        middle = time.process_time()
        room.decompress(tokenizer, prior, content)
        end = time.process_time()
    there, back = (image[0].numel() / 16 / spent for spent in (middle - start, end - middle))
    print(f"{there:,.0f} tokens to a file in a second of one core, {back:,.0f} back")


if __name__ == "__main__":
    main()
