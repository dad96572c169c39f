"""Mounted trees of images, and the reference that others are compared with."""

import contextlib
import functools
import os
import tempfile

import images
import oracle
import world
from world import rig

UNPACKED = ("odd", "odd-sparse", "tools-layers", "python", "node", "nginx", "wide", "huge")


@contextlib.contextmanager
def mounted_by_containerd(node, reference):
    """The tree of an image that containerd pulls: unpacked, or what a lazy node shows."""
    node.pull(reference)
    with mounted(node, reference) as place:
        yield place


@contextlib.contextmanager
def mounted(node, reference):
    """The same of an image that was pulled before."""
    place = tempfile.mkdtemp(dir=world.work())
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
        world.snapshotter("umount", "--root", root, place)
    if os.path.ismount(place):
        raise rig.RigError(f"{place} is still a mount")
    rig.wait_for(lambda: not rig.processes_with(root), "the process that owned the mount to end")


@functools.cache
def reference(name):
    """The tree of the original, unpacked by containerd 1.6 on overlayfs, and the directories that no layer speaks of."""
    original, _ = world.publish(name)
    with world.node("1.6", lazy=False) as node, mounted_by_containerd(node, original) as place:
        return oracle.snapshot(place), images.Image(images.layout(name)).implied()
