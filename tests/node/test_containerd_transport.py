"""`containerd:REF` as source and destination, on the containerd releases there are."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import urllib.request

import images
import layouts
import world
from world import rig

ORIGINAL = "docker.io/test/tools:latest"
CONVERTED = "docker.io/test/tools:larder"


def refer(reference):
    """Attaches an SBOM to an image of the registry, which has no referrers of its own: a tag lists them."""
    repository, tag = reference.removeprefix(world.REGISTRY + "/").split(":")
    raw = rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}").encode()
    kind = "application/vnd.oci.image.manifest.v1+json"
    subject = described(raw, json.loads(raw).get("mediaType", kind))
    empty, sbom = described(b"{}", "application/vnd.oci.empty.v1+json"), described(b'{"spdxVersion": "SPDX-2.3"}', "application/spdx+json")
    for content in (b"{}", b'{"spdxVersion": "SPDX-2.3"}'):
        upload(repository, content)
    artifact = json.dumps({"schemaVersion": 2, "mediaType": kind, "artifactType": "application/spdx+json", "config": empty,
                           "layers": [sbom], "subject": subject}).encode()
    put(repository, described(artifact, kind)["digest"], artifact, kind)
    listing = "application/vnd.oci.image.index.v1+json"
    entry = described(artifact, kind) | {"artifactType": "application/spdx+json"}
    put(repository, subject["digest"].replace(":", "-"), json.dumps({"schemaVersion": 2, "mediaType": listing, "manifests": [entry]}).encode(),
        listing)


def publish_for_several(original):
    """An image of two platforms, this machine's with an attestation, as BuildKit makes them; its reference, this platform and the
    attestation."""
    repository = original.removeprefix(world.REGISTRY + "/").split(":")[0]
    kind = "application/vnd.oci.image.manifest.v1+json"
    own = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    foreign = "arm64" if own == "amd64" else "amd64"
    tar = layouts.tar("file")
    blob = layouts.packed(tar)
    diff_ids = [described(tar, "")["digest"]]
    config = json.dumps({"os": "linux", "architecture": foreign, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    other = json.dumps({"schemaVersion": 2, "mediaType": kind, "layers": [described(blob, layouts.LAYER)],
                        "config": described(config, "application/vnd.oci.image.config.v1+json")}).encode()
    for content in (blob, config):
        upload(repository, content)
    put(repository, described(other, kind)["digest"], other, kind)
    raw = rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{original}").encode()
    entries = [described(content, kind) | {"platform": {"os": "linux", "architecture": platform}}
               for content, platform in ((raw, own), (other, foreign))]
    statement, config = b"{}", b'{"os": "unknown", "architecture": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}'
    for content in (statement, config):
        upload(repository, content)
    attestation = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": described(config, "application/vnd.oci.image.config.v1+json"),
                              "layers": [described(statement, "application/vnd.in-toto+json")]}).encode()
    put(repository, described(attestation, kind)["digest"], attestation, kind)
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": entries[0]["digest"]}
    entries.append(described(attestation, kind) | {"platform": {"os": "unknown", "architecture": "unknown"}, "annotations": about})
    index = "application/vnd.oci.image.index.v1+json"
    put(repository, "several", json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": entries}).encode(), index)
    return f"{world.REGISTRY}/{repository}:several", f"linux/{own}", entries[2]["digest"]


def described(content, kind):
    return {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(content).hexdigest(), "size": len(content)}


def put(repository, tag, content, kind):
    request("PUT", f"http://{world.REGISTRY}/v2/{repository}/manifests/{tag}", content, kind)


def upload(repository, content):
    place = request("POST", f"http://{world.REGISTRY}/v2/{repository}/blobs/uploads/").headers["Location"]
    joint = "&" if "?" in place else "?"
    request("PUT", f"{place}{joint}digest={described(content, '')['digest']}", content, "application/octet-stream")


def request(method, url, content=b"", kind=None):
    asked = urllib.request.Request(url, data=content, method=method, headers={"Content-Type": kind} if kind else {})
    with urllib.request.urlopen(asked) as answer:
        return answer


class ContainerdTransport(world.Case):
    """A node with an ordinary containerd; larder reads and writes its content store."""

    beside = True

    def larder(self, node, *words):
        return world.larder(*words, "--address", node.socket)

    def content(self, node):
        return set(node.ctr("content", "ls", "-q").split())

    @world.once_per(release=list(world.RELEASES))
    def test_an_image_is_converted_within_containerd_and_stays(self, release):
        """Promise: converted in place, sound, exported by ctr, unpacked by containerd, and not collected when the original is."""
        with self.node(release, lazy=False) as node:
            self.bring_original(node)
            self.larder(node, "convert", f"containerd:{ORIGINAL}", f"containerd:{CONVERTED}")
            self.larder(node, "check", f"containerd:{CONVERTED}", "--against", f"containerd:{ORIGINAL}")
            # A removal in step collects everything that nothing refers to.
            node.ctr("images", "rm", "--sync", ORIGINAL)
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])
            self.assertEqual(node.ctr("content", "active").split("\n")[1:], [""])
            told = json.loads(self.larder(node, "inspect", "--json", f"containerd:{CONVERTED}"))
            self.assertIn(told["digest"], self.content(node))
            archive = os.path.join(self.folder(), "out.tar")
            node.export(archive, CONVERTED)
            world.larder("check", f"oci-archive:{archive}:{CONVERTED}", "--against", f"oci:{images.layout('tools')}:latest")
            self.larder(node, "ls", f"containerd:{CONVERTED}", "/")
            with tempfile.TemporaryDirectory(dir=world.work()) as mounted:
                node.ctr("images", "mount", CONVERTED, mounted)
                try:
                    self.assertIn("bin", os.listdir(mounted))
                    with open(os.path.join(mounted, "etc/passwd")) as unpacked:
                        self.assertEqual(self.larder(node, "cat", f"containerd:{CONVERTED}", "/etc/passwd"), unpacked.read())
                finally:
                    rig.run("umount", mounted)
            # Nothing is done twice, and nothing changes.
            again = json.loads(self.larder(node, "convert", "--json", f"oci:{images.layout('tools')}:latest", f"containerd:{CONVERTED}"))
            self.assertEqual({layer["action"] for layer in again["layers"]}, {"reused"})
            self.assertEqual(again["digest"], told["digest"])

    @world.once_per(release=list(world.RELEASES))
    def test_conversions_at_the_same_time_wait_for_each_other(self, release):
        """Promise: several conversions of one image into one containerd all succeed, by one name and by several, and what they leave is
        an image that is whole."""
        with self.node(release, lazy=False) as node:
            names = [CONVERTED, CONVERTED, CONVERTED + "-2", CONVERTED + "-3"]
            command = [os.path.join(world.PROGRAMS, "larder"), "convert", "--address", node.socket, "--no-cache", "--json",
                       f"oci:{images.layout('tools-layers')}:latest"]
            started = [subprocess.Popen([*command, f"containerd:{name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                       for name in names]
            ended = [process.communicate(timeout=300) for process in started]
            self.assertEqual([process.returncode for process in started], [0] * len(names), ended)
            self.assertEqual(len({json.loads(out)["digest"] for out, _ in ended}), 1)
            for name in set(names):
                self.larder(node, "check", f"containerd:{name}")

    def test_what_refers_to_the_image_is_kept_as_long_as_it(self):
        """Promise: an SBOM copied along refers to the converted image, and containerd collects it with the image, not before."""
        original, _ = world.publish("tools")
        refer(original)
        with self.node("1.6", lazy=False) as node:
            told = json.loads(self.larder(node, "convert", "--json", "--referrers", "copy", original, f"containerd:{CONVERTED}"))
            self.assertEqual(told["referrers"], 1)
            self.bring_original(node)
            node.ctr("images", "rm", "--sync", ORIGINAL)
            subjects = [document.get("subject", {}).get("digest") for document in self.documents(node)]
            self.assertIn(told["digest"], subjects)
            node.ctr("images", "rm", "--sync", CONVERTED)
            self.assertEqual(self.content(node), set())

    @world.once_per(release=list(world.RELEASES))
    def test_one_platform_of_several_is_enough(self, release):
        """Promise: of an image that containerd pulled for its own platform, as it does, this platform is read and converted; an
        attestation that it did not pull is left out, and that is said."""
        reference, own, attestation = publish_for_several(world.publish("tools")[0])
        with self.node(release, lazy=False) as node:
            node.pull(reference)
            # 2.1 pulls the manifest of an attestation, and none of its layers.
            self.assertEqual(attestation in self.content(node), release == "2")
            image = f"containerd:{reference}"
            self.assertIn("passwd", self.larder(node, "ls", image, "/etc"))
            self.assertIn("root:", self.larder(node, "cat", image, "/etc/passwd"))
            told = json.loads(self.larder(node, "inspect", image, "--platform", own, "--json"))
            platforms = [manifest.get("platform") for manifest in told["manifests"]]
            self.assertEqual(platforms, [own])
            target = f"oci:{self.folder()}/out"
            told = json.loads(self.larder(node, "convert", image, target, "--platform", own, "--json"))
            self.assertIn(attestation, " ".join(told["notes"]))
            self.larder(node, "check", target, "--against", image, "--platform", own)
            # Who asks for all of it is told what to ask for.
            with self.assertRaisesRegex(rig.RigError, "exit 1\n(.*\n)*larder: .*--platform"):
                self.larder(node, "convert", image, target)

    def documents(self, node):
        """What of the content store is JSON."""
        for line in node.ctr("content", "ls").splitlines()[1:]:
            with contextlib.suppress(ValueError):
                yield json.loads(node.ctr("content", "get", line.split()[0]))

    def bring_original(self, node):
        archive = os.path.join(self.folder(), "in.tar")
        rig.run("skopeo", "copy", "--quiet", f"oci:{images.layout('tools')}:latest", f"oci-archive:{archive}:latest")
        node.ctr("images", "import", "--base-name", ORIGINAL.rsplit(":", 1)[0], archive)

    def test_what_is_not_there_is_named_with_what_to_do(self):
        """Promise: no socket, no image, no blob: exit 1, one sentence, and the lease is given back."""
        self.assertIn("/nowhere/c.sock", self.refused("ls", "containerd:alpine", "--address", "/nowhere/c.sock"))
        with self.node("1.6", lazy=False) as node:
            self.assertIn("images ls", self.refused("ls", "containerd:alpine", "--address", node.socket))
            self.bring_original(node)
            layer = images.Image(images.layout("tools")).manifest["layers"][0]["digest"]
            node.ctr("content", "rm", layer)
            told = self.refused("convert", f"containerd:{ORIGINAL}", f"containerd:{CONVERTED}", "--address", node.socket)
            self.assertIn(layer, told)
            self.assertIn("fetch-blobs", told)
            self.assertNotIn(CONVERTED, node.ctr("images", "ls", "-q"))
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])

    def test_an_interrupt_gives_the_lease_back(self):
        """Promise: interrupted in the middle: exit 130, no image, and nothing that keeps blobs."""
        with self.node("1.6", lazy=False) as node:
            command = [os.path.join(world.PROGRAMS, "larder"), "convert", "--no-cache", "--address", node.socket,
                       f"oci:{images.layout('python')}:latest", f"containerd:{CONVERTED}"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                rig.wait_for(lambda: node.ctr("leases", "ls", "-q").split(), "larder to take a lease")
                process.send_signal(signal.SIGINT)
            self.assertEqual(process.returncode, 130)
            self.assertEqual(node.ctr("leases", "ls", "-q").split(), [])
            self.assertEqual(node.ctr("images", "ls", "-q").split(), [])

    def refused(self, *words):
        done = subprocess.run([os.path.join(world.PROGRAMS, "larder"), *words], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr
