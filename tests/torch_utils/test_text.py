"""Text in pictures: it fits, nothing of it is lost before it must be, and no letter is a box."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from torch_utils import text

CAT, DOG = "\u732b", "\u72ac"
NAMES = [
    "7", "great_white_shark", "German short-haired pointer", "n01440764", "x" * 255, CAT * 85, "caf\udce9",
    "a\nb\x1b[1m", "собака", "cafe\u0301", "\u0642\u0637\u0629", "", "  two  words ", "\ud800", "\U0001f9a7",
    "a\u200db", "-_./",
]  # fmt: skip


def make_font(path, letters):
    """A font whose letters are all black squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0)), pen.lineTo((100, 700)), pen.lineTo((900, 700)), pen.lineTo((900, 0)), pen.closePath()
    empty, square = TTGlyphPen(None).glyph(), pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square" for letter in letters})
    builder.setupGlyf({".notdef": empty, "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def fonts(monkeypatch):
    """Call it with the font files that the machine shall have."""

    def have(*files):
        for cached in (text._machine_fonts, text._first_with, text._letters):
            cached.cache_clear()
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))

    have()
    yield have
    for cached in (text._machine_fonts, text._first_with, text._letters):
        cached.cache_clear()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize(("width", "max_lines"), [(64, 4), (35, 2), (150, 1), (900, 1)])
def test_any_name_fits(fonts, name, width, max_lines):
    lines = text.fit(name, width, max_lines)
    assert 1 <= len(lines.lines) <= max_lines and lines.width <= width + 1
    assert all(line.isprintable() for line in lines.lines)
    whole, shown = name.split(), "".join(lines.lines).replace(" ", "")
    if "…" not in shown and "".join(whole).isprintable() and CAT not in name and ord(max(name, default="0")) < 0x2000:
        assert shown == "".join(whole)
    picture = Image.new("RGB", (width + 8, lines.height), "white")
    lines.draw(picture, (0, 0))
    assert (np.asarray(picture)[:, lines.width :] == 255).all()


def test_lines_break_between_words():
    assert text.fit("12 great_white_shark", 64, 4).lines == ("12 great_", "white_", "shark")
    assert text.fit("206 German short-haired pointer", 64, 3).lines == ("206", "German", "short-hai…")
    assert text.fit("x" * 30, 64, 2).lines[0] == "x" * 9


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("16x16: |gain| to 0.0109", ["16x16: ", "|gain| ", "to ", "0.0109"]),
        ("gain 3: -0.5 to 1e-05", ["gain ", "3: ", "-0.5 ", "to ", "1e-05"]),
        ("n01_tench-big/fish.png", ["n01_", "tench-", "big/", "fish.", "png"]),
        ("a - b, 2020-10-11", ["a - ", "b, ", "2020-", "10-", "11"]),
    ],
)
def test_numbers_are_not_broken(label, parts):
    assert [word for word in text.WORD.findall(label) if word] == parts


def test_letters_that_no_font_has_are_written_as_their_codes(fonts):
    assert text.fit(f"12 {CAT}{DOG}\udce9\t\U0001f9a7", 900).lines == (r"12 \u732b\u72ac\udce9\t\U0001f9a7",)
    assert text.fit(f"12 {CAT}{DOG}", 64, 4).lines == (r"12 \u732b", r"\u72ac")  # a code is not broken
    assert "DejaVu" in text.fit("собака", 64).font.path


def test_letters_that_our_font_lacks_are_looked_for_in_the_machine_s(fonts, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    letters = {name: make_font(tmp_path / name, "12 " + which) for name, which in (
        ("Other-Bold.ttf", CAT), ("LastResort.ttf", CAT), ("Other.ttf", CAT), ("NotoSansCJK-Regular.ttf", DOG),
    )}  # fmt: skip
    fonts(str(tmp_path / "broken.ttf"), *letters.values())
    for name, font in ((f"12 {CAT}", "Other.ttf"), (f"12 {DOG}", "NotoSansCJK-Regular.ttf"), ("12", "DejaVuSans.ttf")):
        lines = text.fit(name, 100)
        assert lines.lines == (name,) and lines.font.path.endswith(f"/{font}")
    fonts(letters["Other-Bold.ttf"])
    assert text.fit(CAT, 100).font.path.endswith("Other-Bold.ttf")
    picture = Image.new("L", (12, 13), "white")
    text.fit(CAT, 100).draw(picture, (0, 0), fill=0)
    assert (np.asarray(picture) < 50).sum() > 40  # the square that stands for it, and no outline of a box
    fonts(*letters.values())
    assert text.fit(CAT + DOG, 100).lines in ((CAT + r"\u72ac",), (r"\u732b" + DOG,))  # no font has both


@pytest.mark.skipif(not text._first_with(CAT), reason="needs a font with Chinese letters")
def test_a_font_of_this_machine_draws_chinese():
    lines = text.fit(f"12 {CAT}{DOG}", 100)
    assert lines.lines == (f"12 {CAT}{DOG}",)
    pictures = [Image.new("L", (14, 16), "white") for _ in range(2)]
    for picture, letter in zip(pictures, (CAT, DOG), strict=True):
        text.fit(letter, 100).draw(picture, (0, 0), fill=0)
    assert not np.array_equal(*map(np.asarray, pictures))  # boxes would be equal
