"""100,000 small files: 60,000 in one directory and 40,000 in 400."""

import hashlib

from rawtar import Layout


def write(directory, _programs):
    layout = Layout(directory)
    layer = layout.layer(level=1)
    layer.directory(b"wide/", mtime=1700000000)

    def file(name, seed):
        text = hashlib.sha256(b"%d" % seed).hexdigest().encode() * (1 + seed % 24)
        layer.add(name, text, mtime=1700000000 + seed)

    layer.directory(b"wide/flat/", mtime=1700000001)
    for i in range(60_000):
        file(b"wide/flat/entry-%05d" % i, i)
    for d in range(400):
        layer.directory(b"wide/%03d/" % d, mtime=1700000002)
        for i in range(100):
            file(b"wide/%03d/%d.txt" % (d, i), 60_000 + 100 * d + i)
    layer.finish()
    layout.finish({"Cmd": ["/none"]})
