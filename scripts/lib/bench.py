"""The benchmarks of docs/BENCHMARKS.md. Each is a function; each compares within one run."""

import argparse
import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import chunks as chunk_forms
import grid as grid_of
import links
import miss as misses
import results
import rig
import whole as whole_images
from daemon import Daemon, labels
from density import run as density  # noqa: F401 - found by its name
from made import Registry, one_layer, small_files, unpack
from samples import Table, abba, percentile, seconds
from trips import run as trips  # noqa: F401 - likewise
from warm import run as warm  # noqa: F401 - likewise

# What `all` measures, and what is asked for by name only: the grid takes hours.
ALL = ("convert", "mount", "stall", "local", "cold")
NAMED = ("grid", "chunks", "miss", "readers", "whole", "warm", "density", "trips")
QUIET = ("warm", "density")  # which calibrate no link
LINES = ("cold", "grid", "chunks")  # whose --json is a file of lines that a run goes on with
IMPORT = ["python3", "-c", "import numpy, pandas, flask"]


def main():
    words = argparse.ArgumentParser()
    words.add_argument("what", choices=(*ALL, *NAMED, "all"))
    words.add_argument("--programs", required=True)
    words.add_argument("--images", required=True)
    words.add_argument("--pairs", type=int, default=15)
    words.add_argument("--link", action="append", default=[])
    words.add_argument("--rate")
    words.add_argument("--rtt", type=float, help="milliseconds")
    words.add_argument("--image", action="append", default=[])
    words.add_argument("--reads", type=int, default=2000)
    words.add_argument("--busy", action="store_true")
    words.add_argument("--containerd", help="the folder of another containerd")
    words.add_argument("--fs-driver", choices=("erofs", "fuse"))
    words.add_argument("--json")
    args = words.parse_args()
    drivers = usable([args.fs_driver] if args.fs_driver else ["erofs", "fuse"])
    if not drivers:
        return 1
    table = Table()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by a signal"))
    work = tempfile.mkdtemp(prefix="larder-bench-")
    try:
        if args.what in QUIET:
            links.foreign_or_refused(args.busy)
        for name in ALL if args.what == "all" else (args.what,):
            print(f"==> {name}", file=sys.stderr)
            globals()[name](args, drivers, work, table)
        failed = 0
    except (rig.RigError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        failed = 1
    finally:
        rig.unmount_below(work)
        shutil.rmtree(work, ignore_errors=True)
    table.show()
    if args.json and args.what not in LINES and not failed:
        table.save(args.json)
    return failed


def usable(drivers):
    """Those that this kernel has; one line on standard error for each of the others."""
    missing = rig.drivers()
    for driver in drivers:
        if missing[driver]:
            print(f"bench: {driver} is skipped: it {missing[driver]}", file=sys.stderr)
    return [driver for driver in drivers if not missing[driver]]


class Mounted:
    """An image mounted by `larder-snapshotter mount`, without containerd."""

    def __init__(self, args, work, driver, reference):
        self.program = os.path.join(args.programs, "larder-snapshotter")
        self.root, self.path = tempfile.mkdtemp(dir=work), tempfile.mkdtemp(dir=work)
        self.driver, self.reference = driver, reference
        self.mount()

    def mount(self, path=None):
        rig.run(self.program, "mount", "--root", self.root, "--fs-driver", self.driver, "--plain-http", "--detach", self.reference,
                path or self.path)

    def unmount(self, path=None):
        rig.run(self.program, "umount", "--root", self.root, path or self.path)

    def complete(self):
        """Fetches every chunk, and waits until the layers are proven, so that no proof runs beside what is measured."""
        records = glob.glob(os.path.join(self.root, "store", "*", "layer.json"))
        for record in records:
            with open(record) as text, open(os.path.join(self.root, "session", "dev", str(json.load(text)["slot"])), "rb") as device:
                while device.read(1 << 20):
                    pass
        rig.wait_for(lambda: all(proven(record) for record in records), "the layers to be proven")


def proven(record):
    with open(record) as text:
        return json.load(text)["proof"] == "proven"


def local(args, drivers, work, table):
    """Everything in the store: cold drops the caches before each run, warm does not."""
    tree = unpack(os.path.join(args.images, "python"), work)
    layout = os.path.join(work, "one-layer")
    one_layer(tree, layout)
    with Registry(args, work) as registry:
        reference = registry.push(layout, "one")
        for driver in drivers:
            mounted = Mounted(args, work, driver, reference)
            mounted.complete()
            both_ways(args, work, table, driver, mounted.path, tree)
            if driver == "erofs":
                # What is mounted after the proof reads the store's file without us.
                again = tempfile.mkdtemp(dir=work)
                mounted.mount(again)
                both_ways(args, work, table, "erofs, complete", again, tree)
                mounted.unmount(again)
            mounted.unmount()


def both_ways(args, work, table, kind, ours, theirs):
    compare(args, table, kind, kind, ours, theirs)
    with Overlay(work, ours) as our_overlay, Overlay(work, theirs) as their_overlay:
        compare(args, table, kind, kind + " under overlayfs", our_overlay, their_overlay)


def list_all(path):
    rig.run("find", path, "-xdev", "-printf", "%s %T@\n")


def read_all(path):
    # GNU tar reads nothing when its output is /dev/null itself.
    rig.run("sh", "-c", 'tar -C "$0" --one-file-system -cf - . | cat >/dev/null', path)


def import_all(path):
    rig.run("chroot", path, *IMPORT)


ACTIONS = {"find": list_all, "tar": read_all, "import": import_all}

# By kind of mount, action and state: most seconds, as a share of ext4's.
GOALS = {("erofs", action, state): 1.0 for action in ACTIONS for state in ("cold", "warm")}
GOALS |= {("erofs, complete", action, state): 1.0 for action in ACTIONS for state in ("cold", "warm")}
GOALS |= {("erofs", "import", "cold"): 1.25}
GOALS |= {("fuse", "find", "cold"): 0.85, ("fuse", "find", "warm"): 1.0, ("fuse", "tar", "cold"): 0.8, ("fuse", "tar", "warm"): 1.5}


def compare(args, table, kind, label, ours, theirs):
    for name, action in ACTIONS.items():
        for state in ("cold", "warm"):
            def timed(path):
                if state == "cold":
                    rig.drop_caches()
                    load_tools()
                return seconds(lambda: action(path))
            if state == "warm":
                action(ours), action(theirs)
            samples = abba(args.pairs, lambda: timed(ours), lambda: timed(theirs))
            goal = GOALS.get((kind, name, state))
            table.pair(f"{label}: {name}, {state}", "s", *samples, f"≤ {goal}" if goal else "")


def load_tools():
    """The machine's own programs come from its disk on either side, which is not what is compared."""
    for tool in ("find", "tar", "cat", "chroot"):
        rig.run(tool, "--version")


class Overlay:
    """A writable overlay on a tree, as a container has."""

    def __init__(self, work, lower):
        self.base = tempfile.mkdtemp(dir=work)
        for name in ("upper", "work", "merged"):
            os.mkdir(os.path.join(self.base, name))
        options = f"lowerdir={lower},upperdir={self.base}/upper,workdir={self.base}/work"
        rig.run("mount", "-t", "overlay", "overlay", "-o", options, f"{self.base}/merged")

    def __enter__(self):
        return os.path.join(self.base, "merged")

    def __exit__(self, *_):
        rig.run("umount", os.path.join(self.base, "merged"))


def cold(args, drivers, work, table):
    """From the pull command to ready on empty nodes: *python*, over 200 Mbit/s without a round trip and with one of 10 ms."""
    starts(args, drivers, work, table, args.image or ["python"], shapes(args) or [links.parse("200mbit"), links.parse("10ms")])


def grid(args, drivers, work, table):
    """The same for every image and link, or those that are named."""
    starts(args, drivers, work, table, args.image or grid_of.IMAGES, shapes(args) or [links.parse(name) for name in links.GRID])


def starts(args, drivers, work, table, images, over):
    kept = results.Results(args.json if args.json and args.what != "all" else os.path.join(work, "starts.jsonl"), args.busy)
    try:
        grid_of.run(args, images, over, drivers, work, kept)
    finally:
        table.texts.append(kept.show())
        table.starts += kept.rows


def chunks(args, drivers, work, table):
    """Size, conversion and cold start by chunk size and level."""
    kept = results.Results(args.json or os.path.join(work, "forms.jsonl"), args.busy)
    try:
        chunk_forms.run(args, args.image or chunk_forms.IMAGES, shapes(args) or [links.parse("10ms")], drivers, work, kept)
    finally:
        table.texts.append(chunk_forms.show(kept))


def miss(args, drivers, work, table):
    """Reads of what is not here, alone and beside a download."""
    misses.run(args, shapes(args) or [links.parse(name) for name in links.GRID], drivers, work, table)


def readers(args, drivers, work, table):
    """What many readers fetch together."""
    misses.together(args, drivers, work, table)


def whole(args, drivers, work, table):
    """Everything of an image read, against the ordinary pull and the same reading."""
    over = shapes(args) or [links.parse("lan"), links.parse("10ms")]
    whole_images.run(args, args.image or ["python"], over, drivers, work, table)


def shapes(args):
    """The links that are asked for."""
    if args.rate or args.rtt:
        return [links.told(args.rate or "200mbit", args.rtt or 0)]
    return [links.parse(name) for name in args.link]


def convert(args, _drivers, work, table):
    """One gzip layer into an OCI layout."""
    tree = unpack(os.path.join(args.images, "python"), work)
    layout = os.path.join(work, "convert-source")
    one_layer(tree, layout)
    shutil.rmtree(tree)
    plain = sum(len(block) for block in gunzip(layout))
    samples, peak = [], 0
    for turn in range(5):
        out = os.path.join(work, f"converted-{turn}")
        command = [os.path.join(args.programs, "larder"), "convert", f"oci:{layout}:latest", f"oci:{out}:latest"]
        took, largest = rig.cost(command, dict(os.environ, XDG_CACHE_HOME=out + "-cache"))
        samples.append(took)
        peak = max(peak, largest)
    table.single("conversion of one gzip layer into an OCI layout", "MB/s of tar", plain / 1e6 / statistics.median(samples), "≥ 300", samples)
    table.single("its peak memory", "MB", peak / 1e3, "≤ 150")
    table.single("converted size against gzip", "ratio", blob_bytes(out) / blob_bytes(layout), "≤ 1.03")
    between_registries(args, work, table)


def between_registries(args, work, table):
    """All layers of an image, fetched and pushed over loopback; each time to a registry that has nothing of the result."""
    larder, samples = os.path.join(args.programs, "larder"), []
    for turn in range(5):
        with Registry(args, work) as registry:
            here = "127.0.0.1:5000/bench"
            source = f"oci:{os.path.join(args.images, 'python')}:latest"
            registry.link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{here}/python:original")
            command = ("env", f"XDG_CACHE_HOME={work}/cache-{turn}", larder, "convert", f"{here}/python:original", f"{here}/converted:larder")
            samples.append(seconds(lambda command=command: registry.link.inside(*command)))
    table.single("conversion of python, registry to registry on loopback", "s", statistics.median(samples), "", samples)


def gunzip(layout):
    for blob in blobs(layout):
        with open(blob, "rb") as data:
            if data.read(2) == b"\x1f\x8b":
                with subprocess.Popen(["gzip", "-dc", blob], stdout=subprocess.PIPE) as process:
                    while block := process.stdout.read(1 << 20):
                        yield block


def blobs(layout):
    folder = os.path.join(layout, "blobs", "sha256")
    return [os.path.join(folder, name) for name in os.listdir(folder)]


def blob_bytes(layout):
    return max(os.path.getsize(path) for path in blobs(layout))


def mount(args, drivers, work, table):
    """Prepare of a layer of 10,000 files, page cache dropped; and the daemon at rest with ten images mounted."""
    layout = small_files(work, "files", 10_000, lambda number: b"%d\n" % number * 20)
    turns = max(args.pairs, 30)
    with Registry(args, work) as registry:
        (files,) = labels(registry.link, registry.push(layout, "files"))
        ten = [f"image-{number}" for number in range(10)]
        layouts = [small_files(work, name, 2_000, lambda number, name=name: f"{name} {number}\n".encode() * 50) for name in ten]
        images = [next(labels(registry.link, registry.push(layout, name))) for name, layout in zip(ten, layouts)]
        for driver in drivers:
            daemon = Daemon(args.programs, work, driver, registry.link.address)
            try:
                for what, said in (("index", "index in the store"), ("fresh", "index fetched over loopback, and validated")):
                    samples = json.loads(daemon.prepare(files, what, turns))
                    for percent in (50, 95):
                        label = f"Prepare of 10,000 files, {driver}, {said}, p{percent}"
                        table.single(label, "ms", percentile(samples, percent), "≤ 10 ms" if percent == 95 else "", samples)
                for image in images:
                    list_all(daemon.prepare(image, "keep"))
                time.sleep(12)  # one round of writing down what is there
                table.single(f"daemon at rest with ten images of 2,000 files mounted, {driver}", "MB", daemon.memory(), "≤ 30 MB")
            finally:
                daemon.close()


def stall(args, drivers, work, table):
    """A thousand reads of one image wait for a stalled registry; another image is in the store."""
    stalled = small_files(work, "stalled", 1_000, lambda number: os.urandom(66_000))
    here = small_files(work, "here", 1, lambda number: os.urandom(64_000_000))
    with Registry(args, work) as registry:
        (far,), (near,) = (labels(registry.link, registry.push(layout, name)) for layout, name in ((stalled, "stalled"), (here, "here")))
        for driver in drivers:
            daemon, readers = Daemon(args.programs, work, driver, registry.link.address), []
            try:
                far_at, near_at = daemon.prepare(far, "keep"), daemon.prepare(near, "keep")
                file = os.path.join(near_at, "d000", "file-00000")
                read_all(near_at)
                quiet = reads(file), json.loads(daemon.prepare(near, "shared", 100))
                registry.link.registry.send_signal(signal.SIGSTOP)
                readers = thousand(far_at)
                busy = reads(file), json.loads(daemon.prepare(near, "shared", 100))
                waiting = sum(reader.is_alive() for reader in readers)
                table.single(f"reads that wait for the stalled registry, {driver}", "reads", waiting, "1000")
            finally:
                registry.link.registry.send_signal(signal.SIGCONT)
                for reader in readers:
                    reader.join()
                daemon.close()
            for name, before, after, goal in (("read of 4 KiB in the store", quiet[0], busy[0], "≤ 5 ms"), ("Prepare", quiet[1], busy[1], "unaffected")):
                for percent in (50, 99):
                    table.single(f"{name}, nothing stalled, {driver}, p{percent}", "ms", percentile(before, percent), "", before)
                    table.single(f"{name}, 1,000 reads stalled, {driver}, p{percent}", "ms", percentile(after, percent), goal if percent == 99 else "", after)


def reads(path, rounds=4, apart=256 << 10):
    """Milliseconds of reads that no page cache can answer: each place is read once after the caches were dropped."""
    samples = []
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        places = os.fstat(file.fileno()).st_size // apart
        for _ in range(rounds):
            rig.drop_caches()
            for turn in range(places):
                at = turn * 97 % places * apart
                began = time.perf_counter()
                os.pread(file.fileno(), 4096, at)
                samples.append((time.perf_counter() - began) * 1e3)
    return samples


def thousand(place):
    """A thousand threads, each reading a file of its own."""
    def read(path):
        with open(path, "rb") as file:
            file.read()
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
    threads = [threading.Thread(target=read, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    time.sleep(2)
    return threads


if __name__ == "__main__":
    sys.exit(main())
