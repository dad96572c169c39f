"""The daemon's memory while many read large files through it for the first time."""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import unittest

import cgroups
import world
from world import DRIVERS, once_per, rig

import bench  # of scripts/lib, as world says
import daemon

MIB = 1 << 20
# `scripts/soak memory` has 32 readers of 1 GiB each.
READERS = int(os.environ.get("LARDER_READERS", 8))
FILE_BYTES = int(os.environ.get("LARDER_FILE_MIB", 12)) * MIB
IMAGES = 4
LIMIT = 96 * MIB  # what docs/OPERATIONS.md tells an operator to allow
ANONYMOUS_MAX = 80 * MIB  # of which the daemon's own; the rest is for the kernel's pages of its files
READ_SECONDS_MAX = 3600
UNREAD = "nobody reads this"
COMPLETE_SECONDS_MAX = 60 + FILE_BYTES * IMAGES // MIB  # a MB/s, on a machine that does much else
UNIT = 64 << 10


def blocks(seed, length):
    """Half of it noise, so that it is fetched, and half of it text, so that it is decompressed."""
    chance = random.Random(seed)
    for at in range(0, length, UNIT):
        yield chance.randbytes(UNIT // 2) + (b"%16d" % at) * (UNIT // 32)


READER = """
import hashlib, sys
total = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as file:
    while piece := file.read(1 << 20):
        total.update(piece)
print(total.hexdigest())
"""


class Memory(world.Case):
    """By `larder-snapshotter run` in a group with a limit."""

    def images(self):
        """Labels of images with a large file for each reader, and the sums of the files."""
        registry, sums, found = f"{world.REGISTRY}", {}, []
        world.registry()
        for image in range(IMAGES):
            tree = tempfile.mkdtemp(dir=world.work())
            with open(os.path.join(tree, UNREAD), "wb") as out:
                out.writelines(blocks(READERS + image, FILE_BYTES))
            for reader in range(image, READERS, IMAGES):
                total = hashlib.sha256()
                with open(os.path.join(tree, f"file-{reader}"), "wb") as out:
                    for block in blocks(reader, FILE_BYTES):
                        out.write(block)
                        total.update(block)
                sums[reader] = total.hexdigest()
            layout = os.path.join(tempfile.mkdtemp(dir=world.work()), "layout")
            bench.one_layer(tree, layout)
            rig.run("rm", "-r", tree)
            _, converted = world.publish_layout(f"memory-{image}", layout)
            rig.run("rm", "-r", layout)
            found += daemon.labels(Address(registry), converted)
        return found, sums

    @once_per(driver=DRIVERS)
    def test_readers_of_large_files_stay_within_the_budget(self, driver):
        """Promise: in a group with the documented limit, nothing is killed while each reader reads a file of its own to the end and, at the
        same time, the layers are completed in the background and proved; the daemon's own memory stays below the budget."""
        labels, sums = images_once(self)
        group = cgroups.Limited(LIMIT)
        self.addCleanup(group.remove)
        one = daemon.Daemon(world.PROGRAMS, world.work(), driver, world.REGISTRY, 600, group.before)
        self.addCleanup(one.close)
        places = [one.prepare(label, "keep") for label in labels]
        rest = one.memory()
        peak, done = [rest], threading.Event()

        def watch():
            while not done.wait(0.05):
                peak.append(one.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            readers = {reader: self.reader(os.path.join(places[reader % IMAGES], f"file-{reader}")) for reader in sums}
            self.contest(one, labels)
            found = {reader: process.communicate(timeout=READ_SECONDS_MAX)[0].strip() for reader, process in readers.items()}
            rig.wait_for(lambda: self.is_proved(one), "all layers to be proved", seconds=COMPLETE_SECONDS_MAX)
        finally:
            done.set()
            watcher.join()
        self.assertEqual(found, sums)
        self.assertEqual(group.kills(), 0)
        self.assertIsNone(one.process.poll())
        print(f"{READERS} readers of {FILE_BYTES // MIB} MiB: MB {rest:.0f} at rest, {max(peak):.0f} at most, {one.memory():.0f} afterwards;"
              f" with the kernel's pages {group.peak() / 1e6:.0f} of {LIMIT / 1e6:.0f}", end=" ", file=sys.stdout, flush=True)
        self.assertLess(max(peak) * 1e6, ANONYMOUS_MAX)

    def contest(self, one, labels):
        """Another image has the same layers, without an index: what is known of them is to be proved, so all of it is fetched at once. A
        layer that was proved in time is shared; for any other, containerd is told to unpack."""
        for label in labels:
            claim = {name: value for name, value in label.items() if not name.endswith("larder.index")}
            try:
                one.prepare(claim, "keep")
            except rig.RigError as error:
                self.assertIn("not loaded lazily", str(error))

    def is_proved(self, one):
        layers = world.status(os.path.join(one.root, "larder"))["layers"]
        return all(layer["proven"] for layer in layers if layer["bytes_total"])

    def reader(self, path):
        process = subprocess.Popen([sys.executable, "-c", READER, path], stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        return process


class Address:
    def __init__(self, address):
        self.address = address


MADE = []


def images_once(case):
    """The images are made for the first driver, and serve the other one too."""
    if not MADE:
        MADE.append(case.images())
    return MADE[0]


if __name__ == "__main__":
    unittest.main()
