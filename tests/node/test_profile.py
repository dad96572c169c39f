"""What a first start reads is learnt, and later starts are given it before they read it."""

import json
import os
import re

import world
from test_observability import scrape
from world import rig

SETTINGS = 'complete_in_background = false\nmetrics_address = "{work}/metrics.sock"\n'
SETTLED_SECONDS_MAX = 120  # a start is over ten seconds after its last first read
READS = ("/bin/sha256sum", "/usr/sbin/nginx", "/bin/bash", "/usr/bin/perl")
WAITED = 'larder_read_duration_seconds_count{found="source"}'


class Profiles(world.Case):
    def root(self, node):
        return os.path.join(node.work, "larder")

    def profile(self, node, *words):
        return world.snapshotter("profile", words[0], "--root", self.root(node), *words[1:])

    def kept(self, node):
        return json.loads(self.profile(node, "list", "--json"))["profiles"]

    def waited(self, node):
        """How many reads have waited for the registry."""
        return scrape(os.path.join(node.work, "metrics.sock"))[WAITED]

    def run_once(self, node, image):
        return node.printed("run", "--rm", "--snapshotter", "larder", image, "reader", *READS)

    def present(self, node):
        return sum(layer["bytes_present"] for layer in world.status(self.root(node))["layers"])

    def streamed(self, node):
        """Waits until nothing more comes by itself; how much there is."""
        return world.settled(lambda: self.present(node))

    def log(self, node):
        with open(os.path.join(node.work, "larder.log")) as log:
            return re.sub(r"\x1b\[[0-9;]*m", "", log.read())

    def settled(self, node, what):
        rig.wait_for(lambda: what in self.log(node), what, node.log, SETTLED_SECONDS_MAX)

    def test_what_one_node_learnt_serves_another(self):
        """Promise: a first start is recorded; where its profile is imported, also with the other driver, the same start waits for
        next to nothing, and `status` tells the hit rate. A profile of chunks that are not read costs bytes alone, and is replaced."""
        _, image = world.publish("nginx")
        with self.node("2", lazy=True, settings=SETTINGS) as node:
            node.pull(image)
            before = self.present(node)
            self.assertEqual(self.kept(node), [])
            sums, waited = self.run_once(node, image), self.waited(node)
            read = self.present(node) - before
            self.settled(node, "is kept as the image's profile")
            [kept] = self.kept(node)
            self.assertEqual((kept["image"], kept["layers"]), (image, len(world.manifest(image)["layers"])))
            self.assertEqual(world.status(self.root(node))["store"]["profiles"], kept["bytes"])
            file = os.path.join(self.folder(), "profile.json")
            self.profile(node, "export", "-o", file, image)
            shown = json.loads(self.profile(node, "show", "--json", image))
            self.assertEqual(sum(len(layer["reads"]) for layer in shown["layers"]), kept["chunks"])
            self.profile(node, "remove", image)
            self.assertEqual(self.kept(node), [])

        with self.node("2", lazy=True, driver="fuse", settings=SETTINGS) as node:
            self.assertIn(image, self.profile(node, "import", file))
            node.pull(image)
            rig.wait_for(lambda: self.present(node) > read / 2, "what the profile names", node.log)
            self.streamed(node)
            self.assertEqual(self.run_once(node, image), sums)
            again = self.waited(node)
            self.assertLess(again, waited / 5, f"{waited} reads waited the first time")
            self.settled(node, "a start went by its profile")
            [told] = world.status(self.root(node))["profiles"]
            start = told["latest_start"]
            # EROFS reads ahead of its devices, the FUSE driver does not.
            self.assertGreater(start["read"], 0.5 * start["planned"], start)
            self.assertLess(start["missed"], 0.2 * start["planned"], start)
            print(f"waited {waited:.0f}, then {again:.0f}; {start}", end=" ")
            metrics = scrape(os.path.join(node.work, "metrics.sock"))
            self.assertEqual(metrics['larder_profile_chunks_total{found="hit"}'], start["read"])
            self.assertEqual(metrics['larder_profile_starts_total{outcome="matched"}'], 1)

        with open(file) as text:
            wrong = json.load(text)
        for layer in wrong["layers"]:
            rows = {row for _, row in layer["reads"]}
            layer["reads"] = [[1, row] for row in range(30) if row not in rows] + [[1, 4_000_000_000]]
        with open(file, "w") as out:
            json.dump(wrong, out)
        with self.node("2", lazy=True, settings=SETTINGS) as node:
            self.profile(node, "import", file)
            node.pull(image)
            self.assertEqual(self.run_once(node, image), sums)
            self.settled(node, "a start read other things than its profile says, which is replaced")
            rig.wait_for(lambda: self.kept(node)[0]["chunks"] > kept["chunks"] / 2 or None, "the profile to be replaced", node.log)
            said = json.loads(self.profile(node, "show", "--json", image))
            found = {read["chunk"] for layer in said["layers"] for read in layer["reads"]}
            self.assertNotIn(4_000_000_000, found)

    def test_what_is_no_profile_is_refused_and_a_killed_daemon_loses_one_recording(self):
        """Promise: garbage and ten million reads are refused by a sentence; a damaged file goes with a line in the log, and the
        start succeeds; a daemon that is killed while it records keeps nothing half, and what runs goes on."""
        _, image = world.publish("nginx")
        digest = "sha256:" + "0" * 64
        many = json.dumps({"version": 1, "layers": [{"index": digest, "blob": digest, "diff_id": digest, "reads": []}]})
        many = many.replace("[]", "[" + "[0,1]," * 10_000_000 + "[0,1]]")
        file = os.path.join(self.folder(), "profile.json")
        with self.node("2", lazy=True, settings=SETTINGS) as node:
            for text, why in ((many, "at most 4194304"), ("garbage", "form"), (many[:200], "form")):
                with open(file, "w") as out:
                    out.write(text)
                with self.assertRaisesRegex(rig.RigError, f"exit 1\nlarder-snapshotter: .*profile.json is no profile: .*{why}"):
                    self.profile(node, "import", file)
            with self.assertRaisesRegex(rig.RigError, "exit 1\nlarder-snapshotter: no profile of .* is kept on this node"):
                self.profile(node, "show", image)
            node.pull(image)
            process = node.start_container(image, "server")
            rig.wait_for(lambda: rig.answers("http://127.0.0.1:8080/"), "nginx to answer", node.log)
            places = os.path.join(self.root(node), "profiles")
            os.makedirs(places, mode=0o700, exist_ok=True)
            damaged = os.path.join(places, "0" * 64 + ".json")
            with open(damaged, "w") as out:
                out.write(many[:5000])
            [daemon] = rig.daemons(node.daemon.pid)
            os.kill(daemon, 9)
            rig.wait_for(lambda: rig.daemons(node.daemon.pid) not in ([], [daemon]) or None, "another daemon")
            rig.wait_for(lambda: self.listed(node) == [] or None, "the profiles to be listed", node.log)
            self.assertEqual(os.listdir(places), [])
            self.assertIn("a profile cannot be used and is removed", self.log(node))
            self.assertTrue(rig.answers("http://127.0.0.1:8080/"))
            node.end_container(process, "server")

    def listed(self, node):
        try:
            return self.kept(node)
        except rig.RigError:
            return None  # it is not ready yet

    def test_profiles_are_switched_off(self):
        """Promise: with `profiles = false` nothing is recorded and nothing is fetched ahead."""
        _, image = world.publish("tools")
        with self.node("2", lazy=True, settings=SETTINGS + "profiles = false\n") as node:
            node.pull(image)
            node.printed("run", "--rm", "--snapshotter", "larder", image, "reader", "/bin/busybox", "cat", "/etc/motd")
            self.assertFalse(os.path.exists(os.path.join(self.root(node), "profiles")))
            self.assertEqual(self.kept(node), [])


