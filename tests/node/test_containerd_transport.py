"""`containerd:REF` as source and destination, on the containerd releases there are."""

import json
import os
import signal
import subprocess
import tempfile

import images
import world
from world import rig

ORIGINAL = "docker.io/test/tools:latest"
CONVERTED = "docker.io/test/tools:larder"


class ContainerdTransport(world.Case):
    """A node with an ordinary containerd; larder reads and writes its content store."""

    def larder(self, node, *words):
        return world.larder(*words, "--address", node.socket)

    def content(self, node):
        return set(node.ctr("content", "ls", "-q").split())

    @world.once_per(release=list(world.RELEASES))
    def test_an_image_is_converted_within_containerd_and_stays(self, release):
        """Promise: converted in place, sound, exported by ctr, unpacked by containerd, and not collected when the original is."""
        with self.node(release, lazy=False) as node:
            self.bring_original(node)
            self.larder(node, "convert", f"containerd:{ORIGINAL}", f"containerd:{CONVERTED}")
            self.larder(node, "check", f"containerd:{CONVERTED}", "--against", f"containerd:{ORIGINAL}")
            # A removal in step collects everything that nothing refers to.
            node.ctr("images", "rm", "--sync", ORIGINAL)
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])
            self.assertEqual(node.ctr("content", "active").split("\n")[1:], [""])
            told = json.loads(self.larder(node, "inspect", "--json", f"containerd:{CONVERTED}"))
            self.assertIn(told["digest"], self.content(node))
            archive = os.path.join(self.folder(), "out.tar")
            node.ctr("images", "export", archive, CONVERTED)
            world.larder("check", f"oci-archive:{archive}:{CONVERTED}", "--against", f"oci:{images.layout('tools')}:latest")
            self.larder(node, "ls", f"containerd:{CONVERTED}", "/")
            with tempfile.TemporaryDirectory(dir=world.work()) as mounted:
                node.ctr("images", "mount", CONVERTED, mounted)
                try:
                    self.assertIn("bin", os.listdir(mounted))
                finally:
                    rig.run("umount", mounted)
            # Nothing is done twice, and nothing changes.
            again = json.loads(self.larder(node, "convert", "--json", f"oci:{images.layout('tools')}:latest", f"containerd:{CONVERTED}"))
            self.assertEqual({layer["action"] for layer in again["layers"]}, {"reused"})
            self.assertEqual(again["digest"], told["digest"])

    def bring_original(self, node):
        archive = os.path.join(self.folder(), "in.tar")
        rig.run("skopeo", "copy", "--quiet", f"oci:{images.layout('tools')}:latest", f"oci-archive:{archive}:latest")
        node.ctr("images", "import", "--base-name", ORIGINAL.rsplit(":", 1)[0], archive)

    def test_what_is_not_there_is_named_with_what_to_do(self):
        """Promise: no socket, no image, no blob: exit 1, one sentence, and the lease is given back."""
        self.assertIn("/nowhere/c.sock", self.refused("ls", "containerd:alpine", "--address", "/nowhere/c.sock"))
        with self.node("1.6", lazy=False) as node:
            self.assertIn("images ls", self.refused("ls", "containerd:alpine", "--address", node.socket))
            self.bring_original(node)
            layer = images.Image(images.layout("tools")).manifest["layers"][0]["digest"]
            node.ctr("content", "rm", layer)
            told = self.refused("convert", f"containerd:{ORIGINAL}", f"containerd:{CONVERTED}", "--address", node.socket)
            self.assertIn(layer, told)
            self.assertIn("fetch-blobs", told)
            self.assertNotIn(CONVERTED, node.ctr("images", "ls", "-q"))
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])

    def test_an_interrupt_gives_the_lease_back(self):
        """Promise: interrupted in the middle: exit 130, no image, and nothing that keeps blobs."""
        with self.node("1.6", lazy=False) as node:
            command = [os.path.join(world.PROGRAMS, "larder"), "convert", "--no-cache", "--address", node.socket,
                       f"oci:{images.layout('python')}:latest", f"containerd:{CONVERTED}"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                rig.wait_for(lambda: node.ctr("leases", "ls", "-q").split(), "larder to take a lease")
                process.send_signal(signal.SIGINT)
            self.assertEqual(process.returncode, 130)
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])
            self.assertEqual(node.ctr("images", "ls", "-q").split(), [])

    def refused(self, *words):
        done = subprocess.run([os.path.join(world.PROGRAMS, "larder"), *words], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr
