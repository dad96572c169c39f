"""The root directory of containerd or of Larder is wiped while the other side keeps its own."""

import concurrent.futures
import os
import secrets
import shutil
import signal
import time

import layouts
import world
from world import rig

# containerd is asked every 5 s, and a second look 12 s later must find the same.
TOLD_SECONDS_MAX = 180


class Wiped(world.Case):
    """Both sides are compared by what real containerd asks for."""

    beside = True

    def test_a_wiped_side_is_told_and_put_right_as_it_says(self):
        """Promise: `status`, `doctor` and the log say which side was wiped and what to do; doing it ends it, and the image runs
        again. A healthy node says nothing."""
        _, converted = world.publish("tools-layers")
        # Mostly waits for looks at both sides: a node of each release at the same time.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for done in [pool.submit(self.wipe, release, converted) for release in ("1.6", "2")]:
                done.result()

    def wipe(self, release, converted):
        with self.node(release, lazy=True, log='[log]\nlevel = "debug"\n') as node:
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            self.wait(lambda: self.compared(node) >= 1, "a look at a healthy node")
            self.assertIsNone(self.found(node))
            self.assertEqual(world.doctor(node, "snapshots")["verdict"], "good")

            snapshots = set(os.listdir(os.path.join(node.work, "larder/snapshots")))
            rig.stop(node.containerd)
            shutil.rmtree(os.path.join(node.work, "root"))
            node.start_containerd()
            self.wait(lambda: self.found(node), "a wiped containerd to be told")
            found = self.found(node)
            self.assertGreater(found["unknown"], 1)
            self.assertEqual(found["absent"], 0)
            self.assertEqual(self.warnings(node), 1)
            self.assertEqual(world.doctor(node, "snapshots")["verdict"], "notice")
            for command in found["why"].split("`")[1].split(" && "):
                self.assertEqual(command.split()[0], "ctr")
                node.ctr(*command.split()[1:])
            self.gone(node.left_behind)
            self.wait(lambda: self.found(node) is None, "both sides to agree again")
            self.assertFalse(snapshots & set(os.listdir(os.path.join(node.work, "larder/snapshots"))))

            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            broken, mend = self.pulled_in_part(node)
            node.kill_snapshotter(signal.SIGTERM)
            shutil.rmtree(os.path.join(node.work, "larder"))
            node.start_snapshotter()
            self.wait(lambda: self.found(node), "a wiped root directory to be told")
            found = self.found(node)
            self.assertEqual(found["unknown"], 0)
            self.assertGreater(found["absent"], 1)
            self.assertEqual(self.warnings(node), 2)
            self.assertEqual(world.doctor(node, "snapshots")["verdict"], "bad")
            self.assertIn("ctr images rm --sync", found["why"])
            self.assertIn("ctr leases rm", found["why"])
            node.ctr("images", "rm", "--sync", converted)
            self.assertRaisesRegex(rig.RigError, "did not adopt.*ctr leases rm", mend)
            for lease in node.ctr("leases", "ls", "-q").split():
                node.ctr("leases", "rm", "--sync", lease)
            mend()
            self.assertIn(broken, node.ctr("images", "ls", "-q").split())
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            self.wait(lambda: self.found(node) is None, "both sides to agree again")

    def pulled_in_part(self, node):
        """An image whose pull failed in the middle, which left a lease on what came; and how to pull it again, whole."""
        layout = os.path.join(self.folder(), "layout")
        tars = [layouts.tar(secrets.token_hex(8)) for _ in range(2)]
        layouts.write(layout, [(layouts.packed(data), data) for data in tars])
        _, reference = world.publish_layout("wiped-" + secrets.token_hex(4), layout)
        digest = world.manifest(reference)["layers"][1]["digest"].removeprefix("sha256:")
        blob = os.path.join(world.registry(), "docker/registry/v2/blobs/sha256", digest[:2], digest)
        os.rename(blob, blob + ".away")
        settings = os.path.join(node.work, "larder.toml")
        pull = lambda: world.snapshotter("pull", "--config", settings, "--address", node.socket, reference)  # noqa: E731
        self.assertRaises(rig.RigError, pull)
        self.assertTrue(node.ctr("leases", "ls", "-q").split(), "no lease is left")
        os.rename(blob + ".away", blob)
        return reference, pull

    def found(self, node):
        return world.status(os.path.join(node.work, "larder"))["disagreement"]

    def lines(self, node, part):
        with open(os.path.join(node.work, "larder.log")) as log:
            return [line for line in log if part in line]

    def compared(self, node):
        return len(self.lines(node, "compared with what containerd has"))

    def warnings(self, node):
        return len([line for line in self.lines(node, "wiped or exchanged") if "WARN" in line])

    def run_once(self, node, reference):
        name = "once-" + secrets.token_hex(4)
        return node.printed("run", "--rm", "--net-host", "--snapshotter", node.snapshotter, reference, name, "/bin/echo", "here")

    def wait(self, condition, what):
        until = time.monotonic() + TOLD_SECONDS_MAX
        while not condition():
            self.assertLess(time.monotonic(), until, f"waited {TOLD_SECONDS_MAX} s for {what}")
            time.sleep(0.5)
