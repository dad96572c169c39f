"""`pull --complete`: an image that needs no registry any more."""

import collections
import json
import os
import secrets
import signal

import world
from world import RELEASES, once_per, rig

IMAGE = "nginx"
NOBODY = "127.0.0.1:5099"


Mount = collections.namedtuple("Mount", "target device")


class Complete(world.Case):
    def elsewhere(self, image):
        """The image in a registry of its own, which can be taken away; its reference, the process and its storage."""
        process, storage = world.serve_registry(NOBODY)
        self.addCleanup(rig.stop, process)
        reference = image.replace(world.REGISTRY, NOBODY)
        rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{image}", f"docker://{reference}")
        return reference, process, storage

    @once_per(release=RELEASES)
    def test_a_complete_image_needs_no_registry(self, release):
        """Promise: the command waits until every layer is there and proven; what was never read is read after that without the
        registry."""
        _, image = world.publish(IMAGE)
        image, process, _ = self.elsewhere(image)
        with self.node(release, lazy=True, registry=NOBODY, settings="profiles = false\ncomplete_in_background = false\n") as node:
            config = os.path.join(node.work, "larder.toml")
            said = json.loads(world.snapshotter("pull", "--complete", "--json", "--config", config, image))
            self.assertTrue(said["complete"])
            layers = world.status(os.path.join(node.work, "larder"))["layers"]
            self.assertEqual({(layer["state"], layer["proven"]) for layer in layers}, {("complete", True)})
            rig.stop(process)
            rig.drop_caches()
            said = node.printed("run", "--rm", "--snapshotter", "larder", image, "one", "/usr/bin/sha256sum", "/usr/bin/perl", "/usr/lib/os-release")
            self.assertRegex(said, r"[0-9a-f]{64}  /usr/bin/perl\n[0-9a-f]{64}  /usr/lib/os-release")

    @once_per(driver=["erofs"])
    def test_containers_of_a_complete_image_outlive_larder(self, driver):
        """Promise: a container that starts after the image became complete goes on when supervisor and daemon are killed: it
        answers, and reads what nobody read before. What ran before becomes direct for the next one, not for itself."""
        _, image = world.publish(IMAGE)
        settings = "profiles = false\ncomplete_in_background = false\n"
        with self.node("2", lazy=True, driver=driver, settings=settings) as node:
            config = os.path.join(node.work, "larder.toml")
            world.snapshotter("pull", "--config", config, image)
            node.ctr("run", "--detach", "--net-host", "--snapshotter", "larder", image, "reader", "/bin/sh", "-c", "exec sleep 1000000")
            world.snapshotter("pull", "--complete", "--config", config, image)
            root = os.path.join(node.work, "larder")
            rig.wait_for(lambda: {name.rpartition("-")[2] for name in os.listdir(os.path.join(root, "erofs"))} == {"direct"} or None,
                         "the layers to be mounted directly", node.log)
            node.start_container(image, "server")
            rig.wait_for(lambda: rig.answers("http://127.0.0.1:8080/"), "nginx to answer", node.log)
            node.kill_snapshotter(signal.SIGKILL)
            rig.drop_caches()
            self.assertTrue(rig.answers("http://127.0.0.1:8080/"))
            read = lambda name: node.printed("tasks", "exec", "--exec-id", secrets.token_hex(4), name, "/usr/bin/sha256sum", "/usr/bin/perl")  # noqa: E731
            self.assertRegex(read("server"), "^[0-9a-f]{64}  /usr/bin/perl")
            with self.assertRaises(rig.RigError):
                read("reader")
            node.ctr("tasks", "rm", "-f", "reader")
            node.ctr("containers", "rm", "reader")

    @once_per(driver=["erofs"])
    def test_a_change_to_direct_mounts_that_was_killed_half_way_is_finished(self, driver):
        """Promise: where a daemon died with the lazy mount still above the direct one, the next one takes it away; the image can be
        removed, and nothing stays."""
        _, image = world.publish("tools")
        settings = "profiles = false\ncomplete_in_background = false\n"
        with self.node("2", lazy=True, driver=driver, settings=settings) as node:
            node.pull(image)
            root = os.path.join(node.work, "larder")
            [lazy] = os.listdir(os.path.join(root, "erofs"))
            [place] = [mount.target for mount in self.mounts(root) if mount.target.endswith("/fs")]
            kept = self.folder()
            rig.run("mount", "--bind", place, kept)
            world.snapshotter("pull", "--complete", "--config", os.path.join(node.work, "larder.toml"), image)
            direct = lazy.replace("lazy", "direct")
            rig.wait_for(lambda: os.listdir(os.path.join(root, "erofs")) == [direct] or None, "a direct mount", node.log)
            # As it was before the last step of the change.
            os.mkdir(os.path.join(root, "erofs", lazy))
            rig.run("mount", "--bind", kept, os.path.join(root, "erofs", lazy))
            rig.run("mount", "--bind", kept, place)
            rig.run("umount", kept)
            [daemon] = rig.daemons(node.daemon.pid)
            os.kill(daemon, signal.SIGKILL)
            rig.wait_for(lambda: os.listdir(os.path.join(root, "erofs")) == [direct] or None, "the change to be finished", node.log)
            devices = {mount.target: mount.device for mount in self.mounts(root)}
            self.assertEqual(devices[place], devices[os.path.join(root, "erofs", direct)])
            self.assertEqual([mount.target for mount in self.mounts(root)].count(place), 1)
            self.assertIn("nodev", node.printed("run", "--rm", "--snapshotter", "larder", image, "one", "/bin/busybox", "cat", "/proc/filesystems"))
            node.ctr("images", "rm", "--sync", image)
            self.gone(node.left_behind)

    def mounts(self, root):
        with open("/proc/self/mountinfo") as table:
            lines = [line.split() for line in table]
        return [Mount(line[4], line[2]) for line in lines if line[4].startswith(root + "/")]

    def test_what_cannot_be_completed_is_told(self):
        """Promise: when nothing more comes, the command ends with how far it came and why; the image stays pulled and lazy."""
        _, image = world.publish(IMAGE)
        elsewhere, _, storage = self.elsewhere(image)
        settings = "read_deadline_seconds = 2\nprofiles = false\n"
        with self.node("2", lazy=True, registry=NOBODY, settings=settings) as node:
            config = os.path.join(node.work, "larder.toml")
            world.snapshotter("pull", "--config", config, elsewhere)
            # Only the blobs: manifests are still answered.
            blobs = world.layers(image)
            for digest in blobs:
                name = digest.partition(":")[2]
                os.remove(os.path.join(storage, "docker/registry/v2/blobs/sha256", name[:2], name, "data"))
            with self.assertRaisesRegex(rig.RigError, r"exit 1\nlarder-snapshotter: .* is not complete, \d+ of \d+ bytes are there"):
                world.snapshotter("pull", "--complete", "--config", config, elsewhere)
            states = {layer["state"] for layer in world.status(os.path.join(node.work, "larder"))["layers"]}
            self.assertIn("lazy", states)
