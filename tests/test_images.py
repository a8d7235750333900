"""PNG files that remember, grids, contact sheets and their lettering."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conceptkit.errors import ConceptError
from conceptkit.pictures import text as texts
from conceptkit.pictures.contact_sheet import CARD, PAPER, Row, Tile, grid, sheet
from conceptkit.pictures.png_metadata import read_metadata, save_png

COLOURS = [(200, 30, 30), (30, 160, 40), (40, 60, 200), (220, 180, 30)]


def plain(k: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[k % len(COLOURS)])


def where(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box of the pixels of exactly this colour."""
    return Image.fromarray((np.asarray(picture) == colour).all(2)).getbbox()


def test_metadata_comes_back(tmp_path: Path) -> None:
    given = {"prompt": 'my_dog — "here"', "seed": 7, "concepts": {"my_dog": 2}, "path": "x", "guidance": 5.0}
    file = save_png(plain(), tmp_path / "new" / "a.png", **given)
    assert read_metadata(file) == given
    with Image.open(file) as image:
        assert image.info["prompt"] == given["prompt"] and image.info["seed"] == "7"


def test_pixels_come_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    save_png(plain(), tmp_path / "a.png", seed=1)
    save_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == picture.tobytes()
    assert read_metadata(tmp_path / "a.png") == {}
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_png(plain(), tmp_path / "a.png", seed=1)

    def interrupted(self: Image.Image, target: BinaryIO, **_: object) -> None:
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(plain(1), tmp_path / "a.png", seed=2)
    assert read_metadata(tmp_path / "a.png") == {"seed": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_metadata_of_other_programs_is_text(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a dog, steps 20")
    plain().save(tmp_path / "a.png", pnginfo=info)
    assert read_metadata(tmp_path / "a.png") == {"parameters": "a dog, steps 20"}


def test_metadata_of_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ConceptError, match=r"a\.png cannot be read as a picture"):
        read_metadata(tmp_path / "a.png")


def test_every_picture_is_on_the_sheet_once_and_apart() -> None:
    picture = sheet(
        [Row([Tile(plain(0)), Tile(plain(1))], "one"), Row([Tile(plain(2)), Tile(plain(3))], "two")]
    )
    boxes = [where(picture, colour) for colour in COLOURS]
    (a, b, c, d) = [box for box in boxes if box is not None]
    assert a[2] < b[0] and a[1] == b[1], "beside one another, level"
    assert a[3] < c[1] and a[0] == c[0] and b[0] == d[0], "rows below one another, in columns"
    assert len({box[2] - box[0] for box in (a, b, c, d)}) == 1, "all of one size"


def test_five_columns_are_about_two_thousand_pixels() -> None:
    rows = [Row([Tile(plain(k), "a dog") for k in range(5)], "my_dog", "in 70 s")]
    for enlarge in ("lanczos", "nearest"):
        assert 1600 <= sheet(rows, title="T", enlarge=enlarge).width <= 2000
    assert sheet(rows, width=1000).width <= 1000


def test_nearest_keeps_pixels_square() -> None:
    checks = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    picture = np.asarray(sheet([Row([Tile(checks)])], enlarge="nearest").convert("L"))
    middle = picture[picture.shape[0] // 2]
    runs = np.diff(np.flatnonzero(np.diff((middle < 128).astype(int))))
    assert len(runs) > 50 and set(runs[2:-2]) == {runs[5]}


def test_pictures_keep_their_shape() -> None:
    box = where(sheet([Row([Tile(plain(0, (100, 50)))])]), COLOURS[0])
    assert box is not None and (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(2, abs=0.03)


def test_long_captions_make_rows_higher_not_wider() -> None:
    short = sheet([Row([Tile(plain(), "a dog"), Tile(plain(1), "a cat")], "row")])
    tall = sheet([Row([Tile(plain(), "a dog " * 40), Tile(plain(1), "a cat")], "row")])
    assert tall.width == short.width and tall.height > short.height + 100
    assert where(tall, COLOURS[1]) == where(short, COLOURS[1])


def test_words_stay_inside_the_margins() -> None:
    words = "immeasurably_long_" * 30
    table = [["", words, "score"], ["my_dog", words, "0.8"], ["moongate", "x", "0.7"]]
    rows = [Row([Tile(plain(), words)], words, words)]
    picture = np.asarray(sheet(rows, title=words, subtitle=words, columns=[words], footer=[*table, words]))
    for side in (picture[:, :60], picture[:, -60:], picture[:60], picture[-60:]):
        assert (side == PAPER).all()


def test_columns_stand_over_their_tiles() -> None:
    tiles = [Tile(plain(0)), Tile(plain(1))]
    bare = sheet([Row(tiles, "row")], columns=[])
    headed = sheet([Row(tiles, "row")], columns=["", "IIII"])
    ink = np.argwhere((np.asarray(headed.convert("L")) < 120)[:100])
    second = where(headed, COLOURS[1])
    assert headed.height > bare.height and second is not None
    assert second[0] - 4 <= ink[:, 1].min() <= second[0] + 8


def test_a_long_row_goes_on_below_and_gaps_are_kept() -> None:
    tiles = [Tile(plain(0)), Tile(None), Tile(plain(1)), Tile(plain(2))]
    picture = sheet([Row(tiles)], per_line=3)
    a, b, c = (where(picture, colour) for colour in COLOURS[:3])
    assert a and b and c
    assert a[1] == b[1] and c[1] > a[3] and c[0] == a[0]
    assert b[0] - a[0] > 2 * (a[2] - a[0])
    assert picture.getpixel(((a[2] + b[0]) // 2, (a[1] + a[3]) // 2)) == CARD


def test_wide_pictures_take_the_columns_they_need() -> None:
    wide, square = plain(0, (104, 64)), plain(1, (64, 64))
    picture = sheet([Row([Tile(wide), Tile(square), Tile(plain(2, (104, 64)))])], per_line=4)
    a, b, c = (where(picture, colour) for colour in COLOURS[:3])
    assert a and b and c
    assert a[3] - a[1] == pytest.approx(b[3] - b[1], abs=2), "as high as the others"
    assert (a[2] - a[0]) / (a[3] - a[1]) == pytest.approx(104 / 64, abs=0.03)
    assert b[0] > a[2] and b[1] == a[1]
    assert c[0] == a[0] and c[1] > a[3], "two columns do not fit beside three"


def test_an_empty_sheet_is_still_a_picture() -> None:
    assert sheet([]).width > 0
    assert sheet([Row([])], title="nothing").width > 0
    assert grid([], 3).width > 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_is_shown(mode: str) -> None:
    assert sheet([Row([Tile(plain().convert(mode))])]).mode == "RGB"


def test_a_grid() -> None:
    picture = grid([plain(k) for k in range(4)], 3, ["a", "b", "c", "d"], tile=128)
    a, b, c, d = (where(picture, colour) for colour in COLOURS)
    assert a and b and c and d
    assert a[1] == b[1] == c[1] and d[0] == a[0] and d[1] > a[3]
    assert b[0] - a[0] >= 128
    assert grid([plain()], 3).width < 300
    with pytest.raises(ValueError):
        grid([plain()], 3, ["a", "b"])


def test_the_same_sheet_twice() -> None:
    rows = [Row([Tile(plain(), "a dog")], "row", "note")]
    assert sheet(rows, title="T").tobytes() == sheet(rows, title="T").tobytes()


@given(st.text(max_size=120), st.integers(12, 40), st.integers(60, 400))
@settings(max_examples=100, deadline=None)
def test_wrapped_lines_fit_and_lose_nothing(text: str, size: int, width: int) -> None:
    lines = texts.wrap(text, size, width)
    assert all(texts.font(size).getlength(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(texts.legible(text).split())
    mask = texts.block(text, size, width)
    assert mask.width == width


def test_words_are_kept_whole_where_they_fit() -> None:
    assert texts.wrap("one two", 20, 2000) == ["one two"]
    assert texts.wrap("one\ntwo", 20, 2000) == ["one", "two"]
    assert texts.wrap("my_very_long_name", 20, 110)[0] == "my_very_"


def test_letters_the_font_lacks() -> None:
    assert texts.legible("café – 3×4 ≥ 2 ½ Straße …") == "cafe - 3x4 >= 2 1/2 Strasse ..."
    assert texts.legible("собака dog") == "?????? dog"


def test_numbers_line_up_on_the_right() -> None:
    rows = [["name", "bytes"], ["a", "9"], ["b", "12,345"]]
    mask = np.asarray(texts.table(rows, 20, 600)) > 100
    height = mask.shape[0] // 3
    ends = [np.flatnonzero(mask[k * height : (k + 1) * height].any(0)).max() for k in range(3)]
    assert max(ends) - min(ends) <= 3
