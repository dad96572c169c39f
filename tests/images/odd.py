"""Every case of tar and of file types that containerd's overlayfs can unpack, over three layers."""

import struct

from rawtar import BLOCK, Layout, gnu_long, header, pad, pax
from tools import CAPABILITY, accounts, busybox

T = 1700000000


def acl(*entries):
    """A POSIX ACL as the kernel stores it: version 2, then (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (2, 5, 1001), (4, 5, NOBODY), (16, 5, NOBODY), (32, 1, NOBODY))


def times(layer):
    layer.directory(b"times/", mtime=T)
    for name, stamp in [(b"nano", b"1700000000.123456789"), (b"tenth", b"1700000000.1"), (b"long", b"1.9999999999999"),
                        (b"before-1970", b"-1.5"), (b"late", b"9223372035.999999999"), (b"after-2262", b"9999999999"),
                        (b"zero", b"0"), (b"y2038", b"2147483648.000000001"), (b"y2106", b"4294967296.5")]:
        layer.add(b"times/" + name, name, records=[(b"mtime", stamp), (b"atime", b"1.5"), (b"ctime", b"2.5")])
    layer.add(b"times/base256", b"x", mtime=1 << 34)
    layer.add(b"times/negative", b"x", mtime=-86400)
    layer.raw(pax([(b"mtime", b"1600000000.000000007")]))
    layer.directory(b"times/directory/")


def attributes(layer):
    layer.directory(b"xattr/", mtime=T)
    x = b"SCHILY.xattr."
    layer.add(b"xattr/user", b"x", records=[(x + b"user.one", b"1"), (x + b"user.two", b"\0binary\xff\n=")])
    layer.add(b"xattr/shared", b"x", records=[(x + b"user.one", b"1")])
    layer.add(b"xattr/empty-value", b"x", records=[(x + b"user.large", b"v" * 3000)])
    layer.add(b"xattr/many", b"x", records=[(x + b"user.%03d" % i, b"value %d" % i) for i in range(60)])
    layer.add(b"xattr/libarchive", b"x", records=[(b"LIBARCHIVE.xattr.user.other", b"aWdub3JlZA")])
    layer.add(b"xattr/capability", b"x", mode=0o755, records=[(x + b"security.capability", CAPABILITY)])
    layer.add(b"xattr/acl", b"x", mode=0o670, records=[(x + b"system.posix_acl_access", ACCESS)])
    layer.add(b"xattr/trusted", b"x", records=[(x + b"trusted.note", b"kept")])
    layer.raw(pax([(x + b"system.posix_acl_default", DEFAULT), (x + b"user.on", b"directory")]))
    layer.directory(b"xattr/directory/", mtime=T)
    layer.add(b"xattr/directory/inherits", b"x", mtime=T)
    layer.raw(pax([(x + b"trusted.on", b"symlink")]))
    layer.symlink(b"xattr/link", b"user", mtime=T)


def links(layer):
    layer.directory(b"links/", mtime=T)
    layer.add(b"links/first", b"shared inode", mode=0o640, uid=7, gid=8, mtime=T)
    layer.hardlink(b"links/second", b"links/first", mode=0o640, uid=7, gid=8, mtime=T)
    layer.hardlink(b"links/own-metadata", b"./links/first", mode=0o604, uid=9, gid=10, mtime=T + 5)
    layer.hardlink(b"links/absolute", b"/links/first", mode=0o604, uid=9, gid=10, mtime=T + 5)
    layer.symlink(b"links/relative", b"../etc/passwd", mtime=T, uid=3, gid=4)
    layer.symlink(b"links/dangling", b"/no/such/thing", mtime=T)
    layer.symlink(b"links/loop", b"loop", mtime=T)
    layer.raw(pax([(b"linkpath", b"long/" * 600 + b"end")]))
    layer.symlink(b"links/pax-long", b"cut", mtime=T)
    layer.raw(gnu_long(b"K", b"gnu/" * 400 + b"end"))
    layer.symlink(b"links/gnu-long", b"cut", mtime=T, style="gnu")
    layer.hardlink(b"links/to-symlink", b"links/relative", mtime=T, uid=3, gid=4, mode=0o777)
    layer.hardlink(b"links/to-fifo", b"types/fifo", mtime=T, mode=0o600)


def types(layer):
    layer.directory(b"types/", mtime=T)
    layer.add(b"types/fifo", kind=b"6", mode=0o600, mtime=T)
    layer.add(b"types/null", kind=b"3", mode=0o666, device=(1, 3), mtime=T)
    layer.add(b"types/disk", kind=b"4", mode=0o660, device=(8, 1), mtime=T)
    layer.add(b"types/large-device", kind=b"4", mode=0o660, device=(4095, 1048575), mtime=T)
    layer.raw(header(b"types/old-style", b"\0", 4, mtime=T, style="v7") + b"old\n" + pad(4))
    layer.raw(header(b"types/old-directory/", b"\0", 0, mode=0o755, mtime=T, style="v7"))
    layer.directory(b"types/empty-directory/", mtime=T)
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 300_000, 1 << 20):
        layer.add(b"types/size-%d" % size, bytes(i * 7 % 251 for i in range(size)), mtime=T)


def modes(layer):
    layer.directory(b"modes/", mode=0o750, uid=5, gid=6, mtime=T)
    for mode in (0o000, 0o400, 0o111, 0o644, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777):
        layer.add(b"modes/%04o" % mode, b"x", mode=mode, mtime=T)
    for mode in (0o000, 0o700, 0o1777, 0o2775, 0o3770):
        layer.directory(b"modes/d%04o/" % mode, mode=mode, mtime=T)
    layer.add(b"modes/type-bits", b"x", mode=0o100640, mtime=T)
    for name, owner in [(b"big", 2_097_152), (b"larger", (1 << 31) + 5), (b"largest", (1 << 32) - 2), (b"minus-one", (1 << 32) - 1)]:
        layer.add(b"modes/" + name, b"x", uid=owner, gid=owner, mtime=T)
    layer.add(b"modes/pax-owner", b"x", uid=1, gid=1, mtime=T, records=[(b"uid", b"3000000000"), (b"gid", b"3000000001")])
    layer.add(b"modes/names-are-ignored", b"x", uid=1, gid=1, mtime=T, records=[(b"uname", b"daemon"), (b"gname", b"daemon")])


def names(layer):
    layer.directory(b"names/", mtime=T)
    for name in (b"space and\ttab", b"new\nline", b"\xff\xfe not utf-8", "gr\u00fc\u00dfe".encode(), b"back\\slash", b"comma,colon:", b"n" * 90,
                 b"-dash", b"...", b"wh.not-a-whiteout", b"a.wh.b"):
        layer.add(b"names/" + name, b"x", mtime=T)
    deep = b"d" * 80 + b"/" + b"e" * 80
    layer.add(b"names/" + b"p" * 30 + b"/x", b"x", mtime=T)
    layer.raw(header(b"file-with-prefix", size=1, mtime=T, prefix=b"names/" + deep[:80]) + b"x" + pad(1))
    layer.add(b"cut", b"pax", mtime=T, records=[(b"path", b"names/" + b"/".join([b"l" * 200] * 8))])
    layer.add(b"cut", b"pax", mtime=T, records=[(b"path", b"names/" + b"m" * 255)])
    layer.raw(gnu_long(b"L", b"names/gnu/" + b"g" * 240))
    layer.add(b"cut", b"gnu", mtime=T, style="gnu")
    layer.add(b"./names/dot-slash", b"x", mtime=T)
    layer.add(b"/names/absolute", b"x", mtime=T)
    layer.add(b"names//double//slash", b"x", mtime=T)
    layer.add(b"names/./a/../up", b"x", mtime=T)
    layer.raw(pax([(b"comment", b"global")], b"g"))
    layer.add(b"names/after-global", b"x", mtime=T)
    layer.directory(b"names/many/", mtime=T)
    for i in range(5000):
        layer.add(b"names/many/%x" % (i * 2654435761 % (1 << 32)), b"", mtime=T + i)


def sparse(layer):
    """The three PAX formats, each with a hole at the start, in the middle and at the end; containerd refuses GNU's older one."""
    data = [(8192, b"A" * 4096), (40960, b"B" * 1024), (50176, b"C" * 512)]
    size = 100_000
    body = b"".join(piece for _, piece in data)

    layer.directory(b"sparse/", mtime=T)
    pairs = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(data))]
    layer.add(b"sparse/pax-0.0", body, mtime=T, records=pairs + [
        record for offset, piece in data
        for record in ((b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % len(piece)))])
    layer.add(b"sparse/cut", body, mtime=T, records=pairs + [
        (b"GNU.sparse.name", b"sparse/pax-0.1"),
        (b"GNU.sparse.map", b",".join(b"%d,%d" % (offset, len(piece)) for offset, piece in data))])
    text = b"%d\n" % len(data) + b"".join(b"%d\n%d\n" % (offset, len(piece)) for offset, piece in data)
    one = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
    layer.add(b"sparse/cut", text + pad(len(text)) + body, mtime=T, records=one + [
        (b"GNU.sparse.name", b"sparse/pax-1.0"), (b"GNU.sparse.realsize", b"%d" % size)])
    layer.add(b"sparse/cut", b"0\n" + pad(2), mtime=T, records=one + [
        (b"GNU.sparse.name", b"sparse/only-a-hole"), (b"GNU.sparse.realsize", b"1000000")])


