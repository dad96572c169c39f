"""`pull --complete`: an image that needs neither registry nor daemon any more."""

import json
import os

import world
from world import RELEASES, once_per, rig

IMAGE = "nginx"
NOBODY = "127.0.0.1:5099"


class Complete(world.Case):
    @once_per(release=RELEASES)
    def test_a_complete_image_runs_on_without_registry_and_daemon(self, release):
        """Promise: the command waits until every layer is there and proven; containers that start then read the store's files
        directly, and go on when supervisor and daemon are gone."""
        _, image = world.publish(IMAGE)
        with self.node(release, lazy=True, driver="erofs") as node:
            root = os.path.join(node.work, "larder")
            config = os.path.join(node.work, "larder.toml")
            said = json.loads(world.snapshotter("pull", "--complete", "--json", "--config", config, image))
            self.assertTrue(said["complete"])
            layers = world.status(root)["layers"]
            self.assertEqual({(layer["state"], layer["proven"]) for layer in layers}, {("complete", True)})
            process = node.start_container(image, "server")
            rig.wait_for(lambda: rig.answers("http://127.0.0.1:8080/"), "nginx to answer", node.log)
            for pid in [node.daemon.pid, *rig.daemons(node.daemon.pid)]:
                os.kill(pid, 9)
            node.daemon.wait()
            rig.drop_caches()
            # Binaries and libraries that nothing has read so far.
            run = ("tasks", "exec", "--exec-id", "one", "server", "/usr/bin/sha256sum", "/usr/bin/perl", "/usr/lib/os-release")
            self.assertRegex(node.ctr(*run), r"[0-9a-f]{64}  /usr/bin/perl\n[0-9a-f]{64}  /usr/lib/os-release")
            self.assertTrue(rig.answers("http://127.0.0.1:8080/"))
            node.end_container(process, "server")

    def test_what_cannot_be_completed_is_told(self):
        """Promise: when nothing more comes, the command ends with how far it came and why; the image stays pulled and lazy."""
        _, image = world.publish(IMAGE)
        process, storage = world.serve_registry(NOBODY)
        self.addCleanup(rig.stop, process)
        elsewhere = image.replace(world.REGISTRY, NOBODY)
        rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{image}", f"docker://{elsewhere}")
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
