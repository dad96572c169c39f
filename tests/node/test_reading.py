"""Every way to read a file of a mounted image, against the same file on a read-only ext4."""

import ctypes
import fcntl
import mmap
import os
import random
import select
import signal
import socket
import struct
import subprocess
import unittest

import twins
import world
from twins import outcome, system
from world import DRIVERS, once_per

# Reads at random places per driver; `scripts/soak reading` sets more.
READS = int(os.environ.get("LARDER_READS", 3000))
PAGE = mmap.PAGESIZE
FILES = ("empty", "small", "page", "page-and-one", "middle", "large", "other")
ADVICE = [getattr(os, "POSIX_FADV_" + name) for name in ("NORMAL", "SEQUENTIAL", "RANDOM", "NOREUSE", "WILLNEED", "DONTNEED")]
HANDLE_BYTES = 128
O_PATH_HANDLE = ctypes.c_char * (8 + HANDLE_BYTES)


def by_pread(file, at, length):
    return os.pread(file, length, at)


def by_mmap(file, at, length):
    size = os.fstat(file).st_size
    if size == 0 or at >= size:
        return b""
    with mmap.mmap(file, size, flags=random.choice((mmap.MAP_PRIVATE, mmap.MAP_SHARED)), prot=mmap.PROT_READ) as area:
        return area[at:at + length]


def by_direct(file, at, length):
    """A second, direct opening; places and lengths are made to fit."""
    start, end = at // PAGE * PAGE, (at + length + PAGE - 1) // PAGE * PAGE
    buffer = mmap.mmap(-1, max(end - start, PAGE))  # memory of whole pages
    direct = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_DIRECT)
    try:
        got, end = 0, end - start
        while got < end and (more := os.preadv(direct, [memoryview(buffer)[got:end]], start + got)):
            got += more
        return buffer[:got][at - start:at - start + length]
    finally:
        os.close(direct)


def by_splice(file, at, length):
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 1 << 20)
        got = os.splice(file, into, min(length, 1 << 19), offset_src=at)
        return os.read(out, got) if got else b""
    finally:
        os.close(out), os.close(into)


def by_sendfile(file, at, length):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        got = os.sendfile(ours.fileno(), file, at, min(length, 1 << 16))
        ours.shutdown(socket.SHUT_WR)
        data = b""
        while piece := theirs.recv(1 << 16):
            data += piece
        assert len(data) == got
        return data


def by_readahead(file, at, length):
    ctypes.CDLL(None).readahead(file, ctypes.c_int64(at), ctypes.c_size_t(length))
    return os.pread(file, length, at)


WAYS = {"fuse": (by_pread, by_mmap, by_direct, by_splice, by_sendfile, by_readahead)}
# The kernel's EROFS opens nothing directly when its device is a file.
WAYS["erofs"] = tuple(way for way in WAYS["fuse"] if way is not by_direct)
MAY_BE_SHORT = (by_splice, by_sendfile)

# Where a driver answers otherwise than ext4, and why that is so.
DIFFERENT = {
    "erofs": {
        "opening directly": "EINVAL",  # as above
        "syncing": "EINVAL",  # EROFS has no fsync; on overlayfs, as containers see it, it succeeds
    },
    "fuse": {},
}


