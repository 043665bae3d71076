"""Sample sheets: grids of equally large pictures in one PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from world import ByteImage

GAP = 2


def save_sheet(path: Path, pictures: ByteImage, columns: int) -> None:
    """Write (count, height, width, 3) uint8 RGB pictures row by row with thin white gaps."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    cv2.imwrite(str(path), sheet[..., ::-1])
