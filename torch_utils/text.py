"""Text in pictures: lines that fit, in a font that has their letters.

The font is DejaVu Sans, which matplotlib brings along, or for letters that it lacks (Chinese, Japanese, Korean) the
first font of this machine that has them. A letter that no font has becomes its code, such as \\u732b: never a box.
"""

import contextlib
import functools
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Preferred where several fonts of a machine have the letters, in this order; all others come behind these, and last the
# files of other than upright letters of normal weight.
PREFERRED = ("NotoSansCJK-Regular", "SourceHanSans", "wqy-microhei", "msyh", "PingFang", "Arial Unicode", "NotoSans")
STYLES = re.compile("bold|black|heavy|italic|oblique|light|thin|mono|condensed", re.IGNORECASE)
EMPTY = re.compile("lastresort|adobeblank", re.IGNORECASE)  # fonts that have no letters, but boxes or blanks for all
# With what a line can be broken behind; the point of 0.5 and the minus of 1e-05 and -0.5 are within their numbers.
WORD = re.compile(r"(?:[^\s_./-]|(?<=\d)\.(?=\d)|(?<!\d)-(?=\d))*(?:[\s_./]|-(?!\d)|(?<=\S)-)*")
# A code, or a letter with its accents: broken only where it is wider than a line.
UNIT = re.compile(r"\\U[0-9a-f]{8}|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|.[\u0300-\u036f]*")
SIZE = 11  # of the font, in pixels
LINE = SIZE + 2  # from one line to the next
INK = (20, 20, 20)


@dataclass(frozen=True)
class Lines:
    """Lines of text, and the font that they are written in; `step`: pixels from one to the next."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    step: int

    @property
    def width(self) -> int:
        """Pixels of the longest line."""
        return math.ceil(max(map(self.font.getlength, self.lines)))

    @property
    def height(self) -> int:
        return self.step * len(self.lines)

    def draw(self, picture: Image.Image, position: tuple, fill: tuple = INK, anchor: str = "la") -> None:
        """Write the lines one below the other; position, anchor: of the first, as Pillow has them."""
        x, y = position
        for i, line in enumerate(self.lines):
            ImageDraw.Draw(picture).text((x, y + i * self.step), line, fill=fill, font=self.font, anchor=anchor)


def fit(text: str, width: float, max_lines: int = 1, size: int = SIZE) -> Lines:
    """A text in as few lines as it needs, each at most `width` pixels wide, broken between words where possible.

    What more than `max_lines` would be needed for is cut off, with an ellipsis in its place. size: of the font.
    """
    file = _font_file(text)
    font = _open(file, size)
    codes = (letter if _has(file, letter) else letter.encode("unicode_escape").decode() for letter in text)

    def fits(line):
        return font.getlength(line) <= width

    lines = _wrap("".join(codes).rstrip(), fits)
    if len(lines) > max_lines:
        rest, ellipsis = "".join(lines[max_lines - 1 :]), "…" if _has(file, "…") else "..."
        last = ""
        for unit in UNIT.findall(rest):
            if not fits(last + unit + ellipsis):
                break
            last += unit
        lines = [*lines[: max_lines - 1], last.rstrip() + ellipsis]
    return Lines(tuple(line.rstrip() for line in lines), font, LINE + size - SIZE)


def _wrap(text, fits):
    """Lines of a text that fit; a word that is longer than a line begins where the one before it ends."""
    lines, line = [], ""
    for word in WORD.findall(text):
        if line and not fits(line + word.rstrip()) and fits(word.rstrip()):
            lines, line = [*lines, line], ""
        if fits(line + word.rstrip()):
            line += word
            continue
        units = ([unit] if fits(unit) else unit for unit in UNIT.findall(word))
        for unit in itertools.chain.from_iterable(units):
            if line and not fits((line + unit).rstrip()):
                lines, line = [*lines, line], ""
            line = (line + unit).lstrip()
    return [*lines, line]


def _font_file(text):
    """The font file that lacks the fewest letters of a text; DejaVu Sans if it lacks no more than others."""

    def lacking(file):
        return [letter for letter in sorted(set(text)) if not _has(file, letter)]

    others = [file for letter in lacking(_own_font()) if (file := _first_with(letter))]
    return min([_own_font(), *others], key=lambda file: len(lacking(file)))


@functools.cache
def _own_font():
    import matplotlib  # not for those who only use the module's neighbours

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _has(file, letter):
    return letter.isprintable() and ord(letter) in _letters(file)  # some fonts have a line break


@functools.cache
def _first_with(letter):
    """The first font of this machine that has a letter, None if none has."""
    return next((file for file in _machine_fonts() if _has(file, letter)), None)


@functools.cache
def _machine_fonts():
    """The font files in the system's and the user's folders, the preferred ones first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file):
        name = Path(file).name
        preferred = (i for i, wanted in enumerate(PREFERRED) if name.startswith(wanted))
        return bool(STYLES.search(name)), next(preferred, len(PREFERRED)), name

    return sorted((file for file in findSystemFonts() if not EMPTY.search(Path(file).name)), key=rank)


@functools.cache
def _letters(file):
    """Codes of the letters that a font has; none if the font cannot be used (damaged, or of pictures)."""
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(OSError, RuntimeError):
        font = FT2Font(file)
        if font.scalable:
            return frozenset(font.get_charmap())
    return frozenset()


@functools.cache
def _open(file, size):
    return ImageFont.truetype(file, size)
