"""Images in a tar archive, packed or not: a tree of folders and files beside those of `image_datasets/listing.py`."""

import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import utils
from image_datasets.listing import Listing, is_hidden, is_image, relative

SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive, by its name and by its content; a checkpoint may be named x.pth.tar."""
    return path.name.lower().endswith(SUFFIXES) and tarfile.is_tarfile(path)


@dataclass(frozen=True)
class TarMember:
    """A file within an archive: where it lies, or its content where the archive is packed."""

    archive: str
    name: str
    start: int
    size: int
    content: bytes | None = None

    def __str__(self):
        return os.path.join(self.archive, self.name)

    def read(self) -> bytes:
        if self.content is not None:
            return self.content
        with open(self.archive, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class TarTree:
    """The files of a tar archive behind the interface of `listing.ZipTree`.

    Files of a packed archive are kept in memory as they are, since it cannot be read but from its start.
    Raises: utils.UserError if the archive is damaged.
    """

    kind = "tar"

    def __init__(self, archive: Path):
        self.root, self.members = str(archive), {}
        self.listings = {self.root: Listing([], [], [])}
        try:
            try:
                with tarfile.open(archive, "r:") as file:  # not packed
                    self._add_all(file, packed=False)
            except tarfile.ReadError:
                self.members.clear()
                with tarfile.open(archive, "r:*") as file:
                    self._add_all(file, packed=True)
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise utils.UserError(f"{archive} is no readable tar archive ({error}); copy or make it again") from error
        for path in sorted(self.members):
            folder = self._folder(os.path.dirname(path))
            (folder.images if is_image(path) else folder.others).append(path)
        while True:  # archives often hold the folder itself
            top = self.listings[self.root]
            if len(top.folders) != 1 or top.images or not self.listings[top.folders[0]].folders:
                break
            self.root = top.folders[0]

    def _add_all(self, file, packed):
        for entry in file:
            parts = [part for part in entry.name.split("/") if part not in ("", ".")]
            if not (entry.isfile() or entry.islnk()) or not parts or any(map(is_hidden, parts)):
                continue
            # A second name of a file, and one with holes, have no bytes of their own in the archive.
            content = file.extractfile(entry).read() if packed or entry.islnk() or entry.issparse() else None
            member = TarMember(self.root, "/".join(parts), entry.offset_data, entry.size, content)
            self.members[str(member)] = member

    def _folder(self, path):
        if path not in self.listings:
            self.listings[path] = Listing([], [], [])
            self._folder(os.path.dirname(path)).folders.append(path)
        return self.listings[path]

    def name(self, path: str) -> str:
        return relative(path, self.root)

    def list(self, folder: str) -> Listing:
        return self.listings[folder]

    def item(self, file: str) -> TarMember:
        return self.members[file]

    def read(self, file: str) -> bytes:
        return self.members[file].read()
