"""What an owner of mounts that was killed leaves where it had mounted."""

import os
import signal

import world
from world import DRIVERS, once_per, rig


class Left(world.Case):
    """By `larder-snapshotter mount`, whose owner has no supervisor."""

    beside = True

    @once_per(driver=DRIVERS)
    def test_what_a_dead_owner_left_is_taken_away_first(self, driver):
        """Regression: an image that was mounted again after `kill -9` of its owner lay upon the dead one, which `umount` brought to light.

        Promise: what an owner of the same root left at a place goes before something is mounted there, by the next owner or by one that
        lives; what somebody else mounted there, or an image that is served, stays below and is there again afterwards."""
        _, one = world.publish("tools")
        _, many = world.publish("tools-layers")
        root, place, other = self.folder(), self.folder(), self.folder()

        def mount(reference, at):
            world.snapshotter("mount", "--root", root, "--fs-driver", driver, "--detach", reference, at)

        def umount(at):
            world.snapshotter("umount", "--root", root, at)

        def motd(at):
            with open(os.path.join(at, "etc/motd")) as file:
                return file.read()

        def kill():
            owner, = rig.processes_with(root)
            os.kill(owner, signal.SIGKILL)
            rig.wait_for(lambda: not rig.is_alive(owner), "the owner to end")

        for reference, said in ((one, "one layer\n"), (many, "six layers\n")):
            mount(reference, place)
            kill()
            mount(reference, place)
            self.assertEqual((mounts_at(place), motd(place)), (1, said))
            kill()
            mount(many, other)
            mount(reference, place)
            self.assertEqual((mounts_at(place), motd(place)), (1, said))
            umount(place)
            self.assertEqual((mounts_at(place), os.listdir(place)), (0, []))
            if reference == one:
                umount(other)
                rig.wait_for(lambda: not rig.processes_with(root), "the owner to end")

        rig.run("mount", "--bind", other, place)
        mount(one, place)
        self.assertEqual((mounts_at(place), motd(place)), (2, "one layer\n"))
        umount(place)
        self.assertEqual((mounts_at(place), motd(place)), (1, "six layers\n"))
        rig.run("umount", place)
        rig.run("mount", "-t", "tmpfs", "none", place)
        mount(one, place)
        umount(place)
        self.assertEqual(mounts_at(place), 1)
        rig.run("umount", place)
        umount(other)
        rig.wait_for(lambda: not rig.processes_with(root), "the owner to end")
        with open("/proc/self/mountinfo") as table:
            self.assertEqual([line for line in table if f" {root}/" in line], [])


def mounts_at(place):
    with open("/proc/self/mountinfo") as table:
        return [line.split()[4] for line in table].count(place)
