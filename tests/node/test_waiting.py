"""A registry that is silent or gone: who waits, who does not, and what a page of a mapping gives then."""

import ctypes
import mmap
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import twins
import world
from world import DRIVERS, once_per, rig

import bench  # of scripts/lib, as world says
import daemon

STALLED = 200
STALLED_BYTES = 66_000  # beyond what is packed together: each file is fetched by itself
HERE_BYTES = 8 << 20
# A read that waited for a place among those that wait would take seconds. The goal is 1 ms on a quiet machine; a test machine is not one.
BESIDE_MS_MAX = 50
PLACES = 6
DEADLINE = 1  # second: the shortest there is
# What is said of reads and pages that fail on purpose: that they do, and that the whole of their deadline went by before.
TOLD = ("a read fails", 'failed="deadline"')


class Registry:
    """A registry of its own on loopback, which can be stopped."""

    def __init__(self, port):
        self.address = f"127.0.0.1:{port}"
        self.process, self.storage = world.serve_registry(self.address)

    def publish(self, name, files):
        """An image of one layer with these files; its labels."""
        tree, layout = tempfile.mkdtemp(dir=world.work()), tempfile.mkdtemp(dir=world.work())
        for path, data in files.items():
            with open(os.path.join(tree, path), "wb") as out:
                out.write(data)
        os.rmdir(layout)
        bench.one_layer(tree, layout)
        original, converted = (f"{self.address}/test/{name}:{tag}" for tag in ("original", "larder"))
        rig.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{original}")
        world.larder("convert", original, converted)
        [labels] = daemon.labels(self, converted)
        return labels

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)


