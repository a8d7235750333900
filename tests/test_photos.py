"""Photo sets, crops and views."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conceptkit.data import augmentation, class_noun, photos, resize
from conceptkit.errors import BadPhotos

NOUNS = ["dog", "cat", "car", "house", "gate", "teapot", "fish", "traffic light", "candle"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, and things that are none."""
    root = tmp_path / "my photos"
    (root / "more.jpg").mkdir(parents=True)
    for seed, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        noise(64, 48, seed).save(root / name)
    (root / "readme.txt").write_text("not a photo")
    (root / "._a.JPG").write_text("what a Mac leaves behind")
    return root


def test_a_folder_is_read_in_order(folder: Path) -> None:
    found = photos.read(folder)
    assert found.names == ("a.JPG", "b.png", "c.webp") and len(found) == 3
    assert all(picture.mode == "RGB" for picture in found.pictures)


def test_files_and_folders_mix_and_nothing_is_read_twice(folder: Path) -> None:
    whole = photos.read([folder])
    again = photos.read([str(folder / "c.webp"), folder, folder / "a.JPG"])
    assert again.names == whole.names and again.digest == whole.digest
    assert photos.read([folder / "a.JPG"]).names == ("a.JPG",)


def test_the_digest_is_of_pixels(folder: Path, tmp_path: Path) -> None:
    whole = photos.read(folder)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in whole.names:
        Image.open(folder / name).save(other / f"{Path(name).stem}.png", compress_level=1)
    assert photos.read(other).digest == whole.digest
    noise(64, 48, seed=9).save(other / "b.png")
    assert photos.read(other).digest != whole.digest


def test_equal_names_in_two_folders(tmp_path: Path) -> None:
    for place, seeds in (("x", (1, 2)), ("y", (2, 1))):
        for sub, seed in zip(("p", "q"), seeds, strict=True):
            (tmp_path / place / sub).mkdir(parents=True)
            noise(40, 40, seed).save(tmp_path / place / sub / "a.png")
    one, two = (photos.read([tmp_path / place / sub for sub in ("p", "q")]) for place in ("x", "y"))
    assert one.digest == two.digest and len(one) == 2


def test_big_photos_are_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "LARGEST", 50)
    noise(300, 100).save(tmp_path / "a.png")
    assert photos.read(tmp_path).pictures[0].size == (150, 50)


