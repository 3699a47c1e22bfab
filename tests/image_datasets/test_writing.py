"""Writing data sets: the layout, and that no interruption changes a byte of the result or loses what is done."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import PIL
import pytest

import utils
from image_datasets import decoding, doctor, journal, loading, writing
from image_datasets.sources import Source

BAD = {3: "/nowhere/3.png", 4: "/nowhere/4.png", 77: "/nowhere/77.png"}  # index: a path that cannot be read
R = 4


def make_source(number=120, bad=BAD, description="made", seed=0):
    arrays = np.random.default_rng(seed).integers(0, 256, (number, R, R, 3), dtype=np.uint8)
    images = [bad.get(i, array) for i, array in enumerate(arrays)]
    return Source(description, ["a", "b"], np.arange(number) * 2 // number, images)


def write(out, source, num_workers=1, max_bad=10, overwrite=False):
    return writing.ResumableWriter(out, source, R, "rule", max_bad).run(num_workers, overwrite)


def refused(message, *args, **kwargs):
    with pytest.raises(utils.UserError, match=message) as error:
        write(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.fixture
def expected(tmp_path):
    """The bytes of a data set that was written undisturbed."""
    write(tmp_path / "undisturbed" / "a.hdf5", make_source())
    return (tmp_path / "undisturbed" / "a.hdf5").read_bytes()


@pytest.fixture
def calls(monkeypatch):
    """The images that are decoded, in this process only."""
    decoded = []
    real = decoding.read_pixels
    monkeypatch.setattr(decoding, "read_pixels", lambda image, r: decoded.append(image) or real(image, r))
    return decoded


# What is written


@pytest.mark.parametrize("num_workers", [1, 2])
def test_file(tmp_path, num_workers):
    source = make_source()
    unreadable = write(tmp_path / "a.hdf5", source, num_workers)
    assert [index for index, _ in unreadable] == list(BAD)
    dataset = loading.HDF5Dataset(tmp_path / "a.hdf5")
    kept = [i for i in range(len(source.images)) if i not in BAD]
    assert np.array_equal(dataset.images.transpose(0, 2, 3, 1), np.stack([source.images[i] for i in kept]))
    assert dataset.labels.tolist() == source.labels[kept].tolist() and dataset.class_names == ["a", "b"]
    assert (dataset.source, dataset.crop_resize) == ("made", "rule")
    assert isinstance(dataset.images, np.ndarray)  # mapped into memory
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert bool(file.attrs["complete"]) and file.attrs["unreadable"] == 3 and file["imgs"].chunks is None
    report = (tmp_path / "a.hdf5.unreadable.txt").read_text()
    assert report == "".join(f"{path}\tNo such file or directory\n" for path in BAD.values())
    assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "a.hdf5.unreadable.txt"]
    write(tmp_path / "a.hdf5", make_source(bad={}))
    assert os.listdir(tmp_path) == ["a.hdf5"]  # the report was of another file


def test_both_writers_write_the_same(tmp_path):
    source = make_source(bad={})
    write(tmp_path / "a.hdf5", source)
    pixels = (image.transpose(2, 0, 1) for image in source.images)
    writing.write_hdf5(tmp_path / "b.hdf5", pixels, source.labels, source.class_names, "made", "rule")
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_the_file_says_of_itself(tmp_path, monkeypatch, interrupted):
    """The doctor's hash of its content, and where each image came from, images that are left out excepted."""
    source = make_source()
    paths = [f"{'ab'[y]}/{i}\udcff.png" for i, y in enumerate(source.labels)]
    source = dataclasses.replace(source, paths=paths, class_order="text", stamp="names: 1234")
    if interrupted:
        interrupt_at(source.images[100], monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a.hdf5", source)
    write(tmp_path / "a.hdf5", source)
    dataset = loading.HDF5Dataset(tmp_path / "a.hdf5")
    assert dataset.content == doctor.full_pass(dataset)["content"]
    assert dataset.read_paths() == [path for i, path in enumerate(paths) if i not in BAD]
    assert (dataset.class_order, dataset.stamp) == ("text", "names: 1234")
    assert np.array_equal(dataset.read([5]).numpy()[0].transpose(1, 2, 0), source.images[7])
    plain = write_plain(tmp_path / "b.hdf5", dataset)
    assert plain.content == dataset.content and plain.read_paths() is None and plain.stamp is None


def write_plain(path, dataset):
    writing.write_hdf5(path, dataset.images, dataset.labels, dataset.class_names, "made", "rule")
    return loading.HDF5Dataset(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    real = h5py.File

    def without_locks(*args, locking=None, **kwargs):
        if locking is not False:
            raise OSError(number, f"Unable to synchronously create file (unable to lock file, errno = {number})")
        return real(*args, locking=locking, **kwargs)

    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(h5py, "File", without_locks)
    monkeypatch.setattr(fcntl, "lockf", no_lock)
    write(tmp_path / "a.hdf5", make_source())
    dataset = loading.HDF5Dataset(tmp_path / "a.hdf5")
    assert len(write_plain(tmp_path / "b.hdf5", dataset)) == len(dataset) and dataset.read_paths() is None
    monkeypatch.setattr(
        h5py, "File", lambda path, mode, locking: without_locks(path, mode)
    )  # as the environment may ask
    refused("cannot write .*a.hdf5.*HDF5_USE_FILE_LOCKING", tmp_path / "c" / "a.hdf5", make_source())


@pytest.mark.parametrize("names", [["a"], [f"class {i}" for i in range(3000)]])
def test_pixels_begin_at_the_same_byte_however_many_there_are(tmp_path, names):
    offsets = set()
    for number, unreadable in itertools.product((1, 2, 9, 10, 11, 20, 43, 300, 5000), (0, 7)):
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            labels = np.zeros(number, np.int64)
            pixels = writing._lay_out(file, labels, (3, 8, 8), names, "s" * 90, "r" * 90, unreadable)
            offsets.add(pixels.id.get_offset())
    assert len(offsets) == 1


def test_fewer_images_than_labels_leave_no_file(tmp_path):
    images = np.zeros((3, 3, 4, 4), np.uint8)
    for count in (0, 2):
        with pytest.raises(ValueError, match="images"):
            writing.write_hdf5(tmp_path / "a.hdf5", iter(images[:count]), [0, 0, 0], ["a"], "", "")
    assert list(tmp_path.iterdir()) == []


# Unreadable images


def test_too_many_unreadable_images_stop_it_and_more_patience_goes_on(tmp_path, expected, calls):
    out = tmp_path / "a.hdf5"
    refused(r"2 image\(s\) cannot be read, more than --max_bad 1 \(/nowhere/3.png: No such", out, make_source(), 1, 1)
    assert not out.exists() and (tmp_path / "a.hdf5.unreadable.txt").read_text().count("\n") == 2
    refused("more than --max_bad 1", out, make_source(), 1, 1)
    refused("more than --max_bad 2", out, make_source(), 1, 2)
    calls.clear()
    write(out, make_source(), 1, 3)
    assert len(calls) < 60  # most were done, the three bad ones are tried again
    assert out.read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "a.hdf5.unreadable.txt", "undisturbed"]


def test_an_image_that_has_become_readable_is_taken_in(tmp_path):
    late = tmp_path / "4.png"
    bad = {**BAD, 4: str(late)}
    refused("more than --max_bad 2", tmp_path / "a.hdf5", make_source(bad=bad), 1, 2)
    decoding.Image.new("RGB", (R, R), "red").save(late)
    write(tmp_path / "a.hdf5", make_source(bad=bad), 1, 2)
    shutil.rmtree(tmp_path / "b", ignore_errors=True)
    write(tmp_path / "b" / "a.hdf5", make_source(bad=bad), 1, 2)
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b" / "a.hdf5").read_bytes()
    assert loading.HDF5Dataset(tmp_path / "a.hdf5").images[3, :, 0, 0].tolist() == [255, 0, 0]


def test_a_class_without_a_readable_image_stops_it(tmp_path):
    source = make_source(8, {i: f"/nowhere/{i}.png" for i in range(4)})
    refused("every image of class a is unreadable .*unreadable.txt lists them", tmp_path / "a.hdf5", source)
    assert not (tmp_path / "a.hdf5").exists()


def test_odd_names_in_the_report(tmp_path):
    write(tmp_path / "a.hdf5", make_source(bad={0: "/no/caf\udce9 №\n.png"}))
    report = (tmp_path / "a.hdf5.unreadable.txt").read_bytes()
    assert report == b"/no/caf\xe9 \xe2\x84\x96\\n.png\tNo such file or directory\n"


# Interruptions


def _write_slowly(out):
    writing.COMMIT_SECONDS = 0.0
    real = decoding.read_pixels
    decoding.read_pixels = lambda image, resolution: time.sleep(0.01) or real(image, resolution)
    decoding.BLOCK_IMAGES = 4
    write(out, make_source(1000), num_workers=2)


@pytest.mark.slow
def test_killed_ten_times_at_random(tmp_path):
    write(tmp_path / "b.hdf5", make_source(1000))
    out = tmp_path / "a.hdf5"
    draws = random.Random(0)
    done = [0]
    for turn in range(10):
        process = multiprocessing.get_context("fork").Process(target=_write_slowly, args=(out,))
        process.start()
        while turn % 2 and images_done(out) == done[-1]:  # every other time not before it has come further
            assert process.is_alive()
            time.sleep(0.01)
        process.join(draws.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL and not out.exists()
        done.append(images_done(out))
    assert done == sorted(done) and len(set(done)) > 5  # nothing is lost
    write(out, make_source(1000))
    assert out.read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def images_done(out):
    """How many images the journal says are done."""
    journal = Path(f"{out}.journal")
    lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
    return max((json.loads(line)["done"] for line in lines if line.endswith(b"\n")), default=0)


def test_interrupted_at_every_step(tmp_path, monkeypatch):
    """Stop before the k-th time that anything changes on the disk, for every k."""
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0.0)
    source = make_source(4, {1: "/nowhere/1.png"})
    write(tmp_path / "undisturbed" / "a.hdf5", source)
    expected = (tmp_path / "undisturbed" / "a.hdf5").read_bytes()
    remaining = [0]

    def interrupting(function):
        def call(*args, **kwargs):
            remaining[0] -= 1
            if remaining[0] == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    steps = [(os, "fsync"), (os, "pwrite"), (os, "replace"), (Path, "unlink"), (writing.Journal, "append")]
    steps += [(writing, "_lay_out"), (writing, "_allocate"), (os, "fstat"), (writing, "_reserve")]
    out = tmp_path / "a.hdf5"
    for k in itertools.count(1):
        remaining[0] = k
        with monkeypatch.context() as patch:
            for module, name in steps:
                patch.setattr(module, name, interrupting(getattr(module, name)))
            try:
                write(out, source)
            except KeyboardInterrupt:
                pass
            else:
                break
        if not out.exists() or out.read_bytes() != expected:
            assert not out.exists()
            write(out, source)
        else:
            writing.remove_leftovers(out)  # it was done: as make_hdf5.py does then
        assert out.read_bytes() == expected
        assert sorted(os.listdir(tmp_path)) == ["a.hdf5", "a.hdf5.unreadable.txt", "undisturbed"]
        out.unlink()
    assert k > 25


def interrupt_at(image, monkeypatch):
    """Let decoding of that image be interrupted, once."""
    real = decoding.read_pixels

    def read_pixels(current, resolution):
        if np.array_equal(current, image):
            monkeypatch.setattr(decoding, "read_pixels", real)
            raise KeyboardInterrupt
        return real(current, resolution)

    monkeypatch.setattr(decoding, "read_pixels", read_pixels)


def test_what_is_done_is_not_done_again(tmp_path, expected, calls, monkeypatch, capsys):
    source = make_source()
    interrupt_at(source.images[100], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.hdf5", source)
    partial = shutil.copy(tmp_path / "a.hdf5.partial", tmp_path / "renamed.hdf5")
    with pytest.raises(utils.UserError, match="was never finished"):
        loading.HDF5Dataset(partial)
    calls.clear()
    write(tmp_path / "a.hdf5", source)
    assert len(calls) - len(BAD) <= 35 and "going on with" in capsys.readouterr().out
    assert (tmp_path / "a.hdf5").read_bytes() == expected


def lay_out_by_hand(out, source, done):
    """The two files of a write that was interrupted after `done` images, as the first version of the writer left it."""
    out.parent.mkdir()
    attributes = {"class_names": '["a", "b"]', "source": "made", "crop_resize": "rule"}
    with h5py.File(f"{out}.partial", "w") as file:
        for name, value in {**attributes, "unreadable": np.int64(0), "complete": np.False_}.items():
            file.attrs[name] = value
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)
        space = h5py.h5s.create_simple((len(source.images), 3, R, R))
        pixels = h5py.Dataset(h5py.h5d.create(file.id, b"imgs", h5py.h5t.STD_U8LE, space, properties))
        file["labels"] = source.labels
        kept = [image.transpose(2, 0, 1) for i, image in enumerate(source.images[:done]) if i not in BAD]
        pixels[: len(kept)] = np.stack(kept)
        about = {"key": ["made", "rule", PIL.__version__, h5py.version.hdf5_version], "offset": pixels.id.get_offset()}
    commit = {"start": 0, "done": done, "unreadable": [[i, "No such file or directory"] for i in BAD if i < done]}
    Path(f"{out}.journal").write_text(f"{json.dumps(about)}\n{json.dumps(commit)}\n")


def test_a_write_that_the_first_version_of_the_writer_began_is_finished(tmp_path, expected, calls, monkeypatch):
    source, out, old = make_source(), tmp_path / "a.hdf5", tmp_path / "old" / "a.hdf5"
    lay_out_by_hand(old, source, done=90)
    interrupt_at(source.images[100], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(out, source)
    for ending in ("partial", "journal"):  # it leaves the same files today
        assert Path(f"{out}.{ending}").read_bytes() == Path(f"{old}.{ending}").read_bytes()
    with open(f"{old}.journal", "a") as journal:  # taken back, done again, and a line that was cut short
        journal.write('{"start": 70, "done": 70, "unreadable": []}\n{"start": 70, "done": 76, "unreadable": []}\n{"sta')
    calls.clear()
    write(old, source)
    assert old.read_bytes() == expected and len(calls) == len({3, 4}) + len(source.images) - 76


def test_a_torn_journal(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0.0)
    source = make_source()
    interrupt_at(source.images[100], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.hdf5", source)
    monkeypatch.undo()
    journal = (tmp_path / "a.hdf5.journal").read_bytes()
    shutil.copytree(tmp_path, tmp_path / "torn")
    for length in range(0, len(journal), 47):
        for torn in (journal[:length], journal[:length] + bytes(9)):
            shutil.copy(tmp_path / "a.hdf5.partial", tmp_path / "torn")
            (tmp_path / "torn" / "a.hdf5.journal").write_bytes(torn)
            write(tmp_path / "torn" / "a.hdf5", source)
            assert (tmp_path / "torn" / "a.hdf5").read_bytes() == expected


def test_what_is_done_of_other_images_is_lost_only_on_request(tmp_path, expected, monkeypatch):
    out = tmp_path / "a.hdf5"
    other = make_source(description="other", seed=1)
    interrupt_at(other.images[0], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(out, other)
    write(out, make_source())  # nothing was done yet
    out.unlink()
    interrupt_at(other.images[100], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(out, other)
    refused("a.hdf5.partial was begun from other images.*--overwrite starts anew", out, make_source())
    monkeypatch.undo()
    shutil.copytree(tmp_path, tmp_path / "copy")
    write(out, make_source(), overwrite=True)
    assert out.read_bytes() == expected
    write(tmp_path / "copy" / "a.hdf5", other)
    write(tmp_path / "other.hdf5", other)
    assert (tmp_path / "copy" / "a.hdf5").read_bytes() == (tmp_path / "other.hdf5").read_bytes()


def test_other_images_or_a_lost_partial_file_start_anew(tmp_path, expected, monkeypatch, capsys):
    out = tmp_path / "a.hdf5"
    for change in ("other images", "lost", "shorter", "other version"):
        source = make_source(description="other", seed=1) if change == "other images" else make_source()
        interrupt_at(source.images[100], monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            write(out, source)
        partial = tmp_path / "a.hdf5.partial"
        if change == "lost":
            partial.unlink()
        if change == "shorter":
            os.truncate(partial, 2000)
        with monkeypatch.context() as patch:
            if change == "other version":
                patch.setattr(PIL, "__version__", "0")
            write(out, make_source(), overwrite=True)
        assert "starting anew" in capsys.readouterr().out
        assert out.read_bytes() == expected


def test_an_existing_file_stays_until_the_new_one_is_finished(tmp_path, expected, monkeypatch):
    out = tmp_path / "a.hdf5"
    out.write_text("mine")
    source = make_source()
    interrupt_at(source.images[100], monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(out, source)
    assert out.read_text() == "mine"
    writing.remove_leftovers(out)  # the unfinished one is none
    assert (tmp_path / "a.hdf5.partial").exists() and (tmp_path / "a.hdf5.journal").exists()
    write(out, source)
    assert out.read_bytes() == expected


def test_two_at_once(tmp_path):
    out = tmp_path / "a.hdf5"
    context = multiprocessing.get_context("fork")
    ready, finish = context.Event(), context.Event()

    def hold():
        with journal.locked(tmp_path / "a.hdf5.journal"):
            ready.set()
            finish.wait(20)

    other = context.Process(target=hold)
    other.start()
    assert ready.wait(20)
    refused("another process is writing .*a.hdf5 right now", out, make_source())
    writing.remove_leftovers(out)
    assert (tmp_path / "a.hdf5.journal").exists()  # the other one's
    finish.set()
    other.join()
    assert list(tmp_path.iterdir()) == []
    write(out, make_source())


# The disk


def test_space_is_reserved_first(tmp_path, monkeypatch):
    sizes = []
    real = writing.decode

    def decode(*args):
        sizes.append((tmp_path / "a.hdf5.partial").stat().st_blocks * 512)
        return real(*args)

    monkeypatch.setattr(writing, "decode", decode)
    write(tmp_path / "a.hdf5", make_source(2000))
    with open(tmp_path / "probe", "wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, 1)  # a file system that can reserve at all has done so
        assert sizes[0] >= 2000 * 3 * R**2


@pytest.mark.parametrize("name", ["EBADF", "EOPNOTSUPP", "EINVAL", "ENOSYS", "ENOSPC", "EDQUOT", "EFBIG"])
def test_a_file_system_that_cannot_reserve_is_not_one_that_is_full(name, tmp_path, monkeypatch):
    def refuse(handle, offset, size):
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == os.O_WRONLY and flags & os.O_APPEND and (offset, size) == (0, 100)
        raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    (tmp_path / "a").write_bytes(bytes(100))
    full = name in ("ENOSPC", "EDQUOT", "EFBIG")
    with pytest.raises(OSError, match=name) if full else contextlib.nullcontext():
        writing._reserve(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == bytes(100)


def test_a_full_disk_is_told_in_one_line_and_nothing_is_lost(tmp_path, expected, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "a.hdf5"
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_reserve", full)
        refused("the disk of .*a.hdf5 is full", out, make_source())
    assert os.listdir(tmp_path) == ["undisturbed"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        refused("is full; make room, and the same command goes on", out, make_source())
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, position: real(file, content[:100], position))
    write(out, make_source())  # a write may be cut short, too
    assert out.read_bytes() == expected