class Waiting(world.Case):
    """By `larder-snapshotter run`, asked as containerd asks."""

    def registry(self, port):
        one = Registry(port)
        self.addCleanup(one.process.kill)
        return one

    def daemon(self, driver, registry, deadline):
        one = daemon.Daemon(world.PROGRAMS, world.work(), driver, registry.address, deadline)
        self.addCleanup(one.close)
        return one

    def test_a_mount_that_waits_for_its_registry_ends_by_a_signal(self):
        """Regression: nothing ended it for a minute but `kill -9`, which left a mount.

        Promise: a signal ends `mount` while it waits for a silent registry, at once, in the foreground and in its own process for `--detach`;
        nothing of it is left."""
        registry = self.registry(5002)
        registry.publish("far", {"file": twins.noise(1, STALLED_BYTES)})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            root, place = self.folder(), self.folder()
            registry.stop()
            command = [os.path.join(world.PROGRAMS, "larder-snapshotter"), "mount", "--root", root, f"{registry.address}/test/far:larder", place]
            mounting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            try:
                rig.wait_for(lambda: os.path.exists(os.path.join(root, "control.sock")), "the owner to begin")
                began = time.monotonic()
                mounting.send_signal(number)
                _, said = mounting.communicate(timeout=10)
                self.assertLess(time.monotonic() - began, 5)
            finally:
                mounting.kill()
                registry.go_on()
            self.assertEqual(mounting.returncode, 1)
            self.assertIn("a signal came before", said)
            with open("/proc/self/mountinfo") as table:
                self.assertEqual([line for line in table if root in line or place in line], [])

    @once_per(driver=DRIVERS)
    def test_reads_of_the_store_pass_by_two_hundred_that_wait(self, driver):
        """Promise: while 200 readers of one image wait for a silent registry, what is in the store of another is read at once:
        all of those reads end while all of the 200 wait; when the registry speaks, each of them gets its bytes."""
        registry = self.registry(5001)
        files = {f"file-{number:03}": twins.noise(number, STALLED_BYTES) for number in range(STALLED)}
        far = registry.publish("far", files)
        near = registry.publish("near", {"file": twins.noise(1000, HERE_BYTES)})
        one = self.daemon(driver, registry, deadline=600)
        there, here = one.prepare(far, "keep"), os.path.join(one.prepare(near, "keep"), "file")
        with open(here, "rb") as file:
            self.assertEqual(file.read(), twins.noise(1000, HERE_BYTES))
        quiet = bench.reads(here, rounds=4, apart=32 << 10)
        registry.stop()
        self.addCleanup(registry.go_on)
        wrong, ended = [], []

        def read(name):
            try:
                with open(os.path.join(there, name), "rb") as file:
                    if file.read() != files[name]:
                        wrong.append(name)
            except OSError as error:
                wrong.append(f"{name}: {error}")
            ended.append(name)

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in files]
        for reader in readers:
            reader.start()
        bench.reads(here, rounds=1)  # they have arrived where they wait
        beside = bench.reads(here, rounds=4, apart=32 << 10)
        waiting = sum(reader.is_alive() for reader in readers)
        registry.go_on()
        for reader in readers:
            reader.join(60)
        figures = [f"{bench.percentile(samples, percent):.2f}" for samples in (quiet, beside) for percent in (50, 99)]
        print(f"{len(beside)} reads, ms p50 and p99: {figures[0]}, {figures[1]} quiet; {figures[2]}, {figures[3]} beside {STALLED} that wait",
              end=" ", flush=True)
        self.assertEqual(waiting, STALLED, "who waited had ended before the reads beside them")
        self.assertLess(bench.percentile(beside, 99), BESIDE_MS_MAX)
        self.assertEqual((len(ended), wrong), (STALLED, []))
        self.assertEqual(one.unexpected(TOLD), [])

    @once_per(driver=DRIVERS)
    def test_a_page_that_cannot_be_had_is_sigbus_exactly_where_reading_is_eio(self, driver):
        """Promise: with the registry gone, a page that is there is read, by mapping and by call, and any other is SIGBUS by the one and EIO by
        the other; when the registry is back, all of them are there."""
        print(f"seed {twins.SEED}", end=" ", flush=True)
        chance = random.Random(twins.SEED)
        registry = self.registry(5002)
        data = twins.noise(4, twins.LARGE)
        labels = registry.publish("gone", {"file": data})
        one = self.daemon(driver, registry, DEADLINE)
        path = os.path.join(one.prepare(labels, "keep"), "file")
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self.assertEqual(os.pread(file.fileno(), 5000, 0), data[:5000])
            rig.stop(registry.process)
            answers = {"EIO": 0, "read": 0}
            pages = [0, 1, *(chance.randrange(len(data) // mmap.PAGESIZE) for _ in range(PLACES))]
            for page in pages:
                at = page * mmap.PAGESIZE
                touched = self.touch(file, at, data)
                read = twins.outcome(os.pread, file.fileno(), mmap.PAGESIZE, at)
                self.assertEqual(touched, signal.SIGBUS if read == "EIO" else 0, f"page {page}: reading says {read!r}"[:200])
                if read != "EIO":
                    self.assertEqual(read, data[at:at + mmap.PAGESIZE])
                answers["EIO" if read == "EIO" else "read"] += 1
            self.assertTrue(answers["EIO"] and answers["read"], answers)
            print(answers, end=" ", flush=True)
            self.restart(registry)
            for page in pages:
                at = page * mmap.PAGESIZE
                rig.wait_for(lambda: twins.outcome(os.pread, file.fileno(), mmap.PAGESIZE, at) == data[at:at + mmap.PAGESIZE], "a page to come")
                self.assertEqual(self.touch(file, at, data), 0)
        self.assertEqual(one.unexpected(TOLD), [])

    def touch(self, file, at, data):
        """What becomes of a process that maps the file and compares one page: 0, or the signal that ends it."""
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
        place = libc.mmap(None, len(data), mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0)

        def compare():
            expected = data[at:at + mmap.PAGESIZE]
            if ctypes.string_at(place + at, len(expected)) != expected:
                os._exit(2)

        try:
            return twins.in_child(compare)
        finally:
            libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(len(data)))

    def restart(self, registry):
        """The same registry, with what it holds, again."""
        place = os.path.dirname(registry.storage)
        with open(os.path.join(place, "registry.log"), "a") as log:
            registry.process = subprocess.Popen(["docker-registry", "serve", os.path.join(place, "registry.yml")], stdout=log, stderr=log)
        self.addCleanup(registry.process.kill)
        rig.wait_for(lambda: rig.answers(f"http://{registry.address}/v2/"), "the registry to answer")


if __name__ == "__main__":
    unittest.main()
