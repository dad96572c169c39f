"""One layer each that no index can describe as containerd would unpack it; converting copies it as it is."""

from rawtar import Layout

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
