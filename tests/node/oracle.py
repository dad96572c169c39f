"""The tree oracle: what a root file system is, entry by entry, and how two of them differ.

Compared: names, types, modes, owners, sizes, mtimes to the nanosecond, link counts and which names share an inode, symlink
targets, extended attributes, device numbers and contents. Not compared: size and link count of directories (each file
system counts its own way), mtimes of the root and of implied directories (nothing in the image says what they are).
"""

import hashlib
import os
import stat

PIECE = 1 << 20
DIFFERENCES_SHOWN = 20


def snapshot(root, contents=True):
    """Every entry below `root`, by its path as bytes: a dictionary of attributes."""
    root = os.fsencode(root)
    entries, inodes = {}, {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = os.path.join(root, path) if path else root
        info = os.lstat(full)
        entries[path] = entry = attributes(full, info)
        if stat.S_ISDIR(info.st_mode):
            pending += [os.path.join(path, name) for name in os.listdir(full)]
            continue
        entry["links"] = info.st_nlink
        inodes.setdefault((info.st_dev, info.st_ino), []).append(path)
        if stat.S_ISREG(info.st_mode):
            entry["size"] = info.st_size
            entry["sha256"] = digest(full) if contents else None
    for names in inodes.values():
        names.sort()
        for name in names:
            entries[name]["same inode as"] = names[0]
    return entries


def attributes(full, info):
    entry = {
        "type": stat.S_IFMT(info.st_mode), "mode": oct(stat.S_IMODE(info.st_mode)), "uid": info.st_uid, "gid": info.st_gid,
        "mtime": info.st_mtime_ns,
        "xattrs": {name: os.getxattr(full, name, follow_symlinks=False)
                   for name in sorted(os.listxattr(full, follow_symlinks=False)) if not name.startswith("trusted.overlay.")},
    }
    if stat.S_ISLNK(info.st_mode):
        entry["target"] = os.readlink(full)
    if stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
        entry["device"] = info.st_rdev
    return entry


def digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as data:
        while piece := data.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def differences(expected, found, implied=()):
    """One line per difference; `implied` are directories whose mtime means nothing."""
    lines = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"not expected: {path!r}" for path in sorted(found.keys() - expected.keys())]
    timeless = {b"", *implied}
    for path in sorted(expected.keys() & found.keys()):
        want, have = expected[path], found[path]
        for key in sorted(want.keys() | have.keys()):
            if key == "mtime" and path in timeless:
                continue
            if want.get(key) != have.get(key):
                lines.append(f"{path!r}: {key} is {have.get(key)!r}, not {want.get(key)!r}")
    return lines


def report(lines):
    more = f"\n… and {len(lines) - DIFFERENCES_SHOWN} more" if len(lines) > DIFFERENCES_SHOWN else ""
    return "\n".join(lines[:DIFFERENCES_SHOWN]) + more