class Reading(world.Case):
    """The tree of `twins`, mounted without an overlay."""

    @once_per(driver=DRIVERS)
    def test_every_way_to_read_gives_the_same_bytes(self, driver):
        """Promise: at random places, by each system call that reads, with caches dropped in between: the oracle's bytes."""
        print(f"seed {twins.SEED}", end=" ", flush=True)
        chance = random.Random(twins.SEED)
        contents = {name: open(os.path.join(twins.tree(), "files", name), "rb").read() for name in FILES}
        with twins.mounted(driver) as ours:
            files = {name: os.open(os.path.join(ours.place, "files", name), os.O_RDONLY) for name in FILES}
            try:
                for turn in range(READS):
                    name, way = chance.choice(FILES), chance.choice(WAYS[driver])
                    data = contents[name]
                    at, length = chance.randrange(len(data) + PAGE), chance.choice((1, 7, 512, 4096, 5000, 70_000, 1 << 20))
                    found, expected = way(files[name], at, length), data[at:at + length]
                    if way in MAY_BE_SHORT:
                        self.assertEqual(bool(found), bool(expected))
                        expected = expected[:len(found)]
                    self.assertTrue(found == expected, f"turn {turn}: {name}, {way.__name__}, {length} bytes at {at}")
                    if chance.random() < 0.1:
                        os.posix_fadvise(files[name], at, length, chance.choice(ADVICE))
                    if turn % 500 == 0:
                        twins.drop_caches()
            finally:
                for file in files.values():
                    os.close(file)

    @once_per(driver=DRIVERS)
    def test_a_mapping_ends_where_ext4s_does(self, driver):
        """Promise: zeros to the end of the last page, SIGBUS behind it; private changes stay private; programs run."""
        with twins.mounted(driver) as ours:
            for name in FILES[1:]:
                for root in (twins.ext4(), ours.place):
                    with self.subTest(name=name, root=root), open(os.path.join(root, "files", name), "rb") as file:
                        self.assert_mapping_ends(file)
            for root in (twins.ext4(), ours.place):
                self.assertEqual(subprocess.run([os.path.join(root, "files/true")]).returncode, 0)
                said = subprocess.run([os.path.join(root, "files/cat"), os.path.join(root, "files/small")], capture_output=True)
                self.assertEqual(said.stdout, b"a few bytes\n")

    def assert_mapping_ends(self, file):
        data = file.read()
        last = -(-len(data) // PAGE) * PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
        for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
            place = libc.mmap(None, last + 4 * PAGE, mmap.PROT_READ, flags, file.fileno(), 0)
            self.assertEqual(ctypes.string_at(place + last - PAGE, PAGE), data[last - PAGE:].ljust(PAGE, b"\0"))
            for behind in (last, last + PAGE - 1, last + 3 * PAGE):
                self.assertEqual(twins.in_child(lambda: ctypes.string_at(place + behind, 1)), signal.SIGBUS)
            libc.munmap(ctypes.c_void_p(place), last + 4 * PAGE)
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
            area[0] = data[0] ^ 255
            self.assertEqual(os.pread(file.fileno(), 1, 0), data[:1])
        self.assertEqual(outcome(lambda: mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE)), "EACCES")

    @once_per(driver=DRIVERS)
    def test_inode_numbers_stay(self, driver):
        """Promise: the same before and after dropped caches and another mount; one for each file, shared by its names."""
        with twins.mounted(driver) as ours:
            before = inodes(ours.place)
            twins.drop_caches()
            self.assertEqual(inodes(ours.place), before)
            held = os.open(os.path.join(ours.place, "files/large"), os.O_RDONLY)
            twins.drop_caches()
            self.assertEqual(os.fstat(held).st_ino, before["files/large"])
            os.close(held)
            ours.unmount()
            ours.mount()
            self.assertEqual(inodes(ours.place), before)
            self.assertEqual(before["files/linked"], before["files/middle"])
            self.assertEqual(len(set(before.values())), len(before) - 1)

    @once_per(driver=DRIVERS)
    def test_what_else_is_asked_of_a_file_is_answered_as_on_ext4(self, driver):
        """Promise: seeking data and holes, statfs, locks, inotify and advice answer as a read-only ext4 does."""
        with twins.mounted(driver) as ours:
            for name, question in QUESTIONS.items():
                with self.subTest(question=name):
                    expected, found = (outcome(question, root) for root in (twins.ext4(), ours.place))
                    self.assertEqual(found, DIFFERENT[driver].get(name, expected))
            said = os.statvfs(ours.place)
            self.assertEqual((said.f_bavail, said.f_bfree, said.f_namemax), (0, 0, 255))
            self.assertGreater(said.f_blocks, 0)
            handle = outcome(handle_of, os.path.join(ours.place, "files/small"))
            if handle not in ("EOPNOTSUPP", "ENOSYS"):
                # Where there are handles, they are good ones.
                self.assertEqual(read_by_handle(ours.place, handle), b"a few bytes\n")


def inodes(root):
    found = {}
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = os.lstat(path).st_ino
    return found


def on(name, call, flags=os.O_RDONLY):
    def ask(root):
        file = os.open(os.path.join(root, "files", name), flags)
        try:
            return call(file)
        finally:
            os.close(file)
    return ask


