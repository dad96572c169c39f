"""The requests from a pull to the first thing that a container says, in their order, and how many round trips of them it waited for.

A recorder stands before the registry. It holds each answer for one round trip, and the first one on a connection for another, as TCP
does; what TLS and the growth of TCP's window cost is not among it. What is waited for shows in two ways:

- The time from pull to first output, with round trips of HELD_SECONDS and of none: their difference ÷ HELD_SECONDS is the number of
  round trips that the start waited for one after the other, whoever asked and why.
- The round of each request: those that were sent before the answer to any of a round had come are in the same round.
"""

import collections
import http.client
import http.server
import json
import os
import re
import secrets
import statistics
import tempfile
import threading
import time
import urllib.parse

import rig
from made import Registry

HELD_SECONDS = 0.2  # a round trip long enough that a busy machine's own time is noise beside it
KEPT_HEADERS = ("Content-Type", "Content-Range", "Docker-Content-Digest", "Docker-Distribution-Api-Version", "ETag", "OCI-Filters-Applied")
SAID = ("/bin/sh", "-c", "echo said")
KINDS = ("plain", "token", "redirect")
PULLED = ("by tag", "config")
INDEX = "containerd.io/snapshot/larder.index"
# Round trips that the format needs of Larder on warm connections: an index, and data. A registry that wants a token refuses one request
# and sends to another server, one that redirects does likewise; each of these has a connection of its own.
MINE = {"plain": 2, "token": 5, "redirect": 4}

Request = collections.namedtuple("Request", "server connection first agent method path range status size came answered")


class Recorder:
    """Stands before a registry at `upstream`. `kind` is `plain`; with `token` it wants a token from a server of its own; with
    `redirect` blobs are on another host as well."""

    def __init__(self, upstream, kind="plain", held=0.0):
        self.upstream, self.kind, self.held = upstream, kind, held
        self.token, self.requests, self.connections, self.lock = secrets.token_hex(8), [], 0, threading.Lock()
        self.servers = {name: Server(name, self) for name in ("registry", "tokens", "blobs")}
        self.host = self.servers["registry"].host

    def number(self):
        with self.lock:
            self.connections += 1
            return self.connections

    def taken(self):
        """What was recorded since the last time, in the order in which it came."""
        with self.lock:
            taken, self.requests = self.requests, []
        return sorted(taken, key=lambda request: request.came)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers.values():
            server.shutdown()
            server.server_close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, name, recorder):
        super().__init__(("127.0.0.1", 0), Recorded)
        self.name, self.recorder, self.host = name, recorder, f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass  # clients end their connections when they like


