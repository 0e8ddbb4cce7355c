"""Pixels for a browser: arrays as PNG, small, exact, and the same in a figure and in a widget."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def png_bytes(pixels: UInt8[np.ndarray, "H W channels"]) -> bytes:
    """Encode RGB or RGBA pixels as PNG."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(pixels: UInt8[np.ndarray, "H W channels"]) -> str:
    """Encode pixels as the source of an image trace."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()


def enlarge(pixels: UInt8[np.ndarray, "H W channels"], side: int) -> UInt8[np.ndarray, "..."]:
    """Repeat pixels by a whole factor, so that the longer side comes close to `side`, unblurred."""
    factor = max(1, side // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def sheet(
    tiles: Sequence[UInt8[np.ndarray, "H W 3"]], *, cols: int, gap: int = 1, tile: int = 40
) -> UInt8[np.ndarray, "..."]:
    """Lay tiles of one size out in a grid on a clear ground, RGBA, each about `tile` pixels
    wide.
    """
    if not len(tiles):
        return np.zeros((1, 1, 4), dtype=np.uint8)
    grown = [enlarge(t, tile) for t in tiles]
    height, width = grown[0].shape[:2]
    rows = -(-len(grown) // cols)
    cols = min(cols, len(grown))
    out = np.zeros((rows * (height + gap), cols * (width + gap), 4), dtype=np.uint8)
    for i, pixels in enumerate(grown):
        y, x = (i // cols) * (height + gap), (i % cols) * (width + gap)
        out[y : y + height, x : x + width, :3] = pixels
        out[y : y + height, x : x + width, 3] = 255
    return out
