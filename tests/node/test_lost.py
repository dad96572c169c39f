"""The disk changes or loses files of layers that are mounted, and the daemon dies: containers read on."""

import concurrent.futures
import glob
import json
import os
import re
import secrets
import shutil
import signal

import load
import world
from world import DRIVERS, once_per, rig

DAMAGE = ("index", "meta", "layer.json", "meta-*", "")
EXPECTED = (
    "the daemon before",
    "the disk changed a layer; who reads its files waits",
    "the disk changed the metadata of a layer; it is written anew",
    "a layer is lost from the store; who reads its files waits",
    "a layer is not back; fetching its index again",
)
ALL_FILES = "find / -xdev -type f ! -path '/proc/*' ! -path '/sys/*' -exec sha256sum {} +"


class Lost(world.Case):
    """What a mounted layer consists of, beside its bytes."""

    beside = True

    @once_per(driver=DRIVERS)
    def test_a_container_reads_on_when_the_disk_lost_its_layers(self, driver):
        """Promise: one changed byte in any file of every layer, or all of them gone, and then a new daemon, by a kill or an upgrade: a
        running container reads on, and waits where the registry does not answer; others start, nothing is mounted twice, and an
        orderly stop leaves no mount and no claim."""
        _, converted = world.publish("tools-layers")
        link = rig.Link(self.folder(), "1gbit", world.registry())
        self.addCleanup(link.close)
        link.start_registry(self.folder())
        converted = converted.replace(world.REGISTRY, link.address)
        with self.node("2", lazy=True, driver=driver, registry=link.address, settings="complete_in_background = false\n") as node:
            node.pull(converted)
            log = load.Log(os.path.join(node.work, "larder.log"))
            name = "reader-" + secrets.token_hex(4)
            node.ctr("run", "--detach", "--net-host", "--snapshotter", "larder", converted, name, "/bin/sleep", "600")
            before = self.read(node, name)
            rig.wait_for(lambda: len(set(self.mounts(node))) == len(self.mounts(node)), "proven layers to be mounted directly", node.log)
            mounts, slots = sorted(set(self.mounts(node))), self.slots(node)
            for number, what in enumerate(DAMAGE):
                layers = glob.glob(os.path.join(node.work, "larder/store/*"))
                self.assertEqual(len(layers), len(slots))
                for layer in layers:
                    self.damage(layer, what)
                if what == "layer.json":
                    link.registry.send_signal(signal.SIGSTOP)
                if number % 2:
                    node.daemon.send_signal(signal.SIGHUP)
                else:
                    os.kill(rig.daemons(node.daemon.pid)[0], signal.SIGKILL)
                log.wait("ready for containerd", node.daemon)
                rig.drop_caches()
                with concurrent.futures.ThreadPoolExecutor() as reader:
                    reading = reader.submit(self.read, node, name)
                    if what == "layer.json":
                        rig.wait_for(lambda: len(self.lost(node)) == len(slots), "all layers to be lost", node.log)
                        self.assertFalse(reading.done(), "who reads waits for the index")
                        link.registry.send_signal(signal.SIGCONT)
                    self.assertEqual(reading.result(), before, what)
                rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
                rig.wait_for(lambda: not self.lost(node), "no layer to be lost", node.log)
                rig.wait_for(lambda: self.mounts(node) == mounts, "each layer to be mounted in its place, once", node.log)
                self.assertEqual(self.slots(node), slots, what)
                said = node.printed("run", "--rm", "--net-host", "--snapshotter", "larder", converted, f"{name}-{number}", "/bin/cat", "/etc/motd")
                self.assertEqual(said, "six layers\n")
            one, other, *_ = [place for place in mounts if place.endswith("/fs")]
            rig.run("mount", "--bind", other, one)  # as builds before this one did with a layer that came back
            os.kill(rig.daemons(node.daemon.pid)[0], signal.SIGKILL)
            log.wait("ready for containerd", node.daemon)
            rig.wait_for(lambda: self.mounts(node) == mounts, "what was stacked to be gone", node.log)
            rig.drop_caches()
            self.assertEqual(self.read(node, name), before)
            node.ctr("tasks", "rm", "-f", name)
            node.ctr("containers", "rm", name)
            node.kill_snapshotter(signal.SIGTERM)
            self.assertEqual(self.mounts(node), [])
            node.start_snapshotter()
            self.assertFalse(world.status(os.path.join(node.work, "larder"))["containers_lost"])
            # Or its collector asks nobody, and not again.
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            node.ctr("images", "rm", "--sync", converted)
            self.gone(node.left_behind)
            log.rest()
            loud = [line for line in log.lines if " WARN " in line or " ERROR " in line or "panicked" in line]
            self.assertEqual([line for line in loud if not any(known in line for known in EXPECTED)], [])

    def damage(self, layer, what):
        """Flips a bit in the middle of a file, or takes all of them away."""
        if not what:
            shutil.rmtree(layer)
        for path in glob.glob(os.path.join(layer, what)) if what else ():
            with open(path, "r+b") as file:
                file.seek(os.path.getsize(path) // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))

    def read(self, node, name):
        """The sums of all files, as the container sees them."""
        said = node.printed("tasks", "exec", "--exec-id", secrets.token_hex(4), name, "/bin/sh", "-c", ALL_FILES)
        lines = sorted(said.splitlines())
        self.assertGreater(len(lines), 5)
        return lines

    def mounts(self, node):
        """Places below the root with a mount, as often as there is one. EROFS file systems are there lazily and directly, as it comes."""
        with open("/proc/self/mountinfo") as table:
            places = [line.split()[4] for line in table if f" {node.work}/larder/" in line]
        return sorted(re.sub("-(lazy|direct)$", "", place) for place in places)

    def slots(self, node):
        """Those of the devices."""
        slots = []
        for path in glob.glob(os.path.join(node.work, "larder/store/*/layer.json")):
            with open(path) as record:
                slots.append(json.load(record)["slot"])
        return sorted(slots)

    def lost(self, node):
        return [layer for layer in world.status(os.path.join(node.work, "larder"))["layers"] if layer["state"] == "lost"]
