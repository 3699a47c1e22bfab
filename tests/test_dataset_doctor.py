"""What the doctor finds in made data sets, when it looks again, what it says, and the picture that it draws."""

import io
import json
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

import dataset_doctor
import make_hdf5
import train
import utils
from image_datasets import doctor, doctor_picture, loading, writing
from training import run_folder
from training.plan import make_plan


def write(path, images, labels, class_names=None, **storage):
    """A data set in the given storage; without class names as the reference family writes it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=images, **storage)
        file["labels"] = np.asarray(labels, dtype=np.int64)
        if class_names:
            file.attrs["class_names"] = json.dumps(class_names)
    return loading.HDF5Dataset(path)


def noise(n, resolution=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, resolution, resolution), dtype=np.uint8)


@pytest.fixture
def planted():
    """40 images with oddities, and their labels: classes a (30), b (8), c (none), d (2)."""
    images, labels = noise(40), np.array([0] * 30 + [1] * 8 + [3] * 2)
    images[7], images[31], images[9], images[39] = images[3], images[3], images[8], images[31]
    images[12], images[13] = 200, np.array([1, 2, 3], np.uint8)[:, None, None]  # grey and constant; only constant
    images[20, 1:] = images[20, 0]  # only grey
    images[21, :, 0] = 7  # the first row alone is of one colour
    return images, labels


def no_pass(*_):
    raise AssertionError("a pass over the pixels")


# Findings


@pytest.mark.parametrize("storage", [{}, {"chunks": (7, 3, 8, 8)}, {"chunks": (7, 3, 8, 8), "compression": "lzf"}])
@pytest.mark.parametrize("block", [192 * 3, 2**22])
def test_what_is_in_a_data_set_is_found(tmp_path, planted, monkeypatch, storage, block):
    monkeypatch.setattr(doctor, "BLOCK_BYTES", block)
    findings = doctor.examine(write(tmp_path / "a.hdf5", *planted, ["a", "b", "c", "d"], **storage))
    assert findings["num_images"] == 40 and findings["resolution"] == 8 and findings["num_classes"] == 4
    assert findings["counts"] == [30, 8, 0, 2] and findings["empty"] == ["c"]
    assert findings["smallest"] == {"name": "d", "count": 2} and findings["largest"] == {"name": "a", "count": 30}
    assert findings["num_duplicates"] == 4 and findings["num_duplicates_across_classes"] == 2
    assert findings["duplicates"] == [[31, 3], [39, 3], [7, 3], [9, 8]]  # those across classes first
    assert findings["num_constant"] == 2 and findings["constants"] == [12, 13] and findings["num_grey"] == 2
    assert json.loads((tmp_path / "a_doctor.json").read_text()).items() <= findings.items()


def test_duplicates_are_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 12, (60, 2)).astype(np.uint64) << np.uint64(61)  # also equal in one half only
    labels = rng.integers(0, 3, 60)
    equal = np.tril((digests[:, None] == digests).all(2), -1)  # (i, j): j is an earlier image equal to i
    indices, originals, across = doctor.find_duplicates(digests, labels)
    assert 5 < len(indices) < 55 and 0 < across.sum() < len(across)
    assert np.array_equal(indices, np.flatnonzero(equal.any(1)))
    assert np.array_equal(originals, equal[indices].argmax(1))
    assert np.array_equal(across, (equal & (labels[:, None] != labels)).any(1)[indices])


def test_content_is_that_of_pixels_and_labels_alone(tmp_path, planted):
    images, labels = planted
    content = doctor.full_pass(write(tmp_path / "a.hdf5", images, labels))["content"]
    assert len(content) == 64
    same = write(tmp_path / "b.hdf5", images, labels, list("wxyz"), chunks=(7, 3, 8, 8), compression="gzip")
    assert doctor.full_pass(same)["content"] == content
    changed = images.copy()
    changed[-1, 2, 7, 7] ^= 1
    others = [(changed, labels), (images, labels ^ 1), (images[::-1], labels), (images[:-1], labels[:-1])]
    for number, other in enumerate(others):
        assert doctor.full_pass(write(tmp_path / f"{number}.hdf5", *other))["content"] != content


# Kept findings


def test_a_pass_is_made_once(tmp_path, planted, monkeypatch, capsys):
    dataset = write(tmp_path / "a.hdf5", *planted)
    findings = doctor.introduce(dataset)
    assert findings["fresh"] and "40 images 8x8" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "full_pass", no_pass)
    again = doctor.introduce(loading.HDF5Dataset(tmp_path / "a.hdf5"))
    assert again == findings | {"fresh": False}
    out = capsys.readouterr().out
    assert out.startswith("a: 40 images 8x8, 4 classes; ") and out.count("\n") == 1
    assert out.endswith(f"; 5 warnings, see {tmp_path / 'a_doctor.png'}\n")
    with pytest.raises(AssertionError, match="a pass"):
        doctor.examine(dataset, overwrite=True)


@pytest.mark.parametrize("change", ["pixels", "labels", "cut", "list", "format", "binary", "picture"])
def test_stale_or_damaged_findings_are_made_again(tmp_path, planted, change):
    images, labels = planted
    path, kept = tmp_path / "a.hdf5", tmp_path / "a_doctor.json"
    old = doctor.examine(write(path, images, labels))
    if change in ("pixels", "labels"):
        write(path, *((images ^ 1, labels) if change == "pixels" else (images, labels ^ 1)))
    elif change == "picture":
        (tmp_path / "a_doctor.png").unlink()
    elif change == "format":
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"format": 0}))
    else:
        kept.write_bytes({"cut": kept.read_bytes()[:100], "list": b"[]", "binary": b"\xff\x00"}[change])
    new = doctor.examine(loading.HDF5Dataset(path))
    assert new["fresh"] and (new["content"] != old["content"]) == (change in ("pixels", "labels"))
    assert not doctor.examine(loading.HDF5Dataset(path))["fresh"]


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, planted, capsys):
    dataset = write(tmp_path / "a.hdf5", *planted)
    expected = doctor.full_pass(dataset)
    for folder in (tmp_path / "a.hdf5", tmp_path / "blocked"):
        (tmp_path / "blocked" / "a_doctor.json").mkdir(parents=True, exist_ok=True)  # in the way of a file
        findings = doctor.examine(dataset, folder)
        out = capsys.readouterr().out
        assert findings["fresh"] and findings["content"] == expected["content"]
        assert findings["picture"] == (str(folder / "a_doctor.png") if folder.is_dir() else None)
        assert out.count("\n") == 1 and "not kept" in out and "cannot write" in out


def test_a_broken_off_pass_leaves_nothing(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(doctor, "BLOCK_BYTES", 192 * 3)
    dataset = write(tmp_path / "a.hdf5", *planted)
    read = dataset.read

    def interrupted(indices):
        if indices[0] > 20:
            raise KeyboardInterrupt
        return read(indices)

    dataset.read = interrupted
    with pytest.raises(KeyboardInterrupt):
        doctor.examine(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


# Report


def test_an_everyday_report_is_short(tmp_path):
    dataset = write(tmp_path / "birds.hdf5", noise(12), [0] * 5 + [1] * 7, ["robin", "wren"])
    text = doctor.report(doctor.examine(dataset), kept=[2, 3])
    assert text.splitlines() == [
        "birds: 12 images 8x8, 2 classes; smallest 'robin' (5), largest 'wren' (7)",
        "no duplicates, none of one colour",
        "instance selection keeps 5 of 12 images; 2 to 3 a class (smallest 'robin')",
    ]


def test_warnings(tmp_path, planted):
    findings = doctor.examine(write(tmp_path / "a.hdf5", *planted, ["a", "b\udcff", "c\n" + 99 * "c", "d"]))
    assert doctor.report(findings).encode()
    findings["largest"]["count"] = 201
    lines = doctor.report(findings).splitlines()
    assert lines[1] == "4 duplicates, 2 of one colour, 2 grey" and len(lines) == 7
    assert lines[2].startswith("warning: 1 of 4 classes have no images: 'c\\ncc") and len(lines[2]) < 100
    assert lines[3:] == [
        "warning: class 'a' has 100 times the images of 'd'",
        "warning: 10.0 % of the images are duplicates: "
        "number 31 is number 3, number 39 is number 3, number 7 is number 3",
        "warning: 2 of the duplicates are of different classes: number 31 is number 3, number 39 is number 3",
        "warning: 2 of the images are of one colour: number 12, 13",
    ]
    findings["largest"]["count"] = 6  # 3 times as many is still fine, and so is one duplicate in a hundred
    findings |= {"num_images": 400, "num_duplicates_across_classes": 0, "num_constant": 0, "empty": []}
    assert doctor.warnings(findings) == []


def test_unbalanced_classes(tmp_path):
    dataset = write(tmp_path / "a.hdf5", noise(20), [0] * 15 + [1] * 5, ["many", "few"])
    findings = doctor.examine(dataset)
    assert doctor.warnings(findings) == []  # 3 to 1
    findings["largest"]["count"] = 16
    assert doctor.warnings(findings) == ["class 'many' has 3.2 times the images of 'few'"]


def test_a_single_thing_is_told_of_as_one(tmp_path):
    images = noise(2)
    images[1] = images[0]
    text = doctor.report(doctor.examine(write(tmp_path / "a.hdf5", images, [0, 1])))
    assert "a: 2 images 8x8, 2 classes of 1 each\n1 duplicate, none" in text and "1 of the duplicates is of" in text
    images = noise(1)
    images[:] = 7
    text = doctor.report(doctor.examine(write(tmp_path / "b.hdf5", images, [0], ["only"])))
    assert text.startswith("b: 1 image 8x8, one class, 'only'\n") and "1 of the images is of one colour" in text


def test_ids_that_begin_at_1(tmp_path):
    (line,) = doctor.warnings(doctor.examine(write(tmp_path / "a.hdf5", noise(6), [1, 2, 3] * 2)))
    assert line == "1 of 4 classes have no images: '0'; class ids start at 0, are these counted from 1?"


@pytest.mark.parametrize("number", [0, 1])
def test_duplicates_are_named_by_path_all_of_them_in_the_json(tmp_path, number):
    images = noise(40)
    images[20:] = images[:20]
    images[3] = 9
    labels = np.arange(40) // 20
    paths = [f"{'cat' if i < 20 else 'dog'}/{'long' * 20 * number}{i}\udcff.png" for i in range(40)]
    writing.write_hdf5(tmp_path / "a.hdf5", images, labels, ["cat", "dog"], "", "", paths)
    findings = doctor.examine(loading.HDF5Dataset(tmp_path / "a.hdf5"))
    pairs = [[i, i - 20] for i in range(20, 40) if i != 23]
    stored = json.loads((tmp_path / "a_doctor.json").read_text())
    for found in (findings, stored):
        assert found["duplicates"] == pairs and found["constant_paths"] == [paths[3]]
        assert found["duplicate_paths"] == [[paths[i], paths[j]] for i, j in pairs]
    text = "\n".join(doctor.warnings(findings))
    assert text.encode() and f"20\\udcff.png is {'…' * number if number else 'cat/'}" in text
    assert ("dog/21\\udcff.png is cat/1\\udcff.png" in text) == (number == 0) and "3\\udcff.png" in text.splitlines()[
        -1
    ]


# Values


@pytest.mark.parametrize(
    ("bits", "flag"), [(8, "--range 0 255"), (10, "--range 0 1023"), (12, "--range 0 4095"), (14, "--range 0 16383")]
)
def test_dark_data_are_told_of_with_the_remedy(tmp_path, bits, flag):
    values = np.random.default_rng(0).integers(0, 2**bits, (60, 8, 8), dtype=np.uint16)
    for i, array in enumerate(values):
        path = tmp_path / "deep" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    command = [
        "--dataset",
        "folder",
        "--images",
        str(tmp_path / "deep"),
        "--resolution",
        "8",
        "--data_root",
        str(tmp_path),
    ]
    make_hdf5.main(command)
    dataset = loading.open_dataset("deep", tmp_path)
    (line,) = [line for line in doctor.warnings(doctor.examine(dataset)) if "values" in line]
    assert line.startswith("nearly all images keep to the values 0 to ") and " of 0 to 255; make_hdf5.py" in line
    assert doctor.examine(dataset)["values"][1] in (dataset.images.max(), dataset.images.max() - 1)
    assert f"such as {flag.removeprefix('--range ')} for {bits} bits" in line
    make_hdf5.main([*command, *flag.split(), "--overwrite"])
    assert doctor.warnings(doctor.examine(loading.open_dataset("deep", tmp_path))) == []


def test_a_dark_class_is_told_of_and_outliers_do_not_hide_it(tmp_path):
    images = noise(60)
    images[20:40] //= 16
    images[20] = noise(1, seed=1)  # one of 20 is as it should be
    findings = doctor.examine(write(tmp_path / "a.hdf5", images, np.arange(60) // 20, ["a", "b", "c"]))
    assert findings["narrow_classes"] == [{"name": "b", "low": 0, "high": 15}] and not findings["narrow"]
    large = images.repeat(8, axis=2).repeat(8, axis=3)
    large[20:40, :, 4, 4] = 255  # nor do saturated pixels
    again = doctor.examine(write(tmp_path / "c.hdf5", large, np.arange(60) // 20, ["a", "b", "c"]))
    assert again["narrow_classes"] == findings["narrow_classes"]
    (line,) = doctor.warnings(findings)
    assert line.startswith("1 class keeps to a small part of 0 to 255: 'b' (0 to 15); make_hdf5.py --range LOW HIGH")
    bright = write(tmp_path / "b.hdf5", 255 - images[21:40], [0] * 19, ["snow"])
    assert doctor.warnings(doctor.examine(bright))[0].startswith("nearly all images keep to the values 240 to 255")


# The content hash


def test_content_hash(tmp_path, planted, monkeypatch):
    """Without a pass where it is known, and never that of other pixels."""
    images, labels = planted
    old = write(tmp_path / "old.hdf5", images, labels)
    expected = doctor.full_pass(old)["content"]
    assert doctor.content_hash(old) == expected  # by a pass
    writing.write_hdf5(tmp_path / "a.hdf5", images, labels, list("abcd"), "", "")
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "full_pass", no_pass)
        assert doctor.content_hash(loading.HDF5Dataset(tmp_path / "old.hdf5")) == expected
        assert doctor.content_hash(loading.HDF5Dataset(tmp_path / "a.hdf5")) == expected
    doctor.examine(loading.HDF5Dataset(tmp_path / "a.hdf5"))
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:  # behind the back of its attribute
        file["imgs"][5] = 255 - file["imgs"][5]
    changed = loading.HDF5Dataset(tmp_path / "a.hdf5")
    assert doctor.content_hash(changed) != expected
    assert doctor.warnings(doctor.examine(changed))[0].startswith("pixels or labels are not those that the file was")


# Picture


@pytest.mark.parametrize(
    ("resolution", "num_classes", "per_class"), [(8, 2, 30), (32, 10, 12), (256, 3, 4), (16, 70, 3), (64, 1, 200)]
)
def test_the_picture_shows_images_of_classes_spread_over_all(tmp_path, resolution, num_classes, per_class):
    labels = np.arange(num_classes * per_class) % num_classes
    colours = np.stack([labels + 100, 255 - labels, labels * 0 + 7], axis=1).astype(np.uint8)  # of each class its own
    images = np.broadcast_to(colours[:, :, None, None], (len(labels), 3, resolution, resolution))
    names = [f"{'very long ünïcodé ' * 9}{i}" for i in range(num_classes)]
    dataset = write(tmp_path / "a.hdf5", images, labels, names)
    picture = np.asarray(doctor_picture.draw(dataset, np.bincount(labels), "one\ntwo"))
    tile = {8: 64, 16: 64, 32: 64, 64: 64, 256: 96}[resolution]
    codes, where, sizes = np.unique(picture @ [65536, 256, 1], return_index=True, return_counts=True)
    of_class = colours[:num_classes] @ [65536, 256, 1]
    shown = np.flatnonzero(np.isin(of_class, codes))
    assert len(shown) == min(num_classes, 16) and shown[0] == 0 and shown[-1] == num_classes - 1
    found = np.searchsorted(codes, of_class[shown])
    assert (sizes[found] == min(per_class, 10 * max(1, 8 // len(shown))) * tile**2).all()
    assert (np.diff(where[found]) > 0).all()  # from top to bottom
    assert picture.shape[1] < 1400 and (picture[:, :8] == 255).all() and (picture[:, -8:] == 255).all()


@pytest.mark.parametrize("num_classes", [3, 300])
def test_bars_are_as_long_as_classes_are_large(num_classes):
    counts = np.arange(num_classes) + num_classes
    names = [str(i) for i in range(num_classes)]
    draw = doctor_picture._bars if num_classes == 3 else doctor_picture._histogram
    part = (np.asarray(draw(names, counts, 900)) == doctor_picture.BAR).all(2)
    lengths = part.sum(1 if num_classes == 3 else 0)
    lengths = np.unique(lengths[lengths > 0])  # the grid crosses bars, by at most three lines
    assert abs(lengths[0] / lengths[-1] - counts[0] / counts[-1]) < 0.03


def test_classes_are_told_apart_by_more_than_the_beginning_of_their_names():
    bars = doctor_picture._bars([utils.numbered(c, ["x" * 255] * 3) for c in range(3)], np.array([5, 5, 5]), 900)
    names = np.asarray(bars)[20:, :260].reshape(3, 20, -1)
    assert (names < 128).any() and not np.array_equal(names[0], names[1]) and not np.array_equal(names[1], names[2])


def test_lines_across_the_sizes_are_where_their_numbers_are(monkeypatch):
    written = []
    monkeypatch.setattr(doctor_picture, "_write", lambda part, where, line, *_, **__: written.append((where, line)))
    doctor_picture._histogram([str(i) for i in range(60)], np.array([2, 3] * 30), 900)
    heights = {int(line): y for (_, y), line in written[:3]}
    assert heights == {0: 240, 1: 240 - round(220 / 3), 3: 20}
    assert [line for _, line in written[3:]] == [
        "images a class, 60 classes by size; median 2.5", "largest: 3 images, class 1", "smallest: 2 images, class 0",
    ]  # fmt: skip


# Scripts


def test_the_script(tmp_path, planted, monkeypatch, capsys):
    write(tmp_path / "a.hdf5", *planted)
    flags = ["--dataset", "a", "--data_root", str(tmp_path)]
    dataset_doctor.main([*flags, "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert findings["num_duplicates"] == 4
    dataset_doctor.main(flags)
    out = capsys.readouterr().out
    assert out.startswith("a: 40 images") and str(tmp_path / "a_doctor.png") in out
    monkeypatch.setattr(doctor, "full_pass", no_pass)
    with pytest.raises(AssertionError):
        dataset_doctor.main([*flags, "--overwrite"])
    with pytest.raises(utils.UserError, match=r"holds a; make it with"):
        dataset_doctor.main(["--dataset", "b", "--data_root", str(tmp_path)])


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_is_printed_under_any_locale(tmp_path, planted, monkeypatch, encoding):
    writing.write_hdf5(
        tmp_path / "a.hdf5", *planted, ["猫", "b\udcff", "ç", "d"], "", "", [f"猫/{i}\udcff" for i in range(40)]
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
    dataset_doctor.main(["--dataset", "a", "--data_root", str(tmp_path)])
    sys.stdout.flush()
    out = sys.stdout.buffer.getvalue().decode(encoding)
    assert ("largest '猫'" in out) == (encoding == "utf-8") and "31\\udcff is " in out


def test_make_hdf5_ends_with_the_report(tmp_path, monkeypatch, capsys):
    flags = ["--dataset", "digits", "--data_root", str(tmp_path)]
    make_hdf5.main(flags)
    assert "digits: 1,797 images 32x32, 10 classes; smallest '8' (174), largest '3' (183)" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "full_pass", no_pass)
    assert not doctor.examine(loading.open_dataset("digits", tmp_path))["fresh"]
    make_hdf5.main(flags)


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_in_a_conditional_run_is_refused(tmp_path, label):
    write(tmp_path / "a.hdf5", noise(4), [label] * 4, ["only", "other"])
    options, _ = train.parse_args(["--dataset", "a", "--data_root", str(tmp_path)])
    with pytest.raises(utils.UserError, match=r"DIR/<class name>/<image>\.png.*--unconditional") as error:
        make_plan(options, None)
    assert "\n" not in str(error.value) and ["'only'", "'other'"][label] in str(error.value)


def test_resuming_on_changed_data_is_refused():
    model = {"resolution": 8, "n_classes": 2}

    def state(**data):
        return {"args": {}, "model_config": model, "data": {"num_images": 4, **data}, "step": 5}

    now = state(content="a" * 64)
    run_folder.check_same_run(state(content="a" * 64), now, set())
    run_folder.check_same_run(state(), now, set())  # of before there was such a key
    with pytest.raises(
        utils.UserError, match=r"the data's content was bbbbbbbbbbbb\.\.\. and is now aaaaaaaaaaaa\.\.\.;?"
    ):
        run_folder.check_same_run(state(content="b" * 64), now, set())
