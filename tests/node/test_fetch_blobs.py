"""`fetch-blobs`: what a lazily pulled image lacks for push and export, whatever the network does."""

import http.server
import os
import threading
import unittest
import urllib.error
import urllib.request

import images
import world
from world import RELEASES, once_per, rig

IMAGE = "nginx"
ELSEWHERE = "127.0.0.1:5001"


class Between(http.server.ThreadingHTTPServer):
    """Passes reads on to the registry; `mood` says what it does to the layers: honest, lies, or cuts."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Passing)
        self.mood, self.ranges, self.missing = "honest", [], None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"


class Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self.server.missing and path.startswith(self.server.missing):
            self.send_error(404)
            return
        headers = {name: self.headers[name] for name in ("Accept", "Range") if self.headers[name]}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(f"http://{world.REGISTRY}{path}", headers=headers))
        except urllib.error.HTTPError as error:
            answer = error
        body, cut = answer.read(), False
        mood = self.server.mood
        if "/blobs/" in path and len(body) > 100_000:
            self.server.ranges.append(self.headers["Range"])
            if mood == "lies":
                body = body[:50_000] + bytes([body[50_000] ^ 1]) + body[50_001:]
            elif mood == "cuts" and len(self.server.ranges) == 1:
                cut = True
            elif mood == "cuts":
                self.send_error(500)
                return
        self.send_response(answer.status)
        for name in ("Content-Type", "Docker-Content-Digest", "Content-Range"):
            if answer.headers[name]:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


class FetchBlobs(world.Case):
    """On a node that pulled the image lazily."""

    beside = True

    def setUp(self):
        super().setUp()
        self.between = Between()
        self.addCleanup(self.between.server_close)
        self.addCleanup(self.between.shutdown)

    def config(self, node, hosts=""):
        """A configuration that sends every read of the registry to the one in between first."""
        folder = self.folder()
        os.makedirs(os.path.join(folder, world.REGISTRY))
        with open(os.path.join(folder, world.REGISTRY, "hosts.toml"), "w") as out:
            out.write(hosts or f'server = "http://{world.REGISTRY}"\n[host."http://{self.between.host}"]\n')
        path = os.path.join(folder, "config.toml")
        with open(path, "w") as out:
            out.write(f'[containerd]\naddress = "{node.socket}"\n[registry]\nhosts_dir = "{folder}"\n')
        return path

    def check_complete(self, node, reference):
        """By what containerd exports."""
        archive = os.path.join(self.folder(), "image.tar")
        node.export(archive, reference)
        world.larder("check", f"oci-archive:{archive}:{reference}", "--against", f"oci:{images.layout(IMAGE)}:latest")

    @once_per(release=RELEASES)
    def test_a_lazily_pulled_image_can_be_exported_and_pushed_afterwards(self, release):
        """Promise: every blob comes, with the digest checked and the size told; containerd pushes them to a registry that has
        none of them; a second run fetches nothing."""
        _, converted = world.publish(IMAGE)
        with self.node(release, lazy=True) as node:
            node.pull(converted)
            config = self.config(node)
            said = world.snapshotter("fetch-blobs", "--config", config, converted)
            self.assertRegex(said, r": [1-9]\d* blobs fetched, [1-9]\d+ bytes\n")
            self.check_complete(node, converted)
            process, _ = world.serve_registry(ELSEWHERE)
            self.addCleanup(rig.stop, process)
            pushed = f"{ELSEWHERE}/other/pushed:larder"
            node.ctr("images", "push", "--plain-http", pushed, converted)
            self.assertEqual(world.manifest(pushed), world.manifest(converted))
            world.larder("check", pushed, "--against", f"oci:{images.layout(IMAGE)}:latest")
            self.assertIn(": 0 blobs fetched", world.snapshotter("fetch-blobs", "--config", config, converted))

    def test_a_mirror_that_lies_is_left_for_the_registry(self):
        """Promise: wrong bytes never enter the content store, and the command succeeds from the next place."""
        _, converted = world.publish(IMAGE)
        with self.node("1.7", lazy=True) as node:
            node.pull(converted)
            self.between.mood = "lies"
            world.snapshotter("fetch-blobs", "--config", self.config(node), converted)
            self.assertTrue(self.between.ranges, "the mirror was never asked")
            self.check_complete(node, converted)

    def test_an_interrupted_download_is_continued(self):
        """Promise: the next run asks for the bytes that are missing, not for all of them again."""
        _, converted = world.publish(IMAGE)
        with self.node("1.7", lazy=True) as node:
            node.pull(converted)
            config = self.config(node, f'server = "http://{self.between.host}"\n')
            self.between.mood = "cuts"
            with self.assertRaisesRegex(rig.RigError, "500"):
                world.snapshotter("fetch-blobs", "--config", config, converted)
            self.between.mood = "honest"
            self.between.ranges.clear()
            world.snapshotter("fetch-blobs", "--config", config, converted)
            self.assertRegex(self.between.ranges[0] or "", r"bytes=[1-9]\d{4,}-")
            self.check_complete(node, converted)

    def test_another_repository_is_asked_when_the_own_one_lacks_the_blob(self):
        """Promise: repositories of other images with the same layer, on this node, are places to fetch from."""
        _, converted = world.publish(IMAGE)
        twin = converted.replace(f"/{IMAGE}:", "/twin:")
        rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
                f"docker://{converted}", f"docker://{twin}")
        with self.node("1.7", lazy=True) as node:
            node.pull(converted)
            node.pull(twin)
            self.between.missing = "/v2/test/twin/blobs/"
            config = self.config(node, f'server = "http://{self.between.host}"\n')
            world.snapshotter("fetch-blobs", "--config", config, twin)
            self.check_complete(node, twin)


if __name__ == "__main__":
    unittest.main()
