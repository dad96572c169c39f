"""Cold starts: each image over each link, first start ever and with a profile, with both drivers, beside an ordinary pull."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time

import links
import results
import rig
import warm_trace

IMAGES = ("python", "node", "nginx", "jvm", "postgres", "compiler", "wide200", "large", "ai")
FREE_BYTES_MIN = 25 << 30  # is left for others at any time
COPIES = 5  # of an image that does not get smaller: in the registry in two forms, on a node pulled and unpacked, and one to spare
WITH_PROFILE = "+profile"


def say(text):
    print(f"    {text}", file=sys.stderr, flush=True)


def own_erofs(args):
    """The folder of a containerd with an erofs snapshotter, its tools on PATH; None where there is none, as `scripts/setup tests` was
    never called."""
    cache = os.path.dirname(os.path.normpath(args.images))
    containerd, tools = os.path.join(cache, "containerd", "sid", "usr", "bin"), os.path.join(cache, "erofs-utils", "wrapper")
    if rig.drivers()["erofs"] or not os.path.exists(os.path.join(containerd, "containerd")) or not os.path.isdir(tools):
        return None
    if tools not in os.environ["PATH"].split(":"):
        os.environ["PATH"] = tools + ":" + os.environ["PATH"]
    return containerd


def build_of(programs):
    """Names the programs that are measured."""
    digest = hashlib.sha256()
    for program in ("larder", "larder-snapshotter"):
        with open(os.path.join(programs, program), "rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()[:12]


class Grid:
    """The starts of one image that are not in the results yet."""

    def __init__(self, args, work, image, drivers, kept):
        self.args, self.work, self.image, self.kept = args, work, image, kept
        self.layout = os.path.join(args.images, image)
        with open(os.path.join(self.layout, "recipe")) as recipe:
            self.named = {"image": image, "recipe": recipe.read().strip(),
                          "programs": build_of(args.programs)}
        self.drivers = drivers
        self.variants = [variant for driver in drivers for variant in (driver, driver + WITH_PROFILE)] + [results.EAGER]
        self.peer = own_erofs(args)
        if self.peer:
            self.variants.append(results.EAGER_EROFS)

    def missing_traces(self):
        rows = [{"kind": "trace", "driver": driver} | self.named for driver in self.drivers]
        return [row for row in rows if not self.kept.has(row)]

    def missing_starts(self, shape):
        """In turns A B C, C B A, …, so that what grows or fades with time meets all of them alike."""
        for turn in range(self.args.pairs):
            for variant in self.variants if turn % 2 == 0 else reversed(self.variants):
                row = {"kind": "start", "link": shape.name, "variant": variant, "turn": turn} | self.named
                if not self.kept.has(row):
                    yield row

    def run(self, shapes):
        traces = self.missing_traces()
        if not traces and not any(list(self.missing_starts(shape)) for shape in shapes):
            say(f"{self.image}: all of it is there")
            return
        with published(self.args, self.work, self.layout, self.image) as (storage, link, reference):
            ready = ready_of(link, self.image)
            for row in traces:
                is_busy = links.foreign_or_refused(self.args.busy)
                trace, profile = warm_trace.record(self.args.programs, self.work, link.address, reference, row["driver"], ready)
                say(f"{self.image}, {row['driver']}: warm {trace['warm']:.2f} s, {len(trace['reads'])} chunks are read")
                self.kept.add(row | trace | {"profile": profile, "busy": is_busy})
            link.close()
            for shape in shapes:
                missing = list(self.missing_starts(shape))
                if missing:
                    self.over(shape, storage, missing, ready)

    def over(self, shape, storage, missing, ready):
        folder = tempfile.mkdtemp(dir=self.work)
        link = links.open_link(folder, shape, storage)
        try:
            for row in missing:
                measured, refused = links.calibrated(link, shape, self.args.busy)
                start = self.start(link, row["variant"], ready)
                self.kept.add(row | start | {"rtt": shape.round_trip, "measured": measured._asdict(), "busy": bool(refused), "at": time.time()})
                say(f"{self.image}, {shape.name}, {row['variant']}, {row['turn'] + 1} of {self.args.pairs}: "
                    f"{start['seconds']:.2f} s, {start['bytes'] / 1e6:.1f} MB" + (" (busy machine)" if refused else ""))
        finally:
            link.close()

    def start(self, link, variant, ready):
        """A cold start on an empty node."""
        is_lazy, driver = not variant.startswith(results.EAGER), variant.removesuffix(WITH_PROFILE)
        if variant == results.EAGER_EROFS:
            node = rig.Node(self.work, self.args.programs, False, containerd=self.peer, eager="erofs")
        else:
            node = rig.Node(self.work, self.args.programs, is_lazy, driver if is_lazy else "auto")
        reference = f"{link.address}/bench/{self.image}:{'larder' if is_lazy else 'original'}"
        try:
            node.start(link.address)
            if variant.endswith(WITH_PROFILE):
                self.give_profile(node, driver)
            found = rig.cold_start(link, node, reference, ready)
        finally:
            node.close()
        return {name: found[name] for name in ("seconds", "pull_seconds", "bytes")}

    def give_profile(self, node, driver):
        profile = self.kept.find({"kind": "trace", "driver": driver} | self.named)["profile"]
        path = os.path.join(node.work, "profile.json")
        with open(path, "w") as out:
            json.dump(profile, out)
        warm_trace.profile_command(self.args.programs, node, "import", path)


@contextlib.contextmanager
def published(args, work, layout, image, options=()):
    """A registry on a fast link that has the image as it is and converted; its storage, the link, the converted image's name. `options`
    are those of `larder convert`."""
    folder = tempfile.mkdtemp(dir=work)
    link = rig.Link(folder, "20gbit")
    try:
        link.start_registry(folder)
        inner = f"127.0.0.1:5000/bench/{image}"
        link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{inner}:original")
        link.inside(os.path.join(args.programs, "larder"), "convert", "--plain-http", *options, f"{inner}:original", f"{inner}:larder")
        yield link.storage, link, f"{link.address}/bench/{image}:larder"
    finally:
        link.close()
        shutil.rmtree(folder, ignore_errors=True)


def ready_of(link, image):
    _, config = rig.image_of(link, f"bench/{image}", "larder")
    return (config.get("config", {}).get("Labels") or {}).get("larder.ready", "")


def obstacle(args, work, image):
    """Why an image cannot be measured here, if so."""
    layout = os.path.join(args.images, image)
    if not os.path.isdir(layout):
        return f"{image} is not there: scripts/images {image}"
    size = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(layout) for name in names)
    wanted = COPIES * size + FREE_BYTES_MIN
    if shutil.disk_usage(work).free < wanted:
        return f"{image} wants {wanted / 1e9:.0f} GB free below {work}"
    return None


def run(args, images, shapes, drivers, work, kept):
    left_out = []
    for image in images:
        if why := obstacle(args, work, image):
            left_out.append(why)
        else:
            Grid(args, work, image, drivers, kept).run(shapes)
    if left_out:
        raise rig.RigError(f"left out: {'; '.join(left_out)}")