def replaced(layer):
    """Names that occur more than once, and entries whose path leads through a symlink of the same layer."""
    layer.directory(b"twice/", mtime=T)
    layer.add(b"twice/file", b"first", mtime=T)
    layer.hardlink(b"twice/keeps-first", b"twice/file", mtime=T)
    layer.add(b"twice/file", b"second, longer", mode=0o600, mtime=T + 1)
    layer.directory(b"twice/directory/", mode=0o700, mtime=T)
    layer.add(b"twice/directory/stays", b"x", mtime=T)
    layer.directory(b"twice/directory/", mode=0o711, uid=4, mtime=T + 2)
    layer.add(b"twice/file-then-link", b"x", mtime=T)
    layer.symlink(b"twice/file-then-link", b"file", mtime=T)
    layer.symlink(b"twice/link-then-file", b"file", mtime=T)
    layer.add(b"twice/link-then-file", b"not through the link", mtime=T)
    layer.directory(b"twice/directory-then-file/", mtime=T)
    layer.add(b"twice/directory-then-file/gone", b"x", mtime=T)
    layer.add(b"twice/directory-then-file", b"x", mtime=T)
    layer.add(b"twice/file-then-directory", b"x", mtime=T)
    layer.directory(b"twice/file-then-directory/", mtime=T)

    layer.directory(b"usr/", mtime=T)
    layer.directory(b"usr/lib/", mtime=T)
    layer.symlink(b"lib", b"usr/lib", mtime=T)
    layer.add(b"lib/below-relative", b"x", mtime=T)
    layer.symlink(b"lib-absolute", b"/usr/lib", mtime=T)
    layer.add(b"lib-absolute/below-absolute", b"x", mtime=T)
    layer.hardlink(b"lib/linked-below", b"lib/below-relative", mtime=T)
    layer.symlink(b"usr/up", b"../../../usr/lib", mtime=T)
    layer.add(b"usr/up/below-escaping", b"x", mtime=T)
    layer.symlink(b"twice/through-two", b"../lib", mtime=T)
    layer.add(b"twice/through-two/below-two", b"x", mtime=T)


