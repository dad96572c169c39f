"""Daemon and supervisor die and come back while containerd stays, and the registry does not answer."""

import functools
import os
import secrets
import signal
import stat
import time

import images
import layouts
import trees
import world
from world import DRIVERS, RELEASES, once_per, rig

# The promise is 2 s; this only tells a start from a hang on a busy machine.
START_SECONDS_MAX = 60
MANY_SECONDS_MAX = 30
READ_ALL = ("/bin/sh", "-c", "find / -xdev -type f -exec sha256sum {} +")


@functools.cache
def many():
    """A layout of as many layers as there may be, and the reference of the converted image."""
    layout = os.path.join(world.work(), "many")
    layouts.write_many(layout)
    _, converted = world.publish_layout("many", layout)
    return layout, converted


class Restart(world.Case):
    """Cached bytes are enough for all that a node did before."""

    @once_per(release=RELEASES, driver=DRIVERS, by=("SIGKILL", "SIGTERM"))
    def test_a_dead_daemon_comes_back_without_the_registry(self, release, driver, by):
        """Promise: after the end of daemon and supervisor, snapshots are back at the same paths; new containers run on cached data; one that ran starts again with
        what it wrote; no dead mount is left."""
        _, converted = world.publish("tools-layers")
        link = rig.Link(self.folder(), "1gbit", world.registry())
        self.addCleanup(link.close)
        link.start_registry(self.folder())
        reference = converted.replace(world.REGISTRY, link.address)
        with self.node(release, lazy=True, driver=driver, registry=link.address) as node:
            def run(name, *command):
                return node.printed("run", "--rm", "--net-host", "--snapshotter", node.snapshotter, reference, name, *command)

            def mounts():
                snapshots = node.ctr("snapshots", "--snapshotter", node.snapshotter, "ls").splitlines()[1:]
                active = [line.split()[0] for line in snapshots if line.split()[-1] == "Active"]
                return {key: node.ctr("snapshots", "--snapshotter", node.snapshotter, "mounts", "/x", key) for key in active}

            node.pull(reference)
            old = "old-" + secrets.token_hex(4)  # runc knows the containers of all nodes by name
            before = run("reader", *READ_ALL)
            self.assertIn("/etc/motd", before)
            node.ctr("run", "--detach", "--net-host", "--snapshotter", node.snapshotter, reference, old,
                     "/bin/sh", "-c", "[ -e /own ] && cat /own; echo kept > /own; exec sleep 1000000")
            rig.wait_for(lambda: "RUNNING" in node.ctr("tasks", "ls"), "the container to run")
            expected = mounts()
            self.assertEqual(set(expected), {old})

            rig.stop(link.registry)
            node.kill_snapshotter(getattr(signal, by))
            began = time.monotonic()
            node.start_snapshotter()
            # The socket is there before the layers are.
            self.asked(node, "ls")
            self.assertLess(time.monotonic() - began, START_SECONDS_MAX)
            # containerd connects again after a moment.
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", node.snapshotter, "ls"), "containerd to connect", node.log)

            # However they end, who runs has lost his files. Regression: after an orderly stop, nobody was told, and one took away what
            # was told of a kill before it.
            lost = world.status(os.path.join(node.work, "larder"))["containers_lost"]
            self.assertTrue(lost)
            if by == "SIGKILL":
                node.kill_snapshotter(signal.SIGTERM)
                node.start_snapshotter()
                self.asked(node, "ls")
                self.assertGreaterEqual(world.status(os.path.join(node.work, "larder"))["containers_lost"], lost)
                rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", node.snapshotter, "ls"), "containerd to connect", node.log)
            self.assertEqual(mounts(), expected)
            self.assertEqual(run("new", *READ_ALL), before)
            node.ctr("tasks", "rm", "-f", old)
            node.ctr("tasks", "start", "--detach", old)
            self.assertEqual(node.printed("tasks", "exec", "--exec-id", "one", old, "/bin/cat", "/own"), "kept\n")
            node.ctr("tasks", "rm", "-f", old)
            node.ctr("containers", "rm", old)
            self.assertFalse(self.dead_mounts(node), "dead mounts")
            # Regression: who had done what it asks for was still asked.
            self.gone(lambda: world.status(os.path.join(node.work, "larder"))["containers_lost"])
            node.ctr("images", "rm", "--sync", reference)
            self.gone(node.left_behind)

    @once_per(driver=DRIVERS)
    def test_a_node_with_127_layers_is_back_soon(self, driver):
        """Promise: after `kill -9`, from the start of the process until it answers for a stack of 127 lazy layers; and then they
        can be read."""
        layout, converted = many()
        with self.node("2", lazy=True, driver=driver, settings='mount_plan = "stack"\n') as node:
            node.pull(converted)
            chain = layouts.chain(images.Image(layout).config["rootfs"]["diff_ids"])
            node.ctr("snapshots", "--snapshotter", "larder", "prepare", "held", chain)
            listed = self.asked(node, "ls")
            self.assertGreater(len(listed.splitlines()), layouts.LAYERS_MAX)
            [key] = [line.split()[0] for line in listed.splitlines() if line.split()[0].endswith("/held")]
            mounts = self.asked(node, "mounts", "/x", key)
            self.assertIn("overlay", mounts)

            node.kill_snapshotter(signal.SIGKILL)
            began = time.monotonic()
            node.start_snapshotter()
            self.assertEqual(self.asked(node, "mounts", "/x", key), mounts)
            answered = time.monotonic() - began
            self.assertEqual(sorted(self.asked(node, "ls").splitlines()), sorted(listed.splitlines()))
            print(f"{answered:.2f} s for {layouts.LAYERS_MAX} layers", end=" ", flush=True)
            self.assertLess(answered, MANY_SECONDS_MAX)
            self.assertFalse(self.dead_mounts(node), "dead mounts")

            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            with trees.mounted(node, converted) as place:
                names = os.listdir(place)
                self.assertEqual(len(names), layouts.LAYERS_MAX)
                for name in names:
                    with open(os.path.join(place, name)) as file:
                        self.assertEqual(file.read(), name)

    def asked(self, node, *words):
        """What the snapshotter answers at its own socket, as containerd takes its time to connect again."""
        socket = os.path.join(node.work, "l.sock")
        return rig.run(os.path.join(node.directory, "ctr"), "-a", socket, "snapshots", "--snapshotter", "any", *words)

    def dead_mounts(self, node):
        """Mounts below the node's root that answer errors."""
        dead = []
        for place in self.places(node):
            try:
                if stat.S_ISDIR(os.stat(place).st_mode):
                    os.listdir(place)
            except OSError as error:
                # A layer that is proven meanwhile is mounted directly, and its lazy file system goes.
                if place in self.places(node):
                    dead.append((place, error.strerror))
        return dead

    def places(self, node):
        with open("/proc/self/mountinfo") as table:
            return [line.split()[4] for line in table if f" {node.work}/" in line]
