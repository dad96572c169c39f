"""What the tests of a node share: a registry on loopback, containerd releases, programs and mounted trees."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "scripts/lib"))

import images  # noqa: E402
import rig  # noqa: E402

# What another build found out about a layer must not answer for this one.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="larder-test-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], True)

PROGRAMS = os.environ["LARDER_PROGRAMS"]
REGISTRY = "127.0.0.1:5000"
TEST_SECONDS_MAX = int(os.environ.get("LARDER_TEST_SECONDS", 600))  # the slowest read two large trees: a minute on a quiet machine
SETTLED_SECONDS = 3  # longer than a busy machine pauses in the middle of something
GONE_SECONDS_MAX = 90  # containerd collects garbage seconds after the last change; a busy machine is slow
RELEASES = {
    "1.6": os.path.dirname(shutil.which("containerd")),
    "1.7": os.path.join(images.CACHE, "containerd/trixie/usr/bin"),
    "2": os.path.join(images.CACHE, "containerd/sid/usr/bin"),
}


DRIVERS = ("erofs", "fuse")


def larder(*words, **options):
    return rig.run(os.path.join(PROGRAMS, "larder"), *words, **options)


def snapshotter(*words, **options):
    return rig.run(os.path.join(PROGRAMS, "larder-snapshotter"), *words, **options)


@functools.cache
def drivers():
    """For each driver, why this kernel has not got it, or None. Never counts as passed: tests are skipped with it."""
    return rig.drivers()


@functools.cache
def work():
    """A temporary folder for the whole run; what is mounted below is unmounted at its end."""
    folder = tempfile.mkdtemp(prefix="larder-test-")
    atexit.register(shutil.rmtree, folder, True)
    atexit.register(rig.unmount_below, folder)
    return folder


@functools.cache
def registry():
    """One registry for the whole run; its storage folder."""
    process, storage = serve_registry(REGISTRY)
    atexit.register(rig.stop, process)
    return storage


def serve_registry(address):
    """An empty registry; its process and its storage folder."""
    place = tempfile.mkdtemp(dir=work())
    config, storage = os.path.join(place, "registry.yml"), os.path.join(place, "registry")
    with open(config, "w") as out:
        out.write("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
                  f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{address}'}}\n")
    with open(os.path.join(place, "registry.log"), "w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    rig.wait_for(lambda: rig.answers(f"http://{address}/v2/"), "the registry to answer")
    return process, storage


@functools.cache
def publish(name):
    """Pushes a test image as it is and converted; their references."""
    return publish_layout(name, images.layout(name), converted_zeros()[0] if name == "zeros" else None)


@functools.cache
def converted_zeros():
    """*zeros*, converted once for all tests, as that takes most of a minute: the layout, and the largest resident set, KB."""
    target = os.path.join(tempfile.mkdtemp(dir=work()), "out")
    command = [os.path.join(PROGRAMS, "larder"), "convert", f"oci:{images.layout('zeros')}:latest", f"oci:{target}:latest"]
    _, largest = rig.cost(command)
    return target, largest


def publish_layout(name, layout, already=None):
    """The same for any layout, under a name of its own; converted as in the layout `already`, if there is one. Without start lists: nearly
    all tests count or spoil what is fetched when something is read, and nothing shall be fetched before."""
    registry()
    original, converted = f"{REGISTRY}/test/{name}:original", f"{REGISTRY}/test/{name}:larder"
    push = lambda source, target: rig.run(  # noqa: E731
        "skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{source}:latest", f"docker://{target}")
    push(layout, original)
    if already:
        push(already, converted)
    else:
        larder("convert", "--no-start-list", original, converted)
    return original, converted


def manifest(reference):
    return json.loads(rig.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"))


def layers(reference):
    """The digests of an image's layer blobs in the registry."""
    return {layer["digest"] for layer in manifest(reference)["layers"]}


def status(root):
    """What the daemon of a root directory says of itself and its layers."""
    return json.loads(snapshotter("status", "--json", "--root", root))


def doctor(node, what):
    """What `doctor` says of this; it may fail for what else this machine lacks."""
    words = [os.path.join(node.programs, "larder-snapshotter"), "doctor", "--json", "--config",
             os.path.join(node.work, "larder.toml"), "--containerd-config", os.path.join(node.work, "containerd.toml")]
    said = rig.subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return next(finding for finding in json.loads(said) if finding["what"] == what)


@contextlib.contextmanager
def node(release, lazy, driver="auto", sandbox=None, registry=REGISTRY, programs=PROGRAMS, **options):
    """A node that starts empty; what goes wrong on it is told with the ends of its logs."""
    node = rig.Node(work(), programs, lazy, driver, RELEASES[release], sandbox, **options)
    try:
        node.start(registry)
        yield node
    except Exception as error:
        error.add_note(node.log())
        raise
    finally:
        node.close()


def once_per(**axes):
    """A test that runs once for each combination of values, as a test of its own with the values in its name."""
    def mark(test):
        test.axes = axes
        return test
    return mark


def settled(figure):
    """Waits until a figure stays as it is for a while; what it is then."""
    before, since = figure(), time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        time.sleep(0.1)
        if (now := figure()) != before:
            before, since = now, time.monotonic()
    return before


class Case(unittest.TestCase):
    """A test class with temporary folders, nodes and mounts; everything is undone at its end."""

    maxDiff = None
    beside = False  # whether nothing in it measures time, so that other work may run beside it
    node = staticmethod(node)

    def __init_subclass__(cls):
        for name, test in list(vars(cls).items()):
            if axes := getattr(test, "axes", None):
                delattr(cls, name)
                for values in itertools.product(*axes.values()):
                    one = re.sub(r"\W", "_", "_".join([name, *values]))
                    setattr(cls, one, cls.with_values(test, dict(zip(axes, values))))

    @staticmethod
    def with_values(test, values):
        @functools.wraps(test)
        def run(self):
            if missing := drivers().get(values.get("driver")):
                self.skipTest(missing)
            test(self, **values)
        return run

    def setUp(self):
        """Each test says how long it took, as the whole run has a budget, and shows where it hangs if it does."""
        def too_long(_signal, _frame):
            raise TimeoutError(f"still running after {TEST_SECONDS_MAX} s")
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(TEST_SECONDS_MAX + int(os.environ.get("LARDER_COUNT", 0)))  # soaking: a second for each
        began = time.monotonic()
        self.addCleanup(signal.alarm, 0)
        self.addCleanup(lambda: print(f"{time.monotonic() - began:.0f} s", end=" ", flush=True))

    def folder(self):
        return tempfile.mkdtemp(dir=work())

    def gone(self, rest, seconds=GONE_SECONDS_MAX):
        """Waits until `rest()` is empty, as it is some time after containerd collected its garbage."""
        until = time.monotonic() + seconds
        while left := rest():
            if time.monotonic() > until:
                self.fail(f"still there after {seconds} s: {left}")
            time.sleep(0.1)
