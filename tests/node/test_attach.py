"""A profile is attached to an image in its registry, and every node that pulls the image uses it. This registry has no referrers API."""

import hashlib
import json
import os
import re
import urllib.parse
import urllib.request

import world
from test_observability import scrape
from world import rig

OPTIONS = {
    "settings": 'complete_in_background = false\nmetrics_address = "{work}/metrics.sock"\n',
    "log": '[log]\nlevel = "debug"\n',
}
ATTACHED = f"{world.REGISTRY}/test/attached:larder"
TYPE = "application/vnd.larder.profile.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
READS = ("/bin/sha256sum", "/usr/sbin/nginx", "/bin/bash", "/usr/bin/perl")
WAITED = 'larder_read_duration_seconds_count{found="source"}'


class Attach(world.Case):
    def image(self):
        """An image in a repository of its own: what is attached to it is no other test's."""
        _, image = world.publish("nginx")
        copy = ("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false")
        rig.run(*copy, f"docker://{image}", f"docker://{ATTACHED}")
        return image

    def profile(self, *words):
        return json.loads(world.larder("profile", *words, "--json"))

    def log(self, node):
        with open(os.path.join(node.work, "larder.log")) as log:
            return re.sub(r"\x1b\[[0-9;]*m", "", log.read())

    def kept(self, node):
        root = os.path.join(node.work, "larder")
        return json.loads(world.snapshotter("profile", "list", "--root", root, "--json"))["profiles"]

    def present(self, node):
        layers = world.status(os.path.join(node.work, "larder"))["layers"]
        return sum(layer["bytes_present"] for layer in layers)

    def figures(self, node):
        return scrape(os.path.join(node.work, "metrics.sock"))

    def streamed(self, node):
        """Waits until nothing more comes by itself; how much there is."""
        return world.settled(lambda: self.present(node))

    def attach_garbage(self, image):
        """What no `larder` would attach: by hand, and listed under the tag that stands in for the API."""
        repository = f"http://{image.rpartition(':')[0].replace('/', '/v2/', 1)}"
        put = lambda place, body, kind: urllib.request.urlopen(urllib.request.Request(
            urllib.parse.urljoin(repository + "/", place), body, {"Content-Type": kind}, method="PUT"))
        named = lambda body: "sha256:" + hashlib.sha256(body).hexdigest()
        described = lambda body, kind: {"mediaType": kind, "digest": named(body), "size": len(body)}
        garbage = b"garbage" * 100_000
        for blob in (garbage, b"{}"):
            with urllib.request.urlopen(urllib.request.Request(f"{repository}/blobs/uploads/", b"", method="POST")) as begun:
                place = begun.headers["Location"]
            put(f"{place}&digest={named(blob)}", blob, "application/octet-stream")
        subject = rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}").encode()
        artifact = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": TYPE, "config": described(b"{}", EMPTY),
            "layers": [described(garbage, TYPE)], "subject": described(subject, MANIFEST),
        }).encode()
        put(f"manifests/{named(artifact)}", artifact, MANIFEST)
        listed = {**described(artifact, MANIFEST), "artifactType": TYPE}
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]}).encode()
        put(f"manifests/{named(subject).replace(':', '-')}", index, INDEX)

    def test_an_attached_profile_serves_every_node_that_pulls(self):
        """Promise: what was recorded anywhere is attached to the image, shown, replaced and taken off; a node that knows nothing of the
        image fetches what it names before the start, which then waits for next to nothing. Without one, the look-up costs two requests."""
        plain = self.image()
        file = os.path.join(self.folder(), "profile.json")
        place = os.path.join(self.folder(), "root")
        world.snapshotter("profile", "record", "--root", place, "--settle", "1", "-o", file, ATTACHED, "--", *READS)
        with open(file) as text:
            named = {(layer["index"], row) for layer in json.load(text)["layers"] for _, row in layer["reads"]}

        with self.node("2", lazy=True, **OPTIONS) as node:
            before = self.figures(node).get('larder_registry_requests_total{status="404"}', 0)
            node.pull(ATTACHED)
            rig.wait_for(lambda: "no profile is attached to it" in self.log(node), "the look-up", node.log)
            asked = self.figures(node)['larder_registry_requests_total{status="404"}'] - before
            self.assertEqual(asked, 2)
            self.assertEqual(self.figures(node)['larder_profile_look_ups_total{outcome="absent"}'], 1)
            bare = self.streamed(node)
            self.assertEqual(self.kept(node), [])
            self.assertNotIn(" WARN ", self.log(node))

        told = self.profile("attach", ATTACHED, file)
        [attached] = told["attached"]
        self.assertEqual((told["chunks"], attached["was_there"], attached["replaced"]), (len(named), False, []))
        [again] = self.profile("attach", ATTACHED, file)["attached"]
        self.assertEqual((again["artifact"], again["was_there"]), (attached["artifact"], True))

        with self.node("2", lazy=True, driver="fuse", **OPTIONS) as node:
            node.pull(ATTACHED)
            rig.wait_for(lambda: self.kept(node) or None, "the profile to be kept", node.log)
            self.assertEqual(self.kept(node)[0]["chunks"], len(named))
            rig.wait_for(lambda: self.present(node) > bare, "what the profile names", node.log)
            self.streamed(node)
            waited = self.figures(node)[WAITED]
            node.printed("run", "--rm", "--snapshotter", "larder", ATTACHED, "reader", *READS)
            waited = self.figures(node)[WAITED] - waited
            self.assertLess(waited, len(named) / 5)
            print(f"{len(named)} chunks, {waited:.0f} reads waited", end=" ")
            # An image in another repository is another subject: nothing is attached there.
            self.assertIn("no profile", world.larder("profile", "show", plain))

        [shown] = self.profile("show", ATTACHED)["manifests"]
        self.assertEqual([one["chunks"] for one in shown["profiles"]], [len(named)])
        self.assertEqual(self.profile("detach", ATTACHED)["detached"], [attached["artifact"]])
        [shown] = self.profile("show", ATTACHED)["manifests"]
        self.assertEqual(shown["profiles"], [])

    def test_garbage_that_is_attached_costs_a_line_in_the_log(self):
        """Promise: what is attached and no profile is left, with a line in the log and no warning; the image is lazy and starts, and
        `larder` shows it and takes it away. With `profiles = false` nobody asks."""
        self.image()
        self.attach_garbage(ATTACHED)
        with self.node("2", lazy=True, **OPTIONS) as node:
            node.pull(ATTACHED)
            rig.wait_for(lambda: "the profile that is attached to it is not used" in self.log(node), "the look-up", node.log)
            self.assertEqual(self.kept(node), [])
            self.assertTrue(node.printed("run", "--rm", "--snapshotter", "larder", ATTACHED, "reader", "/bin/sha256sum", "/bin/bash"))
            self.assertNotIn(" WARN ", self.log(node))
            self.assertEqual(self.figures(node)['larder_profile_look_ups_total{outcome="unfit"}'], 1)
        off = {**OPTIONS, "settings": OPTIONS["settings"] + "profiles = false\n"}
        with self.node("2", lazy=True, **off) as node:
            node.pull(ATTACHED)
            self.assertEqual(self.figures(node).get('larder_registry_requests_total{status="404"}', 0), 0)
            self.assertNotIn("attached", self.log(node).replace(ATTACHED, ""))
        [shown] = self.profile("show", ATTACHED)["manifests"]
        self.assertIn("not of a profile's form", shown["profiles"][0]["problem"])
        self.assertEqual(len(self.profile("detach", ATTACHED)["detached"]), 1)
