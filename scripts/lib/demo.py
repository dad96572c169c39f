"""The demonstration: the same image started lazily and pulled the ordinary way, side by side."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile

import rig

TRANSPORTS = ("docker:", "oci:", "oci-archive:", "docker-archive:", "dir:", "containers-storage:")


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


class Interrupted(Exception):
    """A signal asks this program to end; it first undoes what it did."""


def undo_when_asked_to_end():
    """A second signal does not disturb what the first began."""
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end(number, _frame):
        for one in asked:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)
    for one in asked:
        signal.signal(one, end)


def main():
    words = argparse.ArgumentParser()
    words.add_argument("--programs", required=True)
    words.add_argument("--rate", default="200mbit")
    words.add_argument("--fs-driver", default="auto", choices=("auto", "erofs", "fuse"))
    words.add_argument("--containerd", help="folder of another containerd's programs")
    words.add_argument("image")
    args = words.parse_args()
    source = args.image if args.image.startswith(TRANSPORTS) else f"docker://{args.image}"
    undo_when_asked_to_end()
    try:
        with contextlib.ExitStack() as undo:
            work = tempfile.mkdtemp(prefix="larder-demo-")
            undo.callback(shutil.rmtree, work, ignore_errors=True)
            link = rig.Link(work, args.rate)
            undo.callback(link.close)
            link.start_registry(work)
            return compare(args, source, work, link, undo)
    except rig.RigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("demo: interrupted", file=sys.stderr)
        return 128 + interrupted.args[0]


def compare(args, source, work, link, undo):
    say(f"pushing {source} to a registry behind {args.rate}")
    inner = "127.0.0.1:5000/demo/image"
    link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{inner}:original")
    say("converting it")
    program = os.path.join(args.programs, "larder")
    print(link.inside(program, "convert", "--plain-http", f"{inner}:original", f"{inner}:larder"), end="")
    manifests = {name: rig.image_of(link, "demo/image", name)[0] for name in ("original", "larder")}
    _, config = rig.image_of(link, "demo/image", "larder")
    labels = config.get("config", {}).get("Labels") or {}
    ready = labels.get("larder.ready", "")
    results = {}
    for name, lazy in (("original", False), ("larder", True)):
        node = rig.Node(work, args.programs, lazy, args.fs_driver, args.containerd)
        undo.callback(node.close)
        say(f"containerd {node.version}, {node.snapshotter}: pull and run")
        node.start(link.address)
        results[name] = rig.cold_start(link, node, f"{link.address}/demo/image:{name}", ready)
        blobs = node.blobs()
        results[name]["landed"] = [layer["digest"] for layer in manifests[name]["layers"] if layer["digest"] in blobs]
        node.close()
    show(results, manifests["larder"])
    return judge(results)


def judge(results):
    """The exit code, and on standard error why it is not 0."""
    if not results["original"]["landed"]:
        print("demo: the ordinary pull downloaded no layer: what is compared here?", file=sys.stderr)
        return 1
    if landed := results["larder"]["landed"]:
        print(f"demo: layers were downloaded into the content store: {', '.join(landed)}", file=sys.stderr)
        return 1
    if results["original"]["said"] != results["larder"]["said"]:
        print(f"demo: the containers said different things: {results}", file=sys.stderr)
        return 1
    return 0


def show(results, manifest):
    size, count = sum(layer["size"] for layer in manifest["layers"]), len(manifest["layers"])
    print(f"\nimage: {size / 1e6:.1f} MB in {count} layers")
    print(f"it says: {results['larder']['said'].strip().splitlines()[-1:]}\n")
    print(f"{'':28}{'ordinary pull':>16}{'Larder':>16}")
    rows = (("pull returns after, s", "pull_seconds", 1), ("ready after, s", "seconds", 1), ("moved until ready, MB", "bytes", 1e6))
    for label, key, unit in rows:
        print(f"{label:28}{results['original'][key] / unit:16.2f}{results['larder'][key] / unit:16.2f}")
    eager, lazy = (f"{len(results[name]['landed'])} of {count}" for name in ("original", "larder"))
    print(f"{'layers in content store':28}{eager:>16}{lazy:>16}\n")


if __name__ == "__main__":
    sys.exit(main())
