"""Everything that happens to a node, in random order, under readers that never stop: images come and go, caches are dropped, the
registry falls silent, the daemon ends or is killed."""

import os
import random
import signal
import threading
import time
import unittest

import twins
import world
from test_waiting import Registry
from world import DRIVERS, once_per, rig

import daemon  # of scripts/lib, as world says

STEPS = int(os.environ.get("LARDER_COUNT", 40))
IMAGES, FILES, READERS = 4, 3, 3
SILENCE_SECONDS = 0.3
GONE_SECONDS_MAX = 90
FREED_SECONDS_MAX = 60  # the kernel is asked every two
MEMORY_MB_MAX = 64
DESCRIPTORS_MORE_MAX = 16
# What a killed daemon leaves is said, and what it left half written is fetched again.
EXPECTED = ("a chunk in the store is damaged", "unmounted what a former run left")


class Readers:
    """Threads that read at random places of whatever is mounted, and files that stay open when their image goes."""

    def __init__(self, contents, seed):
        self.contents, self.places, self.problems, self.reads = contents, {}, [], 0
        self.lock, self.ended = threading.Lock(), threading.Event()
        # Held by readers while they read, and by who takes the daemon away.
        self.going = [threading.Lock() for _ in range(READERS)]
        self.threads = [threading.Thread(target=self.run, args=(self.going[place], random.Random(seed + place))) for place in range(READERS)]
        for thread in self.threads:
            thread.start()

    def run(self, going, chance):
        while not self.ended.is_set():
            with going:
                with self.lock:
                    mounted = list(self.places.items())
                if mounted:
                    self.read(chance, *chance.choice(mounted))
            time.sleep(0.001)

    def read(self, chance, image, place):
        name = chance.choice(sorted(self.contents[image]))
        data = self.contents[image][name]
        try:
            with open(os.path.join(place, name), "rb", buffering=0) as file:
                for _ in range(4):
                    at = chance.randrange(len(data))
                    self.check(os.pread(file.fileno(), 20_000, at), data[at:at + 20_000], image, name, at)
                    time.sleep(chance.random() * 0.01)  # the image may go meanwhile
        except FileNotFoundError:
            with self.lock:
                still = self.places.get(image) == place
            if still:
                self.problems.append(f"{image}/{name} is gone")
        except OSError as error:
            self.problems.append(f"{image}/{name}: {error}")

    def check(self, found, expected, *where):
        self.reads += 1
        if found != expected:
            self.problems.append(f"wrong bytes: {where}")

    def rest(self):
        for lock in self.going:
            lock.acquire()

    def go_on(self):
        for lock in self.going:
            lock.release()

    def end(self):
        self.ended.set()
        for thread in self.threads:
            thread.join()


class Stress(world.Case):
    """By `larder-snapshotter run`, asked as containerd asks."""

    def images(self, registry):
        contents = {f"image-{image}": {f"file-{number}": twins.noise(image * 10 + number, 300_000 * number + 5000) for number in range(FILES)}
                    for image in range(IMAGES)}
        return contents, {name: registry.publish(name, files) for name, files in contents.items()}

    @once_per(driver=DRIVERS)
    def test_whatever_happens_in_whatever_order_nothing_breaks(self, driver):
        """Promise: no read fails or has a wrong byte, nothing is said above INFO, and when all images are gone, nothing is left of them."""
        print(f"seed {twins.SEED}", end=" ", flush=True)
        chance = random.Random(twins.SEED)
        registry = Registry(5003)
        self.addCleanup(registry.process.kill)
        contents, labels = self.images(registry)
        one = daemon.Daemon(world.PROGRAMS, world.work(), driver, registry.address, 60)
        self.addCleanup(one.close)
        readers = Readers(contents, twins.SEED)
        self.addCleanup(readers.end)
        counts = {}

        def come():
            image = chance.choice(sorted(contents))
            place = one.prepare(labels[image], "keep")
            with readers.lock:
                readers.places[image] = place

        def go():
            if readers.places:
                image = chance.choice(sorted(readers.places))
                with readers.lock:
                    del readers.places[image]
                one.prepare(labels[image], "drop")

        def restart(number):
            readers.rest()
            try:
                one.process.send_signal(number)
                one.process.wait(20)
                one.start()
                # It listens before everything is back at its place, and says how it is afterwards.
                rig.wait_for(lambda: self.answers(one), "the daemon to say how it is")
            finally:
                readers.go_on()

        def silence():
            registry.stop()
            time.sleep(SILENCE_SECONDS)
            registry.go_on()

        steps = {"come": (come, 6), "go": (go, 4), "drop caches": (twins.drop_caches, 3), "silence": (silence, 2),
                 "kill": (lambda: restart(signal.SIGKILL), 2), "end": (lambda: restart(signal.SIGTERM), 2)}
        come()
        descriptors = self.descriptors(one)
        for step in range(STEPS):
            [name] = chance.choices(list(steps), [weight for _, weight in steps.values()])
            counts[name] = counts.get(name, 0) + 1
            steps[name][0]()
            time.sleep(chance.random() * 0.1)
            self.assertEqual(readers.problems, [], f"after step {step}, {name}: {counts}")
        while readers.places:
            go()
        readers.end()
        self.assertEqual(readers.problems, [])
        self.gone(lambda: self.left(one), GONE_SECONDS_MAX)
        self.assertLess(one.memory(), MEMORY_MB_MAX)
        self.assertLessEqual(self.descriptors(one), descriptors + DESCRIPTORS_MORE_MAX)
        self.assertEqual(one.unexpected(EXPECTED), [])
        print(f"{counts}, {readers.reads} reads", end=" ", flush=True)

    @once_per(driver=DRIVERS)
    def test_a_removed_layer_goes_when_its_last_file_is_closed(self, driver):
        """Promise: it is freed within seconds when nothing else happens on the node and the kernel has memory enough, as often as it comes."""
        registry = Registry(5004)
        self.addCleanup(registry.process.kill)
        # So much that it does not come whole with its index: what is complete the kernel reads without Larder.
        data = twins.noise(1, 3_000_000)
        labels = registry.publish("image", {"file": data})
        one = daemon.Daemon(world.PROGRAMS, world.work(), driver, registry.address, 60)
        self.addCleanup(one.close)
        for _ in range(2):
            with open(os.path.join(one.prepare(labels, "keep"), "file"), "rb") as file:
                one.prepare(labels, "drop")
                self.assertNotEqual(self.left(one), [])
                self.assertEqual(file.read(), data)
            self.gone(lambda: self.left(one), FREED_SECONDS_MAX)
        self.assertEqual(one.unexpected(), [])

    def answers(self, one):
        try:
            return world.status(os.path.join(one.root, "larder"))
        except rig.RigError:
            return None

    def descriptors(self, one):
        return sum(len(os.listdir(f"/proc/{process}/fd")) for process in one.processes())

    def left(self, one):
        """What is there of layers: mounts, snapshots, stores."""
        root = os.path.join(one.root, "larder")
        with open("/proc/self/mountinfo") as table:
            mounts = [line for line in table if f" {root}/snapshots/" in line]
        return mounts + os.listdir(os.path.join(root, "snapshots")) + os.listdir(os.path.join(root, "store"))


if __name__ == "__main__":
    unittest.main()