def targets(layer):
    """What the layers above will remove, hide and extend."""
    for name in (b"white/", b"white/directory/", b"white/opaque/", b"white/opaque/inner/", b"white/again/"):
        layer.directory(name, mtime=T)
    for name in (b"white/file", b"white/third", b"white/directory/x", b"white/opaque/hidden", b"white/opaque/inner/hidden",
                 b"white/again/one", b"white/again/two", b"white/becomes-directory"):
        layer.add(name, b"layer one", mtime=T)
    layer.directory(b"white/becomes-file/", mtime=T)
    layer.add(b"white/becomes-file/x", b"x", mtime=T)
    layer.directory(b"parent/", mode=0o2710, uid=21, gid=22, mtime=T)
    layer.raw(pax([(b"SCHILY.xattr.user.parent", b"kept")]))
    layer.directory(b"parent/child/", mode=0o705, uid=23, gid=24, mtime=T)
    layer.add(b"implied/by/file", b"no entry for my parents", mtime=T)
    layer.directory(b"links-later/", mtime=T)
    layer.symlink(b"links-later/link", b"../usr/lib", mtime=T)


def second(layer):
    layer.directory(b"white/", mode=0o711, uid=31, mtime=T + 10)
    layer.add(b"white/.wh.file")
    layer.add(b"white/.wh.directory")
    layer.directory(b"white/opaque/", mode=0o701, mtime=T + 10)
    layer.add(b"white/opaque/.wh..wh..opq")
    layer.add(b"white/opaque/visible", b"layer two", mtime=T)
    layer.directory(b"white/again/", mtime=T + 10)
    layer.add(b"white/again/.wh..wh..opq")
    layer.add(b"white/again/three", b"layer two", mtime=T)
    layer.add(b"white/.wh.becomes-directory")
    layer.add(b"white/becomes-file", b"a file now", mtime=T)
    layer.add(b"parent/child/added", b"my parents have no entry in this layer", mtime=T)
    layer.add(b"implied/by/another", b"x", mtime=T)
    layer.add(b"implied/anew/file", b"x", mtime=T)
    layer.add(b"links-later/link/below", b"hides the symlink of the layer below", mtime=T)
    layer.add(b"types/size-1", b"replaced", mtime=T + 3)
    layer.add(b"links/second", b"no longer a link", mtime=T)


