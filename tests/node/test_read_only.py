"""Every call that would change a mounted image, compared with the same call on a read-only ext4."""

import fcntl
import os
import socket
import stat
import unittest

import twins
import world
from twins import outcome, system
from world import DRIVERS, once_per

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2
O_TMPFILE = os.O_TMPFILE
ACL = bytes.fromhex("02000000" "01000600ffffffff" "04000400ffffffff" "20000400ffffffff")


def opening(name, flags):
    def call(root):
        os.close(os.open(os.path.join(root, name), flags, 0o644))
    return call


def on_open(name, call, flags=os.O_RDONLY):
    """The call on an open file."""
    def made(root):
        file = os.open(os.path.join(root, name), flags)
        try:
            return call(file)
        finally:
            os.close(file)
    return made


def at(*names, call):
    """The call with these names below the root; what begins with `=` is taken as it is."""
    return lambda root: call(*(name[1:] if name.startswith("=") else os.path.join(root, name) for name in names))


def bind(path):
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(os.path.dirname(path))  # a socket's address is short
        try:
            one.bind(os.path.basename(path))
        finally:
            os.chdir("/")


def exchange(flags):
    return lambda old, new: system("renameat2", AT_FDCWD, old, AT_FDCWD, new, flags)


def acl(path):
    os.setxattr(path, "system.posix_acl_access", ACL)


