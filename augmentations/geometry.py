"""Geometry of a view: every image draws one homography and is resampled once.

Coordinates (x, y) run from -1 to 1 between the edges of a square image (not between the centres of its
outer pixels), x to the right and y down. A homography [3, 3] maps a point of the view to the point of the
image that it shows; operator A followed by operator B is therefore the matrix product A @ B.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]

CORNERS = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)  # [4, 2], clockwise
MAX_SHRINK = 1.5  # image pixels per view pixel that cubic interpolation takes without visible aliasing


def uniform(n: int, generator: torch.Generator, bounds: Range) -> Tensor:
    """Return [n] float64 draws between `bounds`."""
    return torch.rand(n, generator=generator, dtype=torch.float64) * (bounds[1] - bounds[0]) + bounds[0]


def crop_homography(centre_x: Tensor, centre_y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Return [n, 3, 3]: the view shows a box; `width` and `height` [n] are shares of the image's side."""
    homography = torch.eye(3, dtype=torch.float64).repeat(len(width), 1, 1)
    homography[:, 0, 0], homography[:, 0, 2] = width, centre_x
    homography[:, 1, 1], homography[:, 1, 2] = height, centre_y
    return homography


def rotation_homography(degrees: Tensor) -> Tensor:
    """Return [n, 3, 3]: the image turned counter-clockwise about its centre by `degrees` [n]."""
    radians = torch.deg2rad(degrees)
    homography = torch.eye(3, dtype=torch.float64).repeat(len(degrees), 1, 1)
    homography[:, 0, 0] = homography[:, 1, 1] = radians.cos()
    homography[:, 0, 1], homography[:, 1, 0] = -radians.sin(), radians.sin()
    return homography


def perspective_homography(corners: Tensor) -> Tensor:
    """Return [n, 3, 3]: the image's four corners (clockwise from the top left) moved to `corners` [n, 4, 2]."""
    x, y = corners[..., 0], corners[..., 1]  # [n, 4] in the view
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    u, v = CORNERS.expand(len(corners), 4, 2).unbind(-1)  # [n, 4] in the image
    # u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (g x + h y + 1), linear in a..h
    for_u = torch.stack((x, y, one, zero, zero, zero, -x * u, -y * u), dim=-1)  # [n, 4, 8]
    for_v = torch.stack((zero, zero, zero, x, y, one, -x * v, -y * v), dim=-1)
    solution = torch.linalg.solve(torch.cat((for_u, for_v), dim=1), torch.cat((u, v), dim=1))  # [n, 8]
    return torch.cat((solution, one[:, :1]), dim=1).view(-1, 3, 3)


def draw_crop(
    n: int, generator: torch.Generator, *, scale: Range = (0.2, 1.0), ratio: Range = (3 / 4, 4 / 3)
) -> Tensor:
    """Draw RandomResizedCrop: share of the area uniform in `scale`, width / height log-uniform in `ratio`.

    torchvision rejects boxes that do not fit into the image, so large areas are rarer than `scale` says; here the
    ratio is drawn among those that fit, and the area stays uniform.
    """
    area = uniform(n, generator, scale)
    low = area.clamp(min=ratio[0]).log()
    high = area.reciprocal().clamp(max=ratio[1]).log()
    aspect = (low + (high - low) * uniform(n, generator, (0, 1))).exp()
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    centre_x = (1 - width) * uniform(n, generator, (-1, 1))
    centre_y = (1 - height) * uniform(n, generator, (-1, 1))
    return crop_homography(centre_x, centre_y, width, height)


def draw_hflip(n: int, generator: torch.Generator) -> Tensor:
    """Exchange the image's left and right."""
    return torch.diag(torch.tensor([-1, 1, 1], dtype=torch.float64)).repeat(n, 1, 1)


def draw_vflip(n: int, generator: torch.Generator) -> Tensor:
    """Exchange the image's top and bottom."""
    return torch.diag(torch.tensor([1, -1, 1], dtype=torch.float64)).repeat(n, 1, 1)


