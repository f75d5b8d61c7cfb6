"""Recipes: how the views of an X-ray are drawn that the network learns to match. Plain data.

A recipe is one list of (operator, parameters) for both views, or a pair of lists for two different views. The
operators are those of transform_utils.py, the parameters' defaults those of their draw_* functions; `p` (default 1) is
the share of images that an operator works on. Geometric operators compose into one resampling, before all others.
"""

from typing import Any

Recipe = list[tuple[str, dict[str, Any]]]

BASE: Recipe = [("crop", {"scale": (0.2, 1.0)}), ("hflip", {"p": 0.5})]

BLUR_NOISE: Recipe = [("blur", {"p": 0.5, "sigma": (0.1, 2.0)}), ("noise", {"p": 0.5, "snr": (4.0, 8.0)})]
EQUALIZE: Recipe = [("equalize", {"p": 0.5})]
ROTATION: Recipe = [("rotation", {"p": 0.5, "degrees": 20.0})]
BRIGHTNESS_CONTRAST: Recipe = [
    ("brightness", {"p": 0.5, "factor": (0.8, 1.2)}),
    ("contrast", {"p": 0.5, "factor": (0.8, 1.2)}),
]
PERSPECTIVE: Recipe = [("perspective", {"p": 0.5, "distortion": 0.15})]
VFLIP: Recipe = [("vflip", {"p": 0.5})]

XRAY: Recipe = [
    ("hflip", {"p": 0.5}),
    ("rotation", {"p": 0.5, "degrees": 10.0}),
    ("equalize", {"p": 0.3}),
    ("jitter", {"p": 0.8, "brightness": (0.6, 1.4), "contrast": (0.6, 1.4)}),
    ("blur", {"p": 0.3, "sigma": (0.1, 1.0)}),
    ("noise", {"p": 0.3, "snr": (6.0, 12.0)}),
]

# Barlow Twins (arXiv 2103.03230, section 2.2, and BYOL's appendix B), without what needs colour.
IMAGENET_FIRST: Recipe = [
    ("crop", {"scale": (0.08, 1.0)}),
    ("hflip", {"p": 0.5}),
    ("jitter", {"p": 0.8, "brightness": (0.6, 1.4), "contrast": (0.6, 1.4)}),
    ("blur", {"p": 1.0, "sigma": (0.1, 2.0)}),
]
IMAGENET_SECOND: Recipe = [
    *IMAGENET_FIRST[:3],
    ("blur", {"p": 0.1, "sigma": (0.1, 2.0)}),
    ("solarize", {"p": 0.2, "threshold": 128 / 255}),
]

STRONG_CROP: Recipe = [("crop", {"scale": (0.08, 1.0)}), ("hflip", {"p": 0.5}), ("vflip", {"p": 0.5})]
STRONG_JITTER = ("jitter", {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5)})

RECIPES: dict[str, Recipe | tuple[Recipe, Recipe]] = {
    # the image as it is, at the output's size: evaluation
    "none": [],
    # supervised training
    "supervised": [("hflip", {"p": 0.5})],
    "crop": [("crop", {"scale": (0.7, 1.0)})],
    "supervised+crop": [("crop", {"scale": (0.7, 1.0)}), ("hflip", {"p": 0.5})],
    # pretraining: the base that the scans add to
    "base": BASE,
    # pretraining: the original project's final recipe, with a strong crop and weak noise
    "original": [
        *STRONG_CROP,
        *EQUALIZE,
        ("blur", {"p": 0.5, "sigma": (0.1, 2.0)}),
        *PERSPECTIVE,
        ("noise", {"p": 0.5, "relative_sigma": (0.06, 0.1)}),
    ],
    # pretraining: more change of exposure than "original" has (docs/RESULTS.md has what each of them reached)
    "exposure": [*STRONG_CROP, *EQUALIZE, STRONG_JITTER],
    "solarize": [*STRONG_CROP, ("equalize", {"p": 0.8}), ("solarize", {"p": 0.3, "threshold": 0.5})],
    "heavy": [*STRONG_CROP, *ROTATION, *PERSPECTIVE, *EQUALIZE, STRONG_JITTER, *BLUR_NOISE],
    "imagenet": (IMAGENET_FIRST, IMAGENET_SECOND),
    # pretraining: milder crops than "original", stronger changes of intensity
    "xray": [("crop", {"scale": (0.5, 1.0)}), *XRAY],
    "xray+smallcrops": [("crop", {"scale": (0.2, 1.0)}), *XRAY],
    # pretraining for minutes: crops that keep most of both lungs, exposures that carry no information
    "short": [
        ("crop", {"scale": (0.7, 1.0)}),
        ("hflip", {"p": 0.5}),
        ("rotation", {"degrees": 15.0}),
        *EQUALIZE,
        STRONG_JITTER,
    ],
    # scan of transformations, first table: base and one extra each
    "base+blur+noise": BASE + BLUR_NOISE,
    "base+equalize": BASE + EQUALIZE,
    "base+rotation": BASE + ROTATION,
    "base+brightness+contrast": BASE + BRIGHTNESS_CONTRAST,
    "base+perspective": BASE + PERSPECTIVE,
    "base+vflip": BASE + VFLIP,
    # scan of transformations, second table: each adds to the one before
    "base+vflip+equalize": BASE + VFLIP + EQUALIZE,
    "base+vflip+equalize+perspective": BASE + VFLIP + EQUALIZE + PERSPECTIVE,
    "base+vflip+equalize+perspective+blur+noise": BASE + VFLIP + EQUALIZE + PERSPECTIVE + BLUR_NOISE,
    "base+vflip+equalize+perspective+blur+noise+rotation": (
        BASE + VFLIP + EQUALIZE + PERSPECTIVE + BLUR_NOISE + ROTATION
    ),
}
