"""Converted images in tools that know nothing of Larder: the same image, pulled the ordinary way."""

import contextlib
import os
import subprocess

import images
import oracle
import world
from world import once_per, rig

IMAGES = ("odd", "odd-sparse", "tools-layers", "python", "node", "nginx")
BLOB_MEMORY = "/var/lib/containers/cache"
DECOMPRESS = {"application/vnd.oci.image.layer.v1.tar+gzip": "gzip", "application/vnd.oci.image.layer.v1.tar+zstd": "zstd"}


class Interoperability(world.Case):
    """Each tool starts with an empty root of its own."""

    beside = True

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

    @contextlib.contextmanager
    def no_memory_of_blobs(self):
        """Tools of containers/image remember which blobs have the same content, and would take the original's for ours."""
        os.makedirs(BLOB_MEMORY, exist_ok=True)
        rig.run("mount", "-t", "tmpfs", "larder", BLOB_MEMORY)
        try:
            yield
        finally:
            rig.run("umount", BLOB_MEMORY)

    # Of odd, buildah refuses the original: it wants no path twice in a tar.
    @once_per(image=IMAGES[1:])
    def test_buildah_mounts_the_same_tree(self, image):
        """Promise: buildah gets the same image ID and the same tree from the converted image as from the original."""
        original, converted = world.publish(image)
        with self.pulled_by_buildah(original) as (expected_id, place):
            expected = oracle.snapshot(place)
        with self.no_memory_of_blobs(), self.pulled_by_buildah(converted) as (found_id, place):
            found = oracle.snapshot(place)
        self.assertEqual(found_id, expected_id)
        implied = images.Image(images.layout(image)).implied()
        lines = oracle.differences(expected, found, implied)
        self.assertFalse(lines, oracle.report(lines))
        self.assertGreater(len(found), 20, "too few files for a tree")

    @once_per(image=IMAGES)
    def test_skopeo_copies_the_same_layers(self, image):
        """Promise: what skopeo copies into a layout has the original's configuration, and the converted layers, whose diff IDs
        are the original's."""
        _, converted = world.publish(image)
        target = os.path.join(self.folder(), "layout")
        with self.no_memory_of_blobs():
            rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{converted}", f"oci:{target}:latest")
        source, copied = images.Image(images.layout(image)), images.Image(target)
        self.assertEqual(copied.config_digest, source.config_digest)
        self.assertEqual([layer["digest"] for layer in copied.manifest["layers"]],
                         [layer["digest"] for layer in world.manifest(converted)["layers"]])
        zstd = [layer["mediaType"].endswith("+zstd") for layer in copied.manifest["layers"]]
        self.assertEqual(zstd.count(False), 1 if image == "odd-sparse" else 0, "layers that are not zstd")
        for layer, diff in zip(copied.manifest["layers"], source.config["rootfs"]["diff_ids"], strict=True):
            program = DECOMPRESS[layer["mediaType"]]
            told = subprocess.run(f"{program} -dcq {copied.path(layer['digest'])} | sha256sum", shell=True, check=True,
                                  capture_output=True, text=True).stdout
            self.assertEqual("sha256:" + told.split()[0], diff)
