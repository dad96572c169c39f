"""Convert, push, pull, run, write, commit, remove: on each containerd release."""

import json
import os
import time
import unittest

import world
from world import rig

class EndToEnd(world.Case):
    """An image's life on a node that starts empty."""

    def container(self, node, reference, name, *command, options=()):
        return node.ctr("run", "--rm", "--net-host", *options, "--snapshotter", node.snapshotter, reference, name, *command)

    def each_release(self, image, check, releases=tuple(world.RELEASES)):
        """Runs `check` with a lazy node of each release that has pulled the converted image."""
        _, converted = self.publish(image)
        for release in releases:
            with self.subTest(containerd=release, image=image), self.node(release, lazy=True) as node:
                node.pull(converted)
                check(node, converted)

    def test_a_container_starts_without_its_layers(self):
        """Promise: layer blobs stay out of the content store; the container says what it says after an ordinary pull."""
        def check(node, converted):
            self.assertEqual(self.container(node, converted, "one"), "six layers\n")
            self.assertFalse(self.layers("tools-layers") & node.blobs(), "layers in the content store")
        self.each_release("tools-layers", check)

    def layers(self, name):
        raw = rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{world.REGISTRY}/test/{name}:larder")
        return {layer["digest"] for layer in json.loads(raw)["layers"]}

    def test_users_setuid_and_capabilities_work(self):
        """Promise: a container as uid 1000 is bound by modes, and gets what setuid bits and file capabilities give."""
        def check(node, converted):
            def worker(name, *command):
                return self.container(node, converted, name, *command, options=("--user", "1000:1000", "--cap-add", "CAP_NET_BIND_SERVICE"))
            self.assertRegex(worker("plain", "/suid/plain"), "^uid 1000 euid 1000 egid 1000 ")
            self.assertRegex(worker("root", "/suid/root"), "^uid 1000 euid (0|1000) egid 1000 ")
            self.assertRegex(worker("bind", "/caps/bind"), "^uid 1000 euid 1000 egid 1000 effective 0000000000000400")
            self.assertEqual(worker("own", "/bin/cat", "/home/private"), "only for 1000\n")
            with self.assertRaisesRegex(rig.RigError, "Permission denied"):
                worker("other", "/bin/cat", "/etc/secret")
        for image in ("tools", "tools-layers"):
            self.each_release(image, check, ("1.7", "2"))  # ctr of 1.6 cannot choose a user

    def test_after_removal_nothing_is_left(self):
        """Promise: garbage collection leaves no mount and no file of the image."""
        def check(node, converted):
            self.container(node, converted, "one")
            node.ctr("images", "rm", "--sync", converted)
            root = os.path.join(node.work, "larder")

            def rest():
                with open("/proc/self/mountinfo") as table:
                    mounts = [line for line in table if f" {root}/snapshots/" in line]
                return mounts + os.listdir(os.path.join(root, "snapshots")) + os.listdir(os.path.join(root, "store"))
            self.gone(rest)
        self.each_release("tools-layers", check)

    def gone(self, rest, seconds=20):
        until = time.monotonic() + seconds
        while left := rest():
            if time.monotonic() > until:
                self.fail(f"still there after {seconds} s: {left}")
            time.sleep(0.1)


if __name__ == "__main__":
    unittest.main()
