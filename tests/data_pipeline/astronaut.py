"""A real photograph with landmarks and head mask placed by hand: scikit-image's astronaut (NASA, public domain)."""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw

# Left eye, right eye, nose tip, left and right mouth corner, as seen in the picture; pixels (x, y).
LANDMARKS = np.array([(203.5, 100.5), (247.0, 103.5), (225.0, 127.0), (202.5, 139.5), (246.0, 140.0)])
CAPTION = "a photo of a person in an orange space suit in front of a flag"
_HEAD = [
    (174, 128), (160, 110), (156, 98), (154, 80), (153, 68), (158, 58), (172, 48), (188, 37), (194, 27), (205, 22),
    (222, 17), (245, 17), (262, 22), (278, 32), (288, 44), (296, 62), (302, 86), (298, 103), (290, 115), (280, 127),
    (270, 136), (267, 133), (263, 148), (256, 162), (247, 173), (235, 178), (222, 178), (208, 171), (196, 160),
    (188, 150), (183, 135), (181, 131),
]  # fmt: skip


def pixels() -> np.ndarray:
    """The photograph, uint8 (512, 512, 3)."""
    return np.array(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB"))


def head_mask() -> np.ndarray:
    """Head with hair, uint8 (512, 512): 255 inside, 0 outside."""
    mask = Image.new("L", (512, 512))
    ImageDraw.Draw(mask).polygon(_HEAD, fill=255)
    return np.array(mask)
