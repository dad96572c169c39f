"""Mounted trees of images, and the reference that others are compared with."""

import contextlib
import functools
import tempfile

import images
import oracle
import world
from world import rig

UNPACKED = ("odd", "odd-sparse", "tools-layers", "python", "node", "nginx", "wide", "huge")


@contextlib.contextmanager
def mounted_by_containerd(node, reference):
    """The tree that an unpack of containerd makes of an image."""
    place = tempfile.mkdtemp(dir=world.work())
    node.pull(reference)
    node.ctr("images", "mount", "--snapshotter", node.snapshotter, reference, place)
    try:
        yield place
    finally:
        rig.run("umount", place)


@contextlib.contextmanager
def mounted_by_larder(reference, driver):
    """The tree that `larder-snapshotter mount` shows."""
    root, place = tempfile.mkdtemp(dir=world.work()), tempfile.mkdtemp(dir=world.work())
    world.snapshotter("mount", "--root", root, "--fs-driver", driver, "--detach", reference, place)
    try:
        yield place
    finally:
        world.snapshotter("umount", place)


@functools.cache
def reference(name):
    """The tree of the original, unpacked by containerd 1.6 on overlayfs, and the directories that no layer speaks of."""
    original, _ = world.publish(name)
    with world.node("1.6", lazy=False) as node, mounted_by_containerd(node, original) as place:
        return oracle.snapshot(place), images.Image(images.layout(name)).implied()
