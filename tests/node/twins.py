"""One tree twice: read-only on ext4, and as an image that Larder mounts. What a file system does is compared between the two."""

import contextlib
import ctypes
import errno
import functools
import os
import random
import shutil
import subprocess
import tempfile

import layouts
import world
from world import rig

LIBC = ctypes.CDLL(None, use_errno=True)
SEED = int(os.environ.get("LARDER_SEED", random.SystemRandom().randrange(1 << 32)))
MADE = 1_600_000_000  # when everything was made: whole seconds, as mkfs.ext4 writes no more
LARGE = (3 << 20) + 1234  # of several chunks, and no multiple of a page


def noise(seed, length):
    """Bytes that compress to about half, and differ from block to block."""
    return random.Random(seed).randbytes(length // 2 + 1).hex().encode()[:length]


def make(tree):
    """Every kind of file, small and large, and directories with few entries and many."""
    def file(name, data, mode=0o644):
        path = os.path.join(tree, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(data)
        os.chmod(path, mode)

    file("files/empty", b"")
    file("files/small", b"a few bytes\n")
    file("files/page", noise(1, 4096))
    file("files/page-and-one", noise(2, 4097))
    file("files/middle", noise(3, 70_001))
    file("files/large", noise(4, LARGE))
    file("files/other", noise(5, LARGE))
    file("files/secret", b"for root alone\n", 0o600)
    for program in ("true", "cat"):
        shutil.copy(shutil.which(program), os.path.join(tree, "files", program))
    os.link(os.path.join(tree, "files/middle"), os.path.join(tree, "files/linked"))
    os.symlink("small", os.path.join(tree, "files/symlink"))
    os.symlink("nowhere", os.path.join(tree, "files/dangling"))
    os.mkfifo(os.path.join(tree, "files/fifo"))
    os.mknod(os.path.join(tree, "files/null"), 0o20666, os.makedev(1, 3))
    os.setxattr(os.path.join(tree, "files/small"), "user.colour", b"red")
    for count in (0, 1, 2, 300):
        os.makedirs(os.path.join(tree, f"entries/{count}"))
        for number in range(count):
            file(f"entries/{count}/{'n' * (number % 200)}{number}", b"%d" % number)
    file("full/one/two/file", b"deep\n")
    for folder, folders, names in os.walk(tree, topdown=False):
        for name in folders + names:
            os.utime(os.path.join(folder, name), (MADE, MADE), follow_symlinks=False)
    os.utime(tree, (MADE, MADE))


@functools.cache
def tree():
    place = os.path.join(world.work(), "twins")
    os.mkdir(place)
    make(place)
    return place


@functools.cache
def ext4():
    """The tree on an ext4 that is mounted read-only."""
    image, place = os.path.join(world.work(), "twins.ext4"), tempfile.mkdtemp(dir=world.work())
    with open(image, "wb") as out:
        out.truncate(64 << 20)
    rig.run("mkfs.ext4", "-q", "-F", "-d", tree(), image)
    rig.run("mount", "-o", "loop", image, place)
    os.rmdir(os.path.join(place, "lost+found"))
    rig.run("mount", "-o", "remount,ro", place)
    return place


def archive():
    """The tree as a tar."""
    command = ["tar", "--sort=name", "--format=pax", "--xattrs", "--xattrs-include=user.*", "-C", tree(), "-cf", "-", "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


@functools.cache
def reference():
    """The converted image of the tree."""
    layout, data = tempfile.mkdtemp(dir=world.work()), archive()
    layouts.write(layout, [(layouts.packed(data), data)])
    return world.publish_layout("twins", layout)[1]


class Mounted:
    """An image mounted by `larder-snapshotter mount`, which can be unmounted and mounted again."""

    def __init__(self, reference, driver):
        self.reference, self.driver = reference, driver
        self.root, self.place = tempfile.mkdtemp(dir=world.work()), tempfile.mkdtemp(dir=world.work())
        self.mount()

    def mount(self):
        world.snapshotter("mount", "--root", self.root, "--fs-driver", self.driver, "--detach", self.reference, self.place)

    def unmount(self):
        world.snapshotter("umount", "--root", self.root, self.place)
        rig.wait_for(lambda: not rig.processes_with(self.root), "the process that owned the mount to end")


@contextlib.contextmanager
def mounted(driver, image=None):
    one = Mounted(image or reference(), driver)
    try:
        yield one
    finally:
        one.unmount()


def outcome(call, *words):
    """What a call came to: the name of its error, or what it returned."""
    try:
        return call(*words)
    except OSError as error:
        return errno.errorcode[error.errno]


def system(name, *words):
    """A function of the C library that Python has not got; raises its error."""
    words = [os.fsencode(word) if isinstance(word, str) else word for word in words]
    done = getattr(LIBC, name)(*words)
    if done < 0:
        raise OSError(ctypes.get_errno(), name)
    return done


def in_child(call):
    """The wait status of a process that makes the call: 0, or the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as out:
        out.write("3")
