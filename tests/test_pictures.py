"""Image files are read as a picture viewer shows them, and what is chosen for them is said."""

import struct
import zlib

import numpy as np
import pytest
from copies import COLOURS, refusal, write_classes
from PIL import Image

from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.datasets.pixels import Rendering


def test_every_pillow_mode_becomes_rgb(tmp_path):
    source = write_classes(tmp_path, train=("x",), test=("x",))
    for old in (tmp_path / "train" / "x").iterdir():
        old.unlink()
    colour, grey = COLOURS[0], COLOURS[1][..., 0]
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(colour).quantize(16)
    images = {
        "a_rgb.png": Image.fromarray(colour),
        "b_grey.png": Image.fromarray(grey),
        "c_rgba.png": Image.fromarray(np.concatenate([colour, grey[..., None]], -1)),
        "d_palette.png": palette,
        "e_16bit.png": Image.fromarray(deep),
        "f_bits.png": Image.fromarray(grey > 127),
        "g_grey_alpha.png": Image.fromarray(np.stack([grey, grey], -1)),
        "h_cmyk.jpg": Image.new("CMYK", (32, 32), (0, 0, 0, 0)),
    }
    for name, image in images.items():
        image.save(tmp_path / "train" / "x" / name)
    palette.save(tmp_path / "train" / "x" / "i_palette_alpha.PNG", transparency=bytes(range(16)))
    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "train" / "x" / "j.JPEG", quality=95)
    got = load(source, 32).train_images.astype(int)
    repeated = np.repeat(grey[..., None], 3, -1)
    exact = {0: colour, 1: repeated, 3: np.asarray(palette.convert("RGB")), 4: repeated, 5: np.where(repeated > 127, 255, 0)}
    for place, wanted in exact.items():
        np.testing.assert_array_equal(got[place], wanted)
    alphas = {2: (colour, grey), 6: (repeated, grey), 8: (exact[3], np.asarray(palette))}  # the palette's i-th colour has alpha i
    for place, (opaque, alpha) in alphas.items():
        np.testing.assert_allclose(got[place], over(255, opaque, alpha), atol=1)
    assert (got[7] > 250).all()
    assert np.abs(got[9] - [200, 100, 50]).max() < 5


def over(background, opaque, alpha):
    """An image over a grey background; opaque: u8[H, W, 3], alpha: u8[H, W]."""
    share = alpha[..., None] / 255
    return opaque * share + background * (1 - share)


def test_other_sizes_are_stretched_to_the_square(tmp_path):
    source = write_classes(tmp_path, size=48)
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, -1)
    Image.fromarray(np.repeat(ramp, 20, 0)).save(tmp_path / "train" / "cat" / "0.png")
    data = load(source, 32)
    assert data.train_images.shape == (4, 32, 32, 3)
    np.testing.assert_allclose(data.train_images[0, :, 1:-1, 0], np.tile(np.linspace(0, 255, 32)[1:-1], (32, 1)), atol=6)


def write_images(root, **images):
    """A folder of one class whose training images are these, by file name (`a_png` is a.png); the data.source."""
    source = write_classes(root, train=(), test=("x",))
    (root / "train" / "x").mkdir(parents=True)
    for name, (image, options) in images.items():
        image.save(root / "train" / "x" / name.replace("_", "."), **options)
    return source


def read_images(source, capsys, **rendering):
    """The training images of a source, and what is said about them, which a second start says again."""
    capsys.readouterr()
    images = load(source, 32, rendering=Rendering(**rendering), console=Console()).train_images
    said = capsys.readouterr().err
    load(source, 32, rendering=Rendering(**rendering), console=Console())
    assert capsys.readouterr().err == said
    return images, said


def test_what_is_drawn_in_the_alpha_channel_alone_is_seen_over_the_background_that_is_asked_for(tmp_path, capsys):
    shape = np.zeros((32, 32, 4), np.uint8)
    shape[8:24, 8:24, 3] = 255
    key = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 200, np.ones((16, 16), np.uint8)))
    source = write_images(tmp_path, a_png=(Image.fromarray(shape), {}), b_png=(key, {"transparency": 0}))
    drawn = np.repeat(shape[..., 3:] > 0, 3, -1)
    for background, value in (("white", 255), ("grey", 128), ("black", 0)):
        images, said = read_images(source, capsys, background=background)
        np.testing.assert_array_equal(images[0], np.where(drawn, 0, value))
        np.testing.assert_array_equal(np.unique(images[1]), sorted({200, value}))
        assert said == f"warning: data.source: 2 images have transparent pixels: shown over data.background={background}\n"


