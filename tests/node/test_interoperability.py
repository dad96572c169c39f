"""Converted images in tools that know nothing of Larder: the same image, pulled the ordinary way."""

import contextlib
import os
import subprocess

import images
import oracle
import world
from world import once_per, rig

IMAGES = ("odd", "odd-sparse", "tools-layers", "python", "node", "nginx")
DECOMPRESS = {"application/vnd.oci.image.layer.v1.tar+gzip": "gzip", "application/vnd.oci.image.layer.v1.tar+zstd": "zstd"}


class Interoperability(world.Case):
    """Each tool starts with an empty root of its own."""

    @contextlib.contextmanager
    def pulled_by_buildah(self, reference):
        """Image ID and mounted tree."""
        root = self.folder()
        buildah = ("buildah", "--root", f"{root}/root", "--runroot", f"{root}/run", "--storage-driver", "overlay")
        container = rig.run(*buildah, "from", "--tls-verify=false", f"docker://{reference}").strip()
        try:
            image = rig.run(*buildah, "inspect", "--format", "{{.FromImageID}}", container).strip()
            yield image, rig.run(*buildah, "mount", container).strip()
        finally:
            rig.run(*buildah, "rm", "--all")
            rig.unmount_below(root)

    # Of odd, buildah refuses the original: it wants no path twice in a tar.
    @once_per(image=IMAGES[1:])
    def test_buildah_mounts_the_same_tree(self, image):
        """Promise: buildah gets the same image ID and the same tree from the converted image as from the original."""
        original, converted = world.publish(image)
        with self.pulled_by_buildah(original) as (expected_id, place):
            expected = oracle.snapshot(place)
        with self.pulled_by_buildah(converted) as (found_id, place):
            found = oracle.snapshot(place)
        self.assertEqual(found_id, expected_id)
        implied = images.Image(images.layout(image)).implied()
        lines = oracle.differences(expected, found, implied)
        self.assertFalse(lines, oracle.report(lines))
        self.assertGreater(len(found), 20, "too few files for a tree")

    @once_per(image=IMAGES)
    def test_skopeo_copies_the_same_layers(self, image):
        """Promise: what skopeo copies into a layout has the original's configuration, and layers with its diff IDs."""
        _, converted = world.publish(image)
        target = os.path.join(self.folder(), "layout")
        rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{converted}", f"oci:{target}:latest")
        source, copied = images.Image(images.layout(image)), images.Image(target)
        self.assertEqual(copied.config_digest, source.config_digest)
        for layer, diff in zip(copied.manifest["layers"], source.config["rootfs"]["diff_ids"], strict=True):
            program = DECOMPRESS[layer["mediaType"]]
            told = subprocess.run(f"{program} -dcq {copied.path(layer['digest'])} | sha256sum", shell=True, check=True,
                                  capture_output=True, text=True).stdout
            self.assertEqual("sha256:" + told.split()[0], diff)
