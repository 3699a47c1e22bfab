"""Images to evaluate, from folders, npz and HDF5 files: the right pixels, or one clear line."""

import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import decoding
from metrics.array_files import NpzImages
from metrics.images import FolderImages, Source, class_ids, kind_of

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


def pixels(tensor):
    return tensor.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def folder(tmp_path):
    """12 images in nested folders, whose names sort as the images do, among other files and a link back up."""
    for i, image in enumerate(IMAGES):
        path = tmp_path / "made" / ("a b", "é/deep", "z")[i // 4] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "made" / "z" / "up").symlink_to(tmp_path / "made")
    (tmp_path / "made" / "notes.txt").write_text("no image")
    (tmp_path / "made" / ".hidden.png").write_text("no image")
    return tmp_path / "made"


def order(folder):
    """The images in the order of their files' paths."""
    return [int(path.stem) for path in sorted(folder.rglob("[01]*.png")) if "up" not in path.parts]


def test_a_folder_is_read_in_the_order_of_its_paths(folder):
    images = FolderImages(folder)
    assert kind_of(folder) == "folder" and len(images) == 12 and images.labels is None and images.resolution is None
    expected = IMAGES[order(folder)]
    assert np.array_equal(pixels(images.read(np.arange(12))), expected)
    assert np.array_equal(pixels(images.read(np.array([2, 7, 11]))), expected[[2, 7, 11]])


def test_formats_that_are_not_read_are_named(folder, capsys):
    FolderImages(folder)
    assert capsys.readouterr().err == ""  # a text is no news
    for name in ("z/a.HEIC", "z/b.jxl", "__MACOSX/c.png", "z/._d.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("?")
    assert len(FolderImages(folder)) == 12
    captured = capsys.readouterr()
    assert captured.out == "" and "made: 12 images (1 .heic, 1 .jxl, 1 .txt; convert them to PNG" in captured.err
    for file in [*folder.rglob("*.png")]:
        file.unlink(missing_ok=True)
    with pytest.raises(
        utils.UserError, match="holds no images, and no checkpoint either .1 .heic.*heif-convert.* left out"
    ):
        FolderImages(folder)


def test_modes_become_rgb_as_in_make_hdf5(tmp_path):
    rgb = Image.fromarray(IMAGES[0])
    made = {"1": rgb.convert("P"), "2": rgb.convert("L"), "3": rgb.convert("RGBA"), "4": rgb.convert("1")}
    made["3"].putalpha(128)
    made["5"] = Image.fromarray(IMAGES[0, :, :, 0].astype(np.uint16) * 257)
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
    read = pixels(FolderImages(tmp_path).read(np.arange(5)))
    for image, array in zip(made.values(), read, strict=True):
        assert np.array_equal(array, np.asarray(decoding.to_rgb(image)))
    assert np.array_equal(read[4, :, :, 0], IMAGES[0, :, :, 0])


def test_exif_rotation_is_obeyed_also_by_the_check_of_sizes(tmp_path):
    image = Image.fromarray(IMAGES[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    assert np.array_equal(pixels(FolderImages(tmp_path).read(np.arange(2))), IMAGES[[0, 0]])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_parts(tmp_path, save):
    save(tmp_path / "made.npz", arr_0=IMAGES, arr_1=np.arange(12) // 4)
    images = Source.at(tmp_path / "made.npz").open()
    assert len(images) == 12 and images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for indices in ([0, 1, 2], [3], [4, 5, 9, 11], [0, 11], range(12)):  # onwards, with gaps, and back
        assert np.array_equal(pixels(images.read(np.array(indices))), IMAGES[list(indices)])
    assert images.labels_at(np.array([1, 9])).tolist() == [0, 2]


def test_an_npz_is_never_whole_in_memory(tmp_path):
    np.savez(tmp_path / "large.npz", np.zeros((500, 64, 64, 3), dtype=np.uint8))
    tracemalloc.start()
    images = NpzImages(tmp_path / "large.npz")
    for start in range(0, 500, 10):
        images.read(np.arange(start, start + 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.labels is None and peak < 2e6  # of 6 MB


def test_labels_that_are_no_class_ids_are_none(tmp_path):
    for labels in (np.zeros((12, 3)), np.zeros(12), np.arange(11), np.full(12, -1)):
        np.savez(tmp_path / "made.npz", IMAGES, labels)
        assert NpzImages(tmp_path / "made.npz").labels is None


def test_what_a_path_is(tmp_path, folder):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "other" / "ckpt_00000003.pth").parent.mkdir()
    (tmp_path / "other" / "ckpt_00000003.pth").touch()
    (tmp_path / "file.pth").touch()
    (tmp_path / "file.hdf5").touch()
    kinds = {"statistics.npz": "statistics", "run": "checkpoint", "other": "checkpoint", "file.pth": "checkpoint"}
    kinds |= {"file.hdf5": "hdf5", "made": "folder"}
    assert {name: kind_of(tmp_path / name) for name in kinds} == kinds


def test_bad_images_are_one_line(tmp_path, folder):
    def refused(words, function, *arguments):
        with pytest.raises(utils.UserError) as caught:
            function(*arguments)
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)

    Image.fromarray(IMAGES[0, :5]).save(folder / "odd.png")
    refused(["odd.png is 8x5", "00.png is 8x6"], FolderImages, folder)
    (folder / "odd.png").write_bytes(b"no image at all")
    refused(["odd.png", "repair or remove"], FolderImages, folder)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(folder / "odd.png")
    (folder / "odd.png").write_bytes((folder / "odd.png").read_bytes()[:120])  # the header is whole
    images = FolderImages(folder)
    refused(["odd.png", "repair or remove"], images.read, np.arange(13))
    (tmp_path / "empty").mkdir()
    refused(["empty", "no images"], FolderImages, tmp_path / "empty")
    refused(["nowhere", "no such"], kind_of, tmp_path / "nowhere")

    npz = tmp_path / "made.npz"
    np.savez(npz, IMAGES)
    whole = npz.read_bytes()
    npz.write_bytes(whole[:500])
    refused(["made.npz", "truncated"], kind_of, npz)
    npz.write_bytes(whole[:400] + bytes(100) + whole[500:])
    refused(["made.npz", "damaged"], lambda: NpzImages(npz).read(np.arange(12)))


# Other programs' files


def saved(path, images=IMAGES, labels=None):
    """Images in a file of a kind that its name tells."""
    name = path.name.lower()
    if name.endswith(".npy"):
        with open(path, "wb") as file:
            np.save(file, images)
    elif name.endswith(".npz"):
        with open(path, "wb") as file:
            np.savez(file, x=images, **({} if labels is None else {"y": labels}))
    else:
        folder = path.parent / "unpacked" / "made"
        for i, image in enumerate(images):
            (folder / f"{i // 6}_class").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i // 6}_class" / f"{i:02}.png")
        if name.endswith(".zip"):
            made = shutil.make_archive(path.parent / "archive", "zip", folder.parent)
        else:
            made = shutil.make_archive(path.parent / "archive", "gztar" if "gz" in name else "tar", folder.parent)
        Path(made).rename(path)
    return path


@pytest.mark.parametrize(
    "name", ["a.npy", "A.NPY", "a.npz", "A.NPZ", "a.zip", "A.ZIP", "a.tar", "A.TAR", "a.tar.gz", "a.tgz", "a.TGZ"]
)
def test_files_of_other_programs_are_read_whatever_the_case_of_their_names(tmp_path, name):
    images = Source.at(saved(tmp_path / name)).open()
    assert np.array_equal(pixels(images.read(np.arange(12))), IMAGES) and len(images) == 12
    assert np.array_equal(pixels(images.read(np.array([1, 2, 7]))), IMAGES[[1, 2, 7]])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_of_either_layout_and_order(tmp_path, name):
    for made in (IMAGES, IMAGES.transpose(0, 3, 1, 2), np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))):
        for array in (made, np.asfortranarray(made)):
            images = Source.at(saved(tmp_path / name, array)).open()
            assert images.resolution is None
            for indices in ([0, 1, 2], [3], [4, 5, 9, 11], range(12)):
                assert np.array_equal(pixels(images.read(np.array(indices))), IMAGES[list(indices)])


def test_the_labels_of_the_familys_sample_script_and_the_only_images_of_a_file(tmp_path):
    labels = np.arange(12) % 3
    saved(tmp_path / "family.npz", IMAGES.transpose(0, 3, 1, 2), labels)
    images = Source.at(tmp_path / "family.npz").open()
    assert images.labels.tolist() == labels.tolist() and images.class_counts == [4, 4, 4]
    np.savez(tmp_path / "other.npz", z=np.zeros((12, 5)), pictures=IMAGES, labels=labels[:, None])
    assert Source.at(tmp_path / "other.npz").open().labels.tolist() == labels.tolist()
    saved(tmp_path / "absurd.npz", IMAGES, np.array([2**32 - 1, *range(11)]))
    with pytest.raises(utils.UserError, match=r"absurd.npz: y go up to 4294967295"):
        Source.at(tmp_path / "absurd.npz").open()


WRONG = {
    "floats from 0 to 1": (IMAGES / 255, r"float64 .* in \[0, 1\]; save np.rint\(255 \* x\)"),
    "floats from -1 to 1": (IMAGES.astype(np.float32) / 127.5 - 1, r"float32 .* in \[-1, 1\]; save np.rint\(127.5"),
    "floats from 0 to 255": (IMAGES.astype(np.float16), r"in \[0, 255\]; save np.rint\(x\)"),
    "floats beyond": (IMAGES * 1e3, "values from 0 to"),
    "floats in Fortran's order": (np.asfortranarray(IMAGES / 255), r"in \[0, 1\]"),
    "integers": (IMAGES.astype(np.int64), r"int64 .* in \[0, 255\]"),
    "one image": (IMAGES[0], "a single image"),
    "grey": (IMAGES[..., 0], "grey ones"),
    "one channel": (IMAGES[..., :1], "grey ones"),
    "four channels": (np.concatenate([IMAGES, IMAGES[..., :1]], 3), r"not uint8 \(12, 6, 8, 4\)"),
    "none": (IMAGES[:0], r"\(0, 6, 8, 3\)"),
    "vectors": (np.zeros((12, 128)), "features or logits"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_are_no_images_are_named_for_what_they_are(tmp_path, wrong):
    array, words = WRONG[wrong]
    with pytest.raises(utils.UserError, match=words) as caught:
        Source.at(saved(tmp_path / "a.npy", array)).open()
    assert "a.npy" in str(caught.value) and "\n" not in str(caught.value)
    if array.ndim == 4:
        with pytest.raises(utils.UserError, match=words):
            Source.at(saved(tmp_path / "a.npz", array)).open()


def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path):
    np.savez(tmp_path / "two.npz", a=IMAGES, b=IMAGES)
    np.savez(tmp_path / "features.npz", features=np.zeros((12, 5)))
    (tmp_path / "no.npz").write_bytes(b"no zip")
    np.save(tmp_path / "torn.npy", IMAGES)
    (tmp_path / "torn.npy").write_bytes((tmp_path / "torn.npy").read_bytes()[:500])
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    saved(tmp_path / "torn.tgz")
    (tmp_path / "torn.tgz").write_bytes((tmp_path / "torn.tgz").read_bytes()[:900])
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "torn.npy", "cifar-10-batches-py/data_batch_1")
    for name in ("a.png", "a.JPG", "a.json", "a.pkl", "a.mat", "a.rar", "a.lmdb", "a.mp4"):
        (tmp_path / name).write_bytes(b"something")
    for name, words in {
        "two.npz": "holds a uint8 .*, b uint8 .*by the name arr_0 or x",
        "features.npz": r"holds features float64 \(12, 5\): neither images .* nor statistics",
        "no.npz": "not a readable npz file",
        "torn.npy": "not a readable npy file",
        "objects.npy": "not a readable npy file",
        "torn.tgz": "no readable tar archive",
        "cifar-10-python.tar.gz": "make_hdf5.py --dataset C10",
        "a.png": "a single image",
        "a.JPG": "a single image",
        "a.json": "--compare",
        "a.pkl": "convert_weights.py",
        "a.mat": "numpy.save",
        "a.rar": "archives: .rar",
        "a.lmdb": "archives: .lmdb",
        "a.mp4": "films: .mp4",
        "archive.zip/nowhere": "not a readable zip",
    }.items():
        (tmp_path / "archive.zip").write_bytes(b"") if "zip" in name else None
        with pytest.raises(utils.UserError, match=words) as caught:
            Source.at(tmp_path / name).open()
        assert name.split("/")[0] in str(caught.value) and "\n" not in str(caught.value), name
    (tmp_path / "checkpoint.pth.tar").write_bytes(b"PK")
    assert kind_of(tmp_path / "checkpoint.pth.tar") == "checkpoint"


# Sub-folders as classes


def test_sub_folders_are_classes_by_name_or_by_the_number_that_sample_py_gives_them():
    names = ["cat", "dog/wolf", "2"]
    assert class_ids(["2", "cat"], names, 3) == [2, 0]  # by name, whichever are there
    assert class_ids(["0_cat", "1_dog_wolf", "2"], names, 3) == [0, 1, 2] == class_ids(["0_a", "1_b", "2"], None, 3)
    assert class_ids(["00_a", "11_b"], None, 12) == [0, 11]
    assert class_ids(["1", "2", "3"], ["1", "2", "3"], 3) == [0, 1, 2]  # names, though they look like numbers
    assert class_ids(["0", "1", "2"], None, 3) == [0, 1, 2]
    for folders in (["cat", "cow"], ["0", "1"], ["3_a", "0_b"], ["0_a", "0_b"], ["00_a", "01_b"]):
        assert class_ids(folders, names, 3) is None, folders  # nothing is guessed
    assert class_ids(["0", "1"], None, 3) is None and class_ids(["a", "b"], ["a", "a"], 2) is None


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "unpacked/made"])
def test_images_know_the_classes_of_their_folders(tmp_path, name):
    saved(tmp_path / ("a.zip" if "zip" in name else "a.tar"))
    images = Source.at(tmp_path / name).open()
    assert images.labels is None
    images.know_classes(["x", "0_class", "1_class"], 3)
    assert images.labels.tolist() == [1] * 6 + [2] * 6 and images.class_counts == [0, 6, 6]
    images = Source.at(tmp_path / name).open()
    images.know_classes(["x", "y"], 2)
    assert images.labels.tolist() == [0] * 6 + [1] * 6
    images = Source.at(tmp_path / name).open()
    images.know_classes(["x"] * 30, 30)
    assert images.labels is None