def test_an_alpha_channel_that_is_all_opaque_changes_nothing_and_nothing_is_said(tmp_path, capsys):
    opaque = np.concatenate([COLOURS[0], np.full((32, 32, 1), 255, np.uint8)], -1)
    images, said = read_images(write_images(tmp_path, a_png=(Image.fromarray(opaque), {})), capsys)
    np.testing.assert_array_equal(images[0], COLOURS[0])
    assert said == ""


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_grey_images_of_12_bits_in_files_of_16_keep_all_their_levels(tmp_path, capsys, bits):
    grey = (np.arange(1024).reshape(32, 32) * max(2**bits // 1024, 1) % 2**bits).astype(np.uint16)
    grey[-1, -1] = 2**bits - 1
    source = write_images(tmp_path, a_png=(Image.fromarray(grey), {}), b_tif=(Image.fromarray(grey // 2), {}))
    images, said = read_images(source, capsys)
    np.testing.assert_array_equal(images[0, ..., 0], grey >> (bits - 8))  # one scale for all files,
    np.testing.assert_array_equal(images[1, ..., 0], grey // 2 >> (bits - 8))
    assert len(np.unique(images[0])) == 256
    assert (f"values up to {2**bits - 1}: read as {bits}-bit; data.bit_depth=16 is as stored" in said) == (bits < 16)
    as_stored, said = read_images(source, capsys, bit_depth=16)  # as any other is asked for
    np.testing.assert_array_equal(as_stored[0, ..., 0], grey >> 8)
    assert said == ""


def test_colours_of_16_bits_that_come_out_dark_are_said_and_pixels_of_32_bits_are_refused(tmp_path, capsys):
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in (COLOURS[0].astype(np.uint16) * 16).astype(">u2"))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    source = write_images(tmp_path)
    (tmp_path / "train" / "x" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    images, said = read_images(source, capsys)
    np.testing.assert_array_equal(images[0], COLOURS[0] >> 4)
    assert "16-bit colour images have no value above 4095" in said
    Image.fromarray(COLOURS[0, ..., 0].astype(np.float32)).save(tmp_path / "train" / "x" / "b.tif")
    assert "b.tif cannot be read (ValueError: its pixels have 32 bits; save it with 8 or 16)" in refusal(source)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, capsys, kind):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 250
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
             6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, 3)}  # fmt: skip
    files = {}
    for orientation, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"{orientation}_{kind}"] = (Image.fromarray(np.ascontiguousarray(stored)), {"exif": exif, "quality": 95})
    images, said = read_images(write_images(tmp_path, **files), capsys)
    assert np.abs(images.astype(int) - upright).max() < 12 and said == ""


def test_inks_become_the_colours_that_they_print(tmp_path, capsys):
    inks = {"a_jpg": (0, 255, 255, 0), "b_tif": (255, 0, 255, 0), "c_jpg": (0, 0, 0, 128)}
    source = write_images(tmp_path, **{name: (Image.new("CMYK", (32, 32), ink), {}) for name, ink in inks.items()})
    wanted = np.array([[255, 0, 0], [0, 255, 0], [127, 127, 127]])
    assert np.abs(read_images(source, capsys)[0][:, 8, 8] - wanted).max() < 5


def test_damaged_exif_data_hide_no_picture(tmp_path, capsys):
    source = write_images(tmp_path, a_png=(Image.fromarray(COLOURS[0]), {"exif": b"Exif\0\0II*\0\xff\xff\xff"}))
    np.testing.assert_array_equal(read_images(source, capsys)[0][0], COLOURS[0])


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path, capsys):
    first, *others = (Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in (50, 150, 250))
    several = {"save_all": True, "append_images": others}
    source = write_images(tmp_path, a_gif=(first, several), b_png=(first, several), c_tif=(first, several), d_webp=(first, several))
    images, said = read_images(source, capsys)
    assert np.abs(images.astype(int) - 50).max() < 3
    assert said == "warning: data.source: 4 image files hold several pictures: their first one is read\n"


def test_every_kind_of_image_file_is_read_and_other_files_are_counted(tmp_path, capsys):
    image, known = Image.fromarray(COLOURS[0]), ("bmp", "gif", "webp", "tif", "tiff", "ppm", "jp2", "png", "jpeg", "jfif")
    names = [f"{kind}_{kind}" for kind in known]
    source = write_images(tmp_path, **{name: (image, {"lossless": True} if "webp" in name else {}) for name in names})
    for name in ("notes.txt", "more.TXT", "shape.svg", "README"):
        (tmp_path / "train" / "x" / name).write_text("no image")
    capsys.readouterr()
    images = load(source, 32, console=Console()).train_images
    assert len(images) == len(known)
    for kind, read in zip(sorted(known), images, strict=True):
        if kind in ("bmp", "jp2", "png", "ppm", "tif", "tiff", "webp"):
            np.testing.assert_array_equal(read, COLOURS[0])
    said = capsys.readouterr().err
    assert f"4 files of {tmp_path} are left out" in said and "2 .txt, 1 without a suffix, 1 .svg" in said and said.count("\n") == 1
