"""Stored images as squares of pixels, as a picture viewer shows them, decoded in threads."""

import functools
import io
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import FORMATS, Encoded, Images, one_line

IMAGES_PER_TASK = 64  # bounds what waits in memory: large JPEGs are 50 KB each
TASKS_AHEAD = 16
BACKGROUNDS = {"white": (255, 255, 255, 255), "grey": (128, 128, 128, 255), "black": (0, 0, 0, 255)}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Rendering(NamedTuple):
    """How images are shown where their files leave it open: data.background, and data.bit_depth, 0 for what the data need."""

    background: str = "white"
    bit_depth: int = 0


VIEWER = Rendering()


class Traits(NamedTuple):
    """What was met in images that needs a choice.

    transparent, animated: how many have pixels that are not opaque, and more than one picture. grey_max, colour_max: the largest
    value of 16-bit images, -1 where there are none; of colours Pillow gives only the high byte.
    """

    transparent: int = 0
    animated: int = 0
    grey_max: int = -1
    colour_max: int = -1

    def __or__(self, other: "Traits") -> "Traits":
        """Those of both."""
        return Traits(
            self.transparent + other.transparent, self.animated + other.animated,
            max(self.grey_max, other.grey_max), max(self.colour_max, other.colour_max),
        )  # fmt: skip

    @property
    def bit_depth(self) -> int:
        """The fewest bits, from 8 to 16, that hold every value of the 16-bit grey images; 16 where there are none."""
        return max(8, self.grey_max.bit_length()) if self.grey_max >= 0 else 16


def notes(traits: Traits, rendering: Rendering) -> list[str]:
    """A line for each choice that was made, with the setting that makes another."""
    said = []
    if traits.transparent:
        said.append(f"{traits.transparent} images have transparent pixels: shown over data.background={rendering.background}")
    if traits.animated:
        said.append(f"{traits.animated} image files hold several pictures: their first one is read")
    if traits.grey_max >= 0 and rendering.bit_depth != 16:
        said.append(
            f"16-bit images have values up to {traits.grey_max}: read as {rendering.bit_depth}-bit; data.bit_depth=16 is as stored"
        )
    if 0 <= traits.colour_max < 2**12:
        said.append(
            f"16-bit colour images have no value above {traits.colour_max}, are read by their high bytes and come out dark: "
            "save them with 8 bits"
        )
    return said


def pixels(stored: Path | Encoded | np.ndarray, size: int, rendering: Rendering) -> tuple[np.ndarray, Traits]:
    """One stored image as u8[size, size, 3], and its traits; raises ConfigError naming an image that cannot be decoded."""
    if isinstance(stored, np.ndarray):
        return square(Image.fromarray(stored), size), Traits()
    name = stored.name if isinstance(stored, Encoded) else stored
    try:
        if isinstance(stored, Path) and not stored.is_file():  # a pipe would be waited for without end
            raise ValueError("it is no file")
        with Image.open(io.BytesIO(stored.content) if isinstance(stored, Encoded) else stored, formats=_formats()) as image:
            shown, traits = show(image, rendering)
            return square(shown, size), traits
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files.
        reason = "it is empty" if _is_empty(stored) else one_line(error)
        raise ConfigError(f"data.source: image {name} cannot be read ({reason}): replace or remove it") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_empty(stored: Path | Encoded) -> bool:
    return not stored.content if isinstance(stored, Encoded) else stored.is_file() and stored.stat().st_size == 0


def show(image: Image.Image, rendering: Rendering) -> tuple[Image.Image, Traits]:
    """An opened image as a picture viewer shows it, and its traits.

    The first picture of several, 16 bits scaled to 8, turned as its EXIF data say, transparency over a background. Raises
    ValueError for 32-bit pixels, whose range no file tells.
    """
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # a camera's JPEG with previews in it
    traits = Traits(animated=int(several))
    deep = any(raw in str(tile) for tile in getattr(image, "tile", ()) for raw in (";16B", ";16L"))
    image.load()
    turn = _turn(image)
    if image.mode.startswith(("I", "F")):
        image, largest = _eight_bits(image, rendering.bit_depth or 16)
        traits |= Traits(grey_max=largest)
    elif deep:  # Pillow gives the high bytes.
        largest = max(high for _, high in image.convert("RGB").getextrema())
        traits |= Traits(colour_max=largest * 256 + 255)
    if turn is not None:
        image = image.transpose(turn)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            traits |= Traits(transparent=1)
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUNDS[rendering.background]), image)
    return image, traits


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises several kinds for damaged EXIF data, over which a viewer shows the picture all the same.
        return None


def _eight_bits(image: Image.Image, bit_depth: int) -> tuple[Image.Image, int]:
    """A grey image of 16 bits as one of 8, its transparent value kept so, and its largest value."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 2**16:
        raise ValueError("its pixels have 32 bits; save it with 8 or 16")
    grey = Image.fromarray((values.astype(np.int64) >> (bit_depth - 8)).clip(0, 255).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey, int(values.max())


def square(image: Image.Image, size: int) -> np.ndarray:
    """An image as u8[size, size, 3]: other sizes are stretched with antialiased bilinear weights, grey is repeated to channels."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR))


def decode(
    images: Images, size: int, put: Callable[[int, int, np.ndarray], None], advance: Callable[[int], None],
    rendering: Rendering = VIEWER,
) -> Traits:  # fmt: skip
    """Decodes all images in threads, a bounded number ahead, and hands each to put(position, label, u8[size, size, 3]).

    put is called from several threads. advance: is told how many more are done. Returns the traits of all. The first failure in
    the order of the items is raised.
    """

    def task(block: list) -> tuple[int, Traits]:
        traits = Traits()
        for position, label, stored in block:
            image, own = pixels(stored, size, rendering)
            put(position, label, image)
            traits |= own
        return len(block), traits

    items = iter(images.items)
    running: deque[Future[tuple[int, Traits]]] = deque()
    pool = ThreadPoolExecutor()
    whole = Traits()

    def finish() -> None:
        nonlocal whole
        count, traits = running.popleft().result()
        whole |= traits
        advance(count)

    try:
        while block := list(itertools.islice(items, IMAGES_PER_TASK)):
            running.append(pool.submit(task, block))
            if len(running) >= TASKS_AHEAD:
                finish()
        while running:
            finish()
    finally:
        pool.shutdown(cancel_futures=True)
    return whole
