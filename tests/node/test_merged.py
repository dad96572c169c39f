"""Images whose layers are mounted as one: the same tree, through kills and restarts, and nothing left afterwards."""

import os
import secrets
import signal
import threading

import images
import layouts
import oracle
import trees
import world
from world import once_per, rig

# The kernel's EROFS alone takes several devices.
DRIVER = ("erofs",)
# Nothing is fetched but what is read.
QUIET = "complete_in_background = false\nprofiles = false\n"


class Merged(world.Case):
    """What containerd unpacks is the reference, as for a stack."""

    @once_per(image=("odd", "tools-layers"), driver=DRIVER)
    def test_layers_mounted_as_one_are_the_same_tree(self, image, driver):
        """Promise: names, types, modes, owners, sizes, times, targets, attributes, devices and contents are those that containerd unpacks, and
        hard links lead to the same files; a container can write above it."""
        _, converted = world.publish(image)
        with self.node("2", lazy=True, driver=driver, settings='mount_plan = "merged"\n' + QUIET) as node:
            node.pull(converted)
            self.merged(node, images.Image(images.layout(image)))
            with trees.mounted(node, converted) as place:
                self.assertEqual(os.stat(place).st_dev, os.stat(self.places(node)[0]).st_dev)
                found = oracle.snapshot(place)
            expected, implied = trees.reference(image)
            lines = oracle.differences(expected, found, implied)
            self.assertFalse(lines, oracle.report(lines))
            if image == "tools-layers":
                command = ("/bin/sh", "-c", "cp /bin/sh /new && rm /bin/sh && ls /new && cat /etc/motd > /etc/new")
                printed = node.printed("run", "--rm", "--net-host", "--snapshotter", node.snapshotter, converted, "one", *command)
                self.assertEqual(printed, "/new\n")

    @once_per(driver=DRIVER)
    def test_127_layers_are_one_mount_through_kills_and_restarts(self, driver):
        """Promise: from 16 layers on that needs no asking, and is done before the first container is made. A reader does not notice that the daemon is killed; after daemon and supervisor
        died the image is merged again at the same place without the registry; with the image all of it goes."""
        layout = os.path.join(world.work(), "many-merged")
        layouts.write_many(layout)
        link = rig.Link(self.folder(), "1gbit", world.registry())
        self.addCleanup(link.close)
        _, converted = world.publish_layout("many-merged", layout)
        link.start_registry(self.folder())
        reference = converted.replace(world.REGISTRY, link.address)
        with self.node("2", lazy=True, driver=driver, registry=link.address, settings=QUIET) as node:
            node.pull(reference)
            # Before anybody made a container: containerd says which layer is the topmost.
            rig.wait_for(lambda: self.places(node), "the image to be merged", node.log)
            held = self.merged(node, images.Image(layout))
            self.assertEqual(len(self.places(node)), 1)
            [place] = self.places(node)
            self.read_all(place)

            failed, ended = [], threading.Event()

            def read():
                while not ended.is_set():
                    try:
                        self.read_all(place)
                    except (OSError, AssertionError) as error:
                        failed.append(repr(error))
            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(3):
                before = rig.daemons(node.daemon.pid)
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                rig.wait_for(lambda: rig.daemons(node.daemon.pid) not in ([], before), "another daemon", node.log)
                with open("/proc/sys/vm/drop_caches", "w") as drop:
                    drop.write("1")
            ended.set()
            reader.join()
            self.assertEqual(failed, [])
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            self.until_merged(node, held)
            self.assertEqual(self.places(node), [place])

            rig.stop(link.registry)
            node.kill_snapshotter(signal.SIGKILL)
            node.start_snapshotter()
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            self.until_merged(node, held)
            self.assertEqual(self.places(node), [place])
            self.read_all(place)

            node.ctr("snapshots", "--snapshotter", "larder", "rm", held)
            node.ctr("images", "rm", "--sync", reference)
            self.gone(node.left_behind)
            self.assertFalse(os.path.exists(place))

    def merged(self, node, image):
        """Holds a snapshot on the image and waits until that is mounted as one; the snapshot's key."""
        held = "held-" + secrets.token_hex(4)
        chain = layouts.chain(image.config["rootfs"]["diff_ids"])
        node.ctr("snapshots", "--snapshotter", "larder", "prepare", held, chain)
        self.until_merged(node, held)
        return held

    def until_merged(self, node, held):
        def lower():
            mounts = node.ctr("snapshots", "--snapshotter", "larder", "mounts", "/x", held)
            return "lowerdir=" + node.work + "/larder/erofs/merged-" in mounts
        rig.wait_for(lower, "the image to be merged", node.log)

    def places(self, node):
        """Where chains are mounted as one."""
        with open("/proc/self/mountinfo") as table:
            targets = [line.split()[4] for line in table]
        return [target for target in targets if target.startswith(node.work + "/larder/erofs/merged-")]

    def read_all(self, place):
        names = os.listdir(place)
        self.assertEqual(len(names), layouts.LAYERS_MAX)
        for name in names:
            with open(os.path.join(place, name)) as file:
                self.assertEqual(file.read(), name)
