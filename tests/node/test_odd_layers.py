"""Layers at the edges: none, empty, very many, and with bytes after their end."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

import world

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYERS_MAX = 127  # as many as Docker's storage drivers take


def tar(*names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return out.getvalue()


def packed(data):
    return gzip.compress(data, 6, mtime=0)


class OddLayers(world.Case):
    """Images of a few bytes, made here, from OCI layout to OCI layout."""

    def image(self, layers):
        """A layout whose image has these layers, each a blob and the tar in it."""
        folder = os.path.join(self.folder(), "in")
        blobs = os.path.join(folder, "blobs/sha256")
        os.makedirs(blobs)

        def keep(data, kind):
            digest = hashlib.sha256(data).hexdigest()
            with open(os.path.join(blobs, digest), "wb") as out:
                out.write(data)
            return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}

        def document(value, kind):
            return keep(json.dumps(value).encode(), kind)

        kind = "application/vnd.oci.image.manifest.v1+json"
        diff_ids = ["sha256:" + hashlib.sha256(data).hexdigest() for _, data in layers]
        config = document({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}},
                          "application/vnd.oci.image.config.v1+json")
        manifest = document({"schemaVersion": 2, "mediaType": kind, "config": config,
                             "layers": [keep(blob, LAYER) for blob, _ in layers]}, kind)
        manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        for name, value in (("index.json", {"schemaVersion": 2, "manifests": [manifest]}), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
            with open(os.path.join(folder, name), "w") as out:
                json.dump(value, out)
        return folder

    def convert(self, source, limits=""):
        target = os.path.join(self.folder(), "out")
        program = os.path.join(world.PROGRAMS, "larder")
        done = subprocess.run(["sh", "-c", f'{limits} exec "$@"', "sh", program, "convert", "--no-cache", f"oci:{source}:latest", f"oci:{target}:latest"],
                              capture_output=True, text=True)
        return target, done

    def sound(self, source, limits=""):
        target, done = self.convert(source, limits)
        self.assertEqual(done.returncode, 0, done.stderr)
        world.larder("check", f"oci:{target}:latest", "--against", f"oci:{source}:latest")
        return target

    def test_layers_without_an_entry_are_converted(self):
        """Promise: a tar that is only its end marker, or has no byte at all, is a layer like others."""
        for empty in (bytes(1024), bytes(10240), b""):
            with self.subTest(bytes=len(empty)):
                source = self.image([(packed(tar("file")), tar("file")), (packed(empty), empty)])
                target = self.sound(source)
                self.assertIn("file", world.larder("ls", f"oci:{target}:latest", "/"))

    def test_an_image_of_many_layers_needs_few_open_files(self):
        """Promise: 127 layers are converted by a process that may open 256 files."""
        layers = [tar(f"file-{number}") for number in range(LAYERS_MAX)]
        target = self.sound(self.image([(packed(data), data) for data in layers]), "ulimit -n 256;")
        self.assertEqual(world.larder("ls", f"oci:{target}:latest", "/").count("file-"), LAYERS_MAX)

    def test_bytes_after_a_gzip_stream_are_named(self):
        """Promise: garbage after the last member is refused in one sentence with the layer; nothing is written."""
        data = tar("file")
        blob = packed(data) + b"garbage"
        target, done = self.convert(self.image([(blob, data)]))
        self.assertEqual(done.returncode, 1, done.stderr)
        sentences = [line for line in done.stderr.splitlines() if line.startswith("larder: ")]
        self.assertEqual(len(sentences), 1, done.stderr)
        self.assertIn(hashlib.sha256(blob).hexdigest(), sentences[0])
        self.assertIn("followed by bytes", sentences[0])
        self.assertFalse(os.path.exists(target))
