"""Signals that somebody sends by mistake, and daemons that do not answer any more."""

import os
import re
import signal
import time

import load
import oracle
import test_stuck_log
import trees
import world
from world import DRIVERS, once_per, rig

# What would end a program that does not expect it, and is not sent to end it: by rotators of logs, monitors, timers, limits.
MEANINGLESS = [signal.Signals[f"SIG{name}"] for name in ("USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "STKFLT", "XCPU", "XFSZ")]
# As the supervisor has it.
ROOM_SECONDS = 10


def masks(pid):
    """The signals that wait for a process, and those that it blocks and ignores."""
    with open(f"/proc/{pid}/status") as status:
        found = dict(re.findall(r"^(S\w+):\t([0-9a-f]{16})$", status.read(), re.M))
    return {name: {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1} for name, mask in found.items()}


def send_all(pid, numbers):
    """Sends them one after the other, and waits until each was taken."""
    for number in numbers:
        os.kill(pid, number)
        rig.wait_for(lambda: number not in masks(pid)["ShdPnd"], f"signal {number} to be taken")


class Signals(world.Case):
    """Sent to the supervisor, its daemon, and the owner of mounts that has no supervisor."""

    beside = True

    def setUp(self):
        super().setUp()
        # What started the tests may have them ignored, which is respected.
        for number in (signal.SIGHUP, signal.SIGQUIT):
            self.addCleanup(signal.signal, number, signal.signal(number, signal.SIG_DFL))

    @once_per(driver=DRIVERS[:1])
    def test_signals_that_mean_nothing_end_nobody(self, driver):
        """Regression: SIGUSR1, as a rotator of logs sends it, ended the supervisor, and every container lost its files.

        Promise: neither supervisor nor daemon ends by a signal that asks for nothing here; the daemon, and what it runs, have none blocked or
        ignored for that. SIGHUP and SIGQUIT of the daemon itself have it make room, without a warning; SIGQUIT of the supervisor is a stop."""
        _, converted = world.publish("tools-layers")
        with self.node("2", lazy=True, driver=driver) as node:
            log = load.Log(os.path.join(node.work, "larder.log"))
            with trees.mounted_by_containerd(node, converted) as place:
                expected = oracle.snapshot(place)
                daemon, = rig.daemons(node.daemon.pid)
                send_all(node.daemon.pid, [*MEANINGLESS, signal.SIGPIPE, signal.SIGRTMIN, signal.SIGRTMAX])
                send_all(daemon, MEANINGLESS)
                self.assertIsNone(node.daemon.poll())
                self.assertEqual(rig.daemons(node.daemon.pid), [daemon])
                self.assertEqual(masks(daemon)["SigBlk"], set())
                self.assertEqual(masks(daemon)["SigIgn"] & {*MEANINGLESS, signal.SIGHUP, signal.SIGQUIT}, set())
                for number in (signal.SIGHUP, signal.SIGQUIT):
                    rig.wait_for(lambda: len(rig.daemons(node.daemon.pid)) == 1, "one daemon")
                    log.rest()
                    os.kill(*rig.daemons(node.daemon.pid), number)
                    log.wait("ready for containerd", node.daemon)
                rig.drop_caches()
                self.assertEqual(oracle.snapshot(place), expected)
            log.rest()
            self.assertEqual([line for line in log.lines if re.search(r" (WARN|ERROR) |^larder-snapshotter: ", line)], [])
            node.daemon.send_signal(signal.SIGQUIT)
            self.assertEqual(node.daemon.wait(rig.STOP_SECONDS_MAX), 0)
            self.assertEqual(mounts_below(node.work), [])

    def test_an_owner_without_a_supervisor_ends_by_none_either(self):
        """Promise: the process that `mount` leaves behind serves on; SIGHUP, as of a terminal that is closed, has it unmount everything."""
        _, converted = world.publish("tools")
        root, place = self.folder(), self.folder()
        world.snapshotter("mount", "--root", root, "--detach", converted, place)
        owner, = rig.processes_with(root)
        send_all(owner, MEANINGLESS)
        rig.drop_caches()
        with open(os.path.join(place, "etc/motd")) as file:
            self.assertEqual(file.read(), "one layer\n")
        os.kill(owner, signal.SIGHUP)
        rig.wait_for(lambda: not rig.is_alive(owner), "the owner to end")
        self.assertEqual((mounts_below(root), os.path.ismount(place)), ([], False))


class Hung(world.Case):
    """A daemon that somebody stopped is one that never answers."""

    beside = True

    # With EROFS, what is complete is read without the daemon.
    @once_per(driver=DRIVERS[1:])
    def test_a_daemon_that_hangs_is_replaced(self, driver):
        """Regression: a reload asked a daemon that hung to make room, and waited for ever, and all reads with it.

        Promise: it is killed when its time is over, and the next one goes on; readers see no error, and the log has one warning, which says
        what happened. A stop ends everything in order all the same, also one that comes before that time is over."""
        _, converted = world.publish("tools-layers")
        with self.node("2", lazy=True, driver=driver) as node:
            path = os.path.join(node.work, "larder.log")
            log = load.Log(path)
            with trees.mounted_by_containerd(node, converted) as place:
                expected = oracle.snapshot(place)
                daemon, = rig.daemons(node.daemon.pid)
                os.kill(daemon, signal.SIGSTOP)
                began = time.monotonic()
                node.daemon.send_signal(signal.SIGHUP)
                rig.drop_caches()
                self.assertEqual(test_stuck_log.StuckLog.soon(self, lambda: oracle.snapshot(place)), expected)
                self.assertGreaterEqual(time.monotonic() - began, ROOM_SECONDS)
                log.wait("ready for containerd", node.daemon)
                self.assertFalse(rig.is_alive(daemon))
            log.rest()
            hung = rf"was asked to make room for the next one, did not within {ROOM_SECONDS}s, and was killed after it had served for [0-9.]+ s"
            warnings = [line for line in log.lines if re.search(r" (WARN|ERROR) ", line)]
            self.assertEqual(len(warnings), 1, warnings)
            self.assertRegex(warnings[0], rf" WARN .*the daemon before {hung}")
            own = [line for line in log.lines if line.startswith("larder-snapshotter: ")]
            self.assertEqual(len(own), 1, own)
            self.assertRegex(own[0], rf"^larder-snapshotter: the daemon \(process {daemon}\) {hung}; mounts wait; the next one starts now$")

            for asked in (False, True):
                daemon, = rig.daemons(node.daemon.pid)
                os.kill(daemon, signal.SIGSTOP)
                if asked:
                    node.daemon.send_signal(signal.SIGHUP)
                    rig.wait_for(lambda: signal.SIGTERM in masks(daemon)["ShdPnd"], "the daemon to be asked to make room")
                node.daemon.send_signal(signal.SIGTERM)
                self.assertEqual(node.daemon.wait(rig.STOP_SECONDS_MAX), 0)
                self.assertEqual(mounts_below(node.work), [])
                node.start_snapshotter()
                log.wait("ready for containerd", node.daemon)
            log.rest()
            self.assertEqual([line for line in log.lines if re.search(r" (WARN|ERROR) ", line)], warnings)

    @once_per(driver=DRIVERS[1:])
    def test_status_and_doctor_tell_that_a_signal_stopped_the_daemon(self, driver):
        """Regression: `status` said that the daemon did not start, and `doctor` that it was well.

        Promise: both name the process and what lets it go on; then it answers as before."""
        with self.node("2", lazy=True, driver=driver) as node:
            root = os.path.join(node.work, "larder")
            daemon, = rig.daemons(node.daemon.pid)
            os.kill(daemon, signal.SIGSTOP)
            self.addCleanup(lambda: rig.is_alive(daemon) and os.kill(daemon, signal.SIGCONT))
            with self.assertRaisesRegex(rig.RigError, rf"(?s)exit 1.*stopped process {daemon}, .*`kill -CONT {daemon}`"):
                world.status(root)
            found = world.doctor(node, "daemon")
            self.assertEqual(found["verdict"], "bad")
            self.assertIn(f"`kill -CONT {daemon}`", found["advice"])
            os.kill(daemon, signal.SIGCONT)
            self.assertTrue(world.status(root)["version"])
            self.assertEqual(world.doctor(node, "daemon")["verdict"], "good")


def mounts_below(folder):
    with open("/proc/self/mountinfo") as table:
        return [line for line in table if f" {folder}/" in line]
