"""Names of data sets, the order of training images, the prefetching loader, parts and crops."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from family_files import N, R, random_images, write

import utils
from image_datasets import loading, writing
from image_datasets.image_sets import CentreCrop, ImageSet, Subset, fraction_of

# Names and files


def test_names_follow_the_family():
    def path(name):
        return str(loading.dataset_path(name, "root"))

    assert path("I64_hdf5") == path("I64") == "root/ILSVRC64.hdf5"
    assert path("I256_hdf5") == "root/ILSVRC256.hdf5"
    assert path("birds_hdf5") == path("birds") == "root/birds.hdf5"
    assert path("fhdf5_hdf5") == "root/fhdf5.hdf5"  # a suffix is removed, letters are not stripped
    assert path("other/birds.h5") == "other/birds.h5"


def test_missing_file_names_what_is_there_and_the_command(tmp_path, family_file):
    with pytest.raises(utils.UserError, match=r"holds made; .*make_hdf5.py --dataset folder"):
        loading.open_dataset("birds", tmp_path)
    with pytest.raises(utils.UserError, match=r"make_hdf5.py --dataset digits"):
        loading.open_dataset("digits_hdf5", tmp_path / "nowhere")
    with pytest.raises(utils.UserError, match=r"make_hdf5.py --dataset I128 --images"):
        loading.open_dataset("I128_hdf5", tmp_path)


# Order


@pytest.mark.parametrize("batch_size", [1, 7, 10, 50, 64, 130])
def test_batches_cover_every_epoch_exactly_once(batch_size):
    batches = [loading.batch_indices(N, batch_size, k, seed=3) for k in range(4 * N // batch_size + 1)]
    assert all(len(batch) == batch_size and batch.dtype == np.int64 for batch in batches)
    stream = np.concatenate(batches)
    epochs = [stream[start : start + N] for start in range(0, len(stream) - N + 1, N)]
    assert len(epochs) >= 3
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_order_depends_on_position_and_seed_only():
    whole = loading.batch_indices(N, 4 * N, 0, seed=1)
    assert np.array_equal(whole[26:39], loading.batch_indices(N, 13, 2, seed=1))
    assert not np.array_equal(whole, loading.batch_indices(N, 4 * N, 0, seed=2))


# Loader


@pytest.fixture
def dataset(family_file):
    return loading.HDF5Dataset(family_file)


def take(loader, n):
    with loader:
        return list(itertools.islice(loader, n))


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(x, x2) and torch.equal(y, y2) for (x, y), (x2, y2) in zip(batches, others, strict=True)
    )


def test_loader_yields_the_images_of_batch_indices(dataset):
    images, labels = random_images()
    for number, (x, y) in enumerate(take(loading.BatchLoader(dataset, 16, seed=0), 9)):
        indices = loading.batch_indices(N, 16, number, 0)
        assert x.dtype == torch.uint8 and y.dtype == torch.int64
        assert np.array_equal(x.numpy(), images[indices]) and np.array_equal(y.numpy(), labels[indices])


def test_start_skips_and_threads_keep_the_order(dataset):
    whole = take(loading.BatchLoader(dataset, 16, seed=0), 12)
    assert equal(whole[5:], take(loading.BatchLoader(dataset, 16, seed=0, start=5), 7))
    for num_workers in (0, 4):
        assert equal(whole, take(loading.BatchLoader(dataset, 16, seed=0, num_workers=num_workers), 12))


def test_ranks_together_see_the_batch_of_one_process(dataset):
    whole = take(loading.BatchLoader(dataset, 12, seed=0), 6)
    ranks = [take(loading.BatchLoader(dataset, 12, seed=0, rank=rank, world_size=3), 6) for rank in range(3)]
    joined = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True)) for batches in zip(*ranks, strict=True)]
    assert equal(whole, joined)
    with pytest.raises(utils.UserError, match="--batch_size 10 cannot be split evenly over 4"):
        loading.BatchLoader(dataset, 10, seed=0, world_size=4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_may_exceed_the_data_set(dataset, world_size):
    ranks = [
        take(loading.BatchLoader(dataset, 3 * N, seed=0, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        assert all(len(x) == 3 * N // world_size for x, _ in parts)
        labels = torch.cat([y for _, y in parts])
        assert torch.equal(labels.bincount(), 3 * torch.from_numpy(dataset.labels).bincount())


def test_passes_of_an_accumulated_step_are_whole_batches(dataset):
    """However many passes a step reads, each is a full batch, and together they go on through the epochs."""
    whole = take(loading.BatchLoader(dataset, 4 * 16, seed=0), 3)
    passes = take(loading.BatchLoader(dataset, 16, seed=0), 4 * 3)
    steps = [tuple(torch.cat(parts) for parts in zip(*passes[i : i + 4], strict=True)) for i in range(0, 12, 4)]
    assert equal(whole, steps)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_files_of_the_family_load_the_same_from_any_number_of_threads(tmp_path, num_workers):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4, (1203, 3, R, R), dtype=np.uint8)  # compressible; the last chunk is not full
    labels = rng.integers(0, 7, 1203)

    def batches(name, storage, load_in_mem=False):
        if not (tmp_path / f"{name}.hdf5").exists():
            write(tmp_path / f"{name}.hdf5", images, labels, **storage)
        dataset = loading.open_dataset(name, tmp_path, load_in_mem)
        return take(loading.BatchLoader(dataset, 64, seed=0, num_workers=num_workers), 40)

    contiguous = batches("contiguous", {})
    chunks = {"chunks": (500, 3, R, R), "maxshape": (None, 3, R, R)}
    for name, storage in (("chunked", {}), ("lzf", {"compression": "lzf"}), ("gzip", {"compression": "gzip"})):
        for load_in_mem in (False, True):
            assert equal(contiguous, batches(name, chunks | storage, load_in_mem))


# Parts and crops


@pytest.fixture
def named(tmp_path):
    images, labels = random_images()
    writing.write_hdf5(tmp_path / "named.hdf5", iter(images), labels, list("abcdefg"), "made here", "as they are")
    return loading.open_dataset("named", tmp_path)


def same_attributes(view, dataset, *names):
    return all(getattr(view, name) == getattr(dataset, name) for name in names)


def test_subset_reads_its_images_only(named):
    images, labels = random_images()
    chosen = np.array([0, 3, 4, 17, 49])
    part = Subset(named, chosen)
    assert len(part) == 5 and np.array_equal(part.labels, labels[chosen])
    assert same_attributes(part, named, "path", "name", "num_classes", "class_names", "resolution", "source")
    assert part.crop_resize == "as they are"
    for indices in ([4, 1, 1], range(5), []):
        indices = np.array(indices, dtype=int)
        assert torch.equal(part.read(indices), torch.from_numpy(images[chosen[indices]]))
        assert torch.equal(part.labels_at(indices), torch.from_numpy(labels[chosen[indices]]))
    seen = [tuple(x.numpy().tobytes() for x in batch) for batch, _ in take(loading.BatchLoader(part, 5, seed=0), 3)]
    assert all(set(batch) == {image.tobytes() for image in images[chosen]} for batch in seen)  # an epoch each
    nested = Subset(part, [1, 3])
    assert torch.equal(nested.read([0, 1]), torch.from_numpy(images[[3, 17]]))
    with pytest.raises(IndexError):
        Subset(named, [0, N])


def test_centre_crop_reads_the_middle(named, tmp_path):
    images, labels = random_images()
    crop = CentreCrop(named, 5)  # one pixel off at the top and left, two at the bottom and right
    assert (len(crop), crop.resolution, crop.name) == (N, 5, "named_crop5")
    assert crop.name == loading.DataOptions("named_hdf5", str(tmp_path), crop_size=5).reference_name
    assert loading.DataOptions("I64_hdf5", str(tmp_path)).reference_name == "ILSVRC64"
    assert same_attributes(crop, named, "path", "num_classes", "class_names", "source", "crop_resize")
    pairs = list(loading.iterate(Subset(crop, np.arange(3, 9)), 4))
    assert np.array_equal(torch.cat([x for x, _ in pairs]).numpy(), images[3:9, :, 1:6, 1:6])
    assert np.array_equal(torch.cat([y for _, y in pairs]).numpy(), labels[3:9])
    assert crop.read([1]).is_contiguous()
    for size in (R, R + 1):
        with pytest.raises(utils.UserError, match=f"--crop_size {size}: the images of .*named.hdf5 are 8x8"):
            CentreCrop(named, size)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("BatchLoader")]


class Broken:
    """A data set whose disk fails once some batches have been read."""

    def __init__(self, good):
        self.good = good

    def __len__(self):
        return N

    def read(self, indices, pin_memory):
        if self.good == 0:
            raise OSError("the disk is gone")
        self.good -= 1
        return torch.zeros(len(indices), 3, R, R, dtype=torch.uint8)

    def labels_at(self, indices):
        return torch.zeros(len(indices), dtype=torch.int64)


def test_reading_errors_reach_the_consumer_in_their_turn():
    loader = loading.BatchLoader(Broken(good=3), 4, seed=0)
    for _ in range(3):
        next(loader)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    assert not loader_threads()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_close_leaves_no_threads_and_may_be_repeated(dataset):
    loader = loading.BatchLoader(dataset, 16, seed=0, num_workers=3)
    next(loader)
    assert loader_threads()
    loader.close()
    loader.close()
    assert not loader_threads()


def test_batches_are_read_ahead_but_not_without_bound(dataset):
    asked = []

    class Counting(Broken):
        def read(self, indices, pin_memory):
            asked.append(len(indices))
            return super().read(indices, pin_memory)

    with loading.BatchLoader(Counting(good=-1), 4, seed=0, num_workers=2) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while len(asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(asked) == 4  # the one we took and three more


def test_iterate_goes_once_over_everything(dataset):
    images, labels = random_images()
    pairs = list(loading.iterate(dataset, 16))
    assert [len(x) for x, _ in pairs] == [16, 16, 16, 2]
    assert np.array_equal(torch.cat([x for x, _ in pairs]).numpy(), images)
    assert np.array_equal(torch.cat([y for _, y in pairs]).numpy(), labels)


def test_flags():
    parser = utils.ArgumentParser()
    loading.DataOptions.add_to(parser)
    args = loading.DataOptions.of(parser.parse_args([]))
    assert (args.dataset, args.data_root, args.load_in_mem, args.num_workers) == (None, "data", False, 1)
    assert parser.parse_args(["--load_in_mem", "--num_workers", "0"]).load_in_mem


def test_a_fraction_is_of_each_class_and_drawn_by_the_seed():
    labels = np.repeat([0, 1, 3], [100, 41, 2])
    images = ImageSet("x", "x", 8, labels, ["a", "b", "none", "d"])
    part, again, other = (fraction_of(images, 0.1, seed) for seed in (0, 0, 1))
    assert part.class_counts == other.class_counts == [10, 4, 0, 1]
    assert np.array_equal(part.indices, again.indices) and not np.array_equal(part.indices, other.indices)
    assert (np.diff(part.indices) > 0).all() and fraction_of(images, 1.0, 0) is images
