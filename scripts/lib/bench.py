"""The benchmarks of docs/BENCHMARKS.md. Each is a function; each compares within one run."""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile

import rig
from samples import Table, abba, seconds

IMPORT = ["python3", "-c", "import numpy, pandas, flask"]


def main():
    words = argparse.ArgumentParser()
    words.add_argument("what", choices=("local", "cold", "convert", "mount", "all"))
    words.add_argument("--programs", required=True)
    words.add_argument("--images", required=True)
    words.add_argument("--pairs", type=int, default=15)
    words.add_argument("--rate", default="200mbit")
    words.add_argument("--fs-driver", choices=("erofs", "fuse"))
    words.add_argument("--json")
    args = words.parse_args()
    drivers = [args.fs_driver] if args.fs_driver else ["erofs", "fuse"]
    table = Table()
    work = tempfile.mkdtemp(prefix="larder-bench-")
    try:
        for name in ("convert", "mount", "local", "cold") if args.what == "all" else (args.what,):
            print(f"==> {name}", file=sys.stderr)
            globals()[name](args, drivers, work, table)
    except rig.RigError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        rig.unmount_below(work)
        shutil.rmtree(work, ignore_errors=True)
    table.show()
    if args.json:
        table.save(args.json)
    return 0


class Registry:
    """A registry on a fast link, with converted images in it."""

    def __init__(self, args, work, rate="20gbit"):
        self.args, self.work = args, tempfile.mkdtemp(dir=work)
        self.link = rig.Link(self.work, rate)
        try:
            self.link.start_registry(self.work)
        except rig.RigError:
            self.link.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()

    def push(self, layout, name):
        inner = f"127.0.0.1:5000/bench/{name}"
        self.link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{inner}:original")
        larder = os.path.join(self.args.programs, "larder")
        self.link.inside(larder, "convert", "--plain-http", f"{inner}:original", f"{inner}:larder")
        return f"{self.link.address}/bench/{name}:larder"


class Mounted:
    """An image mounted by `larder-snapshotter mount`, without containerd."""

    def __init__(self, args, work, driver, reference):
        self.program = os.path.join(args.programs, "larder-snapshotter")
        self.root, self.path = tempfile.mkdtemp(dir=work), tempfile.mkdtemp(dir=work)
        self.driver, self.reference = driver, reference
        self.mount()

    def mount(self):
        rig.run(self.program, "mount", "--root", self.root, "--fs-driver", self.driver, "--plain-http", "--detach", self.reference, self.path)

    def unmount(self):
        rig.run(self.program, "umount", self.path)


