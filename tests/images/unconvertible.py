"""One layer each that no index can describe as containerd would unpack it; converting copies it as it is."""

from rawtar import Layout, header, pad

T = 1700000000


def forward(directory, _programs):
    layout = Layout(directory)
    layer = layout.layer()
    layer.hardlink(b"early", b"late", mtime=T)
    layer.add(b"late", b"x", mtime=T)
    layer.finish()
    layout.finish({"Cmd": ["/none"]})


def across(directory, _programs):
    layout = Layout(directory)
    layer = layout.layer()
    layer.add(b"below", b"x", mtime=T)
    layer.finish()
    layer = layout.layer()
    layer.hardlink(b"above", b"below", mtime=T)
    layer.finish()
    layout.finish({"Cmd": ["/none"]})


def overlay(directory, _programs):
    layout = Layout(directory)
    layer = layout.layer()
    layer.add(b"directory/x", b"x", mtime=T)
    layer.add(b"redirected", b"x", mtime=T, records=[(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc/shadow")])
    layer.finish()
    layout.finish({"Cmd": ["/none"]})


def sparse(directory, _programs):
    """GNU's old sparse entry, which containerd does not unpack."""
    layout = Layout(directory)
    layer = layout.layer()
    spans = b"".join(b"%011o\0%011o\0" % span for span in [(8192, 512), (100_000, 0)])
    tail = b"\0" * 41 + spans.ljust(96, b"\0") + b"\0" + b"%011o\0" % 100_000
    layer.raw(header(b"sparse", b"S", 512, mtime=T, style="gnu", tail=tail) + b"A" * 512 + pad(512))
    layer.finish()
    layout.finish({"Cmd": ["/none"]})
