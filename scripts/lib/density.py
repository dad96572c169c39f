"""What mounted images take of a node's memory (B8): of the daemon's heap, of the page cache, and each further container."""

import ctypes
import glob
import json
import os
import secrets
import shutil
import statistics
import tempfile
import time

import grid
import miss
import random_layout
import rig
from daemon import Daemon, labels
from made import Registry, small_files

IMAGES = (1, 10, 50)
FILES = 2_000
REST_SECONDS = 12  # one round of writing down what is there
CHUNKS = 1024  # 256 MiB
CONTAINERS = 20
PROVEN_SECONDS_MAX = 120  # a proof waits until nobody reads
CACHESTAT = 451
libc = ctypes.CDLL(None, use_errno=True)
HEAP_MB_MAX, COPIES_MAX, MORE_PERCENT_MAX = 1, 1.1, 2
# What a container of the image does before it waits.
READ_AND_WAIT = ("sh", "-c", "find /usr -xdev -type f -exec cat {} + >/dev/null; echo read; exec sleep 100000")


def cached():
    """The page cache, bytes."""
    with open("/proc/meminfo") as memory:
        return next(int(line.split()[1]) for line in memory if line.startswith("Cached:")) * 1024


def heap(registry, images, drivers, args, work, table):
    """The daemon's own memory with so many images mounted and listed; `images` are the labels of their only layers."""
    for driver in drivers:
        daemon = Daemon(args.programs, work, driver, registry.address)
        try:
            time.sleep(REST_SECONDS)
            found = {0: daemon.memory()}
            for number, image in enumerate(images, 1):
                rig.run("find", daemon.prepare(image, "keep"), "-xdev", "-printf", "%s\n")
                if number in IMAGES:
                    time.sleep(REST_SECONDS)
                    found[number] = daemon.memory()
        finally:
            daemon.close()
        for number in IMAGES:
            table.single(f"heap of daemon and supervisor, {number} images of {FILES} files mounted, {driver}", "MB", found[number], "")
        each = (found[IMAGES[-1]] - found[0]) / IMAGES[-1]
        table.single(f"heap for each mounted image, {driver}", "MB", each, f"≤ {HEAP_MB_MAX}", list(found.items()))


def copies(args, drivers, work, table):
    """How often a byte is in the page cache after it was read from the store, with the daemon running."""
    with miss.registry(args, work, {"miss": CHUNKS}) as storage:
        folder = tempfile.mkdtemp(dir=work)
        link = rig.Link(folder, "20gbit", storage=storage)
        try:
            link.start_registry(folder)
            [image] = labels(link, f"{link.address}/bench/miss:larder")
            for driver in drivers:
                daemon = Daemon(args.programs, work, driver, link.address)
                try:
                    path = os.path.join(daemon.prepare(image, "keep"), random_layout.NAME)
                    table.single(f"copies in the page cache of a byte just fetched, {driver}", "copies", held(path, daemon.root), "")
                    # The proof reads the store's files, too.
                    rig.wait_for(lambda: proven(daemon.root), "the layer to be proven", seconds=PROVEN_SECONDS_MAX)
                    table.single(f"copies in the page cache of a byte read from the store, {driver}", "copies", held(path, daemon.root),
                                 f"≤ {COPIES_MAX}")
                finally:
                    daemon.close()
        finally:
            link.close()


def proven(root):
    """Whether all layers of a daemon are."""
    records = glob.glob(os.path.join(root, "larder", "store", "*", "layer.json"))
    found = []
    for record in records:
        with open(record) as text:
            found.append(json.load(text)["proof"])
    return set(found) == {"proven"}


def held(path, root):
    """How often a file that is read through is in the page cache: as itself, in the store, and as the layer's device of our session. Counted
    for these files alone, so that what else the machine reads counts for nothing."""
    rig.drop_caches()
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
        found = pages(file)  # while it is open: another mount may take the place of this one once the layer is proven
    store, session = (os.path.join(root, "larder", *words) for words in (("store", "*", "device"), ("session", "dev", "*")))
    for device in glob.glob(store) + glob.glob(session):
        with open(device, "rb", buffering=0) as file:
            found += pages(file)
    return found * os.sysconf("SC_PAGE_SIZE") / os.path.getsize(path)


def pages(file):
    """Pages of a file in the page cache, by cachestat(2)."""
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if libc.syscall(CACHESTAT, file.fileno(), whole, found, 0):
        raise rig.RigError(f"cachestat of {file.name}: {os.strerror(ctypes.get_errno())}; it needs kernel ≥ 6.5")
    return found[0]


def containers(args, drivers, work, table, published):
    """Twenty containers of one image, each reading all of /usr: what each after the first adds to the page cache. `published` is the
    registry's link and the converted image."""
    link, reference = published
    for driver in drivers:
        node = rig.Node(work, args.programs, True, driver, settings=miss.SETTINGS)
        try:
            node.start(link.address)
            node.pull(reference)
            rig.drop_caches()
            sizes = [cached()]
            for _ in range(CONTAINERS):
                name = "one-" + secrets.token_hex(3)
                process = node.start_container(reference, name, READ_AND_WAIT)
                rig.wait_until_ready(process, "line:read", node)
                sizes.append(cached())
        finally:
            node.close()
        first = sizes[1] - sizes[0]
        more = statistics.median((after - before) / first for before, after in zip(sizes[1:], sizes[2:])) * 100
        table.single(f"page cache of the first container, /usr read, {driver}", "MB", first / 1e6, "")
        table.single(f"page cache of each further container, {driver}", "percent", more, f"≤ {MORE_PERCENT_MAX}", sizes)


def run(args, drivers, work, table):
    with Registry(args, work) as registry:
        names = [f"image-{number}" for number in range(IMAGES[-1])]
        images = []
        for name in names:
            layout = small_files(work, name, FILES, lambda number, name=name: f"{name} {number}\n".encode() * 50)
            images += labels(registry.link, registry.push(layout, name))
            shutil.rmtree(layout)
        heap(registry.link, images, drivers, args, work, table)
    copies(args, drivers, work, table)
    with grid.published(args, work, os.path.join(args.images, "python"), "python") as (_, link, reference):
        containers(args, drivers, work, table, (link, reference))
