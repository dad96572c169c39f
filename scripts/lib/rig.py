"""A registry behind a slow link, and nodes that start containers from it: what demo and bench measure on."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request

READY_SECONDS_MAX = 300  # the slowest honest start, a full pull over 10 Mbit/s, takes less
SOCKET_SECONDS_MAX = 120  # tells only a hang: a busy machine is slow
REST_SECONDS_MAX = 10  # for what a container says after its first line
STOP_SECONDS_MAX = 60  # for a process to end by itself; what it mounted stays where it is killed
RUNS_MAX = 5  # one in some hundred runs is lost on a busy machine
POLL_SECONDS = 0.005
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class RigError(Exception):
    """Something the rig needs did not work; the message says what."""


def run(*command, **options):
    """Runs a command to its end; its output, or an error with what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RigError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def drivers():
    """For each driver, why this kernel has not got it, or None."""
    major, minor = map(int, re.match(r"(\d+)\.(\d+)", os.uname().release).groups())
    return {"fuse": None, "erofs": None if (major, minor) >= (6, 12) else "needs kernel ≥ 6.12"}


class Link:
    """A network namespace with a registry in it, behind a pair of devices shaped both ways."""

    def __init__(self, work, rate, storage=None, round_trip=0, troubled=False):
        """`storage` is what another registry holds already; `round_trip` is in seconds. A `troubled` link has one, and can be
        told what goes wrong."""
        tag = secrets.token_hex(3)
        self.namespace, self.near, far = f"larder-{tag}", f"ldn{tag}", f"ldf{tag}"
        # TEST-NET-2 and a random host part: nothing of this machine's network is touched.
        host = 4 * secrets.randbelow(63)
        self.address = f"198.51.100.{host + 1}:5000"
        self.storage = storage or os.path.join(work, "registry")
        self.registry = self.delay = None
        try:
            self.connect(far, host, rate, round_trip, troubled)
        except BaseException:
            self.close()
            raise

    def connect(self, far, host, rate, round_trip, troubled):
        run("ip", "netns", "add", self.namespace)
        if round_trip:
            self.connect_slowly(far, round_trip, troubled)
        else:
            run("ip", "link", "add", self.near, "type", "veth", "peer", "name", far, "netns", self.namespace)
        run("ip", "addr", "add", f"198.51.100.{host + 2}/30", "dev", self.near)
        run("ip", "link", "set", self.near, "up")
        self.inside("ip", "addr", "add", f"198.51.100.{host + 1}/30", "dev", far)
        self.inside("ip", "link", "set", far, "up")
        self.inside("ip", "link", "set", "lo", "up")
        if shutil.which("ethtool"):  # else the shaper sees packets of 64 KiB
            run("ethtool", "-K", self.near, "gso", "off", "tso", "off", "gro", "off")
            self.inside("ethtool", "-K", far, "gso", "off", "tso", "off", "gro", "off")
        shape = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")
        run("tc", "qdisc", "add", "dev", self.near, *shape)
        self.inside("tc", "qdisc", "add", "dev", far, *shape)

    def connect_slowly(self, far, round_trip, troubled):
        """The pair of devices, with packets held between them for half the round-trip time each way."""
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py")
        command = [sys.executable, "-B", program, self.near, far, str(round_trip)] + ["trouble"] * troubled
        self.delay = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1)
        wait_for(lambda: subprocess.run(["ip", "link", "show", "dev", far], capture_output=True).returncode == 0, "the delayed link")
        run("ip", "link", "set", far, "netns", self.namespace)

    def trouble(self, word, number=0):
        """Has something go wrong from now on, or right again: `word` as in delay.py."""
        self.delay.stdin.write(f"{word} {number}\n")

    def inside(self, *command):
        return run("ip", "netns", "exec", self.namespace, *command)

    def start_registry(self, work):
        os.makedirs(self.storage, exist_ok=True)
        config = os.path.join(work, "registry.yml")
        with open(config, "w") as out:
            out.write(
                "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
                f"storage: {{filesystem: {{rootdirectory: {self.storage}}}}}\n"
                "http: {addr: '0.0.0.0:5000'}\n"
            )
        log = open(os.path.join(work, "registry.log"), "w")
        self.registry = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "docker-registry", "serve", config], stdout=log, stderr=log
        )
        wait_for(lambda: answers(f"http://{self.address}/v2/"), "the registry to answer")

    def received(self):
        """Bytes that came from the registry's side so far, counted at the interface."""
        # Not from /sys, which shows the network namespace that it was mounted in.
        [link] = json.loads(run("ip", "-s", "-j", "link", "show", "dev", self.near))
        return link["stats64"]["rx"]["bytes"]

    def close(self):
        stop(self.registry)
        stop(self.delay)
        subprocess.run(["ip", "link", "del", self.near], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)


