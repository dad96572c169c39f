"""An image that claims another's layers with content of its own, before and after the honest image, in its namespace and in
another, with annotations and without: whose files containers get."""

import gzip
import hashlib
import io
import itertools
import json
import os
import signal
import tarfile
import time

import images
import layouts
import world
from world import DRIVERS, once_per, rig

HONEST, POISON = "honest", "poison"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
QUIET_SECONDS = 30  # for which nobody may have waited for bytes before a layer is completed
QUARANTINE_SECONDS_MAX = 180  # then a small layer takes a second; on a busy machine, more
WEIGHT = 3_000_000  # bytes of the claimed layer, so that bytes and seconds until the proof can be told from none


def motd(name, text):
    """A layer's tar: the file that a container shows, and some weight that does not compress."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in (("etc/motd", f"{text} {name}\n".encode()), ("srv/weight", hashlib.shake_256(name.encode()).digest(WEIGHT))):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Pair:
    """An honest image, converted, and one that claims its uppermost layer."""

    def __init__(self, name, folder):
        tools = images.Image(images.layout("tools"))
        base = tools.path(tools.manifest["layers"][0]["digest"])
        with open(base, "rb") as blob:
            packed = blob.read()
        layout = os.path.join(folder, name)
        tar = motd(name, HONEST)
        layouts.write(layout, [(packed, gzip.decompress(packed)), (layouts.packed(tar), tar)])
        _, self.honest = world.publish_layout(f"claimed-{name}", layout)
        self.poison = f"{world.REGISTRY}/test/claiming-{name}:larder"
        self.claim(name, layout + "-poison")

    def claim(self, name, layout):
        """The same config, so the same diff IDs and chain IDs; the layer's index is of another tar."""
        rig.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{self.honest}", f"oci:{layout}:latest")
        with open(os.path.join(layout, "index.json")) as index:
            document = json.load(index)
        image = images.Image(layout)
        with open(os.path.join(layout, "poison.tar"), "wb") as out:
            out.write(motd(name, POISON))
        blob = os.path.join(layout, "poison.blob")
        told = rig.run(os.path.join(world.PROGRAMS, "examples/liar"), out.name, image.config["rootfs"]["diff_ids"][-1], blob)
        image.manifest["layers"][-1] = layer = json.loads(told)
        os.rename(blob, image.path(layer["digest"]))
        data = json.dumps(image.manifest).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with open(image.path(digest), "wb") as out:
            out.write(data)
        document["manifests"][0].update(digest=digest, size=len(data), mediaType=MANIFEST)
        with open(os.path.join(layout, "index.json"), "w") as index:
            json.dump(document, index)
        rig.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{self.poison}")


