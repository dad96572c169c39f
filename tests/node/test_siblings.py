"""The indexes of all layers of an image are fetched while its first layer is prepared."""

import os
import threading
import urllib.request

import world
from test_fetch_blobs import Between, Passing
from world import RELEASES, once_per

IMAGE = "tools-layers"
PATIENCE = 8  # of the registry, for what should take milliseconds


class Together(Between):
    """Sends bytes of layers only when all of them were asked for; else, in the end, an error."""

    def __init__(self, layers):
        super().__init__()
        self.RequestHandlerClass = Gathering
        self.awaited, self.all_asked = set(layers), threading.Event()


class Gathering(Passing):
    def do_GET(self):
        server = self.server
        if "/blobs/" in self.path and self.headers["Range"]:
            server.awaited.discard(self.path.rsplit("/", 1)[1])
            if not server.awaited:
                server.all_asked.set()
            if not server.all_asked.wait(PATIENCE):
                self.send_error(504)
                return
        super().do_GET()

    def do_HEAD(self):
        accept = {"Accept": self.headers["Accept"]} if self.headers["Accept"] else {}
        asked = urllib.request.Request(f"http://{world.REGISTRY}{self.path}", headers=accept, method="HEAD")
        with urllib.request.urlopen(asked) as answer:
            self.send_response(answer.status)
            for name in ("Content-Type", "Docker-Content-Digest", "Content-Length"):
                self.send_header(name, answer.headers[name])
            self.end_headers()


class Siblings(world.Case):
    """With a registry that answers nobody alone."""

    @once_per(release=RELEASES)
    def test_the_indexes_of_all_layers_are_asked_for_at_once(self, release):
        """Promise: containerd prepares one layer after the other; Larder waits for one round trip, not for one per layer."""
        _, converted = world.publish(IMAGE)
        layers = world.layers(converted)
        self.assertGreater(len(layers), 4)
        between = Together(layers)
        self.addCleanup(between.server_close)
        self.addCleanup(between.shutdown)
        reference = converted.replace(world.REGISTRY, between.host)
        with self.node(release, lazy=True, registry=between.host, settings="prepare_deadline_ms = 10000\n") as node:
            node.pull(reference)
            self.assertTrue(between.all_asked.is_set(), f"never asked for: {between.awaited}")
            states = {layer["state"] for layer in world.status(os.path.join(node.work, "larder"))["layers"]}
            self.assertLessEqual(states, {"lazy", "complete"})

    @once_per(release=("1.7", "2"))
    def test_a_registry_with_a_port_needs_no_list_of_ports(self, release):
        """Regression: containerd's labels of manifests have no port, and what was fetched ahead by them replaced where the layer being
        prepared comes from; its reads failed until the daemon was started anew.

        Promise: each layer comes from the registry that the image was pulled from, also where the configuration has no `[hosts]`."""
        _, converted = world.publish(IMAGE)
        with self.node(release, lazy=True, ports=False, settings="complete_in_background = false\n") as node:
            node.pull(converted)
            layers = world.status(os.path.join(node.work, "larder"))["layers"]
            self.assertGreater(len(layers), 4)
            for layer in layers:
                for source in layer["sources"]:
                    self.assertTrue(source["name"].startswith(world.REGISTRY + "/"), source)
            self.assertTrue(node.printed("run", "--rm", "--snapshotter", "larder", converted, "ports", "/bin/sha256sum", "/bin/busybox"))
