"""scripts/demo, with a `cargo` that finds everything built."""

import os
import signal
import subprocess
import time

import images
import world
from world import rig

PROGRAM = os.path.join(world.TOP, "scripts/demo")
RATE = "1gbit"
SOON = 0.5  # in the middle of what was announced


class Demo(world.Case):
    """With small images over a fast link."""

    def setUp(self):
        super().setUp()
        self.temporary = self.folder()
        self.before = self.surroundings()

    def start(self, image, *options):
        """The demonstration of an image, with its temporary files in a folder of its own."""
        built = self.folder()
        with open(os.path.join(built, "cargo"), "w") as cargo:
            cargo.write("#!/bin/sh\n")
        os.chmod(cargo.name, 0o755)
        target, profile = os.path.split(world.PROGRAMS)
        environment = dict(os.environ, TMPDIR=self.temporary, PATH=built + ":" + os.environ["PATH"], CARGO_TARGET_DIR=target,
                           LARDER_PROFILE="dev" if profile == "debug" else profile)
        command = [PROGRAM, *options, f"oci:{images.layout(image)}:latest"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.addCleanup(rig.stop, process)
        return process

    def ended(self, process):
        """Exit code and all that it said, once it has left nothing behind."""
        out, errors = process.communicate(timeout=world.TEST_SECONDS_MAX)
        self.assertEqual(os.listdir(self.temporary), [])
        self.gone(lambda: self.surroundings() - self.before)
        return process.returncode, out, errors

    def surroundings(self):
        """What a demonstration makes outside of its folder: network, mounts and processes."""
        names = {("namespace", line.split()[0]) for line in rig.run("ip", "netns", "list").splitlines()}
        links = {("link", line.split(":")[1]) for line in rig.run("ip", "-o", "link").splitlines()}
        with open("/proc/self/mountinfo") as table:
            mounts = {("mount", line.split()[4]) for line in table}
        programs = ("containerd", "containerd-shim-runc-v2", "docker-registry", "larder-snapshotter")
        processes = {("process", pid) for name in programs for pid in rig.processes_of(name)}
        # `ip netns add` makes its own folder a mount, once.
        return names | links | {mount for mount in mounts if mount[1] != "/run/netns"} | processes

    def test_it_compares_both_and_works_a_second_time(self):
        """Promise: exit 0, no layer in the content store against all of the ordinary pull; and again."""
        for _ in range(2):
            code, out, errors = self.ended(self.start("tools-layers", "--rate", RATE))
            self.assertEqual(code, 0, errors)
            self.assertRegex(out, r"\nit says: \['six layers'\]\n")
            self.assertRegex(out, r"\nlayers in content store +6 of 6 +0 of 6\n")

    def test_a_layer_that_is_downloaded_is_a_failure(self):
        """Promise: exit 1, with how many and which."""
        code, out, errors = self.ended(self.start("odd-sparse", "--rate", RATE))
        self.assertEqual(code, 1, errors)
        self.assertRegex(out, r"\nlayers in content store +3 of 3 +1 of 3\n")
        self.assertRegex(errors, "demo: layers were downloaded into the content store: sha256:[0-9a-f]{64}")

    def test_asked_to_end_it_leaves_nothing(self):
        """Promise: SIGTERM, while the network is there and while a containerd runs: exit 143, and all is undone."""
        for line, rate in (("pushing", "20mbit"), ("overlayfs: pull and run", "20mbit"), ("larder: pull and run", RATE)):
            with self.subTest(after=line):
                process = self.start("nginx", "--rate", rate)
                for said in process.stderr:
                    if line in said:
                        break
                else:
                    self.fail(f"it never said {line!r}")
                time.sleep(SOON)
                process.send_signal(signal.SIGTERM)
                code, _, errors = self.ended(process)
                self.assertEqual(code, 128 + signal.SIGTERM, errors)

    def test_a_network_that_cannot_be_had_leaves_nothing(self):
        """Promise: exit 1, what failed is told, and the namespace that was made before is gone."""
        code, _, errors = self.ended(self.start("tools", "--rate", "nonsense"))
        self.assertEqual(code, 1, errors)
        self.assertRegex(errors, "demo: tc qdisc add .*")
