"""The configuration that the documents give to operators. Every lazy node of these tests runs with the README's block."""

import configparser
import json
import os
import shutil
import subprocess

import world
from world import RELEASES, once_per, rig


# What systemd.exec(5) says gives a service a mount namespace of its own.
NAMESPACE_OPTIONS = """BindPaths BindReadOnlyPaths DynamicUser ExecPaths ExtensionDirectories ExtensionImages InaccessiblePaths
    MountAPIVFS MountFlags MountImages NoExecPaths PrivateDevices PrivateMounts PrivateTmp ProcSubset ProtectControlGroups
    ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem
    ReadOnlyPaths ReadWritePaths RootDirectory RootImage TemporaryFileSystem""".split()


class Configuration(world.Case):
    """One block, for every release of containerd."""

    beside = True

    def test_both_documents_give_the_same_block(self):
        """Promise: README and docs/CONFIGURATION.md do not contradict each other."""
        self.assertEqual(rig.configuration_block("README.md"), rig.configuration_block("docs/CONFIGURATION.md"))

    def test_the_unit_starts_before_containerd_and_shows_it_the_mounts(self):
        """Promise: containerd's start waits until the daemon says that it is ready; no option hides its mounts from containerd."""
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        self.assertTrue(unit.read(os.path.join(world.TOP, "deploy/larder-snapshotter.service")))
        self.assertIn("containerd.service", unit["Unit"]["Before"].split())
        self.assertEqual(unit["Service"]["Type"], "notify")
        self.assertFalse(set(unit["Service"]) & set(NAMESPACE_OPTIONS))
        socket = configparser.RawConfigParser(strict=False)
        socket.optionxform = str
        self.assertTrue(socket.read(os.path.join(world.TOP, "deploy/larder-snapshotter.socket")))
        self.assertIn("containerd.service", socket["Unit"]["Before"].split())
        with open(os.path.join(world.TOP, "deploy/config.toml")) as text:
            self.assertIn(f'address = "{socket["Socket"]["ListenStream"]}"\n', text.read())
        self.assertEqual(socket["Socket"]["SocketMode"], "0600")
        self.assertIn("larder-snapshotter.socket", unit["Unit"]["After"].split())
        self.assertGreater(int(unit["Service"]["FileDescriptorStoreMax"]), 0)
        # A stopped containerd must not stop the daemon under its containers.
        self.assertFalse({"Requires", "BindsTo", "PartOf"} & set(unit["Unit"]))

    def test_a_reload_looks_at_the_configuration_first(self):
        """Promise: `systemctl reload` fails where the configuration has a mistake, with the daemon's own arguments, and nobody is told
        to go."""
        with open(os.path.join(world.TOP, "deploy/larder-snapshotter.service")) as text:
            lines = [line.strip().partition("=") for line in text]
        start, = (value for key, _, value in lines if key == "ExecStart")
        reload = [value for key, _, value in lines if key == "ExecReload"]
        self.assertEqual(reload, [start + " --check-config", "/bin/kill -HUP $MAINPID"])

    def test_systemd_understands_the_units(self):
        """Promise: systemd's own reader finds nothing to say about the units."""
        if not shutil.which("systemd-analyze"):
            self.skipTest("systemd-analyze is not installed")
        place, units = self.folder(), []
        for kind in ("service", "socket"):
            units.append(os.path.join(place, f"larder-snapshotter.{kind}"))
            with open(os.path.join(world.TOP, "deploy", f"larder-snapshotter.{kind}")) as text, open(units[-1], "w") as out:
                out.write(text.read().replace("/usr/local/bin", world.PROGRAMS))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False)
        said = [line for line in done.stderr.splitlines() if "larder-snapshotter" in line]
        self.assertEqual((done.returncode, said), (0, []), done.stderr)

    @once_per(driver=world.DRIVERS)
    def test_what_the_unit_forbids_is_not_needed(self, driver):
        """Promise: with the unit's capabilities, its umask and without new privileges, an image is mounted, read, and removed."""
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        unit.read(os.path.join(world.TOP, "deploy/larder-snapshotter.service"))
        service = unit["Service"]
        kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in service["CapabilityBoundingSet"].split())
        bounds = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", f"--inh-caps=-all"]
        _, lazy = world.publish("nginx")
        with self.node("2", lazy=True, driver=driver, within=["sh", "-c", f'umask {service["UMask"]}; exec "$@"', "sh", *bounds]) as node:
            with open(f"/proc/{node.daemon.pid}/status") as status:
                seen = dict(line.split(":\t", 1) for line in status.read().splitlines() if ":\t" in line)
            self.assertEqual(seen["NoNewPrivs"], "1")
            names = service["CapabilityBoundingSet"].split()
            self.assertEqual(bin(int(seen["CapEff"], 16)).count("1"), len(names), seen)
            node.pull(lazy)
            said = node.printed("run", "--rm", "--snapshotter", "larder", lazy, "reader", "/bin/sh", "-c", "echo x > /tmp/x && id && ls /usr/sbin/nginx")
            self.assertIn("/usr/sbin/nginx", said)
            node.ctr("images", "rm", "--sync", lazy)
            self.gone(node.left_behind)

    def test_a_root_on_overlayfs_is_refused_by_one_sentence(self):
        """Promise: a root directory where no container could live is refused before anything is written there."""
        place = self.folder()
        lower, upper, scratch, merged = (os.path.join(place, name) for name in ("lower", "upper", "scratch", "merged"))
        for folder in (lower, upper, scratch, merged):
            os.mkdir(folder)
        rig.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={scratch}", merged)
        try:
            ran = subprocess.run([os.path.join(world.PROGRAMS, "larder-snapshotter"), "run", "--root", os.path.join(merged, "root"),
                                  "--address", os.path.join(place, "larder.sock")],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
            said = ran.stderr.decode()
            self.assertEqual(ran.returncode, 64, said)
            self.assertRegex(said, "^larder-snapshotter: configuration key root: .* is on overlayfs, .*\\n$")
            self.assertEqual(os.listdir(merged), [])
        finally:
            rig.run("umount", merged)

    @once_per(driver=world.DRIVERS)
    def test_the_log_says_once_which_driver_serves_and_why(self, driver):
        """Promise: whoever reads the log of a start finds the driver and the reason, and finds them once."""
        with self.node("1.6", lazy=True, driver=driver) as node:
            with open(os.path.join(node.work, "larder.log")) as log:
                said = [line for line in log if "reason" in line]
            self.assertEqual(len(said), 1, said)
            self.assertRegex(said[0], f"driver\\W*=\\W*{driver}\\b.*reason=")

    @once_per(release=RELEASES)
    def test_doctor_misses_nothing_in_it(self, release):
        """Promise: on a node that runs with the block, with CRI, `doctor` finds nothing that is wrong."""
        with self.node(release, lazy=True, sandbox="none.invalid/pause") as node:
            told = world.snapshotter("doctor", "--json", "--config", os.path.join(node.work, "larder.toml"),
                                     "--containerd-config", os.path.join(node.work, "containerd.toml"))
            findings = json.loads(told)
            self.assertFalse([finding for finding in findings if finding["verdict"] == "bad"])
            good = {finding["what"] for finding in findings if finding["verdict"] == "good"}
            self.assertLessEqual({"proxy plugin", "CRI", "daemon"}, good, findings)
