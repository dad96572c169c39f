"""What an operator sees of a node: metrics, the log for programs, slow reads, events, and an installation by program."""

import glob
import json
import os
import re
import socket
import subprocess
import threading
import time

import world
from world import RELEASES, once_per, rig


def scrape(path):
    """The page of metrics at a Unix socket, by name with labels."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.sendall(b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n")
        answer = b"".join(iter(lambda: stream.recv(1 << 16), b"")).decode()
    head, page = answer.split("\r\n\r\n", 1)
    if not head.startswith("HTTP/1.1 200 "):
        raise AssertionError(answer)
    samples = (line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


class Slow:
    """A registry on another port that passes everything on, layers only after a pause."""

    def __init__(self, address, pause):
        self.pause, self.upstream = pause, address
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(near,), daemon=True).start()

    def connect(self, near):
        host, port = self.upstream.split(":")
        far = socket.create_connection((host, int(port)))
        threading.Thread(target=self.pump, args=(far, near, None), daemon=True).start()
        self.pump(near, far, self.pause)

    @staticmethod
    def pump(source, sink, pause):
        try:
            while part := source.recv(1 << 16):
                if pause and b"/blobs/" in part:
                    time.sleep(pause())
                sink.sendall(part)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()


def lines(node):
    """The daemon's log, of which every line must be an object."""
    with open(os.path.join(node.work, "larder.log")) as log:
        return [json.loads(line) for line in log if line.strip()]


class Metrics(world.Case):
    @once_per(driver=world.DRIVERS)
    def test_figures_tell_what_happened(self, driver):
        """Promise: a pull and a read are on the page: layers, Prepares, reads, bytes and requests, in agreement with `status`."""
        _, lazy = world.publish("nginx")
        with self.node("2", lazy=True, driver=driver, settings='metrics_address = "{work}/metrics.sock"\ncomplete_in_background = false\n') as node:
            page = os.path.join(node.work, "metrics.sock")
            self.assertEqual(os.stat(page).st_mode & 0o777, 0o600)
            empty = scrape(page)
            self.assertEqual(empty['larder_layers{state="lazy"}'], 0)
            node.pull(lazy)
            node.printed("run", "--rm", "--snapshotter", "larder", lazy, "reader", "/bin/sha256sum", "/usr/sbin/nginx")
            now = scrape(page)
            count = len(world.manifest(lazy)["layers"])
            self.assertEqual(now['larder_layers{state="lazy"}'] + now['larder_layers{state="complete"}'], count)
            self.assertEqual(now['larder_prepares_total{outcome="lazy",reason=""}'], count)
            self.assertEqual(now['larder_prepare_duration_seconds_count{outcome="lazy"}'], count)
            self.assertGreaterEqual(now['larder_prepares_total{outcome="plain",reason=""}'], 1)
            self.assertGreater(now['larder_read_duration_seconds_count{found="source"}'], 0)
            self.assertGreater(now["larder_read_bytes_total"], 100_000)
            # What the kernel reads ahead is still on its way.
            rig.wait_for(lambda: scrape(page)["larder_reads_waiting"] == 0, "no read to wait", node.log)
            status = world.status(os.path.join(node.work, "larder"))
            told = status["layers"]
            fetched = sum(source["bytes_fetched"] for layer in told for source in layer["sources"])
            again = scrape(page)
            came = again[f'larder_fetched_bytes_total{{sender="registry",host="{world.REGISTRY}"}}']
            self.assertEqual(came, fetched)
            self.assertEqual(again["larder_layers_present_bytes"], sum(layer["bytes_present"] for layer in told))
            self.assertGreater(again['larder_source_requests_total{outcome="delivered"}'], 0)
            self.assertGreater(again['larder_registry_requests_total{status="206"}'], 0)
            self.assertEqual(again["larder_reads_waiting"], 0)
            database = os.path.join(node.work, "larder/snapshots.redb")
            taken = int(rig.run("du", "--block-size=1", database).split()[0])
            self.assertEqual((again["larder_database_bytes"], status["store"]["database"]), (taken, taken))
            for name, value in again.items():
                if re.match(r"larder_(reads_failed|chunks_rejected|chunks_damaged|layers_quarantined)", name):
                    self.assertEqual(value, 0, name)


