"""Listing directories of a mounted image: every entry once, from wherever one begins."""

import ctypes
import functools
import io
import os
import random
import struct
import sys
import tarfile
import tempfile
import threading
import unittest

import layouts
import twins
import world
from world import DRIVERS, once_per

MANY = 100_000
# Every how many entries a listing of them begins anew; `scripts/soak directories` sets 1.
SEEKS_APART = int(os.environ.get("LARDER_SEEKS_APART", 997))
GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
SMALLEST = 280  # one entry with the longest name
PIECES = (SMALLEST, 512, 4096, 32 << 10, 1 << 20)
READERS = 8


class Listing:
    """An open directory, read by the kernel's own call with buffers of our own."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.file)

    def piece(self, size):
        """The next entries that a buffer of this size holds: (name, inode, type, cookie of what follows)."""
        buffer = ctypes.create_string_buffer(size)
        got = twins.LIBC.syscall(GETDENTS64, self.file, buffer, size)
        if got < 0:
            raise OSError(ctypes.get_errno(), "getdents64")
        entries, at, bytes_read = [], 0, buffer.raw
        while at < got:
            inode, cookie, length, kind = struct.unpack_from("<QqHB", bytes_read, at)
            name = bytes_read[at + 19:at + length].split(b"\0", 1)[0]
            entries.append((name, inode, kind, cookie))
            at += length
        return entries

    def rest(self, size):
        found = []
        while piece := self.piece(size):
            found += piece
        return found

    def seek(self, cookie):
        return os.lseek(self.file, cookie, os.SEEK_SET)


def names(entries):
    return [entry[0] for entry in entries]


def many():
    """The tar of a directory of very many files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        folder = tarfile.TarInfo("many")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for number in range(MANY):
            archive.addfile(tarfile.TarInfo(f"many/entry-{number * 7919 % MANY:05}"))
    return out.getvalue()


@functools.cache
def many_reference():
    layout, data = tempfile.mkdtemp(dir=world.work()), many()
    layouts.write(layout, [(layouts.packed(data), data)])
    return world.publish_layout("many", layout)[1]


class Directories(world.Case):
    """By `larder-snapshotter mount`, without an overlay."""

    beside = True

    def setUp(self):
        super().setUp()
        print(f"seed {twins.SEED}", end=" ", flush=True)
        self.chance = random.Random(twins.SEED)

    def expected(self, folder):
        return sorted([b".", b".."] + [os.fsencode(name) for name in os.listdir(os.path.join(twins.tree(), folder))])

    @once_per(driver=DRIVERS)
    def test_every_entry_is_listed_once_whatever_the_buffer(self, driver):
        """Promise: with buffers from one entry to a megabyte, cold and warm; type and inode are those of lstat."""
        with twins.mounted(driver) as ours:
            for folder in ("entries/0", "entries/1", "entries/2", "entries/300", "files"):
                path = os.path.join(ours.place, folder)
                for size in PIECES:
                    twins.drop_caches()
                    for state in ("cold", "warm"):
                        with Listing(path) as listing:
                            entries = listing.rest(size)
                            self.assertEqual(sorted(names(entries)), self.expected(folder), f"{folder}, {size} bytes, {state}")
                            self.assertEqual(listing.piece(size), [], "the end is the end")
                for name, inode, kind, _ in entries:
                    info = os.lstat(os.path.join(os.fsencode(path), name))
                    self.assertEqual(kind, info.st_mode >> 12, name)
                    if name not in (b".", b".."):
                        self.assertEqual(inode, info.st_ino, name)
                with Listing(path) as listing:
                    self.assertEqual(twins.outcome(listing.piece, 8), "EINVAL", "no entry fits into 8 bytes")

    @once_per(driver=DRIVERS)
    def test_a_listing_goes_on_from_every_cookie(self, driver):
        """Promise: from each entry's cookie, taken from this or another open directory, exactly what followed it; backwards, too."""
        with twins.mounted(driver) as ours:
            for folder in ("entries/0", "entries/1", "entries/2", "entries/300"):
                path = os.path.join(ours.place, folder)
                with Listing(path) as one, Listing(path) as other:
                    entries = one.rest(4096)
                    order = list(range(len(entries)))
                    self.chance.shuffle(order)
                    for turn, place in enumerate(order):
                        if turn % 250 == 0:
                            twins.drop_caches()
                        for listing in (one, other):
                            listing.seek(entries[place][3])
                            follow = listing.rest(self.chance.choice(PIECES))
                            self.assertEqual(names(follow), names(entries[place + 1:]), f"{folder}, behind entry {place}")
                    for listing in (one, other):
                        listing.seek(0)
                        self.assertEqual(listing.rest(SMALLEST), entries)
                    # What no entry has is no reason to hang or to list anything twice.
                    for cookie in (1 << 40, 3, 5_000_000):
                        follow = names(one.rest(4096)) if twins.outcome(one.seek, cookie) == cookie else []
                        self.assertEqual(len(follow), len(set(follow)))
                        one.seek(0)

    @once_per(driver=DRIVERS)
    def test_a_hundred_thousand_entries_are_listed_once_by_many_at_a_time(self, driver):
        """Promise: complete, without repetition, by readers with buffers of their own, while caches are dropped; from cookies all along."""
        with twins.mounted(driver, many_reference()) as ours:
            path = os.path.join(ours.place, "many")
            with Listing(path) as listing:
                entries = listing.rest(32 << 10)
            expected = sorted([b".", b".."] + [b"entry-%05d" % number for number in range(MANY)])
            self.assertEqual(sorted(names(entries)), expected)
            self.assertEqual(len({entry[3] for entry in entries}), len(entries), "cookies are different")
            problems = []

            def read(size):
                try:
                    with Listing(path) as listing:
                        if names(listing.rest(size)) != names(entries):
                            problems.append(f"{size} bytes: another listing")
                except OSError as error:
                    problems.append(f"{size} bytes: {error}")

            twins.drop_caches()
            sizes = [self.chance.choice(PIECES[1:]) for _ in range(READERS)]
            threads = [threading.Thread(target=read, args=(size,)) for size in sizes]
            for thread in threads:
                thread.start()
            twins.drop_caches()
            for thread in threads:
                thread.join()
            self.assertEqual(problems, [])

            places = [*range(0, len(entries) - 1, SEEKS_APART), len(entries) - 2]
            self.chance.shuffle(places)
            with Listing(path) as listing:
                for place in places:
                    listing.seek(entries[place][3])
                    follow = listing.piece(SMALLEST)
                    self.assertTrue(follow, f"nothing behind entry {place}")
                    self.assertEqual(names(follow), names(entries[place + 1:place + 1 + len(follow)]))
                listing.seek(entries[-1][3])
                self.assertEqual(listing.piece(SMALLEST), [])
            print(f"{len(places)} seeks", end=" ", file=sys.stdout, flush=True)


if __name__ == "__main__":
    unittest.main()