CALLS = {
    "open for writing": opening("files/small", os.O_WRONLY),
    "open for both": opening("files/small", os.O_RDWR),
    "open for writing, without rights": opening("files/secret", os.O_WRONLY),
    "open for appending": opening("files/small", os.O_WRONLY | os.O_APPEND),
    "open and truncate": opening("files/small", os.O_WRONLY | os.O_TRUNC),
    "open for reading and truncate": opening("files/small", os.O_RDONLY | os.O_TRUNC),
    "open for writing by a symbolic link": opening("files/symlink", os.O_WRONLY),
    "create what is there": opening("files/small", os.O_RDONLY | os.O_CREAT),
    "create what is there, for writing": opening("files/small", os.O_WRONLY | os.O_CREAT),
    "create what is there, exclusively": opening("files/small", os.O_RDONLY | os.O_CREAT | os.O_EXCL),
    "create": opening("files/new", os.O_WRONLY | os.O_CREAT),
    "create, for reading": opening("files/new", os.O_RDONLY | os.O_CREAT),
    "create by a dangling link": opening("files/dangling", os.O_WRONLY | os.O_CREAT),
    "create below a file": opening("files/small/new", os.O_WRONLY | os.O_CREAT),
    "create below nothing": opening("nothing/new", os.O_WRONLY | os.O_CREAT),
    "create without a name": opening("files", os.O_WRONLY | O_TMPFILE),
    "open a directory for writing": opening("files", os.O_WRONLY),
    "open nothing for writing": opening("files/nothing", os.O_WRONLY),
    "open a device for writing": opening("files/null", os.O_WRONLY),
    "open a pipe for writing": opening("files/fifo", os.O_WRONLY | os.O_NONBLOCK),
    "open a pipe for both": opening("files/fifo", os.O_RDWR | os.O_NONBLOCK),
    "mkdir": at("files/new", call=os.mkdir),
    "mkdir of what is there": at("files", call=os.mkdir),
    "mkdir below nothing": at("nothing/new", call=os.mkdir),
    "mkdir below a file": at("files/small/new", call=os.mkdir),
    "rmdir": at("entries/0", call=os.rmdir),
    "rmdir of a full one": at("full", call=os.rmdir),
    "rmdir of a file": at("files/small", call=os.rmdir),
    "rmdir of nothing": at("nothing", call=os.rmdir),
    "unlink": at("files/small", call=os.unlink),
    "unlink of a directory": at("entries/0", call=os.unlink),
    "unlink of nothing": at("files/nothing", call=os.unlink),
    "unlink of a link": at("files/dangling", call=os.unlink),
    "rename": at("files/small", "files/new", call=os.rename),
    "rename over another": at("files/small", "files/middle", call=os.rename),
    "rename to itself": at("files/small", "files/small", call=os.rename),
    "rename to another name of it": at("files/middle", "files/linked", call=os.rename),
    "rename of nothing": at("files/nothing", "files/new", call=os.rename),
    "rename of a directory": at("full", "moved", call=os.rename),
    "rename of a directory into itself": at("full", "full/one/new", call=os.rename),
    "rename without replacing": at("files/small", "files/middle", call=exchange(RENAME_NOREPLACE)),
    "rename both ways": at("files/small", "files/middle", call=exchange(RENAME_EXCHANGE)),
    "link": at("files/small", "files/new", call=os.link),
    "link over another": at("files/small", "files/middle", call=os.link),
    "link of a directory": at("full", "new", call=os.link),
    "link of nothing": at("nothing", "new", call=os.link),
    "link from elsewhere": at("=/proc/self/exe", "new", call=os.link),
    "symlink": at("=target", "files/new", call=os.symlink),
    "symlink over another": at("=target", "files/small", call=os.symlink),
    "mknod of a pipe": at("files/new", call=os.mkfifo),
    "mknod of a file": at("files/new", call=lambda path: os.mknod(path, stat.S_IFREG | 0o644)),
    "mknod of a device": at("files/new", call=lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))),
    "mknod over another": at("files/small", call=lambda path: os.mknod(path, stat.S_IFREG | 0o644)),
    "bind a socket": at("files/new", call=bind),
    "chmod": at("files/small", call=lambda path: os.chmod(path, 0o777)),
    "chmod to what it is": at("files/small", call=lambda path: os.chmod(path, 0o644)),
    "chmod of a directory": at("full", call=lambda path: os.chmod(path, 0o700)),
    "chmod of nothing": at("nothing", call=lambda path: os.chmod(path, 0o700)),
    "fchmod": on_open("files/small", lambda file: os.fchmod(file, 0o777)),
    "chown": at("files/small", call=lambda path: os.chown(path, 1, 1)),
    "chown to nobody else": at("files/small", call=lambda path: os.chown(path, -1, -1)),
    "chown of a link": at("files/symlink", call=lambda path: os.lchown(path, 1, 1)),
    "fchown": on_open("files/small", lambda file: os.fchown(file, 1, 1)),
    "utimens": at("files/small", call=lambda path: os.utime(path, (1, 1))),
    "utimens now": at("files/small", call=os.utime),
    "utimens of a link": at("files/symlink", call=lambda path: os.utime(path, (1, 1), follow_symlinks=False)),
    "futimens": on_open("files/small", lambda file: os.utime(file, (1, 1))),
    "truncate": at("files/large", call=lambda path: os.truncate(path, 10)),
    "truncate to what it is": at("files/large", call=lambda path: os.truncate(path, twins.LARGE)),
    "truncate of a directory": at("full", call=lambda path: os.truncate(path, 0)),
    "truncate of nothing": at("nothing", call=lambda path: os.truncate(path, 0)),
    "ftruncate": on_open("files/large", lambda file: os.ftruncate(file, 10)),
    "fallocate": on_open("files/large", lambda file: os.posix_fallocate(file, 0, 10)),
    "write": on_open("files/small", lambda file: os.write(file, b"x")),
    "setxattr": at("files/small", call=lambda path: os.setxattr(path, "user.new", b"x")),
    "setxattr over another": at("files/small", call=lambda path: os.setxattr(path, "user.colour", b"x")),
    "setxattr of a trusted one": at("files/small", call=lambda path: os.setxattr(path, "trusted.new", b"x")),
    "setxattr of capabilities": at("files/true", call=lambda path: os.setxattr(path, "security.capability", b"\x01\0\0\x02" + bytes(16))),
    "setxattr of a list of rights": at("files/small", call=acl),
    "fsetxattr": on_open("files/small", lambda file: os.setxattr(file, "user.new", b"x")),
    "removexattr": at("files/small", call=lambda path: os.removexattr(path, "user.colour")),
    "removexattr of nothing": at("files/small", call=lambda path: os.removexattr(path, "user.nothing")),
    "access for writing": at("files/small", call=lambda path: system("access", path, os.W_OK)),
    "access for writing to a directory": at("files", call=lambda path: system("access", path, os.W_OK)),
    "access for writing to a device": at("files/null", call=lambda path: system("access", path, os.W_OK)),
    "copy into it": lambda root: on_open("files/small", lambda file: os.copy_file_range(file, file, 3, 0, 5))(root),
    "lock a range for writing": on_open("files/small", lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
}


class ReadOnly(world.Case):
    """The tree of `twins`, mounted without an overlay."""

    beside = True

    @once_per(driver=DRIVERS)
    def test_every_call_that_changes_is_refused_as_on_a_read_only_ext4(self, driver):
        """Promise: same answers, call by call; EROFS wherever there is nothing else to say; nothing has changed."""
        with twins.mounted(driver) as ours:
            answers = {name: (outcome(call, twins.ext4()), outcome(call, ours.place)) for name, call in CALLS.items()}
            different = {name: pair for name, pair in answers.items() if pair[0] != pair[1]}
            self.assertEqual(different, {}, "(ext4, Larder)")
            refused = sum(pair[0] == "EROFS" for pair in answers.values())
            self.assertGreater(refused, len(CALLS) // 2, answers)
            print(f"{len(CALLS)} calls, {refused} EROFS", end=" ", flush=True)
            self.assertTrue(os.statvfs(ours.place).f_flag & os.ST_RDONLY)
            twin = twins.ext4()
            self.assertEqual(sorted(os.listdir(os.path.join(ours.place, "files"))), sorted(os.listdir(os.path.join(twin, "files"))))


if __name__ == "__main__":
    unittest.main()