class SlowReads(world.Case):
    @once_per(driver=world.DRIVERS)
    def test_a_slow_read_is_told_with_image_file_source_and_cause(self, driver):
        """Promise: what a container waited for is one line with the image, the file, where it came from and why it took long; every
        line of the log is an object. Regression: with EROFS, of a small file the one before it in the tar was told."""
        _, lazy = world.publish("nginx")
        pauses = [0]
        proxy = Slow(world.REGISTRY, lambda: pauses[0])
        self.addCleanup(proxy.close)
        reference = lazy.replace(world.REGISTRY, proxy.address)
        settings = 'slow_read_seconds = 0.3\nmetrics_address = "{work}/metrics.sock"\n'
        with self.node("2", lazy=True, driver=driver, registry=proxy.address, settings=settings,
                       log='[log]\nformat = "json"\n') as node:
            node.pull(reference)
            pauses[0] = 0.5
            small = self.small_files(node)
            for path in small.values():
                with open(path, "rb") as file:
                    file.read()
            # What is not read yet comes slowly; a neighbour of one before may be here with it.
            early = [line["path"] for line in lines(node) if line["message"] == "a read was slow"]
            self.assertTrue(early, node.log())
            self.assertEqual([path for path in early if path not in small], [])
            node.printed("run", "--rm", "--snapshotter", "larder", reference, "reader", "/bin/sha256sum", "/usr/sbin/nginx")
            told = [line for line in lines(node) if line["message"] == "a read was slow"]
            self.assertTrue(told, node.log())
            for line in told:
                self.assertEqual(line["level"], "WARN")
                self.assertEqual(line["image"], reference)
                self.assertEqual(line["source"], f"{proxy.address}/test/nginx")
                self.assertIn(line["cause"], ("queued", "network", "retry", "verification", "disk"))
                self.assertGreaterEqual(line["seconds"], 0.3)
                self.assertIn(line["layer"], world.layers(lazy))
                self.assertEqual(line["failed"], "")
            # A busy machine may have been slow by itself, too.
            self.assertTrue([line for line in told if line["path"] and line["cause"] == "network"], told)
            slow = scrape(os.path.join(node.work, "metrics.sock"))['larder_reads_slow_total{cause="network"}']
            self.assertGreaterEqual(slow, 1)
            for line in lines(node):
                self.assertLessEqual({"timestamp", "level", "target", "message"}, set(line))


    def small_files(self, node):
        """Two files of a few pages of a lazy layer, in one directory each, by their paths in the layer."""
        found = {}
        for layer in sorted(glob.glob(os.path.join(node.work, "larder/snapshots/*/fs"))):
            for folder, _, names in sorted(os.walk(layer)):
                files = [os.path.join(folder, name) for name in sorted(names)]
                files = [path for path in files if os.path.isfile(path) and not os.path.islink(path) and os.stat(path).st_nlink == 1]
                if fit := [path for path in files if 4500 < os.path.getsize(path) < 12_000]:
                    found[os.path.relpath(fit[len(fit) // 2], layer)] = fit[len(fit) // 2]
        names = sorted(found)
        self.assertGreater(len(names), 10)
        return {name: found[name] for name in (names[2], names[-3])}


class Install(world.Case):
    """`larder-snapshotter install` on configurations as the releases themselves write them."""

    def containerd(self, release, *words):
        return rig.run(os.path.join(RELEASES[release], "containerd"), *words)

    @once_per(release=tuple(RELEASES), of=("default", "fragments"))
    def test_containerd_loads_what_is_installed(self, release, of):
        """Promise: on each release, with the whole default configuration in the file or with one that imports a directory, containerd
        starts with the result and has the snapshotter; `uninstall` gives back every byte."""
        place = self.folder()
        config, settings = os.path.join(place, "config.toml"), os.path.join(place, "larder.toml")
        if of == "default":
            before = self.containerd(release, "config", "default")
        else:
            before = f'version = 2\nimports = ["{place}/conf.d/*.toml"]\n# ours\n'
        with open(config, "w") as out:
            out.write(before)
        with open(settings, "w") as out:
            out.write(f'root = "{place}/larder"\naddress = "{place}/l.sock"\n')
        words = ("--containerd-config", config, "--config", settings)
        shown = world.snapshotter("install", "--dry-run", *words)
        self.assertIn("+", shown)
        with open(config) as text:
            self.assertEqual(text.read(), before)
        said = world.snapshotter("install", *words)
        self.assertIn("restart containerd", said)
        self.assertIn("is as it should be", world.snapshotter("install", *words))
        with open(config) as text:
            self.assertEqual(text.read() == before, of == "fragments")
        dump = self.containerd(release, "--config", config, "config", "dump")
        self.assertRegex(dump, r'address = ["\']' + re.escape(f"{place}/l.sock"))
        self.assertRegex(dump, r'snapshotter = ["\']larder')
        self.assertIn("larder", self.plugins(release, place, config))
        world.snapshotter("uninstall", "--containerd-config", config)
        with open(config) as text:
            self.assertEqual(text.read(), before)
        left = [name for name in os.listdir(place) if "larder" in name and name not in ("larder.toml", "larder")]
        self.assertEqual(left, [])

    def plugins(self, release, place, config):
        """The snapshotters of a containerd that was started with a configuration, in places of its own."""
        with open(config) as text:
            own = re.sub(r'(?m)^(root|state|temp) *= *.*\n', "", text.read())
        sock = os.path.join(place, "c.sock")
        own = re.sub(r'(?m)^( *address = )["\'](/run/containerd/containerd\.sock)(\.ttrpc)?["\']',
                     lambda found: f'{found[1]}"{sock}{found[3] or ""}"', own)
        own = f'root = "{place}/root"\nstate = "{place}/state"\n' + own
        if "[grpc]" not in own:
            own += f'\n[grpc]\n  address = "{sock}"\n[ttrpc]\n  address = "{sock}.ttrpc"\n'
        started = os.path.join(place, "started.toml")
        with open(started, "w") as out:
            out.write(own)
        with open(os.path.join(place, "containerd.log"), "w") as log:
            process = subprocess.Popen([os.path.join(RELEASES[release], "containerd"), "-c", started], stdout=log, stderr=log)
        self.addCleanup(rig.stop, process)
        ctr = [os.path.join(RELEASES[release], "ctr"), "-a", sock]

        def answers():
            return subprocess.run([*ctr, "version"], capture_output=True).returncode == 0

        def log():
            with open(os.path.join(place, "containerd.log")) as text:
                return text.read()[-2000:]
        rig.wait_for(answers, "containerd to answer", log)
        table = rig.run(*ctr, "plugins", "ls")
        rig.stop(process)
        return [line.split()[1] for line in table.splitlines() if line.startswith("io.containerd.snapshotter.v1 ")]
