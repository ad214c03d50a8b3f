"""Feature skew: the images of each client turned and made noisy by its own measure, once, before anything looks at them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.config import PartitionConfig
from mosaic_jax.rng import key_at

IMAGES_AT_ONCE = 256


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns an image about its middle, counter-clockwise, bilinear between pixels and zero beyond the edge.

    image: f32[H, W, 3]; degrees: f32[]. Returns f32[H, W, 3]; a quarter turn of a square image is np.rot90 to rounding.
    """
    height, width = image.shape[:2]
    sine, cosine = jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
    down, right = jnp.arange(height)[:, None] - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    rows, columns = down * cosine + right * sine + (height - 1) / 2, right * cosine - down * sine + (width - 1) / 2
    top, left = jnp.floor(rows), jnp.floor(columns)
    lower, righter = (rows - top)[..., None], (columns - left)[..., None]

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return jnp.where(inside[..., None], image.at[row.astype(jnp.int32), column.astype(jnp.int32)].get(mode="clip"), 0.0)

    above = (1 - righter) * at(top, left) + righter * at(top, left + 1)
    below = (1 - righter) * at(top + 1, left) + righter * at(top + 1, left + 1)
    return (1 - lower) * above + lower * below


def skew(
    images: np.ndarray, client_indices: Sequence[np.ndarray], config: PartitionConfig, seed: int, name: str,
    at_once: int = IMAGES_AT_ONCE,
) -> np.ndarray:  # fmt: skip
    """The images as the clients that hold them see them.

    Client i of C (from 0) has the share (i + 1) / C of the last client's skew: its images are turned by
    `feature_rotation` * share degrees, then get Gaussian noise of deviation `feature_noise` * share on the scale of [0, 1], its
    own for each pixel and channel (grey images stay grey), and are cut to 0..255 and rounded. An image's noise is drawn once,
    from the seed, `name` and its position alone: whoever looks at it sees the same, whatever at_once. Images of no client stay
    as they are, and so do all, without a copy or a program, where both settings are 0.

    images: u8[N, H, W, 3]; client_indices: C integer arrays of positions, disjoint; name: of the set of images. Returns the same
    shape and dtype. Source: Li et al. 2022 (NIID-Bench, arXiv 2102.02079), noise-based feature skew, level sigma * i / N of party
    i = 1..N taken as a deviation, as in its public code; turned images of clients: Ghosh et al. 2020 (IFCA, arXiv 2006.04088).
    """
    if not config.has_feature_skew:
        return images
    shares = np.zeros(len(images), np.float32)
    for client, indices in enumerate(client_indices):
        shares[indices] = (client + 1) / len(client_indices)

    def one(image: jax.Array, share: jax.Array, position: jax.Array) -> jax.Array:
        changed = image.astype(jnp.float32)
        if config.feature_rotation:
            changed = rotate(changed, config.feature_rotation * share)
        if config.feature_noise:
            noise = jax.random.normal(key_at(seed, f"feature_noise_{name}", position), image.shape)
            changed += 255.0 * config.feature_noise * share * noise
        changed = jnp.where(jnp.all(image == image[..., :1]), changed[..., :1], changed)
        return jnp.rint(jnp.clip(changed, 0, 255)).astype(jnp.uint8)

    mapped = jax.jit(lambda arrays: jax.lax.map(lambda args: one(*args), arrays, batch_size=at_once))
    return np.asarray(mapped((images, shares, np.arange(len(images), dtype=np.int32))))
