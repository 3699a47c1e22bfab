"""Folders of classes, whatever their names."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.files import png_writer

HARD = [
    "\u732b" * 85, "\u732b" * 84 + "\u72ac", "caf\udce9", "\udce7\udc8c\udcab", "a/b", "a\\b", "..", ".hidden", "con",
    "NUL", "x" * 255, "Dog", "dog", "two\nlines", 'a<b>:"|?*', "", "trailing. ", "\ud800", "/etc/passwd", "-rf",
    "\x00", "e\u0301",
]  # fmt: skip


def test_any_class_name_makes_a_folder(tmp_path):
    y = torch.arange(len(HARD)).repeat(2)
    images = torch.arange(len(y), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    with png_writer(tmp_path / "images", y, HARD) as write:
        write(images[:5])
        write(images[5:])
    folders = sorted(os.listdir(tmp_path / "images"))
    assert [int(name[:2]) for name in folders] == list(range(len(HARD)))  # they sort as the ids do
    for name in folders:
        assert len(os.fsencode(name)) <= 103 and not set(name) & set('<>:"/\\|?*\n\0') and name[-1] not in ". "
    assert folders[3] == "03_\u732b" and folders[21] == "21_\u00e9" and folders[15] == "15"
    for path in (tmp_path / "images").rglob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image).max() == int(path.stem) == images[int(path.stem)].max()
            assert int(path.parent.name[:2]) == y[int(path.stem)]


@pytest.mark.parametrize(("names", "folders"), [(["0", "1"], ["0", "1"]), (["1", "0"], ["0_1", "1_0"])])
def test_names_that_are_numbers(tmp_path, names, folders):
    with png_writer(tmp_path / "images", torch.tensor([0, 1]), names) as write:
        write(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))
    assert sorted(os.listdir(tmp_path / "images")) == folders
