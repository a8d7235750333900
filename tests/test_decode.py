"""Picture files of every make come out upright, 8-bit, RGB; damaged ones give one sentence."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from conceptkit.data.decode import decode
from conceptkit.errors import BadPhotos

RED, GREEN, BLUE, WHITE = (220, 30, 40), (30, 200, 60), (40, 60, 210), (255, 255, 255)


def corners(width: int = 64, height: int = 48) -> Image.Image:
    """Four flat quarters, so that any rotation or mirroring shows: red green / blue white."""
    picture = Image.new("RGB", (width, height), WHITE)
    for colour, spot in ((RED, (0, 0)), (GREEN, (width // 2, 0)), (BLUE, (0, height // 2))):
        picture.paste(Image.new("RGB", (width // 2, height // 2), colour), spot)
    return picture


def near(picture: Image.Image, spot: tuple[int, int], colour: tuple[int, ...], within: int = 12) -> bool:
    pixel = picture.getpixel(spot)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= within for a, b in zip(pixel, colour, strict=True))


def png_16_bit(values: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of (h, w, channels), which Pillow reads but does not write for colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_formats_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    corners().save(file)
    picture = decode(file)
    assert (picture.mode, picture.size) == ("RGB", (64, 48))
    assert near(picture, (5, 5), RED) and near(picture, (60, 5), GREEN)
    assert near(picture, (5, 40), BLUE) and near(picture, (60, 40), WHITE)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = corners()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    stored.save(file, exif=exif.tobytes())
    picture = decode(file)
    assert picture.size == (64, 48)
    assert near(picture, (5, 5), RED) and near(picture, (60, 5), GREEN) and near(picture, (5, 40), BLUE)


def test_unreadable_exif_is_no_obstacle(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\x01\x00")
    assert decode(tmp_path / "a.jpg").size == (64, 48)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    layered = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    layered.paste((0, 0, 0, 255), (20, 0, 40, 40))
    if mode == "P":
        stored = layered.convert("RGB").quantize(4)
        stored.putdata([0] * 1600)
        stored.putpalette([10, 20, 30, 0, 0, 0])
        stored.paste(1, (20, 0, 40, 40))
        stored.save(tmp_path / "a.png", transparency=0)
    else:
        stored = layered.convert("LA") if mode == "PA" else layered.convert(mode)
        stored.save(tmp_path / "a.png")
    picture = decode(tmp_path / "a.png")
    assert picture.getpixel((5, 5)) == WHITE and picture.getpixel((35, 5)) == (0, 0, 0)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (200, 0, 0, 128)).save(tmp_path / "a.png")
    assert near(decode(tmp_path / "a.png"), (5, 5), (227, 127, 127), within=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.png" if mode in ("1", "L", "P") else "a.jpg")
    stored = corners().quantize(16) if mode == "P" else corners().convert(mode)
    stored.save(file, quality=95)
    picture = decode(file)
    assert picture.mode == "RGB" and near(picture, (60, 40), WHITE)
    if mode not in ("1", "L"):
        assert near(picture, (5, 5), RED, within=20)


@pytest.mark.parametrize("channels, colour_type", [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, channels: int, colour_type: int) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    values = np.repeat(np.tile(ramp, (40, 1))[:, :, None], channels, axis=2)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    (tmp_path / "a.png").write_bytes(png_16_bit(values, colour_type))
    pixels = np.asarray(decode(tmp_path / "a.png"))[0].astype(int)
    assert np.abs(pixels - np.arange(256)[:, None]).max() <= 1


def test_sixteen_bit_transparency(tmp_path: Path) -> None:
    values = np.full((40, 40, 1), 300, dtype=np.uint16)
    values[:, 20:] = 40000
    body = struct.pack(">H", 300)
    extra = struct.pack(">I", 2) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    (tmp_path / "a.png").write_bytes(png_16_bit(values, 0, extra))
    picture = decode(tmp_path / "a.png")
    assert picture.getpixel((5, 5)) == WHITE and near(picture, (30, 5), (156, 156, 156), within=1)


def test_sixteen_bit_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("I;16", (64, 48), 30000).save(tmp_path / "a.png", exif=exif.tobytes())
    picture = decode(tmp_path / "a.png")
    assert picture.size == (48, 64) and near(picture, (5, 5), (117, 117, 117), within=1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100)
    assert near(decode(tmp_path / f"a.{suffix}"), (20, 20), RED)


def test_colour_profiles_are_followed(tmp_path: Path) -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {swapped[at : at + 4]: at for at in range(132, 132 + 12 * swapped[131], 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile = bytearray(swapped)
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    Image.new("RGB", (40, 40), RED).save(tmp_path / "a.png", icc_profile=bytes(profile))
    picture = decode(tmp_path / "a.png")
    assert near(picture, (5, 5), (RED[2], RED[1], RED[0]), within=3)
    assert not picture.info


def test_an_unreadable_profile_is_ignored(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert near(decode(tmp_path / "a.png"), (5, 5), RED)


def test_a_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("shopping list")
    with pytest.raises(BadPhotos, match=r"notes\.jpg cannot be recognised as a picture; .*take it out"):
        decode(tmp_path / "notes.jpg")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BadPhotos, match=r"a\.png is empty"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadPhotos, match=rf"cut\.{suffix} (is damaged|cannot be recognised)"):
        decode(tmp_path / f"cut.{suffix}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["jpeg", "png", "webp", "gif"]), st.data())
def test_damaged_bytes_give_a_picture_or_a_sentence(tmp_path: Path, form: str, data: st.DataObject) -> None:
    stream = io.BytesIO()
    corners().save(stream, format=form)
    damaged = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.jpg").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        assert decode(tmp_path / "a.jpg").mode == "RGB"
    except BadPhotos as error:
        assert "a.jpg" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("pixels", [500, 1500])
def test_huge_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    corners().resize((50, 40)).save(tmp_path / "a.png")
    with pytest.raises(BadPhotos, match=r"a\.png has more than the .* million pixels .*smaller copy"):
        decode(tmp_path / "a.png")


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(BadPhotos, match=r"IMG_1\.jpg is a HEIC photo.*conceptkit\[heic\].*as JPEG"):
        decode(tmp_path / "IMG_1.jpg")


def test_heic_with_its_package(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(corners()).save(tmp_path / "IMG_1.heic")
    picture = decode(tmp_path / "IMG_1.heic")
    assert picture.size == (64, 48) and near(picture, (5, 5), RED, within=20)