def draw_rotation(n: int, generator: torch.Generator, *, degrees: float = 20.0) -> Tensor:
    """Draw a rotation about the centre by an angle uniform in +-`degrees`."""
    return rotation_homography(uniform(n, generator, (-degrees, degrees)))


def draw_perspective(n: int, generator: torch.Generator, *, distortion: float = 0.15) -> Tensor:
    """Draw a perspective: each corner moves inwards by up to `distortion` of half the side, in x and in y."""
    inwards = torch.rand(n, 4, 2, generator=generator, dtype=torch.float64) * distortion
    return perspective_homography(CORNERS * (1 - inwards))


def rows_that_leave_the_image(homographies: Tensor) -> Tensor:
    """Return indices of the views that show anything beyond the image's edges: those with a corner outside."""
    corners = torch.cat((CORNERS, torch.ones(4, 1, dtype=torch.float64)), dim=1)  # [4, 3]
    corners = corners @ homographies.mT  # [n, 4, 3]
    points = corners[..., :2] / corners[..., 2:]
    return (points.abs().amax(dim=(1, 2)) > 1 + 1e-6).nonzero().flatten()


def rows_by_level(homographies: Tensor, image_size: int, view_size: int) -> list[Tensor]:
    """Return indices of the views to take from the image, from its half, its quarter, ..., to avoid aliasing.

    The shrink factor is taken at the view's centre, where a homography H scales areas by det(H) / H[2, 2]^3.
    """
    ratio = image_size / view_size
    if ratio <= MAX_SHRINK:  # the usual case: the store is little larger than the view
        return [torch.arange(len(homographies))]
    scale = (homographies.det() / homographies[:, 2, 2] ** 3).abs().sqrt() * ratio
    deepest = math.ceil(math.log2(ratio / MAX_SHRINK))
    levels = (scale / MAX_SHRINK).log2().ceil().clamp(0, deepest)
    return [(levels == level).nonzero().flatten() for level in range(deepest + 1)]


def sampling_grid(homographies: Tensor, size: int) -> Tensor:
    """Return [n, size, size, 2] float32: the point of the image that each pixel centre of the view shows."""
    centre = (torch.arange(size, device=homographies.device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    by_x, by_y, constant = homographies[:, None, None].unbind(-1)  # [n, 1, 1, 3]: to u, v and depth
    along_x = by_x * centre[:, None]  # [n, 1, size, 3]
    along_y = by_y * centre[:, None, None] + constant  # [n, size, 1, 3]
    # u + i v as one number, and each depth twice in a row: contiguous memory, four times faster
    points = torch.complex(*along_x[..., :2].unbind(-1)) + torch.complex(*along_y[..., :2].unbind(-1))
    depth = along_x[..., 2].repeat_interleave(2, dim=-1) + along_y[..., 2]  # [n, size, 2 size]
    grid = torch.view_as_real(points)  # [n, size, size, 2]
    return grid.div_(depth.view_as(grid))


def resample(
    images: Tensor, homographies: Tensor, levels: list[Tensor], outside: Tensor, size: int, interpolation: str
) -> Tensor:
    """Return the views [B, 1, size, size] in [0, 1] of images [B, 1, S, S] in [0, 1] by homographies [B, 3, 3].

    Interpolation repeats the image's border, so its edge is not darkened; beyond the edge views are 0.
    levels and outside come from `rows_by_level` and `rows_that_leave_the_image`, moved to the images' device.
    """
    grid = sampling_grid(homographies, size)  # [B, size, size, 2]
    options = {"mode": interpolation, "padding_mode": "border", "align_corners": False}
    if len(levels) == 1:
        views = F.grid_sample(images, grid, **options)
    else:
        views = images.new_empty(len(images), 1, size, size)
        for level, rows in enumerate(levels):
            if not len(rows):
                continue
            smaller = F.interpolate(images[rows], size=math.ceil(images.shape[-1] / 2**level), mode="area")
            views[rows] = F.grid_sample(smaller, grid[rows], **options)
    views.clamp_(0, 1)  # cubic interpolation overshoots at sharp edges
    if len(outside):
        views[outside] *= (grid[outside].abs().amax(dim=-1) <= 1)[:, None]
    return views
