"""What a node keeps on its disk."""

import concurrent.futures
import contextlib
import glob
import os
import secrets
import signal
import subprocess
import time
import unittest

import world
from world import DRIVERS, RELEASES, once_per, rig

SMALL = "96M"  # holds the indexes and half of what is read
# The promises are 1 s and 5 s; these are for a busy machine with unoptimised programs.
ANSWER_SECONDS_MAX = 5
RESUME_SECONDS_MAX = 30
READ_ALL = ("/bin/sh", "-c", "find / -xdev -type f -exec sha256sum {} + | sort")
ZEROS = 10 * 10**9  # the test image says how many it has; never fewer than this
PIECE = 4 << 20


class Disk(world.Case):
    """By `larder-snapshotter mount`."""

    beside = True

    def test_ten_gigabytes_of_zeros_cost_no_disk(self):
        """Promise: 10 GB of zeros, read completely, cost at most 1 MB of disk in the store."""
        _, converted = world.publish("zeros")
        root, place = self.folder(), self.folder()
        world.snapshotter("mount", "--root", root, "--detach", converted, place)
        self.addCleanup(world.snapshotter, "umount", "--root", root, place)
        path, = (os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names)
        size = os.path.getsize(path)
        self.assertGreaterEqual(size, ZEROS)
        # By two at once, each a half, as it takes most of a minute.
        half = size // 2 // PIECE * PIECE
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            read = list(pool.map(lambda part: self.read(path, *part), [(0, half), (half, size)]))
        self.assertEqual(sum(read), size)
        used = int(subprocess.check_output(["du", "-s", "-B1", os.path.join(root, "store")]).split()[0])
        self.assertLessEqual(used, 1_000_000)

    def read(self, path, start, end):
        """Reads a part of a file; how many bytes that gave."""
        command = ["dd", f"if={path}", "bs=4M", "iflag=skip_bytes,count_bytes", f"skip={start}", f"count={end - start}", "of=/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        return int(told.splitlines()[-1].split()[0])

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


class FullDisk(world.Case):
    """Root directory, database and log of the daemon on one small disk, which somebody fills to the last block."""

    @contextlib.contextmanager
    def node_on_a_small_disk(self, driver):
        # What is completed in the background, before the disk is full, could not be kept afterwards.
        node = rig.Node(world.work(), world.PROGRAMS, True, driver, RELEASES["2"], settings="complete_in_background = false\n")
        disk, root = os.path.join(node.work, "disk"), os.path.join(node.work, "larder")
        rig.run("truncate", "-s", SMALL, disk)
        rig.run("mkfs.ext4", "-q", "-F", "-m", "0", disk)
        os.mkdir(root)
        rig.run("mount", "-o", "loop", disk, root)
        os.symlink(os.path.join(root, "daemon.log"), os.path.join(node.work, "larder.log"))
        try:
            node.start(world.REGISTRY)
            yield node, root
        except Exception as error:
            error.add_note(node.log())
            raise
        finally:
            node.close()
            rig.unmount_below(node.work)

    def fill(self, path):
        with open(path, "wb", buffering=0) as out, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while out.write(b"x" * size):
                        pass

    def answered(self, node, *words):
        """Whether the snapshotter agreed; in either case it answers in time."""
        socket, began = os.path.join(node.work, "l.sock"), time.monotonic()
        command = [os.path.join(node.directory, "ctr"), "-a", socket, "snapshots", "--snapshotter", "any", *words]
        ended = subprocess.run(command, capture_output=True, timeout=60)
        self.assertLess(time.monotonic() - began, ANSWER_SECONDS_MAX, words)
        return ended.returncode == 0

    @once_per(driver=DRIVERS)
    def test_a_full_disk_costs_no_read_and_caching_resumes_by_itself(self, driver):
        """Promise: with not a byte left for store, database and log, a container reads everything, each call is answered within a
        second, and five seconds after space came back fetched bytes are kept again. No restart."""
        _, converted = world.publish("tools-layers")
        with self.node_on_a_small_disk(driver) as (node, root):
            node.pull(converted)
            name, filler = "full-" + secrets.token_hex(4), os.path.join(root, "filler")
            node.ctr("run", "--detach", "--net-host", "--snapshotter", "larder", converted, name,
                     "/bin/sh", "-c", "exec sleep 1000000")
            sizes = lambda size: sum(layer[size] for layer in world.status(root)["layers"])  # noqa: E731
            read = lambda: node.printed("tasks", "exec", "--exec-id", secrets.token_hex(4), name, *READ_ALL)  # noqa: E731
            self.fill(filler)
            self.assertEqual(os.statvfs(root).f_bavail, 0)
            full, before = read(), sizes("bytes_present")
            self.assertLess(before, sizes("bytes_total"), "nothing was left to be read on the full disk")
            self.assertIn("/etc/motd", full)
            self.assertTrue(self.answered(node, "ls"))
            self.answered(node, "prepare", "new", "")
            self.assertIn("free", world.status(root)["caching_stopped"]["why"])
            os.remove(filler)
            until = time.monotonic() + RESUME_SECONDS_MAX
            while world.status(root)["caching_stopped"]:
                self.assertLess(time.monotonic(), until, "caching does not resume")
                time.sleep(0.1)
            rig.drop_caches()
            self.assertEqual(read(), full)
            self.assertGreater(sizes("bytes_present"), before)
            self.assertTrue(self.answered(node, "prepare", "after", ""))
            node.ctr("tasks", "rm", "-f", name)
            node.ctr("containers", "rm", name)

    def shown(self, root):
        """What the layers on this node show: the digest of each file, by its layer's directory."""
        command = f"cd {root}/snapshots && find . -xdev -path './*/fs' -prune -print | sort | while read -r at; do " \
                  'echo "$at"; (cd "$at" && find . -type f -exec sha256sum {} + | sort); done'
        return rig.run("sh", "-c", command)

    @once_per(driver=DRIVERS)
    def test_a_start_on_a_full_disk_serves_what_is_complete(self, driver):
        """Promise: supervisor and daemon are killed, and there is not a byte left for store, database and log: the next start is
        ready and shows every file that is there, complete. Space returns, and everything is as usual, without a restart."""
        _, converted = world.publish("tools-layers")
        with self.node_on_a_small_disk(driver) as (node, root):
            node.pull(converted)
            before, filler = self.shown(root), os.path.join(root, "filler")
            self.assertIn("motd", before)
            snapshots = set(os.listdir(os.path.join(root, "snapshots")))
            world.snapshotter("pull", "--complete", "--config", os.path.join(node.work, "larder.toml"), "--address", node.socket, converted)
            self.assertEqual({layer["state"] for layer in world.status(root)["layers"]}, {"complete"})
            # To see whether a container could start, it makes a view, which containerd collects later.
            rig.wait_for(lambda: set(os.listdir(os.path.join(root, "snapshots"))) == snapshots, "the view to be collected", node.log)
            used = world.status(root)["driver"]
            for way in ("killed", "killed", "stopped"):  # what is left, also of a start on a full disk, and what an orderly end took away
                if way == "killed":
                    node.kill_snapshotter(signal.SIGKILL)
                else:
                    rig.stop(node.daemon)
                for turn in range(3):  # what one piece leaves of a block, the next takes
                    self.fill(f"{filler}{turn}")
                self.assertEqual(os.statvfs(root).f_bavail, 0)
                node.start_snapshotter()
                self.assertEqual(world.status(root)["driver"], used, way)
                with open("/proc/mounts") as table:
                    self.assertEqual(table.read().count(f"larder {root}/erofs tmpfs"), used.startswith("erofs"), way)
                rig.drop_caches()
                self.assertEqual(self.shown(root), before, way)
                for turn in range(3):
                    os.remove(f"{filler}{turn}")
            rig.wait_for(lambda: not world.status(root)["caching_stopped"], "caching to resume", node.log)
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            self.assertIn("/etc/motd", node.printed("run", "--rm", "--net-host", "--snapshotter", "larder", converted,
                                                    "after-" + secrets.token_hex(4), *READ_ALL))

    def test_a_pull_that_the_disk_has_no_room_for_is_refused(self):
        """Promise: with less than half of `min_free_percent` left, a pull fails with the reason instead of unpacking, and takes
        nothing of what is left; it succeeds as soon as there is room."""
        _, converted = world.publish("tools-layers")
        with self.node_on_a_small_disk("fuse") as (node, root):
            filler = os.path.join(root, "filler")
            disk = os.statvfs(root)
            keep = disk.f_blocks * disk.f_frsize * 2 // 100
            with open(filler, "wb") as out:
                os.posix_fallocate(out.fileno(), 0, disk.f_bavail * disk.f_frsize - keep)
            left = os.statvfs(root).f_bavail
            with self.assertRaises(rig.RigError) as refused:
                node.pull(converted)
            self.assertIn("free some disk space", str(refused.exception))
            self.assertLess(left - os.statvfs(root).f_bavail, 1 << 8)  # blocks of the database and the log
            self.assertEqual(world.status(root)["layers"], [])
            os.remove(filler)
            node.pull(converted)
            self.assertIn("/etc/motd", node.printed("run", "--rm", "--net-host", "--snapshotter", "larder", converted,
                                                    "roomy-" + secrets.token_hex(4), *READ_ALL))


if __name__ == "__main__":
    unittest.main()
