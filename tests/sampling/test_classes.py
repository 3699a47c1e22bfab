"""Classes by number and by name."""

import pytest

import utils
from sampling.classes import class_ids, listed, pages, spread_classes
from utils import numbered

NAMES = [
    "cat", "Große Katze", "caf\udce9", "a\nb", "e\u0301toile", "\u732b", "Dog", "dog", "twin", "twin", "flags", "",
    "cat, of all kinds",
]  # fmt: skip


def test_spread():
    assert spread_classes(3) == [0, 1, 2]
    assert spread_classes(1000) == list(range(0, 1000, 100))


@pytest.mark.parametrize("number", [1, 2, 10, 11, 19, 21, 100, 101, 1000])
def test_pages_hold_every_class_once_in_order(number):
    classes = list(range(5, 5 + number))
    made = pages(classes)
    assert [c for page in made for c in page] == classes and len(made) == -(-number // 10)
    assert max(map(len, made)) <= 10 and (min(map(len, made)) > 1 or number == 1)


def test_classes_are_written_with_number_and_name():
    assert [numbered(c, NAMES) for c in (0, 3, 2, 11)] == ["0 cat", r"3 a\nb", r"2 caf\udce9", "11"]
    assert numbered(1, ["0", "1"]) == "1" and numbered(0, ["1", "0"]) == "0 1" and numbered(7) == "7"
    assert listed([0, 1], ["x" * 99, "b"]) == f"0 {'x' * 37}…, 1 b"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["2", "0", "2"], [2, 0]),
        (["cat", "0", "flags"], [0, 10]),
        (["CAT", "große katze", "GROSSE KATZE"], [0, 1]),
        (["caf\udce9"], [2]),
        ([r"caf\udce9", r"a\nb", "a\nb"], [2, 3]),  # as they are printed, and as they are
        (["\u00e9toile", "\udce7\udc8c\udcab"], [4, 5]),  # an accent of its own; UTF-8 in a locale without it
        (["dog", "Dog"], [7, 6]),
        (["all"], list(range(13))),
    ],
)
def test_classes_are_found_by_number_and_name(given, expected):
    assert class_ids(given, NAMES) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("falgs", "--classes falgs: this model has no such class; near it are: 10 flags"),
        ("katze", "near it are: 1 Große Katze"),
        ("13", "--classes 13: .*it has the classes 0 to 12: 0 cat, 1 Große Katze, .*, ...$"),
        ("-1", "--classes -1: "),
        ("9" * 5000, "no such class"),
        ("0,1", "--classes 0,1: .* with spaces between them: --classes 0 1"),
        ("cats, of all kinds", "near it are: 12 cat, of all kinds"),
        ("DOG", "2 classes have this name; give a number, 6 or 7"),
        ("twin", "2 classes have this name; give a number, 8 or 9"),
    ],
)
def test_an_unknown_class_is_one_line_with_what_may_be_meant(given, words):
    with pytest.raises(utils.UserError, match=words) as caught:
        class_ids(["cat", given], NAMES)
    assert "\n" not in str(caught.value)


def test_a_number_is_an_id_also_where_names_are_numbers():
    with pytest.warns(UserWarning, match="--classes 1 is number 1, named 2; the class named 1 is number 0"):
        assert class_ids(["1"], ["1", "2", "12"]) == [1]
    assert class_ids(["12", "0"], ["1", "2", "12"]) == [2, 0]
    assert class_ids(["all"], ["one", "all"]) == [1]
