"""The daemon's memory while many read large files through it for the first time."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import unittest

import cgroups
import layouts
import world
from world import DRIVERS, once_per, rig

import daemon  # of scripts/lib, as world says

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
# Half of it noise, so that it is fetched, and half of it text, so that it is decompressed. `scripts/soak memory` has less noise, as the
# disk keeps it twice: in the registry and in the store.
NOISE = UNIT // int(os.environ.get("LARDER_NOISE_PART", 2))


def blocks(seed, length):
    chance = random.Random(seed)
    for at in range(0, length, UNIT):
        yield chance.randbytes(NOISE) + (b"%16d" % at) * ((UNIT - NOISE) // 16)


class Content:
    """A file of `blocks`, to be read once from its beginning; `total` is the sum of what was read."""

    def __init__(self, seed):
        self.blocks, self.total = blocks(seed, FILE_BYTES), hashlib.sha256()

    def read(self, length):
        assert length == UNIT, length
        block = next(self.blocks)
        self.total.update(block)
        return block


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
        sums, found = {}, []
        world.registry()
        for image in range(IMAGES):
            layout = os.path.join(self.folder(), "layout")
            files = {f"file-{reader}": Content(reader) for reader in range(image, READERS, IMAGES)}
            layouts.write_large(layout, files | {UNREAD: Content(READERS + image)}, FILE_BYTES, UNIT)
            sums |= {int(name.removeprefix("file-")): content.total.hexdigest() for name, content in files.items()}
            converted = f"{world.REGISTRY}/test/memory-{image}:larder"
            world.larder("convert", "--no-start-list", f"oci:{layout}:latest", converted)
            remove(layout)
            found += daemon.labels(Address(world.REGISTRY), converted)
        return found, sums

    @once_per(driver=DRIVERS)
    def test_readers_of_large_files_stay_within_the_budget(self, driver):
        """Promise: in a group with the documented limit, nothing is killed while each reader reads a file of its own to the end and, at the
        same time, the layers are completed in the background and proved; the daemon's own memory stays below the budget."""
        labels, sums = images_once(self)
        group = cgroups.Limited(LIMIT)
        self.addCleanup(group.remove)
        one = daemon.Daemon(world.PROGRAMS, world.work(), driver, world.REGISTRY, 600, group.before)
        self.addCleanup(remove, one.root)
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


def remove(folder):
    """With the blocks that the disk of `scripts/lib/isolated` has for it: the next driver needs as many, and that disk keeps them else."""
    rig.run("rm", "-r", "--one-file-system", folder)
    rig.run("sync", "--file-system", world.work())  # before that nothing is free
    subprocess.run(["fstrim", world.work()], capture_output=True)  # where it cannot be done, `rm` has done it


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