def configuration_block(document):
    """containerd's configuration as a document gives it to operators."""
    with open(os.path.join(TOP, document)) as text:
        block = re.search(r"^<!-- containerd-config -->\n```toml\n(.*?)^```$", text.read(), re.S | re.M)
    if not block:
        raise RigError(f"{document} has no configuration block after <!-- containerd-config -->")
    return block[1]


def substituted(block, places):
    """A configuration block with other paths; each must be in it."""
    for place, other in places.items():
        if f'"{place}"' not in block:
            raise RigError(f"the configuration block does not name {place}")
        block = block.replace(f'"{place}"', f'"{other}"')
    return block


def without_annotations(block):
    """A configuration block with which no client of containerd says which image and layer it wants."""
    block, told = re.subn("disable_snapshot_annotations = false", "disable_snapshot_annotations = true", block)
    block, exported = re.subn(r'\n *enable_remote_snapshot_annotations = "true".*', "", block)
    if not told or not exported:
        raise RigError("the configuration block does not switch annotations on")
    return block


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            # A first thread that has ended, with others that have not: sockets and locks are still held.
            return stat.read().rpartition(")")[2].split()[0] not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def daemons(supervisor):
    """The living children of a supervisor."""
    with open(f"/proc/{supervisor}/task/{supervisor}/children") as children:
        return [pid for pid in map(int, children.read().split()) if is_alive(pid)]


