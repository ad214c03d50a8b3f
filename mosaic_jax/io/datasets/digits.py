"""scikit-learn's handwritten digits: real images that need neither files nor network."""

import numpy as np
from PIL import Image

from mosaic_jax.types import Dataset


def digits(size: int) -> Dataset:
    """The 1,797 grey 8x8 digits, stretched to u8[N, size, size, 3], a fixed stratified fifth of them for testing."""
    from sklearn.datasets import load_digits  # Imported here: it takes longer than all else in this module.

    stored = load_digits()
    resized = [
        np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
        for image in stored.images
    ]
    grey = np.rint(np.stack(resized) * (255 / 16)).astype(np.uint8)
    images, labels = np.repeat(grey[..., None], 3, axis=-1), stored.target.astype(np.int32)
    random = np.random.RandomState(0)  # The split belongs to the data set: it is the same for every run.
    testing = np.zeros(len(labels), bool)
    for label in range(10):
        members = random.permutation(np.flatnonzero(labels == label))
        testing[members[: round(len(members) / 5)]] = True
    names = tuple(str(label) for label in range(10))
    return Dataset(images[~testing], labels[~testing], images[testing], labels[testing], names)
