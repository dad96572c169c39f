"""The root file system of images, as Larder shows it and as containerd unpacks it: no difference at all."""

import os
import stat

import images
import oracle
import trees
import world
from world import DRIVERS, once_per

LAZY = ("odd", "tools", "tools-layers", "python", "node", "nginx", "wide", "huge")
# Those of which a layer is unpacked, too, and those that differ in who owns what.
ON_A_NODE = (*LAZY, "odd-sparse", "pause", "tools-user", "tools-layers-user")


class Trees(world.Case):
    """What containerd 1.6 unpacks of the original is the reference."""

    beside = True

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

    @once_per(image=ON_A_NODE, driver=DRIVERS)
    def test_a_lazy_node_shows_the_same_tree(self, image, driver):
        """Promise: so are they in what the snapshotter gives containerd to mount, also where lazy and unpacked layers alternate."""
        _, converted = world.publish(image)
        with self.node("2", lazy=True, driver=driver) as node, trees.mounted_by_containerd(node, converted) as place:
            states = {layer["state"] for layer in world.status(os.path.join(node.work, "larder"))["layers"]}
            self.assertEqual("eager" in states, image == "odd-sparse")
            self.assertTrue(states & {"lazy", "complete"}, states)
            found = oracle.snapshot(place)
        self.assert_same(image, found)

    @once_per(driver=DRIVERS)
    def test_ten_gigabytes_of_zeros_look_as_the_tar_says(self, driver):
        """Promise: the same of the attributes of *zeros*, which nobody unpacks here."""
        entry = images.Image(images.layout("zeros")).first_entry()
        _, converted = world.publish("zeros")
        with self.node("2", lazy=True, driver=driver) as node, trees.mounted_by_containerd(node, converted) as place:
            found = oracle.snapshot(place, contents=False)
        name = os.fsencode(entry.name)
        self.assertEqual(set(found), {b"", name})
        self.assertGreater(entry.size, 9 * 10**9)
        self.assertEqual(found[name], {
            "type": stat.S_IFREG, "mode": oct(entry.mode), "uid": entry.uid, "gid": entry.gid, "mtime": int(entry.mtime) * 10**9,
            "xattrs": {}, "links": 1, "size": entry.size, "sha256": None, "same inode as": name,
        })
