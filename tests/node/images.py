"""The test images as OCI layouts, and what their archives say."""

import gzip
import json
import os
import tarfile

CACHE = os.environ.get("LARDER_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "larder")


def layout(name):
    return os.path.join(CACHE, "images", name)


class Image:
    """One image of a layout with one manifest."""

    def __init__(self, directory):
        self.directory = directory
        self.manifest = self.json(self._index()["manifests"][0]["digest"])
        self.config_digest = self.manifest["config"]["digest"]
        self.config = self.json(self.config_digest)

    def _index(self):
        with open(os.path.join(self.directory, "index.json")) as index:
            return json.load(index)

    def path(self, digest):
        return os.path.join(self.directory, "blobs", *digest.split(":"))

    def json(self, digest):
        with open(self.path(digest)) as blob:
            return json.load(blob)

    def implied(self):
        """Directories whose topmost layer fills them without an entry for them, as bytes without a leading slash."""
        found = set()
        for layer in self.manifest["layers"]:
            parents, entries = set(), set()
            with gzip.open(self.path(layer["digest"])) as data:
                for entry in tarfile.open(fileobj=data, mode="r|", errors="surrogateescape"):
                    path = os.path.normpath("/" + entry.name).lstrip("/")
                    entries.add(path)
                    while path := os.path.dirname(path):
                        parents.add(path)
            found = found - entries | parents - entries
        return {os.fsencode(path) for path in found}

    def first_entry(self):
        """What the first header of the lowest layer says."""
        with gzip.open(self.path(self.manifest["layers"][0]["digest"])) as data:
            return tarfile.open(fileobj=data, mode="r|").next()
