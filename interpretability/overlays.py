"""Heat maps laid over X-rays, in the X-ray's own geometry."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dataset_loader.decoding import central_square
from interpretability.faithfulness import enlarged

COLOURS = "inferno"
OPACITY = 0.65  # of the strongest evidence; none is transparent
OUTLINE = np.array([86, 180, 233], dtype=np.uint8)  # light blue


def heat_on(heat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map [h, w] of the square that the network saw, on the whole X-ray: [H, W], largest 1, 0 beside the square."""
    top, left, side = central_square(*shape)
    large = enlarged(torch.from_numpy(heat.astype(np.float32))[None], side)[0].numpy()
    whole = np.zeros(shape, np.float32)
    whole[top : top + side, left : left + side] = large / max(float(large.max()), 1e-30)
    return whole


def overlay(gray: np.ndarray, heat: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    """uint8 [H, W, 3]: the X-ray, gray [H, W], under a heat map [h, w] if there is one, lungs [H, W] outlined."""
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
    if heat is not None:
        strength = heat_on(heat, (gray.shape[0], gray.shape[1]))
        colour = colormaps[COLOURS](strength)[..., :3] * 255
        opacity = OPACITY * strength[..., None]
        picture = (1 - opacity) * picture + opacity * colour
    picture = picture.round().astype(np.uint8)
    if mask is not None:
        picture[outline(mask)] = OUTLINE
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """The inner border, bool [H, W], of a mask [H, W]: about a 150th of the picture wide."""
    inner = mask
    for _ in range(max(1, round(min(mask.shape) / 150))):
        padded = np.pad(inner, 1)
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def panel(
    originals: Sequence[np.ndarray],
    titles: Sequence[str],
    rows: Mapping[str, Sequence[np.ndarray]],
    captions: Mapping[str, Sequence[str]],
    title: str,
) -> Figure:
    """Columns are X-rays; the first row shows them as they are, each other row a checkpoint's overlays.

    originals, titles  of the columns; uint8 [H, W, 3]
    rows, captions     by checkpoint: overlays, and what stands above each: the prediction
    """
    across, down = len(originals), 1 + len(rows)
    figure = Figure(figsize=(1.75 * across + 1.6, 2.05 * down + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(down, across, squeeze=False)
    pictures = [("X-ray", originals, titles), *((name, rows[name], captions[name]) for name in rows)]
    for line, (name, images, texts) in zip(axes, pictures, strict=True):
        for ax, image, text in zip(line, images, texts, strict=True):
            ax.imshow(image)
            ax.set_title(text, fontsize=8)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(_wrapped(name), fontsize=8)
    scale = ScalarMappable(Normalize(0, 1), COLOURS)
    figure.colorbar(scale, ax=axes, label="evidence for the class, share of the map's largest", shrink=0.7, aspect=40)
    return figure


def _wrapped(name: str, width: int = 22) -> str:
    """A run's name in lines, broken at its underscores."""
    lines = [""]
    for piece in name.replace("/", "/_").split("_"):
        joined = f"{lines[-1]}_{piece}" if lines[-1] and not lines[-1].endswith("/") else lines[-1] + piece
        if len(joined) > width and lines[-1]:
            lines.append(piece)
        else:
            lines[-1] = joined
    return "\n".join(lines)
