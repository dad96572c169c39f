"""The root file system of images, as Larder shows it and as containerd unpacks it: no difference at all."""

import images
import oracle
import trees
import world
from world import DRIVERS, once_per

LAZY = ("odd", "tools", "tools-layers", "python", "node", "nginx", "wide", "huge")


class Trees(world.Case):
    """What containerd 1.6 unpacks of the original is the reference."""

    def assert_same(self, name, found):
        expected, implied = trees.reference(name)
        lines = oracle.differences(expected, found, implied)
        self.assertFalse(lines, oracle.report(lines))

    @once_per(image=trees.UNPACKED)
    def test_converted_it_unpacks_to_the_same_tree(self, image):
        """Promise: stock containerd 2, pulling a converted image in the ordinary way, gets the same ID and the same tree."""
        _, converted = world.publish(image)
        self.assertEqual(world.manifest(converted)["config"]["digest"], images.Image(images.layout(image)).config_digest)
        # Equal chain IDs mean that containerd shares the snapshot; a node of its own unpacks it again.
        with self.node("2", lazy=False) as node, trees.mounted_by_containerd(node, converted) as place:
            found = oracle.snapshot(place)
        self.assert_same(image, found)

    @once_per(image=LAZY, driver=DRIVERS)
    def test_mounted_lazily_it_is_the_same_tree(self, image, driver):
        """Promise: names, types, modes, owners, sizes, times, links, targets, attributes, devices and contents are equal."""
        _, converted = world.publish(image)
        with trees.mounted_by_larder(converted, driver) as place:
            found = oracle.snapshot(place)
        self.assert_same(image, found)
