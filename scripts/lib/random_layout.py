"""Images of one file that nothing makes smaller, so that bytes and seconds of a chunk are known beforehand."""

import os
import random
import sys

import rig

sys.path.append(os.path.join(rig.TOP, "tests", "images"))

import rawtar  # noqa: E402

CHUNK_BYTES = 256 << 10  # what `larder convert` cuts by default; a large file's content begins and ends a chunk
NAME = "random"


def write(directory, chunks, seed):
    """The layout of an image with one file of so many chunks; the file lies uncompressed in the layer."""
    layout = rawtar.Layout(directory)
    layer = layout.layer(level=0)
    layer.raw(rawtar.header(NAME.encode(), size=chunks * CHUNK_BYTES, mtime=1700000000))
    source = random.Random(seed)
    for _ in range(chunks):
        layer.raw(source.randbytes(CHUNK_BYTES))
    layer.finish()
    layout.finish({"Cmd": ["/none"]})
    return directory