def third(layer):
    layer.add(b"white/file", b"back again", mtime=T + 20)
    layer.add(b"white/.wh.third")
    layer.add(b"white/opaque/hidden", b"layer three", mtime=T)
    layer.directory(b"white/directory/", mode=0o700, mtime=T)
    layer.add(b"white/directory/new", b"x", mtime=T)
    layer.directory(b"white/becomes-directory/", mtime=T)
    layer.add(b"white/becomes-directory/x", b"x", mtime=T)
    layer.add(b"white/.wh.never-existed")
    layer.add(b"parent/child/deeper/still", b"x", mtime=T)
    layer.raw(pax([(b"mtime", b"1700000000.5")]))
    layer.directory(b"xattr/directory/", mtime=T)


def write(directory, programs):
    layout = Layout(directory)
    first = layout.layer()
    busybox(first, programs)
    accounts(first)
    for part in (times, attributes, types, links, modes, names, sparse, replaced, targets):
        part(first)
    first.finish(end=20 * BLOCK)
    for part in (second, third):
        layer = layout.layer()
        part(layer)
        layer.finish()
    layout.finish({"Cmd": ["/bin/cat", "/white/file"], "Env": ["PATH=/bin"], "Labels": {"larder.ready": "exit"}})


def unaligned(directory, programs):
    """Three layers, the middle one with a sparse file whose pieces lie at odd offsets: legal, but no block device can show it."""
    layout = Layout(directory)
    first = layout.layer()
    busybox(first, programs)
    first.directory(b"sparse/", mtime=T)
    first.finish()
    layer = layout.layer()
    data = [(1000, b"A" * 700), (70_001, b"B" * 5)]
    body = b"".join(piece for _, piece in data)
    text = b"%d\n" % len(data) + b"".join(b"%d\n%d\n" % (offset, len(piece)) for offset, piece in data)
    layer.add(b"cut", text + pad(len(text)) + body, mtime=T, records=[
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"sparse/unaligned"), (b"GNU.sparse.realsize", b"99999")])
    layer.finish()
    last = layout.layer()
    last.add(b"sparse/after", b"lazy again", mtime=T)
    last.finish()
    layout.finish({"Cmd": ["/bin/sha256sum", "/sparse/unaligned", "/sparse/after"], "Env": ["PATH=/bin"]})


def huge(directory, _programs):
    """A sparse file larger than 4 GiB with data at both ends, and a plain one of 64 MiB of zeros."""
    layout = Layout(directory)
    layer = layout.layer()
    size = (4 << 30) + (256 << 20)
    data = [(0, b"start..." * 512), (size - 4096, b"e" * 4096)]
    text = b"2\n" + b"".join(b"%d\n%d\n" % (offset, len(piece)) for offset, piece in data)
    body = text + pad(len(text)) + b"".join(piece for _, piece in data)
    layer.add(b"cut", body, mtime=T, records=[
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"huge"), (b"GNU.sparse.realsize", b"%d" % size)])
    layer.raw(header(b"zeros", size=64 << 20, mtime=T))
    layer.zeros(64 << 20)
    layer.finish()
    layout.finish({"Cmd": ["/none"]})


def zeros(directory, _programs):
    """10 GB of zeros in a layer of 10 MB: one file that must cost neither memory nor disk."""
    layout = Layout(directory)
    layer = layout.layer(level=9)
    size = 10_000_000_000 // BLOCK * BLOCK
    layer.raw(pax([(b"size", b"%d" % size)]) + header(b"zeros", size=size, mtime=T))
    layer.zeros(size)
    layer.finish()
    layout.finish({"Cmd": ["/none"]})