class Node:
    """containerd with an empty root, and Larder's snapshotter beside it if `lazy`. CRI only with a `sandbox` image for pods.
    `annotations` and `ports` as an operator may leave them out: containerd's of layers, and the registry's in `[hosts]`.
    `settings` are further keys of Larder's configuration, `log` its table of that name; `{work}` is the node's folder.
    `within` starts Larder's daemon inside of something. `eager` is containerd's own snapshotter where Larder's is not asked for."""

    def __init__(self, work, programs, lazy, driver="auto", containerd=None, sandbox=None, annotations=True, ports=True,
                 settings="", log="", within=(), eager="overlayfs"):
        self.work = tempfile.mkdtemp(dir=work)
        self.sandbox, self.annotations, self.ports = sandbox, annotations, ports
        self.programs, self.lazy, self.driver = programs, lazy, driver
        self.within = list(within)
        self.settings, self.log_settings = settings.replace("{work}", self.work), log
        self.directory = containerd or os.path.dirname(shutil.which("containerd") or "/usr/bin/containerd")
        self.socket = os.path.join(self.work, "c.sock")
        self.snapshotter = "larder" if lazy else eager
        self.processes, self.containers = [], {}
        version = run(os.path.join(self.directory, "containerd"), "--version").split()[2]
        self.major = int(re.sub(r"^v", "", version).split(".")[0])
        self.version = version

    def start(self, registry):
        plugin = os.path.join(self.work, "l.sock")
        hosts = os.path.join(self.work, "certs.d", registry)
        os.makedirs(hosts)
        with open(os.path.join(hosts, "hosts.toml"), "w") as out:
            out.write(f'server = "http://{registry}"\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n')
        config = os.path.join(self.work, "containerd.toml")
        with open(config, "w") as out:
            out.write(self.configuration(plugin))
        if self.lazy:
            settings = os.path.join(self.work, "larder.toml")
            with open(settings, "w") as out:
                out.write(
                    f'root = "{self.work}/larder"\naddress = "{plugin}"\nfs_driver = "{self.driver}"\n{self.settings}'
                    f'{self.log_settings}[containerd]\naddress = "{self.socket}"\n[registry]\nplain_http = ["{registry}"]\n'
                )
                if self.ports:
                    out.write(f'[hosts]\n"{registry.split(":")[0]}" = "{registry}"\n')
            self.start_snapshotter()
        self.start_containerd()

    def start_containerd(self):
        config = os.path.join(self.work, "containerd.toml")
        self.containerd = self.background([os.path.join(self.directory, "containerd"), "-c", config], "containerd.log")
        wait_for(lambda: self.ctr_ok("version"), "containerd to answer", self.log)

    def start_snapshotter(self):
        program, settings = os.path.join(self.programs, "larder-snapshotter"), os.path.join(self.work, "larder.toml")
        self.daemon = self.background([*self.within, program, "run", "--config", settings], "larder.log")
        wait_for(lambda: listens(os.path.join(self.work, "l.sock")), "larder-snapshotter to listen", self.log)

    def kill_snapshotter(self, number):
        """Ends the supervisor by a signal, and the daemon with it: a killed supervisor does not wait for that."""
        living = daemons(self.daemon.pid)
        self.daemon.send_signal(number)
        self.daemon.wait()
        wait_for(lambda: not any(is_alive(pid) for pid in living), "the daemon to end")

    def configuration(self, plugin):
        """The README's block with this node's paths, and what only a second containerd on a machine needs."""
        block = "version = 2\n" if not self.lazy else substituted(configuration_block("README.md"), {
            "/run/larder/larder.sock": plugin,
            "/var/lib/larder": f"{self.work}/larder",
            "/etc/containerd/certs.d": f"{self.work}/certs.d",
        })
        if self.lazy and not self.annotations:
            block = without_annotations(block)
        if self.snapshotter == "erofs":  # its layers are made by a differ of its own
            block += '[plugins."io.containerd.service.v1.diff-service"]\n  default = ["erofs", "walking"]\n'
        first = f'version = 2\nroot = "{self.work}/root"\nstate = "{self.work}/state"\n'
        last = f'\n[grpc]\n  address = "{self.socket}"\n[ttrpc]\n  address = "{self.socket}.ttrpc"\n'
        if self.sandbox:
            # Where root may not lower a process's OOM score (as in most containers), pods need the restriction.
            last += ('[plugins."io.containerd.grpc.v1.cri"]\n'
                     f'  sandbox_image = "{self.sandbox}"\n  restrict_oom_score_adj = true\n')
        else:
            first += 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        return block.replace("version = 2\n", first, 1) + last

    def background(self, command, log, **options):
        environment = dict(os.environ, PATH=self.directory + ":" + os.environ["PATH"])
        with open(os.path.join(self.work, log), "a") as out:
            self.processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment, **options))
        return self.processes[-1]

    def log(self):
        text = ""
        for name in ("larder.log", "containerd.log"):
            path = os.path.join(self.work, name)
            if os.path.exists(path):
                with open(path, errors="replace") as lines:
                    text += f"--- {name}\n" + "".join(lines.readlines()[-20:])
        return text

    def ctr(self, *words):
        return run(os.path.join(self.directory, "ctr"), "-a", self.socket, *words)

    def printed(self, *words):
        """What a process printed that ctr runs. ctr gives up its pipes when the process ends: output of one that ends before
        they are open is lost, whole, with exit 0. So silence is asked again; a process that has nothing to say stays silent."""
        for _ in range(RUNS_MAX):
            said = self.ctr(*words)
            if said:
                break
        return said

    def export(self, archive, reference):
        """Writes an image as an archive. ctr of containerd 2 ends when containerd has sent it all, whether or not it has written
        that: of an archive that lacks its end a new one is made."""
        for _ in range(RUNS_MAX):
            self.ctr("images", "export", archive, reference)
            try:
                with tarfile.open(archive) as whole:
                    if "index.json" in whole.getnames():
                        return
            except tarfile.ReadError:
                pass

    def ctr_ok(self, *words):
        try:
            self.ctr(*words)
            return True
        except RigError:
            return False

    def pull(self, reference):
        """The command an operator types. `ctr` of containerd 1.x downloads before it asks a snapshotter."""
        if self.lazy and self.major < 2:
            settings = os.path.join(self.work, "larder.toml")
            return run(os.path.join(self.programs, "larder-snapshotter"), "pull", "--config", settings, "--address", self.socket, reference)
        hosts = os.path.join(self.work, "certs.d")
        unpacked_by = ("--local",) if self.snapshotter == "erofs" else ()  # else by the order of differs of the transfer service
        return self.ctr("images", "pull", *unpacked_by, "--hosts-dir", hosts, "--snapshotter", self.snapshotter, reference)

    def start_container(self, reference, name, words=()):
        """Starts the image's own command, or another, on the host's network; its output is a pipe."""
        command = [os.path.join(self.directory, "ctr"), "-a", self.socket, "run", "--rm", "--net-host"]
        command += ["--snapshotter", self.snapshotter, reference, name, *words]
        environment = dict(os.environ, PATH=self.directory + ":" + os.environ["PATH"])
        errors = open(os.path.join(self.work, "run.log"), "w")
        self.containers[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        return self.containers[name]

    def end_container(self, process, name):
        if process.poll() is None:
            self.ctr_ok("tasks", "kill", "-s", "SIGKILL", name)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
        self.ctr_ok("tasks", "rm", "-f", name)
        self.ctr_ok("containers", "rm", name)
        self.containers.pop(name, None)

    def blobs(self, namespace="default"):
        return set(self.ctr("-n", namespace, "content", "ls", "-q").split())

    def left_behind(self):
        """What of lazily loaded images is on the node: mounts, snapshots, layers in the store."""
        root = os.path.join(self.work, "larder")
        with open("/proc/self/mountinfo") as table:
            mounts = [line for line in table if f" {root}/snapshots/" in line or f" {root}/erofs/" in line]
        return mounts + os.listdir(os.path.join(root, "snapshots")) + os.listdir(os.path.join(root, "store"))

    def close(self):
        """Ends all and leaves nothing; may be called again when it was interrupted."""
        for name, process in list(self.containers.items()):
            self.end_container(process, name)
        for process in reversed(self.processes):
            stop(process)
        unmount_below(self.work)
        shutil.rmtree(self.work, ignore_errors=True)


def cold_start(link, node, reference, ready):
    """Pulls and runs `reference` on an empty node: seconds and bytes until it says that it is ready, and what it said."""
    drop_caches(link.storage)
    before, began = link.received(), time.monotonic()
    node.pull(reference)
    pulled = time.monotonic() - began
    name = "demo-" + secrets.token_hex(3)
    process = node.start_container(reference, name)
    try:
        said = wait_until_ready(process, ready, node)
        seconds, moved = time.monotonic() - began, link.received() - before
        said += rest_of(process) if not ready else ""
    finally:
        node.end_container(process, name)
    return {"pull_seconds": pulled, "seconds": seconds, "bytes": moved, "said": said}


def wait_until_ready(process, ready, node):
    """`ready` is `line:PREFIX`, a URL, `exit`, or empty: then the first line, or the end, is readiness."""
    until = time.monotonic() + READY_SECONDS_MAX
    failed = RigError("the container ended before it was ready")
    if ready.startswith("http"):
        while time.monotonic() < until:
            if process.poll() is not None:
                break
            body = answers(ready)
            if body:
                return body
            time.sleep(POLL_SECONDS)
    else:
        said, prefix, until_end = "", ready.partition(":")[2], ready == "exit"
        os.set_blocking(process.stdout.fileno(), True)
        for line in process.stdout:
            said += line
            if line.startswith(prefix) and not until_end:
                return said
        process.wait()
        if (until_end or not ready) and process.returncode == 0:
            return said
    with open(os.path.join(node.work, "run.log")) as errors:
        raise RigError(f"{failed}\n{errors.read()}\n{node.log()}")


def rest_of(process):
    """What a container still says until its end; nothing if it goes on for longer, as a service does."""
    rest = []
    reader = threading.Thread(target=lambda: rest.append(process.stdout.read()), daemon=True)
    reader.start()
    reader.join(REST_SECONDS_MAX)
    return "".join(rest)


def image_of(link, repository, tag):
    """Manifest and configuration of a single-platform image in the registry."""
    base = f"http://{link.address}/v2/{repository}"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json,"
              " application/vnd.docker.distribution.manifest.v2+json"}
    def get(path):
        with urllib.request.urlopen(urllib.request.Request(f"{base}/{path}", headers=accept)) as answer:
            return json.load(answer)
    manifest = get(f"manifests/{tag}")
    if "manifests" in manifest:
        manifest = get("manifests/" + manifest["manifests"][0]["digest"])
    return manifest, get("blobs/" + manifest["config"]["digest"])


