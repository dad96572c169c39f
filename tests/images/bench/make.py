"""make.py NAME DIRECTORY BUSYBOX PROBE: writes one of the generated images of the benchmarks as an OCI layout."""

import hashlib
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import rawtar  # noqa: E402

MTIME = 1700000000
SMALL_FILES, SMALL_PER_DIRECTORY = 200_000, 500
LARGE_FILES, LARGE_BYTES = 8, 512 << 20
PIECE = 1 << 20
# Lists every name, and reads one small file of each fifth directory: a start that walks, as package managers and scanners do.
WALK = "find /wide -type f | wc -l; for d in /wide/??[05]; do cat $d/7; done | wc -c; echo ready"
# Reads 64 KiB at 160 places of the eight files, as a program that looks up what it needs in models or tables.
LOOK_UP = ("i=0; while [ $i -lt 160 ]; do dd if=/large/$((i % 8)) bs=65536 skip=$((i * 1237 % 8192)) count=1 2>/dev/null; i=$((i + 1)); "
           "done | wc -c; echo ready")


def shell(layer, busybox):
    """Enough of a system to run a script."""
    for name in (b"bin/", b"dev/", b"etc/", b"proc/", b"sys/", b"tmp/"):
        layer.directory(name, mtime=MTIME)
    layer.add(b"bin/busybox", busybox, mode=0o755, mtime=MTIME)
    for name in (b"sh", b"find", b"wc", b"cat", b"dd", b"echo"):
        layer.symlink(b"bin/" + name, b"busybox", mtime=MTIME)


def small(layer):
    layer.directory(b"wide/", mtime=MTIME)
    for number in range(SMALL_FILES):
        folder, name = divmod(number, SMALL_PER_DIRECTORY)
        if name == 0:
            layer.directory(b"wide/%03d/" % folder, mtime=MTIME)
        text = hashlib.sha256(b"%d" % number).hexdigest().encode() * (1 + number % 24)
        layer.add(b"wide/%03d/%d" % (folder, name), text, mtime=MTIME)


def large(layer):
    """Bytes that no compression makes smaller."""
    layer.directory(b"large/", mtime=MTIME)
    for number in range(LARGE_FILES):
        layer.raw(rawtar.header(b"large/%d" % number, size=LARGE_BYTES, mtime=MTIME))
        source = random.Random(number)
        for _ in range(LARGE_BYTES // PIECE):
            layer.raw(source.randbytes(PIECE))


# By name: what fills it, what a start runs, and the level of gzip.
IMAGES = {"wide200": (small, WALK, 1), "large": (large, LOOK_UP, 0)}

image, directory, path, _ = sys.argv[1:]
fill, script, level = IMAGES[image]
layout = rawtar.Layout(directory)
with open(path, "rb") as file:
    programs = layout.layer()
    shell(programs, file.read())
    programs.finish()
files = layout.layer(level=level)
fill(files)
files.finish()
layout.finish({"Cmd": ["/bin/sh", "-c", script], "Labels": {"larder.ready": "line:ready"}})
