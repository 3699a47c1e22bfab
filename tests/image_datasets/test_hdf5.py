"""Reading one HDF5 file: every storage, damage, replacement."""

import errno
import os

import h5py
import numpy as np
import pytest
import torch
from family_files import N, R, random_images, write

import utils
from image_datasets import hdf5, loading, writing


@pytest.mark.parametrize(
    "storage, kind",
    [
        ({}, np.ndarray),
        ({"chunks": (20, 3, R, R)}, hdf5.MappedChunks),
        ({"chunks": (20, 3, R, R), "maxshape": (None, 3, R, R)}, hdf5.MappedChunks),
        ({"chunks": (7, 3, 4, R)}, hdf5.UnmappedImages),
        ({"chunks": (20, 3, R, R), "compression": "lzf"}, hdf5.UnmappedImages),
        ({"chunks": (7, 3, 4, R), "compression": "gzip", "shuffle": True}, hdf5.UnmappedImages),
    ],
)
def test_every_storage_reads_the_same(tmp_path, storage, kind):
    images, labels = random_images()
    write(tmp_path / "a.hdf5", images, labels, **storage)
    dataset = loading.open_dataset("a", tmp_path)
    in_memory = loading.open_dataset("a_hdf5", tmp_path, load_in_mem=True)
    assert isinstance(dataset.images, kind)
    assert (dataset.num_classes, dataset.resolution, len(dataset)) == (7, R, N)
    assert dataset.class_names == [str(i) for i in range(7)]
    assert dataset.source is None and dataset.name == "a"
    for indices in ([3], [9, 3, 9, 49, 0, 10, 11], range(N), [], [5, 5]):
        indices = np.array(indices, dtype=int)
        expected = torch.from_numpy(images[indices])
        for each in (dataset, in_memory):
            assert torch.equal(each.read(indices), expected)
            assert torch.equal(each.labels_at(indices), torch.from_numpy(labels[indices]))
    for bad in ([-1], [N]):
        with pytest.raises(IndexError, match="images 0 to 49"):
            dataset.read(bad)


@pytest.mark.parametrize("chunks", [None, (20, 3, R, R)])
def test_pixels_after_a_user_block_are_found(tmp_path, chunks):
    images, labels = random_images()
    with h5py.File(tmp_path / "a.hdf5", "w", userblock_size=512) as file:
        file.create_dataset("imgs", data=images, chunks=chunks)
        file["labels"] = labels
    dataset = loading.open_dataset("a", tmp_path)
    assert isinstance(dataset.images, hdf5.UnmappedImages if chunks else np.ndarray)
    assert torch.equal(dataset.read(range(N)), torch.from_numpy(images))


def test_chunks_that_were_never_written_read_as_zeros(tmp_path):
    images, labels = random_images()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("imgs", images.shape, "uint8", chunks=(20, 3, R, R))[:20] = images[:20]
        file["labels"] = labels
    batch = loading.open_dataset("a", tmp_path).read(range(N))
    assert torch.equal(batch[:20], torch.from_numpy(images[:20])) and not batch[20:].any()


def test_memory_map_is_shared_with_the_file_and_read_only(family_file):
    dataset = loading.HDF5Dataset(family_file)
    assert not dataset.images.flags.owndata and not dataset.images.flags.writeable
    batch = dataset.read([0])
    batch.zero_()  # a copy: the file is out of reach
    assert dataset.images[0].any()


