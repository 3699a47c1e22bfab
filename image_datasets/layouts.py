"""Of which class each file of a folder or zip is: by its folder, or by a list of labels beside the images.

Known lists: `dataset.json` of StyleGAN's tools (https://github.com/NVlabs/stylegan3, "Preparing datasets") and
`val_annotations.txt` of Tiny ImageNet. Nothing is guessed, as a wrong guess means wrong labels.
"""

import json
import os
import re
import typing
import unicodedata

import numpy as np

import utils
from image_datasets.image_sets import empty_classes, number_of_classes
from image_datasets.listing import DiskTree, Listing, ZipTree, counted, files_below

AS_TEXT, AS_NUMBERS = "names of the folders as text", "names of the folders as numbers"
# Folders that some data sets put between a class's folder and its images: n01443537/images/0.JPEG in Tiny ImageNet.
INNER_FOLDERS = set("image images img imgs jpeg jpegimages jpg original originals photo photos pictures png".split())
SPLITS = {"dev", "eval", "test", "testing", "train", "training", "val", "valid", "validation"}


class Found(typing.NamedTuple):
    """Files of images (paths, in the order of the data set), their labels (int64), and the files that are left out.

    order: the rule by which classes are numbered, "" where there is but one; list_name: of the list of labels, if any.
    """

    class_names: list[str]
    labels: np.ndarray
    files: list[str]
    others: list[str]
    order: str = ""
    list_name: str = ""


class LabelList(typing.NamedTuple):
    """A file of labels: its path, class by path of the image below the root, and the classes in their order."""

    file: str
    class_of: dict[str, str]
    class_names: list[str]
    order: str


def find(tree: DiskTree | ZipTree, unconditional: bool) -> Found:
    """The images of a tree and their classes; `unconditional`: all of one class.

    Raises: UserError if folders are neither one per class, images flat in them, nor come with a list of labels.
    """
    root = tree.list(tree.root)
    labels = _stylegan_list(tree, root, unconditional) or _tiny_imagenet_list(tree, root)
    if labels and not unconditional:
        return _by_list(tree, labels)
    if labels or _is_numbered(tree, root):
        if not unconditional:
            first = tree.name(tree.list(root.folders[0]).images[0])
            raise utils.UserError(
                f"{tree.root} has the numbered folders of StyleGAN's tools ({first}, ...), which are no classes, and "
                "no dataset.json; put that file there, or take all images without classes: --unconditional"
            )
        return _one_class(tree, *_some_below(tree))
    return _by_folder(tree, root, unconditional)


def _one_class(tree, files, others):
    return Found([tree.text(folder_name(tree.root))], np.zeros(len(files), np.int64), files, others)


def folder_name(path: str | os.PathLike) -> str:
    """The last part of a path, ".zip" excepted, links not followed; also for "." and "..", which have no name."""
    return os.path.basename(os.path.abspath(path)).removesuffix(".zip")


def _some_below(tree):
    """As `files_below`. Raises: UserError where there are no images at all."""
    files, others = files_below(tree)
    if not files:
        raise utils.UserError(f"--images {tree.root} holds no images{_but(others)}")
    return files, others


# Lists of labels


def _stylegan_list(tree, root, unconditional):
    """The labels of a dataset.json of StyleGAN's tools, or None where there is none, or another file of that name."""
    file = os.path.join(tree.root, "dataset.json")
    if file not in root.others:
        return None
    try:
        content = json.loads(tree.read(file))
    except Exception as error:  # a damaged zip raises nearly anything
        raise utils.UserError(f"{file} is no readable JSON ({error}); repair, or remove it to go by folders") from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if unconditional:
        return LabelList(file, {}, [], "")
    if not content["labels"]:
        raise utils.UserError(
            f"{file} has no labels ({json.dumps(content['labels'])}): add them, or take all images without classes, "
            "--unconditional for make_hdf5.py and for train.py"
        )
    ids = _ids(content["labels"], file)
    num_classes = number_of_classes(min(ids.values()), max(ids.values()), len(ids), f"{file}: 'labels'")
    class_of = {name: str(number) for name, number in ids.items()}
    return LabelList(file, class_of, [str(i) for i in range(num_classes)], "class ids of dataset.json")


def _ids(labels, file):
    """Class id by normal path, of [[path, id], ...] or {path: id}. Raises: UserError naming the file."""
    ids = {}
    try:
        pairs = [(name, value) for name, value in (labels.items() if isinstance(labels, dict) else labels)]
    except (TypeError, ValueError):
        raise utils.UserError(f"{file}: 'labels' must be a list of [file name, class id]") from None
    for name, value in pairs:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not isinstance(name, str) or not whole:
            shown = f"{str(name)[:80]}: {json.dumps(value)[:40]}"
            raise utils.UserError(f"{file}: 'labels' must give each file name a whole class id, not {shown}")
        if ids.setdefault(_normal(name), int(value)) != int(value):
            raise utils.UserError(f"{file} gives {name} two classes, {ids[_normal(name)]} and {int(value)}; correct it")
    return ids


def _tiny_imagenet_list(tree, root):
    """The labels of Tiny ImageNet's val folder, or None where this is none: val_annotations.txt beside the images."""
    file = os.path.join(tree.root, "val_annotations.txt")
    if file not in root.others or len(root.folders) + bool(root.images) != 1:
        return None
    inner = "" if root.images else f"{os.path.basename(root.folders[0])}/"
    class_of = {}
    for line in tree.read(file).decode(errors="surrogateescape").splitlines():
        name, _, rest = line.partition("\t")
        if line.strip():
            class_of[_normal(inner + name)] = rest.split("\t")[0].strip()
    if not all(class_of.values()):
        raise utils.UserError(f"{file} is not of lines of a file's name, a tab, its class, ...; repair or remove it")
    return LabelList(file, class_of, sorted(set(class_of.values())), "names in val_annotations.txt as text")


