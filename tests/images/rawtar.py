"""Writes tar entries byte by byte and OCI layouts around them.

Python's own tarfile decides too much (formats, order, padding), and these images exist to hold the
cases a decent tar writer would avoid.
"""

import gzip
import hashlib
import json
import os
import zlib

BLOCK = 512


def number(value, width):
    """A numeric field: octal when it fits, else base-256, as GNU tar writes it."""
    text = b"%0*o" % (width - 1, value) if value >= 0 else b""
    if value >= 0 and len(text) < width:
        return text + b"\0"
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % (1 << (8 * (width - 1)))).to_bytes(width - 1, "big")


def pad(length):
    return b"\0" * (-length % BLOCK)


def header(name, kind=b"0", size=0, mode=0o644, uid=0, gid=0, mtime=0, link=b"", device=(0, 0), style="ustar", prefix=b"", tail=None):
    """One 512-byte header. `tail` replaces the bytes from offset 345 on (GNU's old sparse maps lie there)."""
    magic = {"ustar": b"ustar\x0000", "gnu": b"ustar  \0", "v7": b"\0" * 8}[style]
    assert len(name) <= 100 and len(link) <= 100 and len(prefix) <= 155, name
    block = bytearray(
        name.ljust(100, b"\0") + number(mode, 8) + number(uid, 8) + number(gid, 8) + number(size, 12)
        + number(mtime, 12) + b" " * 8 + kind + link.ljust(100, b"\0") + magic + b"\0" * 64
        + (b"\0" * 16 if style == "v7" else number(device[0], 8) + number(device[1], 8))
        + (tail if tail is not None else prefix).ljust(167, b"\0")
    )
    assert len(block) == BLOCK
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records, kind=b"x"):
    """An extended header: `records` is a list of (key, value) byte pairs, kept in order and unchecked."""
    body = b""
    for key, value in records:
        tail = b" " + key + b"=" + value + b"\n"
        length = len(tail)
        while length != len(tail) + len(str(length)):
            length = len(tail) + len(str(length))
        body += str(length).encode() + tail
    return header(b"pax_global_header" if kind == b"g" else b"PaxHeaders/x", kind, len(body)) + body + pad(len(body))


def gnu_long(kind, value):
    """GNU's long name (`L`) or long link (`K`) entry, which precedes the entry it speaks of."""
    return header(b"././@LongLink", kind, len(value) + 1, style="gnu") + value + b"\0" + pad(len(value) + 1)


class Layer:
    """One gzip layer, written as it is made; its blob and diffID are known after `finish`."""

    def __init__(self, layout, level=6):
        self.layout = layout
        self.part = os.path.join(layout.directory, "part")
        self.file = open(self.part, "wb")
        self.gzip = gzip.GzipFile("", "wb", level, self.file, mtime=0)
        self.diff = hashlib.sha256()

    def raw(self, data):
        self.diff.update(data)
        self.gzip.write(data)

    def zeros(self, count):
        """`count` zero bytes in gzip members that are compressed once, so that gigabytes cost nothing."""
        unit = 64 << 20
        self.gzip.close()
        data = bytes(unit)
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
        member = squeeze.compress(data) + squeeze.flush()
        for _ in range(count // unit):
            self.diff.update(data)
            self.file.write(member)
        self.gzip = gzip.GzipFile("", "wb", 9, self.file, mtime=0)
        self.raw(bytes(count % unit))

    def add(self, name, data=b"", records=(), **fields):
        """An entry with its data; `records` become a PAX header before it."""
        if records:
            self.raw(pax(records))
        self.raw(header(name, size=fields.pop("size", len(data)), **fields) + data + pad(len(data)))

    def directory(self, name, mode=0o755, **fields):
        self.add(name, kind=b"5", mode=mode, **fields)

    def symlink(self, name, target, **fields):
        self.add(name, kind=b"2", link=target, mode=0o777, **fields)

    def hardlink(self, name, target, **fields):
        self.add(name, kind=b"1", link=target, **fields)

    def finish(self, end=2 * BLOCK):
        self.raw(b"\0" * end)
        self.gzip.close()
        self.file.close()
        self.layout.layers.append(
            self.layout.keep(self.part, "application/vnd.oci.image.layer.v1.tar+gzip"))
        self.layout.diff_ids.append("sha256:" + self.diff.hexdigest())


class Layout:
    """An OCI layout directory with one image, tagged `latest`."""

    def __init__(self, directory):
        self.directory = directory
        self.layers, self.diff_ids = [], []
        os.makedirs(os.path.join(directory, "blobs/sha256"), exist_ok=True)

    def layer(self, **options):
        return Layer(self, **options)

    def keep(self, path, media_type):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        size = os.path.getsize(path)
        os.rename(path, os.path.join(self.directory, "blobs/sha256", digest.hexdigest()))
        return {"mediaType": media_type, "digest": "sha256:" + digest.hexdigest(), "size": size}

    def keep_json(self, value, media_type):
        path = os.path.join(self.directory, "part")
        with open(path, "w") as file:
            json.dump(value, file)
        return self.keep(path, media_type)

    def finish(self, config):
        config = self.keep_json(
            {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux", "config": config,
             "rootfs": {"type": "layers", "diff_ids": self.diff_ids}},
            "application/vnd.oci.image.config.v1+json")
        manifest = self.keep_json(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "config": config, "layers": self.layers},
            "application/vnd.oci.image.manifest.v1+json")
        manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        with open(os.path.join(self.directory, "index.json"), "w") as file:
            json.dump({"schemaVersion": 2, "manifests": [manifest]}, file)
        with open(os.path.join(self.directory, "oci-layout"), "w") as file:
            file.write('{"imageLayoutVersion":"1.0.0"}')
