"""One picture file, as cameras, phones and drawing programs write them, to an upright 8-bit RGB picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from conceptkit.errors import BadPhotos

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def decode(file: Path, behind: str = "white") -> Image.Image:
    """The file's first picture: upright, 8-bit RGB in sRGB, with the colour `behind` what is transparent.

    Raises BadPhotos when the file is no picture, is damaged, has more than `Image.MAX_IMAGE_PIXELS` pixels,
    or needs a package that is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(file) as image:
                image.load()
                picture = _to_rgb(_upright(image), behind)
                picture.info.clear()  # what it said of profile and orientation is no longer true
                return picture
    except BadPhotos:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise BadPhotos(
            f"{file} has more than the {limit / 1e6:.0f} million pixels that are read; save a smaller copy."
        ) from error
    except UnidentifiedImageError as error:
        raise BadPhotos(_unknown(file)) from error
    except OSError as error:
        if error.errno is not None:
            raise BadPhotos(f"{file} could not be opened ({error.strerror}); check the file.") from error
        raise BadPhotos(_damaged(file)) from error
    except Exception as error:  # decoders raise nearly anything at damaged bytes
        raise BadPhotos(_damaged(file)) from error


def _opened(file: Path) -> Image.Image:
    with file.open("rb") as stream:
        head = stream.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        _allow_heic(file)
    return Image.open(file)


def _allow_heic(file: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise BadPhotos(
            f"{file} is a HEIC photo; run `pip install 'conceptkit[heic]'` (pillow-heif) or save it as JPEG."
        ) from error
    pillow_heif.register_heif_opener()


def _unknown(file: Path) -> str:
    if file.stat().st_size == 0:
        return f"{file} is empty; replace it or take it out."
    return f"{file} cannot be recognised as a picture; replace it by a JPEG or PNG, or take it out."


def _damaged(file: Path) -> str:
    return f"{file} is damaged or cut short; copy it again from where it came, or take it out."


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about the pixels, which were decoded before
        return image


def _to_rgb(image: Image.Image, behind: str) -> Image.Image:
    """8-bit RGB, with 16-bit grey scaled to 8 bits (Pillow's own conversion clips)."""
    if image.mode == "F":
        raise ValueError("floating-point pictures carry no range")
    if image.mode.startswith("I"):
        return _from_16_bit(image, behind)
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _managed(image, profile)
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A")
    plain = Image.new("RGB", image.size, behind)
    return Image.composite(_managed(layered.convert("RGB"), profile), plain, alpha)


def _from_16_bit(image: Image.Image, behind: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = np.round(values / 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = ImageColor.getrgb(behind)[0]
    return Image.fromarray(grey).convert("RGB")


def _managed(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB: phones save Display P3, whose numbers look dull when read as sRGB."""
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile:
        try:
            source, target = ImageCms.getOpenProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ImportError):
            pass  # a profile that does not fit its picture is common, and every viewer ignores it
    return image.convert("RGB")
