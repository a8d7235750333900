"""Pictures on their way to a person: PNG files that remember their prompt, grids, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from conceptkit.pictures.text import block, table

PAPER, CARD, EDGE = (246, 244, 239), (255, 255, 255), (227, 223, 214)
INK, SOFT = (38, 36, 33), (104, 99, 92)

Enlarge = Literal["nearest", "lanczos"]
Cells = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture and the words under it; without a picture, a gap."""

    picture: Image.Image | None
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """Tiles beside one another, with a title and a smaller note at their left."""

    tiles: Sequence[Tile]
    title: str = ""
    note: str = ""


def grid(
    pictures: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    tile: int = 256,
    enlarge: Enlarge = "lanczos",
) -> Image.Image:
    """Pictures in lines of `columns`, each in a square of `tile` pixels, with captions under them."""
    words = captions or [""] * len(pictures)
    tiles = [Tile(picture, caption) for picture, caption in zip(pictures, words, strict=True)]
    body = _tiles(tiles, max(1, min(columns, len(tiles))), tile, tile / 400, enlarge, PAPER)
    return _framed(body, round(tile / 16), PAPER)


def sheet(
    rows: Sequence[Row],
    *,
    title: str = "",
    subtitle: str = "",
    columns: Sequence[str] = (),
    footer: Sequence[Cells] = (),
    width: int = 2000,
    per_line: int | None = None,
    enlarge: Enlarge = "lanczos",
) -> Image.Image:
    """A contact sheet: title, captions over the columns, one card a row, and lines of words and figures.

    width: of the whole sheet in pixels; it comes out narrower where few or pixel-exact tiles need less.
    per_line: tiles beside one another before a row goes on below (the longest row, at most 8, by default).
    footer: a string is a paragraph; strings in a list are the cells of a line, aligned with the lines of
    cells around it. enlarge: how small pictures are made large, "nearest" keeping their pixels square.
    """
    count = per_line or max((len(row.tiles) for row in rows), default=1)
    count = max(1, count if per_line else min(count, 8))
    plan = _plan(rows, width, count, enlarge)
    parts: list[tuple[Image.Image, int]] = []
    if title:
        parts.append((_words(title, 56, INK, plan, bold=True), 4))
    if subtitle:
        parts.append((_words(subtitle, 28, SOFT, plan), 4))
    if any(columns):
        parts.append((_column_heads(columns, plan), 26))
    parts += [(_card(row, plan), 20 if i else 30 if not any(columns) else 12) for i, row in enumerate(rows)]
    if footer:
        parts.append((_footer(footer, plan), 34))
    body = _stacked([part for part, _ in parts], [plan.px(space) for _, space in parts], PAPER)
    return _framed(body, plan.px(64), PAPER)


@dataclass(frozen=True)
class _Plan:
    """Sizes of one sheet in pixels; `unit` is one two-thousandth of the width that was asked for."""

    unit: float
    inner: int
    gutter: int
    pad: int
    tile: int
    count: int
    enlarge: Enlarge

    def px(self, size: float) -> int:
        return round(size * self.unit)


