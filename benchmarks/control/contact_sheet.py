"""Contact sheets: labelled grids of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from held_out import Case
from world import ByteImage

GAP = 4
LINE = 16
INK = (30, 30, 34)


def grid(cells: Sequence[Sequence[ByteImage]], columns: Sequence[str], captions: Sequence[str]) -> Image.Image:
    """Rows of equally large pictures under column titles; each row under its caption. One row has one caption."""
    height, width = cells[0][0].shape[:2]
    step = LINE + height + GAP
    sheet = Image.new("RGB", (len(columns) * (width + GAP) + GAP, LINE + GAP + len(cells) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (width + GAP), 1), title, INK, font)
    for row, (caption, pictures) in enumerate(zip(captions, cells, strict=True)):
        top = LINE + GAP + row * step
        draw.text((GAP, top), caption, INK, font)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (GAP + column * (width + GAP), top + LINE))
    return sheet


def ruler_sheet(cases: Sequence[Case], pictures: Mapping[str, Sequence[ByteImage]]) -> Image.Image:
    """A line for each scene: its rendering, then every row's picture, behind its control image where there is one."""
    titles: list[str] = ["scene"]
    columns: list[Sequence[ByteImage]] = [[case.picture for case in cases]]
    for name, shown in pictures.items():
        if name in cases[0].hints:
            titles.append(f"{name} image")
            columns.append([case.hints[name] for case in cases])
        titles.append(name)
        columns.append(shown)
    captions = [case.caption.text for case in cases]
    return grid([list(line) for line in zip(*columns, strict=True)], titles, captions)
