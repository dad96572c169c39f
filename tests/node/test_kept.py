"""Layers that no snapshot has: what keeps them, and that they go when nothing does."""

import json
import os
import signal
import time

import world
from world import rig


class Kept(world.Case):
    beside = True

    def test_what_is_kept_goes_when_nothing_keeps_it_any_more(self):
        """Promise: `status` tells which layers stay without a snapshot, and why; the last `unpin` frees what is kept for the pin alone, and a
        reload without `keep_removed` what was kept for that. A container that runs keeps its image's layers throughout."""
        _, stays = world.publish("tools")
        _, image = world.publish("tools-layers")
        with self.node("2", lazy=True) as node:
            root, settings = os.path.join(node.work, "larder"), os.path.join(node.work, "larder.toml")
            pins = ("--config", settings, "--address", node.socket, image)
            node.pull(stays)
            node.ctr("run", "--detach", "--snapshotter", "larder", stays, "sleeper", "/bin/busybox", "sleep", "1000000")
            mounted = self.indexes(root)

            def kept():
                """Why layers stay that no snapshot has; nothing while there are snapshots that go."""
                told = world.status(root)
                why = {layer["index"].partition(":")[2]: layer["kept"] for layer in told["layers"] if layer["kept"]}
                self.assertEqual(told["store"]["kept"] > 0, bool(why))
                return set(why.values()) if len(mounted | why.keys()) == len(told["layers"]) else None

            self.run_and_remove(node, image, lambda: world.snapshotter("pin", *pins))
            rig.wait_for(lambda: kept() == {"pinned"} or None, "its layers to stay without a snapshot", node.log)
            said = json.loads(world.snapshotter("unpin", "--json", *pins))
            self.assertEqual(said["layers"], len(world.layers(image)))
            rig.wait_for(lambda: self.indexes(root) == mounted or None, "its layers to go", node.log)
            self.assertEqual(kept(), set())

            self.reload(node, "keep_removed = true\n")
            self.run_and_remove(node, image, lambda: None)
            rig.wait_for(lambda: kept() == {"keep_removed"} or None, "its layers to stay without a snapshot", node.log)
            # What came in the last ten minutes may be asked for again.
            for index in self.indexes(root):
                before = time.time() - 3600
                os.utime(os.path.join(root, "store", index, "index"), (before, before))
            self.reload(node, "")
            rig.wait_for(lambda: self.indexes(root) == mounted or None, "its layers to go", node.log)
            self.assertEqual(kept(), set())
            self.assertRegex(node.printed("tasks", "exec", "--exec-id", "one", "sleeper", "/bin/busybox", "sha256sum", "/bin/busybox"), "^[0-9a-f]{64} ")
            node.ctr("tasks", "rm", "-f", "sleeper")
            node.ctr("containers", "rm", "sleeper")

    def indexes(self, root):
        """The layers in the store."""
        return {name for name in os.listdir(os.path.join(root, "store")) if len(name) == 64}

    def run_and_remove(self, node, image, pulled):
        """Pulls an image, reads some of it, and removes it."""
        node.pull(image)
        pulled()
        node.printed("run", "--rm", "--snapshotter", "larder", image, "reader", "/bin/busybox", "sha256sum", "/bin/busybox")
        node.ctr("images", "rm", "--sync", image)

    def reload(self, node, first):
        """Reloads the configuration, with other lines before it."""
        path = os.path.join(node.work, "larder.toml")
        with open(path) as file:
            text = file.read().removeprefix("keep_removed = true\n")
        with open(path, "w") as out:
            out.write(first + text)
        before, = rig.daemons(node.daemon.pid)
        node.daemon.send_signal(signal.SIGHUP)
        rig.wait_for(lambda: not rig.is_alive(before), "the daemon before to be gone", node.log)
        rig.wait_for(lambda: rig.listens(os.path.join(node.work, "l.sock")), "the next one to listen", node.log)
