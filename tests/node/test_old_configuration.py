"""A daemon dies while its configuration is broken."""

import contextlib
import os
import re
import signal
import subprocess

import load
import oracle
import systemd
import test_observability
import trees
import world
from world import DRIVERS, once_per, rig

OLD = "the configuration cannot be used; going on with the last one that could"
REFUSED = "ERROR not reloaded, the daemon that was there goes on: "
EXPECTED = ("the daemon before was killed by signal 9", "the daemon before died", OLD, REFUSED)


class OldConfiguration(world.Case):
    """What the next daemon runs with."""

    beside = True

    @once_per(driver=DRIVERS[:1])
    def test_a_broken_configuration_is_no_reason_for_mounts_to_wait(self, driver):
        """Regression: a mistake in the file, or in one that it names, kept each next daemon from starting, and every reader waited until an
        operator came; a root directory or an address that was changed in it was taken.

        Promise: whoever takes over goes on with the last configuration that could be used. Log, systemd, `status` and a metric say since when, and
        where the mistake is; a reload keeps what runs until it is mended. A full start is refused, with 64."""
        path = os.path.join(self.folder(), "notify")
        keeper = systemd.Systemd(path)
        os.environ["NOTIFY_SOCKET"] = path
        self.addCleanup(os.environ.pop, "NOTIFY_SOCKET", None)
        _, converted = world.publish("tools-layers")
        credentials = os.path.join(self.folder(), "credentials.json")
        self.write(credentials, "{}")
        authority = os.path.join(self.folder(), "ca.pem")
        rig.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
                "-keyout", authority + ".key", "-out", authority)
        with self.node("2", lazy=True, driver=driver, settings='metrics_address = "{work}/metrics.sock"\n') as node:
            root, settings = os.path.join(node.work, "larder"), os.path.join(node.work, "larder.toml")
            with open(settings) as file:
                good = file.read().replace("[registry]\n", f'[registry]\nauthfile = "{credentials}"\nextra_ca = ["{authority}"]\n')
            log = load.Log(os.path.join(node.work, "larder.log"))
            with trees.mounted_by_containerd(node, converted) as place:
                self.write(settings, good)
                self.reload(node, log)
                expected = oracle.snapshot(place)
                self.assertIsNone(world.status(root)["old_configuration"])

                def goes_on(said, deaths=1):
                    """Kills the daemon; the next one serves, and says what is wrong."""
                    for _ in range(deaths):
                        self.kill(node, log)
                    rig.drop_caches()
                    self.assertEqual(oracle.snapshot(place), expected)
                    old = world.status(root)["old_configuration"]
                    self.assertIn(said, old["why"])
                    self.assertRegex(self.last_status(keeper), f"^serving with the configuration of {old['since']}: .*{re.escape(said)}")
                    self.assertEqual(self.metric(node), 1)
                    log.rest()
                    told = [line for line in log.lines if OLD in line and said in line]
                    self.assertEqual(len(told), deaths, told)

                self.write(settings, "rooot = 1\n" + good)
                goes_on(f"configuration {settings}, line 1: rooot = 1: unknown field", deaths=2)
                before, = rig.daemons(node.daemon.pid)
                node.daemon.send_signal(signal.SIGHUP)
                log.wait(REFUSED + f"configuration {settings}, line 1: ", node.daemon)
                self.assertEqual(rig.daemons(node.daemon.pid), [before])
                with open(settings, "wb") as file:
                    file.write(b"\xff\xfe")
                goes_on(f"read configuration {settings}: ")
                os.remove(settings)
                goes_on(f"read configuration {settings}: No such file")
                self.write(settings, good)
                self.write(credentials, "{")
                goes_on("key registry.authfile: ")
                self.write(credentials, "{}")
                os.rename(authority, authority + ".good")
                goes_on("key registry.extra_ca: ")
                # With what it held: what has to be fetched is.
                _, other = world.publish("tools")
                node.pull(other)
                self.assertEqual([layer["reason"] for layer in world.status(root)["layers"] if layer["state"] == "eager"], [])
                node.ctr("images", "rm", "--sync", other)
                os.rename(authority + ".good", authority)
                for key in ("root", "address"):
                    line = next(line for line in good.splitlines() if line.startswith(key + " = "))
                    there = line.split('"')[1]
                    self.write(settings, good.replace(line, f'{key} = "{there}-other"', 1))
                    said = f"key {key}: changed from {there} to {there}-other, which a reload cannot do"
                    goes_on(said)
                    node.daemon.send_signal(signal.SIGHUP)
                    log.wait(said, node.daemon)
                    # As systemd asks before it tells anybody.
                    code, told = self.check(node, settings, MAINPID=str(node.daemon.pid))
                    self.assertEqual((code, said in told), (64, True), told)
                    self.assertEqual(self.check(node, settings)[0], 0)
                self.assertFalse(os.path.exists(root + "-other"))

                with contextlib.suppress(ProcessLookupError):
                    os.kill(node.daemon.pid, signal.SIGKILL)
                node.daemon.wait()
                program = [os.path.join(node.programs, "larder-snapshotter"), "run", "--config", settings]
                command, descriptors = keeper.command(*program)
                node.daemon = node.background(command, "larder.log", pass_fds=descriptors)
                log.wait("ready for containerd", node.daemon)
                self.assertEqual(oracle.snapshot(place), expected)
                self.assertIn("key address: ", world.status(root)["old_configuration"]["why"])

                self.write(settings, good)
                self.reload(node, log)
                self.assertIsNone(world.status(root)["old_configuration"])
                self.assertEqual((self.last_status(keeper), self.metric(node)), ("serving", 0))
                self.assertEqual(oracle.snapshot(place), expected)
            loud = [line for line in log.lines if re.search(r" (WARN|ERROR) |panicked", line)]
            self.assertEqual([line for line in loud if not any(known in line for known in EXPECTED)], [])
            rig.stop(node.daemon)
            self.write(settings, "rooot = 1\n" + good)
            first = subprocess.run(program, capture_output=True, text=True, timeout=rig.SOCKET_SECONDS_MAX, check=False)
            self.assertEqual((first.returncode, "rooot" in first.stderr), (64, True), first.stderr)
            self.write(settings, good)
            node.start_snapshotter()

    def test_a_mistake_ends_a_service_that_was_never_served(self):
        """Regression: where systemd listens for the service, its first start did not end over a mistake in the configuration, but was tried again
        and again, with mounts that nobody had."""
        settings = os.path.join(self.folder(), "config.toml")
        self.write(settings, "rooot = 1\n")
        keeper = systemd.Systemd(os.path.join(self.folder(), "notify"))
        with systemd.socket.socket(systemd.socket.AF_UNIX) as listener:
            listener.bind(os.path.join(self.folder(), "larder.sock"))
            listener.listen()
            keeper.held["larder-snapshotter.socket"] = [listener.fileno()]
            program = os.path.join(world.PROGRAMS, "larder-snapshotter")
            command, descriptors = keeper.command(program, "run", "--config", settings)
            ended = subprocess.run(command, capture_output=True, text=True, timeout=rig.SOCKET_SECONDS_MAX, pass_fds=descriptors, check=False)
        self.assertEqual((ended.returncode, "rooot" in ended.stderr), (64, True), ended.stderr)

    def write(self, path, text):
        with open(path + ".new", "w") as out:
            out.write(text)
        os.chmod(path + ".new", 0o600)
        os.replace(path + ".new", path)

    def kill(self, node, log):
        rig.wait_for(lambda: len(rig.daemons(node.daemon.pid)) == 1, "one daemon")
        before, = rig.daemons(node.daemon.pid)
        os.kill(before, signal.SIGKILL)
        log.wait("ready for containerd", node.daemon)
        rig.wait_for(lambda: not rig.is_alive(before), "the one before to be gone")

    def reload(self, node, log):
        before, = rig.daemons(node.daemon.pid)
        node.daemon.send_signal(signal.SIGHUP)
        log.wait("ready for containerd", node.daemon)
        rig.wait_for(lambda: not rig.is_alive(before), "the one before to be gone")

    def check(self, node, settings, **variables):
        program = os.path.join(node.programs, "larder-snapshotter")
        asked = subprocess.run([program, "run", "--check-config", "--config", settings], env=dict(os.environ, **variables),
                               capture_output=True, text=True, timeout=rig.SOCKET_SECONDS_MAX, check=False)
        return asked.returncode, asked.stdout + asked.stderr

    def last_status(self, keeper):
        """What systemd was told last, when a daemon was ready."""
        ready = lambda: [word["STATUS"] for word in list(keeper.said) if {"READY", "STATUS"} <= word.keys()]  # noqa: E731
        return ready()[-1]

    def metric(self, node):
        page = os.path.join(node.work, "metrics.sock")
        # A daemon listens for readers of metrics a moment after it is ready.
        rig.wait_for(lambda: rig.listens(page), "metrics to be served")
        return test_observability.scrape(page)["larder_old_configuration"]