def refused(path, message):
    with pytest.raises(utils.UserError, match=message) as error:
        loading.HDF5Dataset(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_files_are_refused(tmp_path, family_file):
    whole = family_file.read_bytes()
    for size in (0, 100, 2000, len(whole) // 2, len(whole) - 1):
        family_file.write_bytes(whole[:size])
        refused(family_file, "truncated|not an HDF5 file")
    text = tmp_path / "text.hdf5"
    text.write_text("images\n" * 500)
    refused(text, "not an HDF5 file")
    refused(tmp_path, "is a folder")


def test_a_file_that_may_not_be_read_is_told_in_few_words(family_file, monkeypatch):
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, f"Unable to open file (name = '{family_file}', errno = 13, flags = 0)")

    monkeypatch.setattr(hdf5.h5py, "File", forbidden)
    refused(family_file, "cannot read .*: Permission denied$")


def test_pixels_past_the_end_of_the_file_are_refused(family_file, monkeypatch):
    """HDF5 notices most truncations itself; where it does not, the memory map must not be touched."""
    real = hdf5._open_hdf5
    whole = family_file.read_bytes()

    def open_then_truncate(path, chunk_cache=0):
        file = real(path, chunk_cache)
        family_file.write_bytes(whole[: len(whole) // 2])
        return file

    monkeypatch.setattr(hdf5, "_open_hdf5", open_then_truncate)
    refused(family_file, "truncated|damaged")


def test_damaged_chunk_is_named(tmp_path):
    path = write(tmp_path / "a.hdf5", *random_images(), chunks=(N, 3, R, R), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["imgs"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + chunk.size] = bytes(chunk.size - 20)
    path.write_bytes(content)
    with pytest.raises(utils.UserError, match=r"a.hdf5: damaged chunk"):
        loading.HDF5Dataset(path).read([1])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda images, labels: (images.astype(np.float32), labels), "must be uint8"),
        (lambda images, labels: (images[:, :1], labels), "must be uint8"),
        (lambda images, labels: (images[..., :4], labels), "must be uint8"),
        (lambda images, labels: (images.transpose(0, 2, 3, 1), labels), "must be uint8"),
        (lambda images, labels: (images, labels[1:]), "one an image"),
        (lambda images, labels: (images, labels / 2), "must be integers"),
        (lambda images, labels: (images, labels - 1), "class ids start at 0"),
        (lambda images, labels: (images[:0], labels[:0]), "no images"),
    ],
)
def test_wrong_content_is_refused(tmp_path, change, message):
    refused(write(tmp_path / "a.hdf5", *change(*random_images())), message)


def test_missing_keys_marks_and_names_are_refused(family_file):
    with h5py.File(family_file, "a") as file:
        file.attrs["complete"] = False
    refused(family_file, "never finished")
    with h5py.File(family_file, "a") as file:
        file.attrs["complete"] = True
        file.attrs["class_names"] = '["one", "two"]'
    refused(family_file, "does not name that many")
    with h5py.File(family_file, "a") as file:
        file.attrs["class_names"] = "one, two"
    refused(family_file, "not a JSON list")
    with h5py.File(family_file, "a") as file:
        del file["labels"]
        file.create_group("labels")
    refused(family_file, "no data set 'labels'")


def test_replacing_the_file_does_not_disturb_its_reader(tmp_path):
    for name, storage in (("contiguous", {}), ("chunked", {"chunks": (20, 3, R, R)})):
        path = write(tmp_path / f"{name}.hdf5", *random_images(), **storage)
        reader = loading.HDF5Dataset(path)
        with utils.atomic_path(path) as temporary:
            write(temporary, *random_images(seed=1), **storage)
        assert torch.equal(reader.read(range(N)), torch.from_numpy(random_images()[0]))
        assert torch.equal(loading.HDF5Dataset(path).read(range(N)), torch.from_numpy(random_images(seed=1)[0]))


def test_written_files_are_memory_mapped_with_their_attributes(tmp_path):
    images, labels = random_images()
    names = [f"class {i} with a rather long name, and ünïcödé" for i in range(3000)]
    writing.write_hdf5(tmp_path / "a.hdf5", iter(images), labels, names, "made here", "as they are")
    dataset = loading.open_dataset("a", tmp_path)
    assert isinstance(dataset.images, np.ndarray) and not dataset.images.flags.owndata
    assert dataset.class_names == names and dataset.num_classes == 3000
    assert (dataset.source, dataset.crop_resize) == ("made here", "as they are")
    assert torch.equal(dataset.read(range(N)), torch.from_numpy(images))


@pytest.mark.parametrize("label", [2**32 - 1, 2**31, 65535, 2**64 - 1])
def test_absurd_class_ids_are_refused_before_classes_are_counted(tmp_path, label):
    images, labels = random_images()
    labels = labels.astype(np.uint64)
    labels[3] = label
    write(tmp_path / "a.hdf5", images, labels)
    with pytest.raises(
        utils.UserError, match=f"a.hdf5: 'labels' go up to {label}, which is no class id among 50"
    ) as error:
        loading.HDF5Dataset(tmp_path / "a.hdf5")
    assert "\n" not in str(error.value)


def test_a_file_system_that_cannot_map_files(tmp_path, monkeypatch):
    images, labels = random_images()
    write(tmp_path / "a.hdf5", images, labels)

    def no_map(*args, **kwargs):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", no_map)
    assert np.array_equal(loading.HDF5Dataset(tmp_path / "a.hdf5").read([4, 1]).numpy(), images[[4, 1]])


def linked(path, link, images, labels):
    """A file whose pixels and labels are reached by a link; what it leads to begins elsewhere in its own file."""
    with h5py.File(path.with_name("inner.hdf5"), "w") as file:
        file["something_else"] = np.zeros(10_000)
        file.create_dataset("deep/imgs", data=images)
        file["deep/labels"] = labels
    with h5py.File(path, "w") as file:
        file["padding"] = np.full(images.size, 255, np.uint8)  # what the other file's offsets would find here
        if link == "external":
            file["imgs"] = h5py.ExternalLink("inner.hdf5", "/deep/imgs")
        elif link == "external, by a group":
            file["group"] = h5py.ExternalLink("inner.hdf5", "/deep")
            file["imgs"] = h5py.SoftLink("/group/imgs")
        else:
            file.create_dataset("own/imgs", data=images)
            file["imgs"] = h5py.SoftLink("/own/imgs")
        file["labels"] = h5py.ExternalLink("inner.hdf5", "/deep/labels")
    return path


@pytest.mark.parametrize("link", ["external", "external, by a group", "soft"])
@pytest.mark.parametrize("load_in_mem", [False, True])
def test_links_lead_to_their_own_pixels(link, load_in_mem, tmp_path):
    images, labels = random_images()
    dataset = loading.HDF5Dataset(linked(tmp_path / "outer.hdf5", link, images, labels), load_in_mem)
    assert torch.equal(dataset.read(range(N)), torch.from_numpy(images)) and (dataset.labels == labels).all()
    assert dataset.is_mapped == (load_in_mem or link == "soft")


@pytest.mark.parametrize("target", ["elsewhere", "itself"])
def test_links_that_lead_nowhere_are_refused(target, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["imgs"] = h5py.ExternalLink("none.hdf5", "/imgs") if target == "elsewhere" else h5py.SoftLink("/imgs")
        file["labels"] = np.arange(N) % 7
    refused(tmp_path / "a.hdf5", "has no data set 'imgs'|too many links")


@pytest.mark.parametrize("name", ["imgs", "labels"])
@pytest.mark.parametrize("kind", ["virtual", "external"])
def test_values_that_are_only_promised_are_refused(name, kind, tmp_path):
    values = dict(zip(("imgs", "labels"), random_images(), strict=True))
    write(tmp_path / "part.hdf5", *values.values())
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        promised = values.pop(name)
        if kind == "virtual":
            layout = h5py.VirtualLayout(promised.shape, promised.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "part.hdf5", name, promised.shape)
            file.create_virtual_dataset(name, layout)
        else:
            external = [(tmp_path / "pixels.raw", 0, promised.nbytes)]
            file.create_dataset(name, data=promised, external=external)
        for other, array in values.items():
            file[other] = array
    what = {"virtual": "a virtual data set", "external": "stored in other files"}[kind]
    refused(tmp_path / "a.hdf5", f"'{name}' is {what}")


@pytest.mark.parametrize("storage", [{}, {"chunks": (20, 3, R, R)}])
def test_a_file_that_is_cut_short_while_it_is_read_is_one_line(tmp_path, storage):
    """Where it was mapped, the process would be killed (SIGBUS); one that is replaced is read on."""
    images, labels = random_images()
    path = write(tmp_path / "a.hdf5", images, labels, **storage)
    dataset = hdf5.HDF5Dataset(path)
    os.replace(write(tmp_path / "b.hdf5", images[:20], labels[:20], **storage), path)
    assert torch.equal(dataset.read(range(N)), torch.from_numpy(images))
    dataset = hdf5.HDF5Dataset(path)
    os.truncate(path, 5000)
    with pytest.raises(utils.UserError, match="a.hdf5 has been cut short"):
        dataset.read([0])
