"""The root file system of images, as Larder shows it and as containerd unpacks it: no difference at all."""

import json
import unittest

import images
import oracle
import world
from world import rig

UNPACKED = ("odd", "tools-layers", "python", "wide", "huge")
LAZY = ("odd", "tools", "tools-layers")


class Trees(world.Case):
    """What containerd 1.6 unpacks is the reference."""

    def reference(self, node, name):
        original, _ = self.publish(name)
        node.pull(original)
        image = images.Image(images.layout(name))
        return oracle.snapshot(self.mount_of_containerd(node, original)), image.implied()

    def test_converted_images_unpack_to_the_same_tree_everywhere(self):
        """Promise: stock containerd, pulling a converted image in the ordinary way, gets the same ID and the same tree."""
        for name in UNPACKED:
            with self.subTest(image=name):
                original, converted = self.publish(name)
                with self.node("1.6", lazy=False) as node:
                    expected, implied = self.reference(node, name)
                    node.pull(converted)
                    listed = json.loads(rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{converted}"))
                    self.assertEqual(listed["config"]["digest"], images.Image(images.layout(name)).config_digest)
                    # Equal chain IDs mean that containerd shares the snapshot; a node of its own unpacks it again.
                    with self.node("2", lazy=False) as other:
                        other.pull(converted)
                        found = oracle.snapshot(self.mount_of_containerd(other, converted))
                        self.doCleanups()
                    lines = oracle.differences(expected, found, implied)
                    self.assertFalse(lines, oracle.report(lines))

    def test_mounted_lazily_a_tree_equals_the_unpacked_one(self):
        """Promise: names, types, modes, owners, sizes, times, links, targets, attributes, devices and contents are equal."""
        for name in LAZY:
            with self.node("1.6", lazy=False) as node:
                expected, implied = self.reference(node, name)
                self.doCleanups()
            for driver, missing in world.drivers().items():
                with self.subTest(image=name, driver=driver):
                    if missing:
                        self.skipTest(missing)
                    _, converted = self.publish(name)
                    found = oracle.snapshot(self.mount_of_larder(converted, driver))
                    lines = oracle.differences(expected, found, implied)
                    self.assertFalse(lines, oracle.report(lines))
                    self.doCleanups()


if __name__ == "__main__":
    unittest.main()
