"""Convert, push, pull, run, write, commit, remove: on each containerd release, with each driver."""

import os
import subprocess
import tarfile

import images
import world
from world import DRIVERS, RELEASES, once_per, rig

PYTHON_BYTES_MAX = 45_000_000
LINK_RATE = "200mbit"


class EndToEnd(world.Case):
    """An image's life on a node that starts empty."""

    def run_once(self, node, reference, name, *command, options=()):
        return node.printed("run", "--rm", "--net-host", *options, "--snapshotter", node.snapshotter, reference, name, *command)

    def start(self, node, reference, name):
        """A container that sleeps; what `exec` runs in it."""
        node.ctr("run", "--detach", "--net-host", "--snapshotter", node.snapshotter, reference, name, "/bin/sleep", "1000000")
        def execute(*command, ask=node.ctr):
            return ask("tasks", "exec", "--exec-id", "one", name, *command)
        return execute

    def end(self, node, name):
        node.ctr("tasks", "rm", "-f", name)

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_an_image_lives_and_leaves_nothing(self, release, driver):
        """Promise: no layer is downloaded; exec, writing, commit and running from it work; removal leaves no mount and no file."""
        _, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, driver=driver) as node:
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted, "first"), "six layers\n")
            self.assertFalse(world.layers(converted) & node.blobs(), "layers in the content store")

            execute = self.start(node, converted, "writer")
            self.assertEqual(execute("/bin/cat", "/etc/motd", ask=node.printed), "six layers\n")
            execute("/bin/sh", "-c", "echo changed >> /etc/motd; rm /etc/secret; mkdir /new; echo own > /new/file")
            self.end(node, "writer")

            snapshots = ("snapshots", "--snapshotter", node.snapshotter)
            # What clients that commit containers make of a snapshot: the differ compares every file with the image's.
            archive = os.path.join(self.folder(), "layer.tar.gz")
            with open(archive, "wb") as out:
                subprocess.run([os.path.join(node.directory, "ctr"), "-a", node.socket, *snapshots, "diff", "writer"], stdout=out, check=True)
            with tarfile.open(archive) as layer:
                names = {entry.name.strip("/") for entry in layer}
            self.assertLessEqual({"etc/motd", "etc/.wh.secret", "new/file"}, names)
            self.assertNotIn("bin", names, "directories that did not change")

            node.ctr(*snapshots, "commit", "committed", "writer")
            node.ctr("containers", "rm", "--keep-snapshot", "writer")
            node.ctr(*snapshots, "prepare", "again", "committed")
            place = self.folder()
            rig.run("sh", "-c", node.ctr(*snapshots, "mounts", place, "again"))
            said = node.printed("run", "--rm", "--net-host", "--rootfs", place, "again",
                            "/bin/sh", "-c", "cat /etc/motd /new/file /home/private; [ -e /etc/secret ] || echo removed")
            self.assertEqual(said, "six layers\nchanged\nown\nonly for 1000\nremoved\n")
            rig.run("umount", place)

            for snapshot in ("again", "committed"):
                node.ctr(*snapshots, "rm", snapshot)
            node.ctr("images", "rm", "--sync", converted)
            self.gone(node.left_behind)

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_users_setuid_and_capabilities_work(self, release, driver):
        """Promise: in images of one and of many layers, a process of user 1000 is bound by modes, and gets what setuid bits
        and file capabilities give: with `--allow-new-privs`, as `ctr` of every release forbids new privileges by default
        (CRI does not)."""
        for image in ("tools-user", "tools-layers-user"):
            _, converted = world.publish(image)
            with self.subTest(image=image), self.node(release, lazy=True, driver=driver) as node:
                node.pull(converted)

                def says(name, *command, options=("--allow-new-privs",)):
                    return self.run_once(node, converted, name, *command, options=options)
                self.assertRegex(says("plain", "/suid/plain"), "^uid 1000 euid 1000 egid 1000 effective 0000000000000000\n")
                self.assertRegex(says("root", "/suid/root"), "^uid 1000 euid 0 egid 1000 ")
                self.assertRegex(says("group", "/suid/group"), "^uid 1000 euid 1000 egid 50 ")
                self.assertRegex(says("bind", "/caps/bind"), "^uid 1000 euid 1000 egid 1000 effective 0000000000000400\n")
                self.assertRegex(says("default", "/suid/root", options=()), "^uid 1000 euid 1000 egid 1000 ")
                self.assertEqual(says("own", "/bin/cat", "/home/private"), "only for 1000\n")
                with self.assertRaisesRegex(rig.RigError, "Permission denied"):
                    says("other", "/bin/cat", "/etc/secret")

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_a_layer_that_is_unpacked_lies_between_lazy_ones(self, release, driver):
        """Promise: the layers below the one without an index are not downloaded, and the container sees all as one tree."""
        original, converted = world.publish("odd-sparse")
        with self.node(release, lazy=False) as node:
            node.pull(original)
            expected = self.run_once(node, original, "eager")
        self.assertTrue(expected, "the image says nothing")
        with self.node(release, lazy=True, driver=driver) as node:
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted, "lazy"), expected)
            layers = [layer["digest"] for layer in world.manifest(converted)["layers"]]
            # containerd's own pull fetches whatever lies above the first layer that it must unpack, needed or not.
            above = node.major >= 2
            self.assertEqual([digest in node.blobs() for digest in layers], [False, True, above])

    @once_per(image=("node", "nginx"), driver=DRIVERS)
    def test_a_service_answers(self, image, driver):
        """Promise: services start lazily and answer requests; no layer is downloaded."""
        _, converted = world.publish(image)
        ready = images.Image(images.layout(image)).config["config"]["Labels"]["larder.ready"]
        self.assertRegex(ready, "^http://")
        with self.node("2", lazy=True, driver=driver) as node:
            node.pull(converted)
            process = node.start_container(converted, image)
            try:
                said = rig.wait_until_ready(process, ready, node)
            finally:
                node.end_container(process, image)
            self.assertEqual(said, f"{image} is ready\n")
            self.assertFalse(world.layers(converted) & node.blobs(), "layers in the content store")

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_python_is_ready_after_few_bytes(self, release, driver):
        """Promise: numpy, pandas and flask are imported after at most 45 MB, counted at the interface, of more than 100."""
        _, converted = world.publish("python")
        link = rig.Link(self.folder(), LINK_RATE, world.registry())
        self.addCleanup(link.close)
        link.start_registry(self.folder())
        reference = converted.replace(world.REGISTRY, link.address)
        with self.node(release, lazy=True, driver=driver, registry=link.address) as node:
            before = link.received()
            node.pull(reference)
            process = node.start_container(reference, "python")
            try:
                rig.wait_until_ready(process, "line:ready", node)
                moved = link.received() - before
            finally:
                node.end_container(process, "python")
        print(f"{moved / 1e6:.1f} MB", end=" ", flush=True)
        self.assertLess(moved, PYTHON_BYTES_MAX)
        self.assertGreater(moved, PYTHON_BYTES_MAX // 10, "so few bytes cannot be a start: is the interface counted?")
