"""`pull --complete`: an image that needs no registry any more."""

import json
import os

import world
from world import RELEASES, once_per, rig

IMAGE = "nginx"
NOBODY = "127.0.0.1:5099"


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
