"""Commands as a person types them: `mount` in the foreground, `status` of a running daemon, progress on a terminal."""

import contextlib
import os
import pty
import re
import signal
import socket
import socketserver
import subprocess
import threading

import images
import world
from world import DRIVERS, once_per, rig

END_SECONDS_MAX = 120


class Foreground(world.Case):
    """`larder-snapshotter mount` without --detach."""

    def mount(self, root, driver, reference):
        """The command's process once the image is there, and where."""
        place = self.folder()
        program = os.path.join(world.PROGRAMS, "larder-snapshotter")
        process = subprocess.Popen([program, "mount", "--root", root, "--fs-driver", driver, reference, place],
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(rig.stop, process)
        self.assertEqual(process.stderr.readline(), f"{reference} is mounted at {place}; an interrupt unmounts it\n")
        return process, place

    def end(self, process, place, number):
        process.send_signal(number)
        _, errors = process.communicate(timeout=END_SECONDS_MAX)
        self.assertEqual((process.returncode, errors), (0, ""))
        self.assertFalse(os.path.ismount(place))
        self.assertEqual(os.listdir(place), [])

    def motd(self, place):
        with open(os.path.join(place, "etc/motd")) as file:
            return file.read()

    @once_per(driver=DRIVERS, by=("SIGINT", "SIGTERM"))
    def test_a_mount_lasts_until_it_is_interrupted(self, driver, by):
        """Promise: it says when the image is there; a signal unmounts it, exit 0; each command answers for its own image."""
        _, one = world.publish("tools")
        _, many = world.publish("tools-layers")
        root = self.folder()
        owner, first = self.mount(root, driver, one)
        guest, second = self.mount(root, driver, many)
        self.assertEqual((self.motd(first), self.motd(second)), ("one layer\n", "six layers\n"))
        mounted = {(image["reference"], image["target"]) for image in world.status(root)["mounted"]}
        self.assertEqual(mounted, {(one, first), (many, second)})

        self.end(guest, second, getattr(signal, by))
        self.assertEqual(self.motd(first), "one layer\n")
        self.end(owner, first, getattr(signal, by))
        with open("/proc/self/mountinfo") as table:
            self.assertFalse([line for line in table if f" {root}/" in line], "mounts below the root")


class Gate(socketserver.ThreadingTCPServer):
    """The registry behind a port that takes connections and passes on nothing until `opened`."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, address):
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind, self.opened, self.asked = address, threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Passing(socketserver.BaseRequestHandler):
    def handle(self):
        self.server.asked.set()
        self.server.opened.wait(END_SECONDS_MAX)
        host, _, port = self.server.behind.partition(":")
        with socket.create_connection((host, int(port))) as registry:
            back = threading.Thread(target=self.copy, args=(registry, self.request), daemon=True)
            back.start()
            self.copy(self.request, registry)
            back.join()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Detached(world.Case):
    """`larder-snapshotter mount --detach`."""

    @once_per(driver=DRIVERS)
    def test_a_command_that_was_ended_mounts_nothing_later(self, driver):
        """Regression: ended while the registry was silent, it left a process that mounted the image once the registry answered."""
        _, reference = world.publish("tools")
        registry, _, name = reference.partition("/")
        gate = Gate(registry)
        self.addCleanup(gate.server_close)
        self.addCleanup(gate.shutdown)
        root, place = self.folder(), self.folder()
        command = subprocess.Popen([os.path.join(world.PROGRAMS, "larder-snapshotter"), "mount", "--detach", "--root", root, "--fs-driver",
                                    driver, "--plain-http", f"127.0.0.1:{gate.server_address[1]}/{name}", place])
        self.assertTrue(gate.asked.wait(END_SECONDS_MAX))
        rig.wait_for(lambda: owners(root), "the process that is to own the mount")
        command.terminate()
        command.wait()
        gate.opened.set()
        rig.wait_for(lambda: not owners(root), "that process to end")
        self.assertFalse(os.path.ismount(place))
        with open(os.path.join(root, "mount.log")) as log:
            self.assertIn("nobody waits for it any more", log.read())


def owners(root):
    """Whether a process of `mount --detach` owns, or is to own, `root`."""
    return any("--background" in words and root in words for _, words in rig.command_lines())


class Status(world.Case):
    """`larder-snapshotter status` of a daemon that serves containerd."""

    def status(self, node, *options):
        return world.snapshotter("status", "--config", os.path.join(node.work, "larder.toml"), *options)

    @once_per(driver=DRIVERS)
    def test_it_tells_what_is_lazy_what_came_and_from_where(self, driver):
        """Promise: the driver, each layer with how much of it is there or why it is not lazy, and its sources with their bytes."""
        _, lazy = world.publish("nginx")
        _, mixed = world.publish("odd-sparse")
        with self.node("2", lazy=True, driver=driver) as node:
            self.assertIn("layers: 0 lazy, 0 complete, 0 eager\n", self.status(node))
            node.pull(lazy)
            node.pull(mixed)
            text = self.status(node)
            self.assertRegex(text, f"^larder-snapshotter [0-9.]+\ndriver: {driver} ")
            count = len(world.manifest(lazy)["layers"]) + 2
            self.assertRegex(text, r"\nlayers: \d+ lazy, \d+ complete, 1 eager\n")
            told = world.status(os.path.join(node.work, "larder"))
            states = [layer["state"] for layer in told["layers"]]
            self.assertEqual(sum(state != "eager" for state in states), count)
            self.assertRegex(text, r"\neager +sha256:[0-9a-f]{64} \(.*has no index.*\)\n")
            self.assertLessEqual(world.layers(lazy), {layer["blob"] for layer in told["layers"]})

            before = sum(layer["bytes_present"] for layer in told["layers"])
            node.printed("run", "--rm", "--snapshotter", "larder", lazy, "reader", "/bin/sha256sum", "/usr/sbin/nginx")
            after = world.status(os.path.join(node.work, "larder"))["layers"]
            self.assertGreater(sum(layer["bytes_present"] for layer in after), before)
            ours = [layer for layer in after if layer["blob"] in world.layers(lazy)]  # small layers of the other came whole
            sources = {source["name"] for layer in ours for source in layer["sources"] if source["bytes_fetched"]}
            self.assertEqual(sources, {f"{world.REGISTRY}/test/nginx"})
            self.assertRegex(self.status(node), rf"\n +[0-9.]+ [kM]B from {world.REGISTRY}/test/nginx since the start\n")

    def test_a_daemon_that_is_not_there_is_exit_1(self):
        """Promise: one sentence that says how to name another root."""
        with self.assertRaisesRegex(rig.RigError, "exit 1\nlarder-snapshotter: no daemon answers at .*--root"):
            world.status(self.folder())


class ContainerdCommands(world.Case):
    """`pull` and `fetch-blobs`, also several at once."""

    def command(self, node, *words):
        settings = os.path.join(node.work, "larder.toml")
        return [os.path.join(world.PROGRAMS, "larder-snapshotter"), *words, "--config", settings, "--address", node.socket]

    def together(self, node, *words):
        started = [subprocess.Popen(self.command(node, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(6)]
        for process in started:
            _, errors = process.communicate(timeout=END_SECONDS_MAX)
            self.assertEqual(process.returncode, 0, errors)

    def refused(self, node, *words):
        done = subprocess.run(self.command(node, *words), capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr

    @once_per(release=("1.6", "2"))
    def test_several_commands_for_one_image_do_not_disturb_each_other(self, release):
        """Promise: all of them succeed, by lazy layers and by unpacked ones, and no lease stays."""
        original, converted = world.publish("tools-layers")
        with self.node(release, lazy=True) as node:
            self.together(node, "pull", converted)
            self.together(node, "fetch-blobs", converted)
            self.assertLessEqual(world.layers(converted), node.blobs())
            node.ctr("images", "rm", "--sync", converted)
            self.gone(node.left_behind)
            self.together(node, "pull", original)
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])

    def test_a_command_that_finds_nothing_leaves_nothing(self):
        """Promise: a name that is not there leaves no lease; what containerd answers is not taken for silence."""
        with self.node("1.6", lazy=True) as node:
            nowhere = f"{world.REGISTRY}/test/nowhere:1"
            world.registry()
            self.assertIn("not found", self.refused(node, "pull", nowhere))
            self.assertIn("not found", self.refused(node, "fetch-blobs", nowhere))
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])
            told = self.refused(node, "pull", nowhere, "--namespace", "a name")
            self.assertIn("namespace", told)
            self.assertNotIn("is it running", told)


class Progress(world.Case):
    """What `larder convert` shows while it works."""

    def command(self):
        target = os.path.join(self.folder(), "out")
        return [os.path.join(world.PROGRAMS, "larder"), "convert", "--no-cache",
                f"oci:{images.layout('nginx')}:latest", f"oci:{target}:latest"]

    def test_a_terminal_gets_bars(self):
        """Promise: a bar for a layer at work, redrawn in place as it fills, and a line for each that is done."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=theirs, env=dict(os.environ, TERM="xterm")) as process:
            os.close(theirs)
            shown = b""
            while piece := self.piece(ours):
                shown += piece
        os.close(ours)
        self.assertEqual(process.returncode, 0, shown)
        layers = images.Image(images.layout("nginx")).manifest["layers"]
        for layer in layers:
            self.assertRegex(shown, rb"layer " + self.short(layer) + rb" converted \(")
        largest = self.short(max(layers, key=lambda layer: layer["size"]))
        bars = set(re.findall(rb"converting " + largest + rb" \[(=*)>? *\] ", shown))
        self.assertGreater(len(bars), 2, shown)
        self.assertIn(b"\x1b[", shown)

    def short(self, layer):
        return layer["digest"].partition(":")[2][:12].encode()

    def piece(self, terminal):
        """What a terminal shows next; nothing when nobody writes to it any more."""
        try:
            return os.read(terminal, 1 << 16)
        except OSError:
            return b""

    def test_a_log_gets_lines(self):
        """Promise: elsewhere, a line for each layer, and nothing that only a terminal understands."""
        done = subprocess.run(self.command(), capture_output=True, check=True)
        for layer in images.Image(images.layout("nginx")).manifest["layers"]:
            self.assertEqual(done.stderr.count(b"layer " + self.short(layer) + b" converted ("), 1, done.stderr)
        self.assertNotIn(b"\x1b", done.stderr + done.stdout)
        self.assertNotIn(b"\r", done.stderr + done.stdout)
