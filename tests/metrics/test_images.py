"""Images to evaluate, from folders, npz and HDF5 files: the right pixels, or one clear line."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

import utils
from image_datasets import decoding
from metrics.images import FolderImages, NpzImages, Source, kind_of

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
    for arrays, words in (
        ({"x": IMAGES}, ["holds x", "arr_0"]),
        ({"arr_0": IMAGES / 255}, ["uint8", "float64"]),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, ["(N,R,R,3)"]),
        ({"arr_0": np.asfortranarray(IMAGES)}, ["uint8 images"]),
        ({"arr_0": IMAGES[:0]}, ["(0, 6, 8, 3)"]),
    ):
        np.savez(npz, **arrays)
        refused(["made.npz", *words], lambda: Source.at(npz).open())
    np.savez(npz, IMAGES)
    whole = npz.read_bytes()
    npz.write_bytes(whole[:500])
    refused(["made.npz", "truncated"], kind_of, npz)
    npz.write_bytes(whole[:400] + bytes(100) + whole[500:])
    refused(["made.npz", "damaged"], lambda: NpzImages(npz).read(np.arange(12)))
    assert kind_of(npz) == "npz"
