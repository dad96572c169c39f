"""What a node keeps on its disk."""

import glob
import os
import subprocess
import unittest

import world
from world import rig

ZEROS = 10 * 10**9  # the test image says how many it has; never fewer than this


class Disk(world.Case):
    """By `larder-snapshotter mount`."""

    def test_ten_gigabytes_of_zeros_cost_no_disk(self):
        """Promise: 10 GB of zeros, read completely, cost at most 1 MB of disk in the store."""
        _, converted = world.publish("zeros")
        root, place = self.folder(), self.folder()
        world.snapshotter("mount", "--root", root, "--detach", converted, place)
        self.addCleanup(world.snapshotter, "umount", "--root", root, place)
        read = 0
        for folder, _, names in os.walk(place):
            for name in names:
                path = os.path.join(folder, name)
                rig.run("dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none")
                read += os.path.getsize(path)
        self.assertGreaterEqual(read, ZEROS)
        used = int(subprocess.check_output(["du", "-s", "-B1", os.path.join(root, "store")]).split()[0])
        self.assertLessEqual(used, 1_000_000)

    def test_a_root_is_closed_to_other_users(self):
        """Promise: the directory of `mount --detach` is 0700 and each file it keeps 0600, its log included."""
        _, converted = world.publish("tools")
        root, place = os.path.join(self.folder(), "root"), self.folder()
        world.snapshotter("mount", "--root", root, "--detach", converted, place)
        self.addCleanup(world.snapshotter, "umount", "--root", root, place)
        kept = [os.path.join(root, name) for name in os.listdir(root)] + glob.glob(os.path.join(root, "store/*/*"))
        files = [path for path in kept if os.path.isfile(path)]
        self.assertIn(os.path.join(root, "mount.log"), files)
        self.assertEqual(os.stat(root).st_mode & 0o777, 0o700)
        self.assertEqual([path for path in files if os.stat(path).st_mode & 0o777 != 0o600], [])


if __name__ == "__main__":
    unittest.main()
