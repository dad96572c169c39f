"""overlayfs on a mounted image, as containers have it, compared with overlayfs on the same tree on ext4."""

import contextlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import images
import oracle
import twins
import world
from twins import outcome, system
from world import DRIVERS, once_per, rig

SUITES = os.path.join(images.CACHE, "suites/bin")
FSX_OPERATIONS = int(os.environ.get("LARDER_FSX_OPERATIONS", 2000))
SUITE_SECONDS_MAX = world.TEST_SECONDS_MAX
PASSED_MIN = 300  # overlayfs itself fails some of the suite's tests, over ext4 as well

# The users that the suite changes to; each system has these.
PJDFSTEST = """[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""

# Everything that fsx can do to a file, and as often as its own defaults where they say so.
FSX = """[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 1
punch_hole = 1
sendfile = 2
copy_file_range = 2
posix_fadvise = 1
"""


@contextlib.contextmanager
def overlay(lower):
    """A writable overlay, on the ext4 of the tests."""
    base = tempfile.mkdtemp(dir=world.work())
    for folder in (world.work(), base):
        os.chmod(folder, 0o755)  # pjdfstest is other users, too
    for name in ("upper", "work", "merged"):
        os.mkdir(os.path.join(base, name))
    options = f"lowerdir={lower},upperdir={base}/upper,workdir={base}/work"
    merged = os.path.join(base, "merged")
    rig.run("mount", "-t", "overlay", "overlay", "-o", options, merged)
    try:
        yield merged
    finally:
        rig.run("umount", merged)
        shutil.rmtree(base)


@contextlib.contextmanager
def both(driver):
    """Overlays on the tree on ext4, and on Larder's mount of it."""
    with twins.mounted(driver) as ours, overlay(twins.ext4()) as theirs, overlay(ours.place) as merged:
        yield theirs, merged


def results(root):
    """One line for each test of pjdfstest, in a directory that comes from the image."""
    place = os.path.join(root, "full")
    os.chmod(place, 0o755)
    config = os.path.join(world.work(), "pjdfstest.toml")
    with open(config, "w") as out:
        out.write(PJDFSTEST)
    command = [os.path.join(SUITES, "pjdfstest"), "-c", config, "-p", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_SECONDS_MAX)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    found = sorted(re.findall(r"^(\S+)\s+(ok|FAILED|skipped)$", plain, re.M))
    if not found:
        raise rig.RigError(f"pjdfstest says nothing:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return found


class Suites(world.Case):
    """Programs that others wrote to find faults in file systems."""

    beside = True

    @once_per(driver=DRIVERS)
    def test_pjdfstest_finds_what_it_finds_on_ext4(self, driver):
        """Promise: overlayfs over Larder gives the same result line for every test as over ext4."""
        with both(driver) as (theirs, merged):
            expected, found = results(theirs), results(merged)
            self.assertEqual(found, expected)
            passed = sum(result == "ok" for _, result in expected)
            self.assertGreater(passed, PASSED_MIN)
            print(f"{passed} of {len(expected)} passed on both", end=" ", flush=True)

    @once_per(driver=DRIVERS)
    def test_fsx_finds_no_wrong_byte(self, driver):
        """Promise: random reads, writes, mappings and truncations of a file of the image come out as fsx says they must."""
        print(f"seed {twins.SEED}", end=" ", flush=True)
        config = os.path.join(world.work(), "fsx.toml")
        with open(config, "w") as out:
            out.write(FSX)
        with both(driver) as roots:
            for root in roots:
                command = [os.path.join(SUITES, "fsx"), "-N", str(FSX_OPERATIONS), "-S", str(twins.SEED), "-f", config,
                           "-P", self.folder(), os.path.join(root, "files/large")]
                done = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_SECONDS_MAX)
                self.assertEqual(done.returncode, 0, f"{root}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def rewrite(path, data, at=0):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def by_mapping(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        area[5000:5004] = b"here"


def held(root):
    """A file that is open while its path is changed: what the old and the new opening read."""
    path = os.path.join(root, "files/page")
    with open(path, "rb") as before:
        rewrite(path, b"changed")
        with open(path, "rb") as after:
            return before.read(7) == twins.noise(1, 7), after.read(7)


# What containers do to the files of their image; each name is below the root.
CHANGES = {
    "append": lambda at: open(at("files/middle"), "ab").write(b"more"),
    "overwrite in the middle": lambda at: rewrite(at("files/large"), b"other bytes", 1 << 20),
    "change by a mapping": lambda at: by_mapping(at("files/other")),
    "truncate": lambda at: os.truncate(at("files/page-and-one"), 100),
    "extend": lambda at: os.truncate(at("files/small"), 10_000),
    "open and truncate": lambda at: open(at("files/secret"), "wb").close(),
    "chmod": lambda at: os.chmod(at("files/true"), 0o4711),
    "chown": lambda at: os.chown(at("files/empty"), 12, 34),
    "utimens": lambda at: os.utime(at("files/cat"), ns=(10**18, 10**18 + 1)),
    "setxattr": lambda at: os.setxattr(at("files/small"), "user.colour", b"blue"),
    "removexattr": lambda at: os.removexattr(at("files/small"), "user.colour"),
    "removexattr of nothing": lambda at: os.removexattr(at("files/page"), "user.colour"),
    "link": lambda at: os.link(at("files/empty"), at("files/second name")),
    "unlink": lambda at: os.unlink(at("files/fifo")),
    "unlink and make again": lambda at: (os.unlink(at("files/dangling")), os.mkdir(at("files/dangling"))),
    "rename a file": lambda at: os.rename(at("files/null"), at("files/moved")),
    "rename a file over another": lambda at: os.rename(at("entries/2/0"), at("entries/1/0")),
    "rename a directory": lambda at: os.rename(at("full"), at("moved")),
    "remove a full directory": lambda at: os.rmdir(at("entries/300")),
    "empty a directory": lambda at: shutil.rmtree(at("entries/300")),
    "make it again": lambda at: (os.mkdir(at("entries/300")), open(at("entries/300/new"), "w").close()),
    "remove a directory": lambda at: os.rmdir(at("entries/0")),
    "replace a link": lambda at: (os.unlink(at("files/symlink")), os.symlink("other", at("files/symlink"))),
    "copy within": lambda at: rig.run("cp", "--reflink=auto", at("files/large"), at("files/copy")),
}


class Containers(world.Case):
    """What containers do to the files of their image."""

    beside = True

    @once_per(driver=DRIVERS)
    def test_what_containers_change_comes_out_as_over_ext4(self, driver):
        """Promise: each change has the same answer, and afterwards the trees are the same to the last attribute."""
        with both(driver) as roots:
            answers = []
            for root in roots:
                def at(name, root=root):
                    return os.path.join(root, name)
                said = {name: outcome(change, at) for name, change in CHANGES.items()}
                answers.append({name: answer for name, answer in said.items() if isinstance(answer, str)} | {"held": held(root)})
            self.assertEqual(answers[1], answers[0])
            twins.drop_caches()
            # What was made or changed has the time of that.
            trees = [oracle.snapshot(root) for root in roots]
            for path, entry in trees[0].items():
                if path in trees[1] and entry["mtime"] != twins.MADE * 10**9:
                    entry["mtime"] = trees[1][path]["mtime"] = 0
            self.assertEqual(oracle.differences(*trees), [], oracle.report(oracle.differences(*trees)))

    @once_per(driver=DRIVERS)
    def test_what_the_kernel_does_for_containers_is_done(self, driver):
        """Promise: syncing, files without a name and renaming without replacing work. Copying by the kernel out of the image is EXDEV, as
        between any two file systems of an overlay; whoever copies so goes on with read and write."""
        with both(driver) as (theirs, merged):
            for root in (theirs, merged):
                path = os.path.join(root, "files/large")
                with open(path, "rb") as file, open(os.path.join(root, "copied"), "w+b") as out:
                    os.fsync(file.fileno())
                    copied = outcome(os.copy_file_range, file.fileno(), out.fileno(), 5000, 100, 0)
                    self.assertEqual(copied, "EXDEV")
                rig.run("cp", path, os.path.join(root, "copied"))
                with open(os.path.join(root, "copied"), "rb") as copy:
                    self.assertEqual(copy.read(), twins.noise(4, twins.LARGE))
                nameless = os.open(os.path.join(root, "files"), os.O_RDWR | os.O_TMPFILE)
                os.write(nameless, b"x")
                os.close(nameless)
                self.assertEqual(outcome(system, "renameat2", -100, os.path.join(root, "files/page"), -100, path, 1), "EEXIST")


if __name__ == "__main__":
    unittest.main()
