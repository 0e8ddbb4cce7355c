"""A photograph to a file of tokens, and back.

python -m lgqlib.prior photograph.png out.lgq [--weight 0.5]
python -m lgqlib.prior out.lgq copy.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from lgqlib.data.store import decode
from lgqlib.files import replacing
from lgqlib.prior import compress, decompress, pretrained


def main() -> None:
    """Turn a photograph into a file of tokens, or such a file into a picture."""
    parser = argparse.ArgumentParser(prog="python -m lgqlib.prior", description=main.__doc__)
    parser.add_argument("source", type=Path, help="a photograph, or a file .lgq")
    parser.add_argument("target", type=Path, help="a file .lgq, or a picture .png")
    parser.add_argument("--folder", default="", help="of a tokenizer and its prior.safetensors")
    about = "of bits against error: a search, half a minute for 450 x 300 pixels, for a better file"
    parser.add_argument("--weight", type=float, help=about)
    asked = parser.parse_args()
    try:
        tokenizer, prior = pretrained(asked.folder)
        if asked.source.suffix == ".lgq":
            image = decompress(tokenizer, prior, asked.source.read_bytes())
            with replacing(asked.target) as temporary:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary)
            parser.exit(0, f"{asked.target}: {image.shape[2]} x {image.shape[1]} pixels\n")
        image = torch.from_numpy(decode(asked.source)).permute(2, 0, 1)
        content = compress(tokenizer, prior, image, weight=asked.weight)
        with replacing(asked.target) as temporary:
            temporary.write_bytes(content)
        bits = 8 * len(content) / image[0].numel()
        parser.exit(0, f"{asked.target}: {len(content)} bytes, {bits:.3f} bits a pixel\n")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
