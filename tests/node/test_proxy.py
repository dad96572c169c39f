"""Registries behind a proxy, and names that do not resolve."""

import http.server
import os
import threading
import time
import unittest
import urllib.error
import urllib.request

import world
from world import rig

HOST = "registry.example:5000"  # resolves nowhere; the proxy knows what is meant


class Proxy(http.server.ThreadingHTTPServer):
    """Answers for HOST with what the registry on loopback says; `asked` counts."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Forward)
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Forward(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked += 1
        if not self.path.startswith(f"http://{HOST}/"):
            self.send_error(403)
            return
        url = self.path.replace(HOST, world.REGISTRY, 1)
        headers = {name: self.headers[name] for name in ("Accept", "Range") if self.headers[name]}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers))
        except urllib.error.HTTPError as error:
            answer = error
        body = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Type", "Docker-Content-Digest", "Content-Range"):
            if answer.headers[name]:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Proxied(world.Case):
    """By `larder-snapshotter mount` of an image on a host that only the proxy knows."""

    def setUp(self):
        super().setUp()
        self.proxy = Proxy()
        self.addCleanup(self.proxy.server_close)
        self.addCleanup(self.proxy.shutdown)
        _, converted = world.publish("tools")
        self.reference = converted.replace(world.REGISTRY, HOST)
        self.root, self.place = self.folder(), self.folder()

    def mount(self, **environment):
        environment = dict(os.environ, HTTP_PROXY=f"http://127.0.0.1:{self.proxy.server_port}", **environment)
        world.snapshotter("mount", "--root", self.root, "--plain-http", "--detach", self.reference, self.place, env=environment)
        self.addCleanup(world.snapshotter, "umount", "--root", self.root, self.place)

    def test_manifest_and_layers_come_through_the_proxy(self):
        """Promise: HTTP_PROXY holds for the command and for what is read later."""
        self.mount()
        before = self.proxy.asked
        self.assertGreater(before, 0)
        with open(os.path.join(self.place, "bin/busybox"), "rb") as program:
            self.assertEqual(program.read(4), b"\x7fELF")
        self.assertGreater(self.proxy.asked, before, "the layer did not come through the proxy")

    def test_no_proxy_is_kept_and_a_name_that_does_not_resolve_is_told(self):
        """Promise: a host in NO_PROXY is asked directly; if its name does not resolve, the error says so, and soon."""
        began = time.monotonic()
        with self.assertRaisesRegex(rig.RigError, "registry.example.*dns error"):
            self.mount(NO_PROXY="registry.example")
        self.assertLess(time.monotonic() - began, 60)
        self.assertEqual(self.proxy.asked, 0)


if __name__ == "__main__":
    unittest.main()
