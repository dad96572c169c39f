"""Images of a few bytes, made here, as OCI layouts."""

import gzip
import hashlib
import io
import json
import os
import tarfile

PLAIN = "application/vnd.oci.image.layer.v1.tar"
LAYER = PLAIN + "+gzip"
BLOBS = "blobs/sha256"
LAYERS_MAX = 127  # as many as Docker's storage drivers take


def tar(*names):
    """A tar of files that contain their names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return out.getvalue()


def packed(data):
    return gzip.compress(data, 6, mtime=0)


def write(folder, layers):
    """Writes a layout whose image, `latest`, has these layers, each a blob and the tar in it."""
    blobs = os.path.join(folder, BLOBS)
    os.makedirs(blobs)
    described = [keep(blobs, blob, LAYER) for blob, _ in layers]
    finish(folder, described, ["sha256:" + hashlib.sha256(data).hexdigest() for _, data in layers])


def write_large(folder, files, size, piece):
    """Writes a layout of an image of one layer, not compressed, with these files of `size`: each is written while it is read, by `piece`
    bytes at a time, and nothing of it is anywhere else."""
    blobs = os.path.join(folder, BLOBS)
    os.makedirs(blobs)
    path = os.path.join(blobs, "layer")
    with Summed(path) as out:
        with tarfile.open(fileobj=out, mode="w|", copybufsize=piece) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = size
                archive.addfile(entry, content)
    digest = out.total.hexdigest()
    os.rename(path, os.path.join(blobs, digest))
    layer = {"mediaType": PLAIN, "digest": "sha256:" + digest, "size": out.length}
    finish(folder, [layer], [layer["digest"]])


class Summed:
    """A file that is written, with its length and its sum."""

    def __init__(self, path):
        self.file, self.length, self.total = open(path, "wb"), 0, hashlib.sha256()

    def write(self, data):
        self.length += len(data)
        self.total.update(data)
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def keep(blobs, data, kind):
    digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(blobs, digest), "wb") as out:
        out.write(data)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}


def finish(folder, layers, diff_ids):
    """Writes config, manifest and what a layout has besides, for layers whose blobs are there."""
    def document(value, kind):
        return keep(os.path.join(folder, BLOBS), json.dumps(value).encode(), kind)

    kind = "application/vnd.oci.image.manifest.v1+json"
    config = document({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}},
                      "application/vnd.oci.image.config.v1+json")
    manifest = document({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}, kind)
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    for name, value in (("index.json", {"schemaVersion": 2, "manifests": [manifest]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(os.path.join(folder, name), "w") as out:
            json.dump(value, out)


def write_many(folder):
    """Writes a layout of an image of as many layers as there may be, with one file each."""
    layers = [tar(f"file-{number}") for number in range(LAYERS_MAX)]
    write(folder, [(packed(data), data) for data in layers])


def chain(diff_ids):
    """The chain ID of the topmost of these layers."""
    found = diff_ids[0]
    for diff in diff_ids[1:]:
        found = "sha256:" + hashlib.sha256(f"{found} {diff}".encode()).hexdigest()
    return found
