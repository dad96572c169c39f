"""make.py NAME DIRECTORY BUSYBOX PROBE: writes one of the generated images as an OCI layout."""

import sys

import odd
import tools
import unconvertible
import wide

IMAGES = {
    "wide": wide.write,
    "odd": odd.write,
    "odd-sparse": odd.unaligned,
    "huge": odd.huge,
    "zeros": odd.zeros,
    "tools": lambda directory, programs: tools.write(directory, programs, 1),
    "tools-layers": lambda directory, programs: tools.write(directory, programs, 6),
    "tools-user": lambda directory, programs: tools.write(directory, programs, 1, "worker"),
    "tools-layers-user": lambda directory, programs: tools.write(directory, programs, 6, "worker"),
    "pause": tools.pause,
    "unconvertible-forward": unconvertible.forward,
    "unconvertible-across": unconvertible.across,
    "unconvertible-overlay": unconvertible.overlay,
    "unconvertible-sparse": unconvertible.sparse,
}

name, directory, busybox, probe = sys.argv[1:]
with open(busybox, "rb") as b, open(probe, "rb") as p:
    IMAGES[name](directory, {"busybox": b.read(), "probe": p.read()})
