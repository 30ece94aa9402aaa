"""Pictures that compress and blur like photographs, made from a seed, and the measure of how alike two pictures are."""

import numpy as np
from PIL import Image


def photo(seed: int, width: int, height: int) -> np.ndarray:
    """uint8 H×W×3: 1/f texture (strong in light, weak in colour), hard-edged shapes over it, and sensor noise."""
    random = np.random.default_rng(seed)
    light = _texture(random, width, height)
    colour = np.stack([_texture(random, width, height) for _ in range(3)], axis=2) * 0.35
    picture = light[..., None] + colour - colour.mean(axis=2, keepdims=True)
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    for index in range(24):
        x, y, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(0.01, 0.15) * width
        inside = (xx - x) ** 2 + (yy - y) ** 2 < radius**2
        if index % 2:
            inside = (abs(xx - x) < radius) & (abs(yy - y) < radius * random.uniform(0.05, 1))
        picture[inside] = picture[inside] * 0.5 + random.uniform(-0.8, 0.8, 3).astype(np.float32) * picture.std()
    picture = (picture - picture.mean()) / picture.std() * 52 + 118
    picture += random.standard_normal((height, width, 1), dtype=np.float32) * 3
    return np.clip(picture, 0, 255).astype(np.uint8)


def _texture(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    total = np.zeros((height, width), np.float32)
    cells, weight = 3, 1.0
    while cells < max(width, height):
        coarse = random.standard_normal((cells * height // width + 2, cells + 2), dtype=np.float32)
        total += weight * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        cells, weight = cells * 2, weight * 0.68
    return total


def ssim(one: Image.Image, other: Image.Image, window: int = 8) -> float:
    """Mean structural similarity (Wang et al. 2004) of the luma of two pictures of one size, box window of 8 px."""
    a, b = (np.asarray(image.convert("L"), np.float64) for image in (one, other))
    mean_a, mean_b = _box(a, window), _box(b, window)
    var_a, var_b = _box(a * a, window) - mean_a**2, _box(b * b, window) - mean_b**2
    both = _box(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        np.mean((2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    )


def _box(plane: np.ndarray, window: int) -> np.ndarray:
    sums = np.pad(plane, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]) / (
        window * window
    )