def test_no_photos(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(BadPhotos, match=r"No photos in .* put one JPEG, PNG or WebP or more there"):
        photos.read(tmp_path)
    with pytest.raises(BadPhotos, match="No photos were given"):
        photos.read([])


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(BadPhotos, match="nowhere does not exist"):
        photos.read(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [(1, 1), (31, 400), (400, 31)])
def test_too_small(folder: Path, size: tuple[int, int]) -> None:
    noise(*size).save(folder / "dot.png")
    with pytest.raises(BadPhotos, match=rf"dot\.png is {size[0]} x {size[1]} pixels; photos need 32"):
        photos.read(folder)


@pytest.mark.parametrize("name", ["notes.jpg", "notes.PNG", "notes.webp", "notes.heic"])
def test_whatever_is_named_like_a_picture_must_be_one(folder: Path, name: str) -> None:
    (folder / name).write_text("not a photo")
    with pytest.raises(BadPhotos, match=name):
        photos.read(folder)


def test_formats_that_are_not_read_are_not_skipped(folder: Path) -> None:
    (folder / "raw.CR2").write_bytes(bytes(100))
    with pytest.raises(BadPhotos, match=r"raw\.CR2 is a format that is not read here; export it as JPEG"):
        photos.read(folder)


def test_a_broken_link_is_not_skipped(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
    with pytest.raises(BadPhotos, match=r"gone\.jpg does not exist"):
        photos.read(folder)


def test_a_file_without_suffix_is_read_when_named(tmp_path: Path) -> None:
    noise(40, 40).save(tmp_path / "photo", format="png")
    assert photos.read([tmp_path / "photo"]).names == ("photo",)


@given(st.integers(32, 200), st.integers(32, 200), st.integers(16, 128))
@settings(max_examples=40, deadline=None)
def test_square_is_the_centre_never_squashed(width: int, height: int, size: int) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([across, down, across], 2).round().astype(np.uint8))
    pixels = np.asarray(resize.square(picture, size)).astype(float)
    assert pixels.shape == (size, size, 3)
    short = min(width, height)
    for channel, length in ((0, width), (1, height)):
        line = pixels[..., channel].mean(axis=channel)
        slope = np.polyfit(np.arange(size // 2), line[size // 4 :][: size // 2], 1)[0]
        assert abs(line.mean() - 127.5) < 4
        assert slope == pytest.approx(255 / (length - 1) * short / size, rel=0.1)


def test_square_of_a_square_is_exact() -> None:
    picture = noise(64, 64)
    assert resize.square(picture, 64).tobytes() == picture.tobytes()


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from([(64, 4), (64, 8), (512, 8), (96, 4)]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_views(seed: int, shape: tuple[int, int], hflip: bool) -> None:
    size, cell = shape
    view = augmentation.augment(noise(80, 60, seed % 7), size, np.random.default_rng(seed), cell, hflip=hflip)
    left, top, right, bottom = view.box
    cells = size // cell
    assert view.pixels.shape == (3, size, size) and view.pixels.dtype == np.float32
    assert view.mask.shape == (cells, cells) and view.mask.dtype == np.float32
    assert np.abs(view.pixels).max() <= 1 and set(np.unique(view.mask)) <= {0.0, 1.0}
    assert 0 <= left < right <= size and 0 <= top < bottom <= size and right - left == bottom - top
    outside = np.ones((size, size), dtype=bool)
    outside[top:bottom, left:right] = False
    assert not view.pixels[:, outside].any(), "the canvas is neutral"
    assert view.mask.any()
    shown = (right - left) / size
    if shown == 1:
        assert view.mask.all()
        assert view.prefix in ("", *augmentation.NEAR_WORDS)
    else:
        assert shown >= 1 / 3 - 1 / size
        counted = np.kron(view.mask, np.ones((cell, cell))).astype(bool)
        assert not (counted & outside).any(), "no canvas is counted"
        rows, columns = np.nonzero(view.mask)
        inner = (math.ceil(left / cell) + 1, right // cell - 1)
        if inner[0] < inner[1]:
            assert (columns.min(), columns.max() + 1) == inner
        assert view.mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "one rectangle"
        assert (view.prefix in augmentation.FAR_WORDS) == (shown < 0.6) or abs(shown - 0.6) < 1 / size


def test_views_keep_to_their_frequencies() -> None:
    rng = np.random.default_rng(0)
    picture = noise(64, 64)
    views = [augmentation.augment(picture, 64, rng, 4) for _ in range(3000)]
    near = np.mean([view.prefix in augmentation.NEAR_WORDS for view in views])
    far = np.mean([view.prefix in augmentation.FAR_WORDS for view in views])
    assert abs(near - 1 / 3) < 0.03
    assert abs(far - 2 / 3 * (0.6 - 1 / 3) / (2 / 3)) < 0.03
    assert {view.prefix for view in views} == {"", *augmentation.FAR_WORDS, *augmentation.NEAR_WORDS}
    small = [view.box[2] - view.box[0] for view in views if view.prefix not in augmentation.NEAR_WORDS]
    assert min(small) == 21 and abs(np.mean(small) - 64 * 2 / 3) < 1
    lefts = [
        view.box[0] / (64 - side) for view, side in zip(views, map(width, views), strict=True) if side < 48
    ]
    assert abs(np.mean(lefts) - 0.5) < 0.03 and min(lefts) == 0 and max(lefts) == 1


def width(view: augmentation.View) -> int:
    return view.box[2] - view.box[0]


def test_half_of_the_views_are_mirrored_when_that_is_wanted() -> None:
    across = np.tile(np.linspace(0, 255, 64), (64, 1)).astype(np.uint8)
    picture = Image.fromarray(np.stack([across] * 3, 2))

    def mirrored(hflip: bool) -> float:
        rng = np.random.default_rng(1)
        views = [augmentation.augment(picture, 64, rng, 4, hflip=hflip) for _ in range(400)]
        middles = [
            view.pixels[0, (view.box[1] + view.box[3]) // 2, view.box[0] : view.box[2]] for view in views
        ]
        return float(np.mean([row[0] > row[-1] for row in middles]))

    assert abs(mirrored(True) - 0.5) < 0.08 and mirrored(False) == 0


def test_the_same_generator_gives_the_same_views() -> None:
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    for size in (64, 48, 512):
        one = augmentation.augment(noise(90, 50), size, first, 8)
        two = augmentation.augment(noise(90, 50), size, second, 8)
        assert one.pixels.tobytes() == two.pixels.tobytes() and one.prefix == two.prefix
    assert first.random() == second.random()


def test_every_view_takes_as_many_random_numbers() -> None:
    rng, counter = np.random.default_rng(3), np.random.default_rng(3)
    for size in (64, 32, 128):
        augmentation.augment(noise(size, 50), size, rng, 8, hflip=size > 60)
        counter.random(7)
    assert rng.random() == counter.random()


def test_for_size_keeps_what_views_need(tmp_path: Path) -> None:
    noise(3000, 2000).save(tmp_path / "a.jpg")
    found = photos.read(tmp_path)
    small = found.for_size(64)
    assert small.pictures[0].size == (135, 90) and small.digest == found.digest


@pytest.mark.parametrize(
    "name, folder, noun",
    [
        ("my_dog", None, "dog"),
        ("dog6", None, "dog"),
        ("myDog", None, "dog"),
        ("mydog", None, "dog"),
        ("Rex", "cats", "cat"),
        ("rex", "photos of teapots/", "teapot"),
        ("my_dog_house", None, "house"),
        ("moongate", None, "gate"),
        ("the-traffic-lights", None, "traffic light"),
        ("my_dog", "cats", "dog"),
        ("scar", None, None),
        ("rex", "photos", None),
        ("teapot", None, "teapot"),
        ("rc_car", "x", "car"),
        ("x", ".", None),
    ],
)
def test_a_noun_is_suggested(
    name: str, folder: str | None, noun: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert class_noun.suggest_noun(name, folder, NOUNS) == noun