class Poison(world.Case):
    """containerd 2 on both drivers. `larder-snapshotter pull` hands over what CRI's annotations say; `ctr` nothing but chains."""

    def pull(self, node, namespace, image, annotations):
        if not annotations:
            return node.ctr("-n", namespace, "images", "pull", "--hosts-dir", os.path.join(node.work, "certs.d"),
                            "--snapshotter", "larder", image)
        settings = os.path.join(node.work, "larder.toml")
        return world.snapshotter("pull", "--config", settings, "--address", node.socket, "--namespace", namespace, image)

    def says(self, node, namespace, image):
        """What a new container shows, or why there is none."""
        self.count = getattr(self, "count", 0) + 1
        try:
            return node.printed("-n", namespace, "run", "--rm", "--net-host", "--snapshotter", "larder", image,
                                f"poison-{os.getpid()}-{self.count}", "/bin/cat", "/etc/motd").strip()
        except rig.RigError as error:
            return str(error)

    def layers(self, node):
        return world.status(os.path.join(node.work, "larder"))["layers"]

    def forget(self, node, namespace, *wanted):
        for image in wanted:
            node.ctr("-n", namespace, "images", "rm", "--sync", image)

    @once_per(driver=DRIVERS)
    def test_honest_containers_never_run_what_another_image_claims(self, driver):
        """Promise: whoever comes first and wherever, no honest container shows the other image's file; after the proof nobody's
        does, also after a restart; and the honest image works again once those that claim it are removed."""
        folder = self.folder()
        with self.node("2", lazy=True, driver=driver) as node:
            for first, same, annotations in itertools.product((POISON, HONEST), (True, False), (True, False)):
                name = f"{driver}-{first}-{'same' if same else 'other'}-{'on' if annotations else 'off'}"
                with self.subTest(name):
                    self.one(node, Pair(name, folder), name, first, same, annotations)
            told = world.status(os.path.join(node.work, "larder"))
            self.assertGreaterEqual(told["layers_quarantined"], 4, "one for each claim that came first")
            quarantined = [layer for layer in told["layers"] if layer["state"] == "quarantined"]
            self.assertTrue(quarantined)
            for layer in quarantined:
                self.assertIn("its tar has digest", layer["reason"])
            node.kill_snapshotter(signal.SIGKILL)
            node.start_snapshotter()
            rig.wait_for(lambda: node.ctr_ok("snapshots", "--snapshotter", "larder", "ls"), "containerd to connect", node.log)
            # It waits longer and longer before it tries again, and says so meanwhile.
            rig.wait_for(lambda: "connection error" not in self.says(node, *self.left[0]) or None, "containerd to try again", node.log)
            again = [layer["chain_id"] for layer in self.layers(node) if layer["state"] == "quarantined"]
            self.assertEqual(sorted(again), sorted(layer["chain_id"] for layer in quarantined))
            for namespace, image in self.left:
                said = self.says(node, namespace, image)
                self.assertIn("its index does not describe it", said)
                self.assertNotIn(f"{POISON} ", said)

    left = ()

    def one(self, node, pair, name, first, same, annotations):
        evil = "evil-" + name
        good = evil if same else "good-" + name
        place = {POISON: (evil, pair.poison), HONEST: (good, pair.honest)}
        second = HONEST if first == POISON else POISON
        self.pull(node, *place[first], annotations)
        began = time.monotonic()
        try:
            self.pull(node, *place[second], annotations)
        except rig.RigError as error:
            # Found out during the pull already, which then says so.
            if (first, same) != (POISON, True) or "no container of it can start" not in str(error):
                raise
        if (first, same) == (POISON, False):
            print(f"{time.monotonic() - began:.1f} s for a pull that forces the proof,", end=" ", flush=True)
        honest = self.says(node, *place[HONEST])
        self.assertNotIn(f"{POISON} ", honest)
        if (first, same) != (POISON, True):
            self.assertEqual(honest, f"{HONEST} {name}")
        else:
            # containerd gave the name of the chain away; nothing runs on it.
            self.assertIn("quarantined", honest)
        poison = self.says(node, *place[POISON])
        if first == HONEST:
            self.assertEqual(poison, f"{HONEST} {name}", "a claim gets what is proven")
            return
        self.assertIn("quarantined", poison)
        if same:
            self.forget(node, evil, pair.poison, pair.honest)
            self.pull(node, good, pair.honest, annotations)
            self.assertEqual(self.says(node, good, pair.honest), f"{HONEST} {name}")
            # What was found out is not forgotten with the image.
            self.pull(node, "late-" + name, pair.poison, annotations)
            self.assertEqual(self.says(node, "late-" + name, pair.poison), f"{HONEST} {name}")
        else:
            self.left = (*self.left, place[POISON])

    def test_a_claim_that_nobody_contests_is_found_out(self):
        """Figure: how long it runs, and how many bytes are fetched until the proof. Nobody reads, so the node is quiet."""
        pair = Pair("alone", self.folder())
        with self.node("2", lazy=True) as node:
            began = time.monotonic()
            self.pull(node, "default", pair.poison, True)
            self.assertEqual(self.says(node, "default", pair.poison), f"{POISON} alone", "a claim is believed at first")
            while not (found := [layer for layer in self.layers(node) if layer["state"] == "quarantined"]):
                self.assertLess(time.monotonic() - began, QUIET_SECONDS + QUARANTINE_SECONDS_MAX)
                time.sleep(0.5)
            print(f"{time.monotonic() - began:.0f} s and {found[0]['bytes_total']} bytes until the proof", end=" ", flush=True)
            self.assertIn("quarantined", self.says(node, "default", pair.poison))
            # Regression: this ended with 0 and without a word.
            with self.assertRaisesRegex(rig.RigError, "exit 1.*\n.*no container of it can start: .*quarantined.*remove the images"):
                self.pull(node, "default", pair.honest, True)
            self.forget(node, "default", pair.poison, pair.honest)
            self.pull(node, "default", pair.honest, True)
            self.assertEqual(self.says(node, "default", pair.honest), f"{HONEST} alone")
