"""`larder convert` and `larder check` on the real images, as commands in a shell."""

import json
import os
import subprocess
import sys
import unittest

import images
import world
from world import rig

GOOD = ("odd", "tools", "tools-layers", "pause", "python", "node", "nginx", "wide", "huge")
REAL = ("tools", "pause", "python", "node", "nginx")
UNCONVERTIBLE = {
    "unconvertible-forward": "early",
    "unconvertible-across": "above",
    "unconvertible-overlay": "redirected",
    "unconvertible-sparse": "sparse",
}


class Conversion(world.Case):
    """OCI layout to OCI layout, without a registry."""

    beside = True

    def convert(self, source, *options):
        target = os.path.join(self.folder(), "out")
        told = world.larder("convert", "--json", *options, f"oci:{source}:latest", f"oci:{target}:latest")
        return target, json.loads(told)

    def test_every_image_is_converted_without_loss(self):
        """Promise: same configuration and image ID; the decompressed layers are the source's tars; proved by `check`."""
        for name in GOOD:
            with self.subTest(image=name):
                source = images.layout(name)
                target, _ = self.convert(source)
                before, after = images.Image(source), images.Image(target)
                self.assertEqual(before.config_digest, after.config_digest)
                world.larder("check", f"oci:{target}:latest", "--against", f"oci:{source}:latest")
                # zstd, not Larder, says what is in the layers.
                for layer, diff in zip(after.manifest["layers"], before.config["rootfs"]["diff_ids"], strict=True):
                    told = subprocess.run(f"zstd -dcq {after.path(layer['digest'])} | sha256sum", shell=True, check=True,
                                          capture_output=True, text=True).stdout
                    self.assertEqual("sha256:" + told.split()[0], diff)

    def test_the_result_does_not_depend_on_the_number_of_threads(self):
        """Promise: converting twice, anywhere, gives the same manifest."""
        one, _ = self.convert(images.layout("odd"), "--jobs", "1")
        many, _ = self.convert(images.layout("odd"), "--jobs", "7", "--no-cache")
        self.assertEqual(images.Image(one).manifest, images.Image(many).manifest)

    def test_the_indexes_of_real_images_take_at_most_one_percent(self):
        """Promise: what a node fetches of an image before anything is read is at most 1 % of its tars."""
        for name in REAL:
            with self.subTest(image=name):
                target, _ = self.convert(images.layout(name))
                told = json.loads(world.larder("inspect", "--json", f"oci:{target}:latest"))
                layers = [layer["larder"] for manifest in told["manifests"] for layer in manifest["layers"]]
                indexes, tars = (sum(layer[part] for layer in layers) for part in ("index_stored_size", "tar_size"))
                print(f"{name}: indexes of {indexes:,} bytes, {100 * indexes / tars:.2f} % of the tars ", end="", file=sys.stderr)
                self.assertLessEqual(indexes, tars / 100)

    def test_a_layer_that_cannot_be_represented_is_copied_with_the_reason(self):
        """Promise: exit 0, the layer's digest unchanged, and a reason that names the entry."""
        for name, entry in UNCONVERTIBLE.items():
            with self.subTest(image=name):
                target, told = self.convert(images.layout(name))
                before, after = images.Image(images.layout(name)).manifest, images.Image(target).manifest
                self.assertEqual(before["layers"][-1]["digest"], after["layers"][-1]["digest"])
                self.assertIn(entry, json.dumps(told))

    def test_ten_gigabytes_of_zeros_need_bounded_memory(self):
        """Promise: a layer of 10 MB that unpacks to 10 GB is converted in at most 150 MB of memory, and its index alone
        tells the reader written from docs/FORMAT.md what is in it."""
        target, largest = world.converted_zeros()
        self.assertLess(largest, 150 * 1024, "KiB of memory at the peak")
        image = images.Image(target)
        self.assertLess(sum(layer["size"] for layer in image.manifest["layers"]), 20 << 20)
        listed = rig.run(os.path.join(world.TOP, "scripts/read-index.py"), "list", image.path(image.manifest["layers"][0]["digest"]))
        self.assertIn(f" 1 {10_000_000_000 // 512 * 512} /zeros\n", listed)

    def test_a_damaged_blob_is_refused_by_name(self):
        """Promise: exit 1 and one sentence with the layer's digest; nothing is written."""
        source = os.path.join(self.folder(), "in")
        rig.run("cp", "-r", images.layout("tools"), source)
        layer = images.Image(source).manifest["layers"][0]["digest"]
        path = images.Image(source).path(layer)
        with open(path, "r+b") as blob:
            blob.truncate(os.path.getsize(path) // 2)
        target = os.path.join(self.folder(), "out")
        done = subprocess.run([os.path.join(world.PROGRAMS, "larder"), "convert", f"oci:{source}:latest", f"oci:{target}:latest"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(layer.partition(":")[2][:12], done.stderr)
        self.assertFalse(os.path.exists(os.path.join(target, "index.json")))


if __name__ == "__main__":
    unittest.main()
