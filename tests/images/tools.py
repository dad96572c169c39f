"""Small images that run: *tools* in one layer, *tools-layers* in six, each also as *-user* 1000; *pause* for CRI pods.

Each has busybox, a setuid program and a program with a file capability, so that containers can show what the kernel
made of them.
"""

import struct

from rawtar import Layout

# VFS_CAP_REVISION_2 with the effective bit, cap_net_bind_service (10) permitted.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
APPLETS = ["sh", "cat", "id", "ls", "sleep", "echo", "touch", "mkdir", "rm", "mv", "ln", "chmod", "chown", "stat",
           "sha256sum", "find", "grep", "dd", "true", "wget"]
T = 1700000000


def busybox(layer, programs):
    layer.directory(b"bin/", mtime=T)
    layer.add(b"bin/busybox", programs["busybox"], mode=0o755, mtime=T)
    for applet in APPLETS:
        layer.symlink(b"bin/" + applet.encode(), b"busybox", mtime=T)


def accounts(layer):
    layer.directory(b"etc/", mtime=T)
    layer.add(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home:/bin/sh\n", mtime=T)
    layer.add(b"etc/group", b"root:x:0:\nworker:x:1000:\n", mtime=T)
    for name in (b"proc/", b"sys/", b"dev/", b"run/"):
        layer.directory(name, mtime=T)
    layer.directory(b"tmp/", mode=0o1777, mtime=T)
    layer.directory(b"home/", uid=1000, gid=1000, mtime=T)


def setuid(layer, programs):
    layer.directory(b"suid/", mtime=T)
    layer.add(b"suid/plain", programs["probe"], mode=0o755, mtime=T)
    layer.add(b"suid/root", programs["probe"], mode=0o4755, mtime=T)
    layer.add(b"suid/group", programs["probe"], mode=0o2755, gid=50, mtime=T)


def capability(layer, programs):
    layer.add(b"caps/bind", programs["probe"], mode=0o755, mtime=T,
              records=[(b"SCHILY.xattr.security.capability", CAPABILITY)])


def private(layer):
    layer.add(b"home/private", b"only for 1000\n", mode=0o600, uid=1000, gid=1000, mtime=T)
    layer.add(b"etc/secret", b"only for root\n", mode=0o600, mtime=T)


def write(directory, programs, layers, user=None):
    layout = Layout(directory)
    steps = [lambda l: busybox(l, programs), accounts, lambda l: setuid(l, programs), lambda l: capability(l, programs),
             private, lambda l: l.add(b"etc/motd", b"six layers\n" if layers > 1 else b"one layer\n", mtime=T)]
    for group in ([[step] for step in steps] if layers > 1 else [steps]):
        layer = layout.layer()
        for step in group:
            step(layer)
        layer.finish()
    config = {"Cmd": ["/bin/cat", "/etc/motd"], "Env": ["PATH=/bin"], "Labels": {"larder.ready": "exit"}}
    layout.finish(config | ({"User": user} if user else {}))


def pause(directory, programs):
    layout = Layout(directory)
    layer = layout.layer()
    busybox(layer, programs)
    layer.finish()
    layout.finish({"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]})