def _normal(name):
    """A path as a list of labels and a system may write it differently."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _by_list(tree, labels):
    files, others = _some_below(tree)
    others.remove(labels.file)
    names = [_normal(tree.name(file)) for file in files]
    if missing := [name for name in names if name not in labels.class_of]:
        raise utils.UserError(
            f"{labels.file} labels {len(files) - len(missing)} of {len(files)} images ({missing[0]} is not in it); "
            "complete it, or take all images without classes: --unconditional"
        )
    if absent := len(labels.class_of.keys() - set(names)):
        print(f"{labels.file} also labels {absent} that are not there")
    number_of = {name: number for number, name in enumerate(labels.class_names)}
    ids = np.array([number_of[labels.class_of[name]] for name in names], np.int64)
    present = {labels.class_of[name] for name in names}
    if text := empty_classes([name for name in labels.class_names if name not in present], labels.class_names):
        print(f"warning: {labels.file}: {text}")
    return Found(labels.class_names, ids, files, others, labels.order, os.path.basename(labels.file))


def _is_numbered(tree, root):
    """Whether a root holds the numbered folders that StyleGAN's tools make, 1,000 images in each."""
    names = map(os.path.basename, root.folders)
    if root.images or not root.folders or not all(re.fullmatch(r"\d{5}", name) for name in names):
        return False
    images = [image for folder in root.folders for image in tree.list(folder).images]
    names = [tree.name(image) for image in images]
    return bool(names) and all(re.fullmatch(r"\d{5}/img\d{8}\.\w+", name) for name in names)


# A folder for each class


def _by_folder(tree, root, unconditional):
    _check_root(tree, root, unconditional)
    if root.images:
        return _one_class(tree, root.images, list(root.others))
    listings = [_class_listing(tree, folder) for folder in root.folders]
    for folder, listing in zip(root.folders, listings, strict=True):
        _check_class(folder, listing)
    names = [tree.name(folder) for folder in root.folders]
    order, rule = _class_order(names)
    files = [image for i in order for image in listings[i].images]
    labels = np.repeat(np.arange(len(order)), [len(listings[i].images) for i in order]).astype(np.int64)
    others = [*root.others, *(other for listing in listings for other in listing.others)]
    return Found([names[i] for i in order], labels, files, others, rule if len(names) > 1 else "")


def _class_order(names):
    """In which order classes are numbered, ints, and the rule: 0, 1, 2, 10 where all names are numbers."""
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return sorted(range(len(names)), key=lambda i: (int(names[i]), names[i])), AS_NUMBERS
    return range(len(names)), AS_TEXT


def _class_listing(tree, folder):
    """What a class's folder holds, or the only folder of images in it where that has a name of INNER_FOLDERS."""
    listing = tree.list(folder)
    if listing.images or not listing.folders:
        return listing
    inner = {path: tree.list(path) for path in listing.folders}
    full = [path for path, (images, folders, _) in inner.items() if images or folders]
    if len(full) != 1 or inner[full[0]].folders or os.path.basename(full[0]).lower() not in INNER_FOLDERS:
        return listing
    others = [other for path in inner for other in inner[path].others]
    return Listing(inner[full[0]].images, [], listing.others + others)


def _check_root(tree, listing, unconditional):
    root, (images, folders, others) = tree.root, listing
    image, folder = (os.path.basename(paths[0]) if paths else None for paths in (images, folders))
    if not images and not folders:
        raise utils.UserError(f"--images {root} holds neither class folders nor images{_but(others)}")
    if images and folders:
        raise utils.UserError(f"{root} holds images ({image}, ...) beside folders ({folder}, ...)")
    if unconditional and len(folders) > 1:
        raise utils.UserError(f"--unconditional: {root} holds {len(folders)} folders; name one of them as --images")
    if images and not unconditional:
        raise utils.UserError(f"{root} has no class folders; make one per class, or take all with --unconditional")
    # A single folder that holds folders is most likely one level too deep: left to _check_class to say.
    if len(folders) == 1 and not unconditional and not _class_listing(tree, folders[0]).folders:
        raise utils.UserError(f"{root} has one class folder only ({folder}); use --unconditional for that")
    names = [os.path.basename(path) for path in folders]
    if len(names) > 1 and all(name.lower() in SPLITS for name in names):
        train = next((path for path in folders if "train" in path.lower()), folders[0])
        raise utils.UserError(
            f"{root} holds the parts of a data set ({', '.join(names)}), not its classes; use --images {train}"
        )


def _check_class(folder, listing):
    if listing.folders:
        inner = os.path.basename(listing.folders[0])
        if listing.images:
            raise utils.UserError(f"{folder} holds the folder {inner} among its images; images lie flat")
        raise utils.UserError(
            f"{folder} should hold the images of one class, but holds folders ({inner}, ...); "
            f"if those are the classes, use --images {folder}"
        )
    if not listing.images:
        raise utils.UserError(f"the class folder {folder} holds no images{_but(listing.others)}; fill or remove it")


def _but(others):
    return f", but {text}" if (text := counted(others)) else ""
