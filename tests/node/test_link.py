"""Reads over links as bad as real ones: packets that are late, lost, overtaken or too large, and a firewall that forgets."""

import concurrent.futures
import errno
import io
import os
import random
import subprocess
import tarfile
import time
import unittest

import layouts
import world
from world import DRIVERS, once_per, rig

RATE = "50mbit"
ROUND_TRIP = 0.2
DEADLINE = 8
BUSY_SECONDS = 15  # what a busy machine adds to a deadline
FILE_BYTES = 300_000
FILES = {f"{number:02}": random.Random(number).randbytes(FILE_BYTES) for number in range(20)}


def layer():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return layouts.packed(out.getvalue()), out.getvalue()


class BadLinks(world.Case):
    """By `larder-snapshotter mount` of an image whose registry is 200 ms away. No test looks at the same file twice."""

    def mount(self, driver):
        layout = os.path.join(self.folder(), "layout")
        layouts.write(layout, [layer()])
        world.publish_layout("link", layout)
        self.link = rig.Link(self.folder(), RATE, world.registry(), ROUND_TRIP, troubled=True)
        self.addCleanup(self.link.close)
        self.link.start_registry(self.folder())
        settings, self.log = (os.path.join(self.folder(), name) for name in ("larder.toml", "log"))
        with open(settings, "w") as out:
            out.write(f"read_deadline_seconds = {DEADLINE}\nslow_read_seconds = 0\n")
        root, self.place = self.folder(), self.folder()
        reference = f"{self.link.address}/test/link:larder"
        command = ("mount", "--config", settings, "--root", root, "--fs-driver", driver, "--plain-http", reference, self.place)
        with open(self.log, "w") as out:
            owner = subprocess.Popen([os.path.join(world.PROGRAMS, "larder-snapshotter"), *command], stdout=out, stderr=out)
        self.addCleanup(rig.stop, owner)
        rig.wait_for(lambda: os.path.ismount(self.place), "the mount", lambda: self.said())

    def said(self):
        with open(self.log) as lines:
            return lines.read()

    def read(self, name):
        """Reads a file, which must be right; how long it took."""
        began = time.monotonic()
        with open(os.path.join(self.place, name), "rb") as file:
            self.assertEqual(file.read(), FILES[name])
        return time.monotonic() - began

    def warm(self, names):
        """Reads files all at once, which takes as many connections."""
        with concurrent.futures.ThreadPoolExecutor(len(names)) as readers:
            list(readers.map(self.read, names))

    def complaints(self):
        return [line for line in self.said().splitlines() if " WARN " in line or " ERROR " in line]

    @once_per(driver=DRIVERS)
    def test_lost_and_overtaken_packets_cost_time_only(self, driver):
        """Promise: at 200 ms, 1 % of loss and 5 % overtaken, every read gets its bytes before its deadline."""
        self.mount(driver)
        self.link.trouble("loss", 0.01)
        self.link.trouble("late", 0.05)
        took = [self.read(f"{number:02}") for number in range(3)]
        print(f"{max(took):.1f} s for {FILE_BYTES} bytes", end=" ", flush=True)
        self.assertEqual(self.complaints(), [])

    @once_per(driver=("erofs",))
    def test_a_partition_shorter_than_the_deadline_is_waited_for(self, driver):
        """Promise: who reads while the network is gone for a third of a deadline waits, and gets the bytes."""
        self.mount(driver)
        self.read("03")
        self.link.trouble("down", 1)
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(self.read, "04")
            time.sleep(DEADLINE / 3)
            self.assertFalse(waiting.done(), "it was read before")
            self.link.trouble("down", 0)
            took = waiting.result()
        print(f"{took:.1f} s", end=" ", flush=True)
        self.assertEqual(self.complaints(), [])

    # What is below the drivers is the same, and each takes a deadline.
    @once_per(driver=DRIVERS)
    def test_a_partition_ends_reads_at_their_deadline_and_heals(self, driver):
        """Promise: where all packets vanish without a word, or large ones do, a read fails at its deadline, with the reason, and
        reads go on by themselves afterwards."""
        self.mount(driver)
        word, bad, good = {"erofs": ("down", 1, 0), "fuse": ("largest", 600, 65536)}[driver]
        self.read("05")
        self.link.trouble(word, bad)
        began = time.monotonic()
        with self.assertRaises(OSError) as failed:
            self.read("12")
        took = time.monotonic() - began
        self.assertEqual(failed.exception.errno, errno.EIO)
        self.assertLess(took, DEADLINE + BUSY_SECONDS)
        told = self.complaints()[-1]
        self.assertRegex(told, "a read fails.*(no answer within|stalled|timed out|cannot talk)")
        self.link.trouble(word, good)
        healed = time.monotonic()
        while True:
            try:
                self.read("12")
                break
            except OSError:
                self.assertLess(time.monotonic(), healed + DEADLINE + BUSY_SECONDS, self.said())
                time.sleep(0.2)
        print(f"failed after {took:.1f} s, healed after {time.monotonic() - healed:.1f} s", end=" ", flush=True)

    @once_per(driver=("fuse",))
    def test_connections_that_a_firewall_forgot_cost_no_read(self, driver):
        """Promise: of connections that are dead without a sign of it, however many, a read finds out in time."""
        self.mount(driver)
        names = [f"{number:02}" for number in range(8, 16)]
        self.warm(names)
        self.link.trouble("forget")
        took = self.read("16")
        print(f"{took:.1f} s", end=" ", flush=True)
        self.assertLess(took, DEADLINE + BUSY_SECONDS)
        self.assertEqual(self.complaints(), [])


if __name__ == "__main__":
    unittest.main()