def _plan(rows: Sequence[Row], width: int, count: int, enlarge: Enlarge) -> _Plan:
    unit = width / 2000
    margin, pad, gap = round(64 * unit), round(28 * unit), _gap(unit)
    gutter = round(270 * unit) if any(row.title or row.note for row in rows) else 0
    spare = width - 2 * margin - 2 * pad - gutter - gap * (count - 1)
    tile = max(16, min(spare // count, round(460 * unit)))
    if enlarge == "nearest":
        sides = [max(t.picture.size) for row in rows for t in row.tiles if t.picture is not None]
        smallest = min(sides, default=tile)
        tile = max(tile // smallest, 1) * smallest if smallest <= tile else tile
    inner = 2 * pad + gutter + count * tile + (count - 1) * gap
    return _Plan(unit, inner, gutter, pad, tile, count, enlarge)


def _gap(unit: float) -> int:
    return round(22 * unit)


def _card(row: Row, plan: _Plan) -> Image.Image:
    tiles = _tiles(row.tiles, plan.count, plan.tile, plan.unit, plan.enlarge, CARD)
    side = []
    if plan.gutter:
        wide = plan.gutter - plan.px(28)
        side = [_inked(block(row.title, plan.px(33), wide, bold=True), INK, CARD)]
        side += [_inked(block(row.note, plan.px(24), wide), SOFT, CARD)] if row.note else []
    words = _stacked(side, [0, plan.px(8)][: len(side)], CARD) if side else Image.new("RGB", (1, 1), CARD)
    card = Image.new("RGB", (plan.inner, max(tiles.height, words.height) + 2 * plan.pad), PAPER)
    card.paste(EDGE, (0, 0), _corners(card.size, plan.px(18)))
    card.paste(CARD, (0, 0), _corners(card.size, plan.px(18), edge=1))
    card.paste(words, (plan.pad, plan.pad))
    card.paste(tiles, (plan.pad + plan.gutter, plan.pad))
    return card


def _tiles(
    tiles: Sequence[Tile], count: int, side: int, unit: float, enlarge: Enlarge, ground: tuple[int, int, int]
) -> Image.Image:
    """Lines of `count` columns on a plain ground, every line as high as its longest caption."""
    gap, size = _gap(unit), round(25 * unit)
    lines = []
    for beside in _lines(tiles, count):
        widths = [columns * side + (columns - 1) * gap for columns, _ in beside]
        under = [block(tile.caption, size, wide) for wide, (_, tile) in zip(widths, beside, strict=True)]
        tallest = max(words.height for words in under)
        space = round(10 * unit) if any(tile.caption for _, tile in beside) else 0
        line = Image.new("RGB", (count * side + (count - 1) * gap, side + space + tallest), ground)
        left = 0
        for wide, (_, tile), words in zip(widths, beside, under, strict=True):
            if tile.picture is not None:
                _place(line, tile.picture, left, (wide, side), round(9 * unit), enlarge)
            line.paste(SOFT, (left, side + space), words)
            left += wide + gap
        lines.append(line)
    return _stacked(lines, [gap] * len(lines), ground)


def _lines(tiles: Sequence[Tile], count: int) -> list[list[tuple[int, Tile]]]:
    """Tiles in lines of `count` columns; a picture takes as many as it is wider than high, rounded."""
    lines: list[list[tuple[int, Tile]]] = []
    for tile in tiles:
        ratio = tile.picture.width / tile.picture.height if tile.picture is not None else 1
        columns = min(count, max(1, round(ratio)))
        if not lines or sum(taken for taken, _ in lines[-1]) + columns > count:
            lines.append([])
        lines[-1].append((columns, tile))
    return lines


def _place(
    line: Image.Image,
    picture: Image.Image,
    left: int,
    room: tuple[int, int],
    radius: int,
    enlarge: Enlarge,
) -> None:
    wide, side = room
    ratio = min(wide / picture.width, side / picture.height)
    fitted = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    how = Image.Resampling.NEAREST if enlarge == "nearest" and ratio > 1 else Image.Resampling.LANCZOS
    shown = picture.convert("RGB").resize(fitted, how)
    top = (side - shown.height) // 2
    left += (wide - shown.width) // 2 if wide == side else 0  # a wide picture begins where its caption does
    line.paste(EDGE, (left, top), _corners(shown.size, radius))
    line.paste(shown, (left, top), _corners(shown.size, radius, edge=1))


def _column_heads(columns: Sequence[str], plan: _Plan) -> Image.Image:
    heads = [block(text, plan.px(26), plan.tile, bold=True) for text in columns[: plan.count]]
    strip = Image.new("RGB", (plan.inner, max(head.height for head in heads)), PAPER)
    for spot, head in enumerate(heads):
        left = plan.pad + plan.gutter + spot * (plan.tile + _gap(plan.unit))
        strip.paste(INK, (left, strip.height - head.height), head)
    return strip


def _footer(lines: Sequence[Cells], plan: _Plan) -> Image.Image:
    parts, cells = [], []
    for line in [*lines, ""]:
        if not isinstance(line, str):
            cells.append(line)
            continue
        if cells:
            parts.append(_inked(table(cells, plan.px(25), plan.inner - 2 * plan.pad), INK, PAPER))
            cells = []
        if line:
            parts.append(_words(line, 24, SOFT, plan))
    return _stacked(parts, [plan.px(18)] * len(parts), PAPER, left=plan.pad)


def _words(text: str, size: int, ink: tuple[int, int, int], plan: _Plan, bold: bool = False) -> Image.Image:
    return _inked(block(text, plan.px(size), plan.inner - 2 * plan.pad, bold=bold), ink, PAPER)


def _inked(mask: Image.Image, ink: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", mask.size, ground)
    picture.paste(ink, (0, 0), mask)
    return picture


def _corners(size: tuple[int, int], radius: int, edge: int = 0) -> Image.Image:
    """An "L" mask of `size`: a rectangle with smooth round corners, `edge` pixels in from the sides."""
    width, height = (max(1, side - 2 * edge) for side in size)
    radius = min(radius, width // 2, height // 2)
    inner = Image.new("L", (width, height), 255)
    if radius:
        disc = Image.new("L", (8 * radius, 8 * radius))
        ImageDraw.Draw(disc).ellipse((0, 0, 8 * radius - 1, 8 * radius - 1), 255)
        disc = disc.reduce(4)
        for x in (0, 1):
            for y in (0, 1):
                quarter = disc.crop((x * radius, y * radius, (x + 1) * radius, (y + 1) * radius))
                inner.paste(quarter, (x * (width - radius), y * (height - radius)))
    mask = Image.new("L", size)
    mask.paste(inner, (edge, edge))
    return mask


def _stacked(
    parts: Sequence[Image.Image], spaces: Sequence[int], ground: tuple[int, int, int], left: int = 0
) -> Image.Image:
    """Parts under one another, each after its space (the first without)."""
    spaces = [0, *spaces[1:]][: len(parts)]
    width = max((part.width for part in parts), default=1) + left
    whole = Image.new("RGB", (width, max(1, sum(part.height for part in parts) + sum(spaces))), ground)
    top = 0
    for part, space in zip(parts, spaces, strict=True):
        whole.paste(part, (left, top + space))
        top += space + part.height
    return whole


def _framed(picture: Image.Image, margin: int, ground: tuple[int, int, int]) -> Image.Image:
    whole = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), ground)
    whole.paste(picture, (margin, margin))
    return whole