def seeks(file):
    size = os.fstat(file).st_size
    places = (0, 1, size // 2, size - 1, size, size + 1)
    return [outcome(os.lseek, file, at, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE) for at in places]


def watched(root):
    """What inotify tells of one reading of a file."""
    watch = system("inotify_init1", os.O_NONBLOCK)
    try:
        system("inotify_add_watch", watch, os.path.join(root, "files"), ctypes.c_uint32(0xFFF))
        with open(os.path.join(root, "files/small"), "rb", buffering=0) as file:
            file.read(5)
        events, told = b"", []
        while select.select([watch], [], [], 0.2)[0]:
            events += os.read(watch, 4096)
        while events:
            _, mask, _, length = struct.unpack_from("iIII", events)
            told.append((mask, events[16:16 + length].rstrip(b"\0")))
            events = events[16 + length:]
        return told
    finally:
        os.close(watch)


def locks(root):
    """Who gets a lock of the whole file beside another."""
    path = os.path.join(root, "files/small")
    with open(path, "rb") as one, open(path, "rb") as other:
        answers = []
        for first, second in ((fcntl.LOCK_SH, fcntl.LOCK_SH), (fcntl.LOCK_SH, fcntl.LOCK_EX), (fcntl.LOCK_EX, fcntl.LOCK_SH)):
            answers.append(outcome(fcntl.flock, one, first | fcntl.LOCK_NB))
            answers.append(outcome(fcntl.flock, other, second | fcntl.LOCK_NB))
            fcntl.flock(one, fcntl.LOCK_UN), fcntl.flock(other, fcntl.LOCK_UN)
        answers.append(outcome(fcntl.lockf, one, fcntl.LOCK_SH | fcntl.LOCK_NB))
        answers.append(outcome(fcntl.lockf, one, fcntl.LOCK_EX | fcntl.LOCK_NB))
        return answers


def handle_of(path):
    """The kernel's handle of a file, and the mount it is of."""
    handle = O_PATH_HANDLE()
    struct.pack_into("Ii", handle, 0, HANDLE_BYTES, 0)
    mount = ctypes.c_int()
    system("name_to_handle_at", -100, path, handle, ctypes.byref(mount), 0)
    return handle.raw


def read_by_handle(root, handle):
    top = os.open(root, os.O_RDONLY)
    try:
        file = system("open_by_handle_at", top, ctypes.create_string_buffer(handle), os.O_RDONLY)
        try:
            return os.read(file, 100)
        finally:
            os.close(file)
    finally:
        os.close(top)


QUESTIONS = {
    "data and holes": on("large", seeks),
    "data and holes of nothing": on("empty", seeks),
    "advice": on("large", lambda file: [outcome(os.posix_fadvise, file, 0, 0, advice) for advice in ADVICE]),
    "opening directly": on("large", lambda file: None, os.O_RDONLY | os.O_DIRECT),
    "syncing": on("large", lambda file: (os.fsync(file), os.fdatasync(file))),
    "syncing all": on("large", lambda file: system("syncfs", file)),
    "reading a directory as a file": on("../full", lambda file: os.read(file, 1)),
    "seeking beyond the end": on("small", lambda file: (os.lseek(file, 1 << 40, os.SEEK_SET), os.read(file, 1))),
    "seeking before the beginning": on("small", lambda file: os.lseek(file, -1, os.SEEK_SET)),
    "reading nothing": on("small", lambda file: os.pread(file, 0, 5)),
    "reading far behind": on("small", lambda file: os.pread(file, 10, 1 << 60)),
    "following a symlink not": on("symlink", lambda file: None, os.O_RDONLY | os.O_NOFOLLOW),
    "a directory that is none": on("small", lambda file: None, os.O_RDONLY | os.O_DIRECTORY),
    "without reading times": on("small", lambda file: os.read(file, 3), os.O_RDONLY | os.O_NOATIME),
    "reading a device": on("null", lambda file: os.read(file, 10)),
    "a name that is too long": lambda root: os.stat(os.path.join(root, "n" * 256)),
    "the longest name": lambda root: os.stat(os.path.join(root, "n" * 255)),
    "an attribute": lambda root: os.getxattr(os.path.join(root, "files/small"), "user.colour"),
    "an attribute that is not there": lambda root: os.getxattr(os.path.join(root, "files/page"), "user.colour"),
    "the attributes": lambda root: os.listxattr(os.path.join(root, "files/small")),
    "no rights": lambda root: system("access", os.path.join(root, "files/secret"), os.X_OK),
    "inotify": watched,
    "locks": locks,
}


if __name__ == "__main__":
    unittest.main()
