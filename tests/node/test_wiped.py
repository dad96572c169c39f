"""The root directory of containerd or of Larder is wiped while the other side keeps its own."""

import json
import os
import secrets
import shutil
import signal
import time

import world
from world import once_per, rig

# containerd is asked every 5 s, and a second look 12 s later must find the same.
TOLD_SECONDS_MAX = 60


class Wiped(world.Case):
    """Both sides are compared by what real containerd asks for."""

    beside = True

    @once_per(release=("1.6", "2"))
    def test_a_wiped_side_is_told_and_put_right_as_it_says(self, release):
        """Promise: `status`, `doctor` and the log say which side was wiped and what to do; doing it ends it, and the image runs
        again. A healthy node says nothing."""
        _, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, log='[log]\nlevel = "debug"\n') as node:
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            self.wait(lambda: self.compared(node) >= 1, "a look at a healthy node")
            self.assertIsNone(self.found(node))
            self.assertEqual(self.doctor(node)["verdict"], "good")

            snapshots = set(os.listdir(os.path.join(node.work, "larder/snapshots")))
            rig.stop(node.containerd)
            shutil.rmtree(os.path.join(node.work, "root"))
            node.start_containerd()
            self.wait(lambda: self.found(node), "a wiped containerd to be told")
            found = self.found(node)
            self.assertGreater(found["unknown"], 1)
            self.assertEqual(found["absent"], 0)
            self.assertEqual(self.warnings(node), 1)
            self.assertEqual(self.doctor(node)["verdict"], "notice")
            for command in found["why"].split("`")[1].split(" && "):
                self.assertEqual(command.split()[0], "ctr")
                node.ctr(*command.split()[1:])
            self.gone(node.left_behind)
            self.wait(lambda: self.found(node) is None, "both sides to agree again")
            self.assertFalse(snapshots & set(os.listdir(os.path.join(node.work, "larder/snapshots"))))

            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            node.kill_snapshotter(signal.SIGTERM)
            shutil.rmtree(os.path.join(node.work, "larder"))
            node.start_snapshotter()
            self.wait(lambda: self.found(node), "a wiped root directory to be told")
            found = self.found(node)
            self.assertEqual(found["unknown"], 0)
            self.assertGreater(found["absent"], 1)
            self.assertEqual(self.warnings(node), 2)
            self.assertEqual(self.doctor(node)["verdict"], "bad")
            self.assertIn("ctr images rm --sync", found["why"])
            node.ctr("images", "rm", "--sync", converted)
            node.pull(converted)
            self.assertEqual(self.run_once(node, converted), "here\n")
            self.wait(lambda: self.found(node) is None, "both sides to agree again")

    def found(self, node):
        return world.status(os.path.join(node.work, "larder"))["disagreement"]

    def doctor(self, node):
        """What it says of the snapshots; it may fail for what else this machine lacks."""
        words = [os.path.join(node.programs, "larder-snapshotter"), "doctor", "--json", "--config",
                 os.path.join(node.work, "larder.toml"), "--containerd-config", os.path.join(node.work, "containerd.toml")]
        said = rig.subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return next(finding for finding in json.loads(said) if finding["what"] == "snapshots")

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
