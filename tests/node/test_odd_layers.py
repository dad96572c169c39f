"""Layers at the edges: none, empty, very many, and with bytes after their end."""

import hashlib
import os
import subprocess

import layouts
import world
from layouts import LAYERS_MAX, packed, tar

class OddLayers(world.Case):
    """Images of a few bytes, made here, from OCI layout to OCI layout."""

    beside = True

    def image(self, layers):
        folder = os.path.join(self.folder(), "in")
        layouts.write(folder, layers)
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
        source = os.path.join(self.folder(), "in")
        layouts.write_many(source)
        target = self.sound(source, "ulimit -n 256;")
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