def cost(command, environment=None):
    """Runs a command to its end; its seconds, and its largest resident set, KB.

    The kernel counts what a process had before it became another program, so a small one starts the command.
    """
    small = "import resource, subprocess, sys, time; began = time.perf_counter(); " \
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); " \
        "print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    took, largest = run(sys.executable, "-c", small, *command, env=environment).split()
    return float(took), int(largest)


def drop_caches(*folders):
    """Empties the page, dentry and inode caches; then reads the registry's own files back in."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as out:
        out.write("3")
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                with open(os.path.join(path, name), "rb") as data:
                    while data.read(1 << 20):
                        pass


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def listens(path):
    """Whether somebody accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
            return True
        except OSError:
            return False


def processes_with(word):
    """The processes that have a word in their command lines."""
    return [pid for pid, words in command_lines() if word in words]


def processes_of(program):
    """The processes that run a program of this name."""
    return [pid for pid, words in command_lines() if os.path.basename(words[0]) == program]


def command_lines():
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as words:
                found.append((int(process), os.fsdecode(words.read()).split("\0")))
        except OSError:
            pass  # it ended meanwhile
    return found


def wait_for(condition, what, log=lambda: "", seconds=SOCKET_SECONDS_MAX):
    until = time.monotonic() + seconds
    while condition() in (None, False):
        if time.monotonic() > until:
            raise RigError(f"waited {seconds} s for {what}\n{log()}")
        time.sleep(POLL_SECONDS)


def stop(process):
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def unmount_below(folder):
    """Detaches whatever is still mounted below `folder`, the newest first."""
    with open("/proc/self/mountinfo") as table:
        places = [line.split()[4] for line in table]
    for place in reversed(places):
        if place.startswith(folder + "/"):
            subprocess.run(["umount", "-l", place], capture_output=True)