def one_layer(tree, folder):
    """The tree as an image of one gzip layer, so that a bare file system is compared with a bare file system."""
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs)
    plain = os.path.join(folder, "layer.tar")
    rig.run("tar", "--sort=name", "--xattrs", "--xattrs-include=*", "-C", tree, "-cf", plain, ".")
    diff_id = "sha256:" + rig.run("sha256sum", plain).split()[0]
    rig.run("gzip", "-f", "-n", plain)

    def keep(path=None, value=None):
        if path is None:
            path = os.path.join(folder, "document")
            with open(path, "w") as out:
                json.dump(value, out)
        with open(path, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        kept = os.path.join(blobs, digest)
        os.rename(path, kept)
        return {"digest": "sha256:" + digest, "size": os.path.getsize(kept)}

    layer = keep(path=plain + ".gz") | {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    config = keep(value={"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    config["mediaType"] = "application/vnd.oci.image.config.v1+json"
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = keep(value={"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}) | {"mediaType": kind}
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(os.path.join(folder, "index.json"), "w") as out:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, out)
    with open(os.path.join(folder, "oci-layout"), "w") as out:
        out.write('{"imageLayoutVersion": "1.0.0"}')


def unpack(layout, work):
    """The image's tree on the local file system, by buildah, which knows nothing of Larder."""
    tree, store = os.path.join(work, "ext4"), os.path.join(work, "buildah")
    command = ["buildah", "--root", store, "--runroot", store + "-run", "--storage-driver", "vfs"]
    rig.run("skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"containers-storage:[vfs@{store}+{store}-run]localhost/bench:latest")
    container = rig.run(*command, "from", "localhost/bench:latest").strip()
    source = rig.run(*command, "mount", container).strip()
    rig.run("cp", "-a", source, tree)
    rig.run(*command, "umount", container)
    shutil.rmtree(store, ignore_errors=True)
    return tree


def local(args, drivers, work, table):
    """Everything in the store: cold drops the caches before each run, warm does not."""
    tree = unpack(os.path.join(args.images, "python"), work)
    layout = os.path.join(work, "one-layer")
    one_layer(tree, layout)
    with Registry(args, work) as registry:
        reference = registry.push(layout, "one")
        for driver in drivers:
            mounted = Mounted(args, work, driver, reference)
            read_all(mounted.path)
            compare(args, table, driver, mounted.path, tree)
            with Overlay(work, mounted.path) as ours, Overlay(work, tree) as theirs:
                compare(args, table, driver + " under overlayfs", ours, theirs)
            mounted.unmount()
            mounted.mount()
            compare(args, table, driver + ", layer complete and mounted again", mounted.path, tree)
            mounted.unmount()


def compare(args, table, label, ours, theirs):
    goals = {"erofs": "≤ 1.0"}.get(label.split()[0].strip(","), "")
    actions = {"find": list_all, "tar": read_all, "Python import": import_all}
    for name, action in actions.items():
        for state in ("cold", "warm"):
            def timed(path):
                if state == "cold":
                    rig.drop_caches()
                return seconds(lambda: action(path))
            if state == "warm":
                action(ours), action(theirs)
            samples = abba(args.pairs, lambda: timed(ours), lambda: timed(theirs))
            table.pair(f"{label}: {name}, {state}", "s", *samples, goals)


def list_all(path):
    rig.run("find", path, "-xdev", "-printf", "%s %T@\n")


def read_all(path):
    # GNU tar reads nothing when its output is /dev/null itself.
    rig.run("sh", "-c", 'tar -C "$0" --one-file-system -cf - . | cat >/dev/null', path)


def import_all(path):
    rig.run("chroot", path, *IMPORT)


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
    """From the pull command to ready over the shaped link, on empty nodes."""
    with Registry(args, work, args.rate) as registry:
        lazy = registry.push(os.path.join(args.images, "python"), "python")
        eager = lazy.replace(":larder", ":original")

        def start(reference, is_lazy, driver="auto"):
            node = rig.Node(work, args.programs, is_lazy, driver)
            try:
                node.start(registry.link.address)
                return rig.cold_start(registry.link, node, reference, "line:ready")
            finally:
                node.close()

        for driver in drivers:
            ours, theirs = abba(args.pairs, lambda: start(lazy, True, driver), lambda: start(eager, False))
            label = f"cold start, {args.rate}, {driver}"
            table.pair(f"{label}: ready", "s", *([s["seconds"] for s in side] for side in (ours, theirs)), "≤ 3.0 s")
            table.pair(f"{label}: moved", "MB", *([s["bytes"] / 1e6 for s in side] for side in (ours, theirs)), "≤ 45 MB")
            table.pair(f"{label}: pull returns", "s", *([s["pull_seconds"] for s in side] for side in (ours, theirs)), "")


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
        took, largest = cost(command, dict(os.environ, XDG_CACHE_HOME=out + "-cache"))
        samples.append(took)
        peak = max(peak, largest)
    table.single("conversion of one gzip layer into an OCI layout", "MB/s of tar", plain / 1e6 / statistics.median(samples), "≥ 300", samples)
    table.single("its peak memory", "MB", peak / 1e3, "≤ 150")
    table.single("converted size against gzip", "ratio", blob_bytes(out) / blob_bytes(layout), "≤ 1.03")


def cost(command, environment):
    """Runs a command to its end; its seconds, and its largest resident set, KB.

    The kernel counts what a process had before it became another program, so a small one starts the command.
    """
    small = "import resource, subprocess, sys, time; began = time.perf_counter(); " \
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); " \
        "print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    took, largest = rig.run(sys.executable, "-c", small, *command, env=environment).split()
    return float(took), int(largest)


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
    """A layer of 10,000 files, index in the store, caches dropped; and ten images at rest."""
    tree = os.path.join(work, "files")
    for number in range(10_000):
        folder = os.path.join(tree, f"d{number // 100:03}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"file-{number:05}"), "w") as out:
            out.write(f"{number}\n" * 20)
    layout = os.path.join(work, "ten-thousand")
    one_layer(tree, layout)
    with Registry(args, work) as registry:
        reference = registry.push(layout, "files")
        for driver in drivers:
            mounted = Mounted(args, work, driver, reference)
            samples = []
            for _ in range(max(args.pairs, 20)):
                mounted.unmount()
                rig.drop_caches()
                samples.append(seconds(mounted.mount) * 1e3)
            mounted.unmount()
            p95 = sorted(samples)[int(len(samples) * 0.95)]
            table.single(f"mount of 10,000 files by the command line, {driver}, p95", "ms", p95, "10 ms is for Prepare alone", samples)


if __name__ == "__main__":
    sys.exit(main())
