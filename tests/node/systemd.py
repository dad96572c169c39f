"""What systemd does for a service of Type=notify: hears it, keeps descriptors for it, and gives them back."""

import array
import os
import secrets
import socket
import sys
import threading
import time

# Descriptors begin at 3, by sd_listen_fds(3).
START = """
import os, sys
count = int(sys.argv[1])
held = [int(number) for number in sys.argv[2].split(",") if number]
high = [os.dup2(number, 500 + at) for at, number in enumerate(held)]
for at, number in enumerate(high):
    os.dup2(number, 3 + at)
os.closerange(500, 600)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=sys.argv[3])
os.execv(sys.argv[4], sys.argv[4:])
"""


class Systemd:
    """Listens at `path`, which is a service's NOTIFY_SOCKET."""

    def __init__(self, path):
        self.held, self.said, self.lock = {}, [], threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            numbers = array.array("i")
            data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(numbers.itemsize))
            for _, _, rights in ancillary:
                numbers.frombytes(rights)
            with self.lock:
                self.hear(dict(line.split("=", 1) for line in data.decode().splitlines()), list(numbers))

    def hear(self, message, descriptors):
        self.said.append(message)
        name = message.get("FDNAME")
        if "FDSTOREREMOVE" in message:
            for descriptor in self.held.pop(name, []):
                os.close(descriptor)
        elif "FDSTORE" in message:
            self.held.setdefault(name, []).extend(descriptors)

    def heard(self):
        """Hears all that was said until now: systemd does, before it takes note that a process died."""
        token = secrets.token_hex(8)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(f"HEARD={token}".encode(), self.socket.getsockname())
        while not self.told(f"HEARD={token}"):
            time.sleep(0.001)

    def command(self, *words):
        """A command line that starts `words` with what is held, and the descriptors to pass on."""
        self.heard()
        with self.lock:
            pairs = [(name, descriptor) for name, descriptors in self.held.items() for descriptor in descriptors]
        numbers = [descriptor for _, descriptor in pairs]
        names = ":".join(name for name, _ in pairs)
        return [sys.executable, "-B", "-c", START, str(len(pairs)), ",".join(map(str, numbers)), names, *words], numbers

    def told(self, state):
        with self.lock:
            key, value = state.split("=", 1)
            return any(message.get(key) == value for message in self.said)