class Recorded(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def setup(self):
        super().setup()
        self.connection_number, self.is_first = self.server.recorder.number(), True
        self.registry = http.client.HTTPConnection(self.server.recorder.upstream)

    def finish(self):
        self.registry.close()
        super().finish()

    def do_GET(self):
        recorder, came, first = self.server.recorder, time.monotonic(), self.is_first
        self.is_first = False
        time.sleep(recorder.held * (2 if first else 1))
        status, headers, body = self.answer(recorder)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        request = Request(self.server.name, self.connection_number, first, self.headers.get("User-Agent", "?"), self.command, self.path,
                          self.headers.get("Range", ""), status, len(body), came, time.monotonic())
        with recorder.lock:
            recorder.requests.append(request)

    do_HEAD = do_GET

    def answer(self, recorder):
        if self.server.name == "tokens":
            body = json.dumps({"token": recorder.token, "expires_in": 300}).encode()
            return 200, {"Content-Type": "application/json", "Content-Length": len(body)}, body
        if self.server.name == "registry":
            wanted = f"Bearer {recorder.token}"
            if recorder.kind == "token" and self.headers.get("Authorization") != wanted:
                scope = re.match(r"/v2/(.+)/(?:manifests|blobs|referrers)/", self.path)
                realm = f'Bearer realm="http://{recorder.servers["tokens"].host}/token",service="recorder"'
                named = f',scope="repository:{scope[1]}:pull"' if scope else ""
                return 401, {"WWW-Authenticate": realm + named, "Content-Length": 0}, b""
            if recorder.kind == "redirect" and "/blobs/" in self.path:
                return 307, {"Location": f"http://{recorder.servers['blobs'].host}{self.path}", "Content-Length": 0}, b""
        kept = {name: self.headers[name] for name in ("Accept", "Range") if self.headers[name]}
        self.registry.request(self.command, self.path, headers=kept)
        answer = self.registry.getresponse()
        body = answer.read()
        headers = {name: answer.headers[name] for name in KEPT_HEADERS if answer.headers[name]}
        return answer.status, headers | {"Content-Length": answer.headers.get("Content-Length", len(body))}, body

    def log_message(self, *_):
        pass


def rounds(requests):
    """The round of each request. One on a new connection is one later, for TCP."""
    found = []
    for request in requests:
        before = [number for earlier, number in found if earlier.answered <= request.came]
        found.append((request, max(before, default=0) + 1 + request.first))
    return [number for _, number in found]


def who(request, names):
    """`pull` is the command `larder-snapshotter pull`, which does what containerd does elsewhere."""
    if not request.agent.startswith("larder"):
        return "containerd"
    return "pull" if names.get(last(request)) in PULLED else "Larder"


def last(request):
    return urllib.parse.urlsplit(request.path).path.rsplit("/", 1)[-1]


def what(request, names):
    """A request in words; `names` are those of blobs."""
    kind = "token" if request.server == "tokens" else request.path.rsplit("/", 2)[-2] + " " + names.get(last(request), last(request)[-12:])
    return f"{request.method} {kind} {request.range.removeprefix('bytes=')}".rstrip()


Image = collections.namedtuple("Image", "repository names indexes")


def image_at(link, repository):
    """What the digests of an image mean, and where its layers' indexes begin."""
    manifest, _ = rig.image_of(link, repository, "larder")
    layers = [layer["digest"] for layer in manifest["layers"]]
    names = {manifest["config"]["digest"]: "config"} | {digest: f"of layer {number}" for number, digest in enumerate(layers, 1)}
    begins = {layer["digest"]: int(layer["annotations"][INDEX].split(":")[0]) for layer in manifest["layers"] if INDEX in layer["annotations"]}
    return Image(repository, names | {"larder": "by tag"}, begins)


def own_rounds(requests, image):
    """How many rounds there are from what containerd asked for last to the first data that came without an index; None without any."""
    others = 0
    for request, number in zip(requests, rounds(requests)):
        if who(request, image.names) != "Larder":
            others = max(others, number)
        elif last(request) in image.indexes and request.status == 206:
            if int(request.range.removeprefix("bytes=").split("-")[1]) < image.indexes[last(request)]:
                return number - others
    return None


def started(node, reference):
    """Pulls an image and runs a shell of it: the moments of the pull's beginning and end, and of what the shell says."""
    name, began = "trips-" + secrets.token_hex(3), time.monotonic()
    node.pull(reference)
    pulled = time.monotonic()
    process = node.start_container(reference, name, SAID)
    try:
        rig.wait_until_ready(process, "line:said", node)
        return began, pulled, time.monotonic()
    finally:
        node.end_container(process, name)


def sequence(requests, moments, names):
    """The lines of a table of all that was asked for until the container spoke."""
    began, pulled, said = moments
    told = False
    for request, number in zip(requests, rounds(requests)):
        if request.came > said:
            break
        if request.came > pulled and not told:
            told = True
            yield f"| {1000 * (pulled - began):.0f} | | | | *the pull is done* | | |"
        new = " new" if request.first else ""
        yield (f"| {1000 * (request.came - began):.0f} | {1000 * (request.answered - began):.0f} | {number} | {who(request, names)} | "
               f"{what(request, names)} | {request.status} | {request.server} {request.connection}{new} |")
    yield f"| {1000 * (said - began):.0f} | | | | *the container speaks* | | |"


def run(args, drivers, work, table):
    """For each kind of registry: the figures, and the sequence of the last start."""
    name = (args.image or ["tools-layers"])[0]
    with Registry(args, work) as registry:
        registry.push(os.path.join(args.images, name), name)
        image = image_at(registry.link, f"bench/{name}")
        for kind in KINDS:
            for driver in drivers:
                measure(args, registry.link, work, table, kind, driver, image)


def measure(args, link, work, table, kind, driver, image):
    samples, own = {0.0: [], HELD_SECONDS: []}, []
    one(args, link, work, kind, driver, image, 0.0)  # the first start on a machine is slower, whichever it is
    for turn in range(args.pairs):
        for held in (0.0, HELD_SECONDS)[:: -1 if turn % 2 else 1]:
            version, moments, requests = one(args, link, work, kind, driver, image, held)
            samples[held].append([moment - moments[0] for moment in moments[1:]])
            if held:
                own.append(own_rounds(requests, image))
                shown = sequence(requests, moments, image.names)
    head = [f"{kind}, {driver}, containerd {version}: milliseconds, a round trip of {1000 * HELD_SECONDS:.0f}", "",
            "| sent | answered | round | by | request | status | connection |", "|---|---|---|---|---|---|---|"]
    table.texts.append("\n".join([*head, *shown]))
    own = [number for number in own if number is not None]
    if own:
        goal = f"≤ {MINE[kind] + 1}"
        table.single(f"{kind}, {driver}: after containerd's last request, to the first data", "round trips", statistics.median(own), goal, own)
    for place, phase in enumerate(("pull", "pull to first output")):
        without, held = ([spent[place] for spent in samples[how]] for how in (0.0, HELD_SECONDS))
        waited = (statistics.median(held) - statistics.median(without)) / HELD_SECONDS
        table.single(f"{kind}, {driver}: {phase}", "round trips", waited, "", held)


def one(args, link, work, kind, driver, image, held):
    """A start on an empty node: the version of its containerd, its moments, and what was asked for."""
    with Recorder(link.address, kind, held) as recorder:
        node = rig.Node(tempfile.mkdtemp(dir=work), args.programs, True, driver, args.containerd)
        try:
            node.start(recorder.host)
            recorder.taken()
            moments = started(node, f"{recorder.host}/{image.repository}:larder")
            return node.version, moments, recorder.taken()
        finally:
            node.close()
