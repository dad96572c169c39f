"""One reader of a mounted image, a process of its own: reader.py KIND PLACE SUMS SEED, until its standard input ends.

SUMS is a JSON file: {"files": {path below PLACE: [size, sha256]}, "programs": [paths], "devices": {path: [size, sha256]}}.
Prints one JSON object: operations, what went wrong, and [begin, seconds] of every operation that took longer than SLOW."""

import hashlib
import json
import mmap
import os
import random
import select
import subprocess
import sys
import time

SLOW = 0.005
PIECE = 128 << 10


def forget(descriptor):
    """Has the next read ask the file system, not the page cache."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class Reader:
    def __init__(self, place, sums, seed):
        self.place, self.random = place, random.Random(seed)
        with open(sums) as file:
            known = json.load(file)
        self.files, self.programs, self.devices = sorted(known["files"].items()), known["programs"], sorted(known["devices"].items())
        self.operations, self.errors, self.wrong, self.slow = 0, [], [], []

    def run(self, kind):
        operation = getattr(self, kind)
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                operation()
            except OSError as error:
                self.errors.append(f"{kind}: {error}")
                time.sleep(0.1)
        print(json.dumps({"kind": kind, "operations": self.operations, "errors": self.errors, "wrong": self.wrong, "slow": self.slow}))

    def timed(self, action, *arguments):
        began = time.monotonic()
        try:
            return action(*arguments)
        finally:
            took = time.monotonic() - began
            self.operations += 1
            if took > SLOW:
                self.slow.append([began, took])

    def check(self, name, data, expected):
        size, digest = expected
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            self.wrong.append(name)

    def choose(self):
        name, expected = self.random.choice(self.files)
        return os.path.join(self.place, name), expected

    def buffered(self):
        path, expected = self.choose()
        descriptor = self.timed(os.open, path, os.O_RDONLY)
        try:
            forget(descriptor)
            data = b""
            while piece := self.timed(os.read, descriptor, PIECE):
                data += piece
            self.check(path, data, expected)
        finally:
            os.close(descriptor)

    def mapped(self):
        path, expected = self.choose()
        descriptor = self.timed(os.open, path, os.O_RDONLY)
        try:
            forget(descriptor)
            with mmap.mmap(descriptor, expected[0], mmap.MAP_SHARED, mmap.PROT_READ) as pages:
                data = b""
                for offset in range(0, expected[0], PIECE):
                    data += self.timed(lambda: pages[offset:offset + PIECE])
            self.check(path, data, expected)
        finally:
            os.close(descriptor)

    def direct(self):
        """Past the page cache: the layers' devices, which EROFS reads, and which are tars; with the FUSE driver, files."""
        path, expected = self.random.choice(self.devices) if self.devices else self.choose()
        descriptor = self.timed(os.open, path, os.O_RDONLY | os.O_DIRECT)
        try:
            start = self.random.randrange(0, max(1, expected[0] // PIECE)) * PIECE if self.devices else 0
            with mmap.mmap(-1, PIECE) as buffer:
                data = b""
                while len(data) < expected[0]:
                    got = self.timed(os.preadv, descriptor, [buffer], start + len(data))
                    data += buffer[:got]
                    if got < PIECE or self.devices:
                        break
            if not self.devices:
                self.check(path, data, expected)
            elif data != self.tar(expected[1])[start:start + PIECE]:
                self.wrong.append(f"{path} at {start}")
            forget(descriptor)  # what the kernel read of the device for EROFS
        finally:
            os.close(descriptor)

    def tar(self, path):
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def listed(self):
        found = {}

        def walk(directory):
            for entry in self.timed(lambda: list(os.scandir(directory))):
                if entry.is_dir(follow_symlinks=False):
                    walk(entry.path)
                else:
                    found[os.path.relpath(entry.path, self.place)] = self.timed(os.lstat, entry.path).st_size
        walk(self.place)
        for name, (size, _) in self.files:
            if found.get(name) != size:
                self.wrong.append(f"{name}: {found.get(name)} instead of {size} bytes")

    def executed(self):
        path = os.path.join(self.place, self.random.choice(self.programs))
        descriptor = self.timed(os.open, path, os.O_RDONLY)
        forget(descriptor)
        os.close(descriptor)
        done = self.timed(lambda: subprocess.run([path, "-c", "echo $((6 * 7))"], capture_output=True))
        if done.stdout != b"42\n":
            self.errors.append(f"{path}: exit {done.returncode}, said {done.stdout!r} {done.stderr!r}")


if __name__ == "__main__":
    what, where, digests, number = sys.argv[1:]
    Reader(where, digests, int(number)).run(what)
