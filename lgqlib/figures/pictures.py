"""Pictures for a browser: arrays as WebP, small and exact, one by one or many in one."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8
from PIL import Image
from plotly.colors import get_colorscale, hex_to_rgb
from scipy.ndimage import uniform_filter
from torch import Tensor

from lgqlib.figures.style import SEQUENTIAL, WIDTH, panels

Array = np.ndarray | Tensor
DETAILS = {"chelsea": (182, 118), "coffee": (190, 118), "imagenet_09_455": (262, 200)}
"""Centers of details, x and y, of embedded photographs; those are shown first."""


def data_uri(pixels: UInt8[np.ndarray, "H W channels"], *, quality: int = 0) -> str:
    """Encode pixels as the source of an image trace: as WebP, exactly or of a quality to 100."""
    how = {"quality": quality} if quality else {"lossless": True, "quality": 70}
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="WEBP", **how)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def as_pixels(images: Array) -> UInt8[np.ndarray, "n H W 3"]:
    """Give images [n, 3, H, W] in [0, 1] as bytes with the colors last."""
    x = np.moveaxis(np.asarray(images, dtype=np.float32), 1, -1)
    return np.round(np.clip(x, 0, 1) * 255).astype("uint8")


def colored(
    values: Float[np.ndarray, "*shape"],
    *,
    scale: str = SEQUENTIAL,
    low: float = 0.0,
    high: float | None = None,
) -> UInt8[np.ndarray, "*shape 3"]:
    """Give numbers the colors of a scale, from `low` to `high` (their largest); nan is grey."""
    high = float(np.nanmax(values, initial=low)) if high is None else high
    share = np.clip((np.asarray(values, dtype=float) - low) / max(high - low, 1e-12), 0, 1)
    stops = np.array([hex_to_rgb(c) for _, c in get_colorscale(scale)], dtype=float)
    at = np.linspace(0, 1, len(stops))
    known = np.nan_to_num(share)
    rgb = np.stack([np.interp(known, at, channel) for channel in stops.T], axis=-1)
    return np.where(np.isnan(share)[..., None], 128, np.round(rgb)).astype("uint8")


def picture_grid(
    rows: Mapping[str, UInt8[np.ndarray, "_ _ _ 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    *,
    columns: Sequence[str] = (),
    hover: Sequence[Sequence[str]] | None = None,
    tile: int = 0,
    gap: int = 2,
    axis: str = "",
    quality: int = 0,
) -> go.Figure:
    """Lay pictures of one size out in labeled rows, as one image: as cheap as a single picture.

    `rows`: by the label, pictures [H, W, 3]; rows may differ in length. `columns`: labels above.
    `hover`: a text a picture. `tile`: a picture's side in screen pixels, by default what fits.
    `quality`: of `data_uri`. Raises ValueError where pictures differ in size.
    """
    shapes = {picture.shape for row in rows.values() for picture in row}
    if len(shapes) != 1:
        raise ValueError(f"pictures of shapes {sorted(shapes)}: expected one shape.")
    (height, width, _) = shapes.pop()
    count = max(map(len, rows.values()))
    room = WIDTH - 30 - 7 * max(map(len, rows))
    tile = min(tile or max(room // count, 40), max(room // count, 8))
    factor = max(1, tile // width)
    step_y, step_x = height * factor + gap, width * factor + gap
    sheet = np.zeros((len(rows) * step_y - gap, count * step_x - gap, 4), dtype=np.uint8)
    for i, row in enumerate(rows.values()):
        for j, pixels in enumerate(row):
            top, left = i * step_y, j * step_x
            place = sheet[top : top + height * factor, left : left + width * factor]
            place[..., :3] = np.asarray(pixels).repeat(factor, 0).repeat(factor, 1)
            place[..., 3] = 255
    shown = tile * height / width
    fig, (panel,) = panels(height=int(len(rows) * (shown + gap) + 130))
    panel.picture(data_uri(sheet, quality=quality))
    if hover is not None:  # an image has one label for all of it: clear points have their own
        places = [(i, j) for i, texts in enumerate(hover) for j in range(len(texts))]
        panel.dots(
            [(j + 0.5) * step_x for _, j in places],
            [(i + 0.5) * step_y for i, _ in places],
            size=24,
            marker={"opacity": 0},
            text=[text for texts in hover for text in texts],
            hovertemplate="%{text}<extra></extra>",
        )
    y_ticks = {"y_tickvals": [(i + 0.5) * step_y for i in range(len(rows))]}
    x_ticks = {"x_tickvals": [(j + 0.5) * step_x for j in range(len(columns))], "x_side": "top"}
    panel.axes(y=axis, y_ticktext=list(rows), y_showticklabels=True, **y_ticks)
    panel.axes(x_ticktext=list(columns), x_showticklabels=bool(columns), **x_ticks)
    fig.update_layout(margin={"l": 20, "r": 10, "b": 8})
    return fig


def detail(
    name: str, image: UInt8[np.ndarray, "_ _ 3"], width: int, height: int, *, multiple: int = 1
):
    """Choose the part of a photograph that is magnified; give its left and top."""
    tall, wide = image.shape[:2]
    width, height = min(width, wide), min(height, tall)
    if name in DETAILS:
        x, y = DETAILS[name][0] - width // 2, DETAILS[name][1] - height // 2
    else:  # where there is most contrast of large areas
        means, box = uniform_filter(image.mean(2), 8), (height, width)
        spread = uniform_filter(means**2, box) - uniform_filter(means, box) ** 2
        inner = spread[height // 2 : tall - height // 2, width // 2 : wide - width // 2]
        y, x = np.unravel_index(inner.argmax(), inner.shape) if inner.size else (0, 0)
    x, y = (int(np.clip(v, 0, room)) for v, room in ((x, wide - width), (y, tall - height)))
    return x // multiple * multiple, y // multiple * multiple, width, height