def mounted():
    with open("/proc/self/mountinfo") as table:
        return set(table)


class Recording(world.Case):
    """`profile record`: without containerd."""

    def record(self, *words, **options):
        place = os.path.join(self.folder(), "root")
        return world.snapshotter("profile", "record", "--root", place, "--settle", "2", *words, **options)

    def test_a_start_is_recorded_without_containerd(self):
        """Promise: the image's own command, or another one, runs in the image with what a program expects, and what it read is
        written; nothing stays mounted and nothing goes on running. A command that fails is exit 1, and nothing is written."""
        _, image = world.publish("nginx")
        file, before = os.path.join(self.folder(), "profile.json"), mounted()
        self.record("-o", file, image)  # a service: it is over when it reads nothing new
        with open(file) as text:
            service = json.load(text)
        self.assertEqual((service["version"], service["image"]), (1, image))
        self.assertEqual(rig.processes_of("nginx"), [])
        looks = "test $$ = 1 && echo x >/dev/null && echo x >/tmp/x && echo x >/etc/new && ls /proc/1/exe && cat /etc/passwd"
        one = json.loads(self.record(image, "--", "/bin/sh", "-ec", looks))
        count = lambda profile: sum(len(layer["reads"]) for layer in profile["layers"])
        self.assertGreater(count(one), 0)
        self.assertGreater(count(service), count(one))
        self.assertEqual([layer["index"] for layer in one["layers"]], [layer["index"] for layer in service["layers"]])
        os.remove(file)
        with self.assertRaisesRegex(rig.RigError, "exit 1\n(?s:.*)larder-snapshotter: the image's program ended with .*7"):
            self.record("-o", file, image, "--", "/bin/sh", "-c", "exit 7")
        self.assertFalse(os.path.exists(file))
        with self.assertRaisesRegex(rig.RigError, "exit 1\n(?s:.*)run /nowhere in the image"):
            self.record(image, "--", "/nowhere")
        self.assertEqual(mounted() - before, set())
