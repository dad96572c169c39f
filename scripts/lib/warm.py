"""Reads of what the kernel has in memory, against the same files on ext4, and whether the daemon is asked for any of it (B4)."""

import mmap
import os
import random
import statistics

import rig
from daemon import Daemon, labels
from made import Registry, one_layer, unpack
from samples import abba, seconds

PAGE, PIECE = 4096, 128 << 10
READS = 50_000
ROUNDS = 8  # of reading the largest file through
MAPPINGS = 40  # of the largest file, which is 6,000 pages
EXECS = 100
RATIO_MAX = 1.0


def largest(tree):
    """The largest file of a tree."""
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(tree) for name in names)
    return max((path for path in paths if os.path.isfile(path) and not os.path.islink(path)), key=os.path.getsize)


def random_reads(path):
    with open(path, "rb", buffering=0) as file:
        pages = os.fstat(file.fileno()).st_size // PAGE
        chance = random.Random(1)
        for page in chance.choices(range(pages), k=READS):
            os.pread(file.fileno(), PAGE, page * PAGE)


def stream(path):
    buffer = bytearray(PIECE)
    with open(path, "rb", buffering=0) as file:
        for _ in range(ROUNDS):
            file.seek(0)
            while file.readinto(buffer):
                pass


def mapped(path):
    """One byte of each page, through page faults, each time in a new mapping."""
    with open(path, "rb") as file:
        for _ in range(MAPPINGS):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                view[::PAGE]


def executed(tree):
    rig.run("chroot", tree, "sh", "-c", f"i=0; while [ $i -lt {EXECS} ]; do /bin/true; i=$((i + 1)); done")


def listed(tree):
    rig.run("find", tree, "-xdev", "-printf", "%s %T@\n")


def actions(file):
    """By name; each takes a tree, `file` is the path of its largest file within it."""
    def on_file(action):
        return lambda tree: action(os.path.join(tree, file))
    return {"50,000 reads of 4 KiB at random": on_file(random_reads), "reads of 128 KiB in order": on_file(stream),
            "pages of a mapping": on_file(mapped), "100 programs executed": executed, "find": listed}


def asked(owner):
    """System calls of the process and its children that read: each request of the kernel is at least one."""
    with open(f"/proc/{owner}/task/{owner}/children") as children:
        processes = [owner, *map(int, children.read().split())]
    total = 0
    for process in processes:
        with open(f"/proc/{process}/io") as counts:
            total += next(int(line.split()[1]) for line in counts if line.startswith("syscr"))
    return total


def run(args, drivers, work, table):
    """The layer is not complete, so that what is not in memory would be asked of the daemon."""
    tree = unpack(os.path.join(args.images, "python"), work)
    file = os.path.relpath(largest(tree), tree)
    layout = os.path.join(work, "one-layer")
    one_layer(tree, layout)
    with Registry(args, work) as registry:
        [image] = labels(registry.link, registry.push(layout, "one"))
        for driver in drivers:
            daemon = Daemon(args.programs, work, driver, registry.link.address, settings="complete_in_background = false\n")
            try:
                place = daemon.prepare(image, "keep")
                for name, action in actions(file).items():
                    action(place), action(tree)
                    requests = []

                    def ours(action=action, requests=requests):
                        before = asked(daemon.process.pid)
                        took = seconds(lambda: action(place))
                        requests.append(asked(daemon.process.pid) - before)
                        return took
                    samples = abba(args.pairs, ours, lambda action=action: seconds(lambda: action(tree)))
                    # The goals are about the kernel's path, which the FUSE driver is not.
                    goals = (f"≤ {RATIO_MAX}", "0") if driver == "erofs" else ("", "")
                    table.pair(f"{driver}: {name}, warm", "s", *samples, goals[0])
                    table.single(f"{driver}: {name}, warm: requests to the daemon", "requests", statistics.median(requests), goals[1], requests)
            finally:
                daemon.close()
