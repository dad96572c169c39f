"""What the tests of a node share: a registry on loopback, containerd releases, programs and mounted trees."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "scripts/lib"))

import images  # noqa: E402
import rig  # noqa: E402

PROGRAMS = os.environ["LARDER_PROGRAMS"]
REGISTRY = "127.0.0.1:5000"
RELEASES = {
    "1.6": os.path.dirname(shutil.which("containerd")),
    "1.7": os.path.join(images.CACHE, "containerd/trixie/usr/bin"),
    "2": os.path.join(images.CACHE, "containerd/sid/usr/bin"),
}


def larder(*words, **options):
    return rig.run(os.path.join(PROGRAMS, "larder"), *words, **options)


def snapshotter(*words, **options):
    return rig.run(os.path.join(PROGRAMS, "larder-snapshotter"), *words, **options)


@functools.cache
def drivers():
    """Both drivers, or a message why this kernel has only one. Never counts as passed: the caller skips with it."""
    major, minor = map(int, re.match(r"(\d+)\.(\d+)", os.uname().release).groups())
    return {"fuse": None, "erofs": None if (major, minor) >= (6, 12) else "needs kernel ≥ 6.12"}


class Case(unittest.TestCase):
    """A test class with a temporary folder, a registry in it, and everything undone at its end."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.work = tempfile.mkdtemp(prefix="larder-test-")
        cls.addClassCleanup(shutil.rmtree, cls.work, True)
        cls.addClassCleanup(rig.unmount_below, cls.work)
        config = os.path.join(cls.work, "registry.yml")
        storage = os.path.join(cls.work, "registry")
        with open(config, "w") as out:
            out.write("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
                      f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{REGISTRY}'}}\n")
        log = open(os.path.join(cls.work, "registry.log"), "w")
        registry = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
        log.close()
        cls.addClassCleanup(rig.stop, registry)
        rig.wait_for(lambda: rig.answers(f"http://{REGISTRY}/v2/"), "the registry to answer")

    @classmethod
    def folder(cls):
        return tempfile.mkdtemp(dir=cls.work)

    @classmethod
    def publish(cls, name):
        """Pushes a test image as it is and converted; their references."""
        original, converted = f"{REGISTRY}/test/{name}:original", f"{REGISTRY}/test/{name}:larder"
        if not rig.answers(f"http://{REGISTRY}/v2/test/{name}/manifests/original"):
            rig.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false",
                    f"oci:{images.layout(name)}:latest", f"docker://{original}")
            larder("convert", original, converted)
        return original, converted

    @contextlib.contextmanager
    def node(self, release, lazy, driver="auto"):
        node = rig.Node(self.work, PROGRAMS, lazy, driver, RELEASES[release])
        try:
            node.start(REGISTRY)
            yield node
        finally:
            node.close()

    def mount_of_containerd(self, node, reference):
        """The tree that containerd's overlayfs unpack makes of an image."""
        place = self.folder()
        node.ctr("images", "mount", "--snapshotter", node.snapshotter, reference, place)
        self.addCleanup(rig.run, "umount", place)
        return place

    def mount_of_larder(self, reference, driver):
        """The tree that `larder-snapshotter mount` shows."""
        root, place = self.folder(), self.folder()
        snapshotter("mount", "--root", root, "--fs-driver", driver, "--detach", reference, place)
        self.addCleanup(snapshotter, "umount", place)
        return place
