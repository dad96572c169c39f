"""Whoever reads the log does not read it any more, and daemons die."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading

import oracle
import trees
import world
from world import DRIVERS, once_per, rig

# A read that waits for ever is what is looked for; the deadline of a read is 30 s, and a slow machine starts daemons in seconds.
WAIT_SECONDS_MAX = 60


class StuckLog(world.Case):
    """A journal that is stuck leaves the pipe or the socket that it reads full."""

    beside = True

    def fill(self, into):
        os.set_blocking(into, False)
        for length in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(into, b"x" * length)
        os.set_blocking(into, True)

    @once_per(driver=DRIVERS[:1])
    def test_a_stuck_reader_of_the_log_keeps_nobody_waiting(self, driver):
        """Regression: the supervisor waited with its line about a dead daemon, before it started the next one, until somebody read the log;
        no deadline held, since nobody kept it. The next daemon waited with its first line.

        Promise: with a full pipe or socket for a log, daemons die by kill -9, are reloaded, and reads go on; what waited is told once the log
        is read again."""
        _, converted = world.publish("tools-layers")
        with self.node("2", lazy=True, driver=driver) as node:
            program, settings = os.path.join(node.programs, "larder-snapshotter"), os.path.join(node.work, "larder.toml")
            for kind in ("pipe", "socket"):
                if kind == "pipe":
                    reader, writer = os.pipe()
                else:
                    ours, theirs = socket.socketpair()
                    reader, writer = ours.detach(), theirs.detach()
                with self.subTest(kind):
                    rig.stop(node.daemon)
                    command = [*node.within, program, "run", "--config", settings]
                    node.daemon = subprocess.Popen(command, stdout=writer, stderr=writer)
                    self.addCleanup(node.daemon.kill)
                    rig.wait_for(lambda: rig.listens(os.path.join(node.work, "l.sock")), "larder-snapshotter to listen")
                    with trees.mounted_by_containerd(node, converted) as place:
                        expected = oracle.snapshot(place)
                        self.fill(writer)
                        for by in (signal.SIGKILL, signal.SIGKILL, signal.SIGHUP, signal.SIGKILL):
                            before, = rig.daemons(node.daemon.pid)
                            os.kill(node.daemon.pid if by == signal.SIGHUP else before, by)
                            rig.wait_for(lambda: not rig.is_alive(before), "the daemon before to be gone")
                            rig.drop_caches()
                            self.assertEqual(self.soon(lambda: oracle.snapshot(place)), expected)
                            self.soon(lambda: world.status(os.path.join(node.work, "larder")))
                            rig.wait_for(lambda: len(rig.daemons(node.daemon.pid)) == 1, "one daemon")
                        told = []
                        draining = threading.Thread(target=self.drain, args=(reader, told), daemon=True)
                        draining.start()
                        rig.wait_for(lambda: b"".join(told).count(b"was killed by signal 9") >= 3, "the log to tell of the deaths")
                    rig.stop(node.daemon)
                    os.close(writer)
                    draining.join(WAIT_SECONDS_MAX)
                    self.assertNotIn(b"panicked", b"".join(told))
            node.start_snapshotter()

    def soon(self, does):
        """What `does` gives, unless it waits for ever."""
        given = []
        thread = threading.Thread(target=lambda: given.append(does()), daemon=True)
        thread.start()
        thread.join(WAIT_SECONDS_MAX)
        self.assertFalse(thread.is_alive(), "it waits for ever")
        return given[0]

    def drain(self, reader, told):
        with contextlib.suppress(OSError):
            while piece := os.read(reader, 1 << 16):
                told.append(piece)

    def test_a_start_that_fails_with_a_stuck_log_ends(self):
        """Promise: a first start over a mistake in the configuration ends with 64, also where nobody reads what it says."""
        settings = os.path.join(self.folder(), "config.toml")
        with open(settings, "w") as file:
            file.write("rooot = 1\n")
        reader, writer = os.pipe()
        self.fill(writer)
        program = os.path.join(world.PROGRAMS, "larder-snapshotter")
        ended = subprocess.run([program, "run", "--config", settings], stderr=writer, timeout=WAIT_SECONDS_MAX, check=False)
        self.assertEqual(ended.returncode, 64)
        os.close(reader)
        os.close(writer)

    @once_per(driver=DRIVERS[:1])
    def test_a_start_that_fails_is_told_with_its_reason_and_its_code(self, driver):
        """Regression: a daemon that found a mistake at its start was killed before it had said so: each attempt was told as "killed by signal 9
        before it served", and the mistake never.

        Promise: what a daemon does not like at its start is in the log, and its end is told by the exit code."""
        _, converted = world.publish("tools-layers")
        own = self.folder()
        program = os.path.join(own, "larder-snapshotter")
        for name in (program, program + ".this"):
            with open(os.path.join(world.PROGRAMS, "larder-snapshotter"), "rb") as source, open(name, "wb") as copy:
                copy.write(source.read())
            os.chmod(name, 0o755)
        with self.node("2", lazy=True, driver=driver, programs=own) as node:
            log = os.path.join(node.work, "larder.log")
            with trees.mounted_by_containerd(node, converted) as place:
                expected = oracle.snapshot(place)
                before, = rig.daemons(node.daemon.pid)
                # The real program with a mistake that the configuration of before does not mend.
                with open(program + ".new", "w") as script:
                    script.write(f'#!/bin/sh\nshift\nexec {program}.this run --root relative "$@"\n')
                os.chmod(program + ".new", 0o755)
                os.replace(program + ".new", program)
                os.kill(before, signal.SIGKILL)
                rig.wait_for(lambda: "ended with exit code 64" in self.text(log), "the end to be told")
                self.assertIn("larder-snapshotter: configuration key root: ", self.text(log))
                os.remove(program)
                rig.wait_for(lambda: f"{program} cannot be run: No such file" in self.text(log), "the absence to be told")
                self.assertEqual(self.soon(lambda: oracle.snapshot(place)), expected)
                os.replace(program + ".this", program)
            self.assertEqual(re.findall(r"killed by signal 9 [^\n]* before it served", self.text(log)), [])

    def text(self, path):
        with open(path) as file:
            return file.read()
