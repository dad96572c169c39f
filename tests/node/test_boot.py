"""The daemon starts while there is no registry and nobody answers for its name."""

import contextlib
import errno
import io
import os
import random
import socket
import subprocess
import tarfile
import time

import layouts
import trees
import world
from world import DRIVERS, once_per, rig

HOST = "registry.test"
ADDRESS = "127.0.0.2:5005"
REGISTRY = f"{HOST}:5005"
SILENT = "127.0.0.53"  # where a name server would listen
READY = "ready for containerd"
READY_SECONDS_MAX = 30  # the promise is 2 s; this only tells a start from a hang on a busy machine
DEADLINE = 3
BUSY_SECONDS = 15  # what a busy machine adds to a deadline
FILE_BYTES = 300_000
UNREAD_BYTES = 8_000_000  # its end is far from what the kernel reads ahead of another file
END_BYTES = 4096


class Names:
    """/etc/hosts and /etc/resolv.conf of this mount namespace: the one name, or name servers that say nothing."""

    def __init__(self, test):
        self.hosts = os.path.join(test.folder(), "hosts")
        servers = os.path.join(os.path.dirname(self.hosts), "resolv.conf")
        with open(servers, "w") as out:
            out.write(f"nameserver {SILENT}\noptions timeout:5 attempts:2\n")
        self.set(known=True)
        for file, place in ((self.hosts, "/etc/hosts"), (servers, "/etc/resolv.conf")):
            rig.run("mount", "--bind", file, place)
            test.addCleanup(rig.run, "umount", place)
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        test.addCleanup(server.close)
        server.bind((SILENT, 53))

    def set(self, known):
        with open(self.hosts, "w") as out:
            out.write("127.0.0.1 localhost\n" + (f"{ADDRESS.split(':')[0]} {HOST}\n" if known else ""))


def layer(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return layouts.packed(out.getvalue()), out.getvalue()


def read(place, name):
    with open(os.path.join(place, name), "rb") as file:
        return file.read()


def read_end(place):
    with open(os.path.join(place, "unread"), "rb") as file:
        return os.pread(file.fileno(), END_BYTES, UNREAD_BYTES - END_BYTES)


class Boot(world.Case):
    """Promise: a node boots without the network."""

    @once_per(driver=DRIVERS)
    def test_a_node_boots_without_registry_and_name_servers(self, driver):
        """Promise: the daemon is ready in 2 s; what was read before is served; the rest is EIO at the deadline, with the reason
        in the log; and when registry and name are back, it is read by itself."""
        sizes = {"whole": FILE_BYTES, "read": FILE_BYTES, "unread": UNREAD_BYTES}
        files = {name: random.Random(name).randbytes(size) for name, size in sizes.items()}
        layout = os.path.join(self.folder(), "layout")
        layouts.write(layout, [layer({"whole": files["whole"]}), layer({n: files[n] for n in ("read", "unread")})])
        names = Names(self)
        registry, _ = world.serve_registry(ADDRESS)
        self.addCleanup(lambda: rig.stop(registry))
        original, converted = f"{REGISTRY}/test/boot:original", f"{REGISTRY}/test/boot:larder"
        rig.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{original}")
        world.larder("convert", "--plain-http", original, converted)

        with self.node("2", lazy=True, driver=driver, registry=REGISTRY) as node:
            node.pull(converted)
            with trees.mounted(node, converted) as place:
                for name in ("whole", "read"):
                    self.assertEqual(read(place, name), files[name])

            rig.stop(node.daemon)
            rig.stop(registry)
            names.set(known=False)
            settings = os.path.join(node.work, "larder.toml")
            with open(settings) as old:
                text = old.read()
            with open(settings, "w") as new:
                new.write(f"read_deadline_seconds = {DEADLINE}\n{text}")
            began = time.monotonic()
            node.start_snapshotter()
            rig.wait_for(lambda: self.log(node).count(READY) == 2, "the daemon to be ready", node.log)
            ready = time.monotonic() - began
            print(f"ready in {ready:.2f} s", end=" ", flush=True)
            self.assertLess(ready, READY_SECONDS_MAX)
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", node.snapshotter, "ls"), "containerd to connect", node.log)

            with trees.mounted(node, converted) as place:
                for name in ("whole", "read"):
                    self.assertEqual(read(place, name), files[name])
                began = time.monotonic()
                with self.assertRaises(OSError) as refused:
                    read_end(place)
                waited = time.monotonic() - began
                self.assertEqual(refused.exception.errno, errno.EIO)
                self.assertLess(waited, DEADLINE + BUSY_SECONDS)
                # Nobody waits for the log, so a line may come a moment after what it tells.
                rig.wait_for(lambda: "a read fails" in self.log(node), "the failure to be told", node.log)
                told = [line for line in self.log(node).splitlines() if "a read fails" in line]
                self.assertIn(HOST, told[0])
                self.assertTrue("name servers" in told[0] or "no answer within" in told[0], told[0])
                # Others are served meanwhile, and status answers.
                self.assertEqual(read(place, "read"), files["read"])
                self.assertIn("layers", world.status(f"{node.work}/larder"))

                names.set(known=True)
                again = subprocess.Popen(registry.args)
                self.addCleanup(rig.stop, again)
                rig.wait_for(lambda: self.healed(place, files["unread"][-END_BYTES:]), "the read to heal", node.log)

    def healed(self, place, content):
        with contextlib.suppress(OSError):
            self.assertEqual(read_end(place), content)
            return True
        return False

    def log(self, node):
        with open(os.path.join(node.work, "larder.log")) as lines:
            return lines.read()
