#!/usr/bin/env python3
"""Lists or extracts a Larder layer. Written from docs/FORMAT.md alone, to prove that it is complete.

  read-index.py list LAYER          one line per path, its extended attributes on lines behind it
  read-index.py sums LAYER          the same with the SHA-256 of each file's content
  read-index.py extract LAYER DIR   as root: with owners, devices and extended attributes
  read-index.py start LIST          one line per chunk of a start list: milliseconds, row

LAYER is a layer blob, or a directory of a node's store (files `index` and `device`). Needs the zstd program.
"""
import base64, collections, hashlib, mmap, os, shutil, stat, struct, subprocess, sys, tempfile
BLOCK, HOLE = 512, 0xFFFFFFFF
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
TYPES = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFCHR, 4: stat.S_IFBLK, 5: stat.S_IFIFO, 6: stat.S_IFSOCK,
         7: stat.S_IFLNK}
Inode = collections.namedtuple("Inode", "layout mode links size payload uid gid mtime xattrs behind")

def expect(truth, what):
    truth or sys.exit("read-index.py: " + what)

def zstd(source, target=subprocess.PIPE):
    """Decompresses bytes or an open file."""
    given = {"input": source} if isinstance(source, bytes) else {"stdin": source}
    sparse = [] if target == subprocess.PIPE else ["--sparse"]
    return subprocess.run(["zstd", "-dcq", *sparse], stdout=target, check=True, **given).stdout

class Layer:
    """Sections 1 and 2: the blob, its footer, and the index."""
    def __init__(self, path):
        self.path, self.is_store = path, os.path.isdir(path)
        with open(os.path.join(path, "index") if self.is_store else path, "rb") as file:
            index = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not self.is_store:
            index = self.from_footer(index)
        elif index[:8] != b"LARDERIX":
            index = zstd(index[:])
        expect(struct.unpack_from("<8sHH", index) == (b"LARDERIX", 1, 0), "not an index of version 1")
        sections, _, self.tar_len, self.diff_id = struct.unpack_from("<IIQ32s", index, 24)
        rows = [struct.unpack_from("<IIQQ", index, 80 + 24 * i) for i in range(sections)]
        found = {kind: index[offset:offset + length] for kind, _, offset, length in rows}
        self.image, self.chunks, tar_at, blob_at = Image(found[1]), [], 0, 0
        for offset, stored, length, stored_length, _, _ in struct.iter_unpack("<QQII32s32s", found[2]):
            expect((offset, stored) == (tar_at, blob_at), "a gap between chunks")
            tar_at, blob_at = tar_at + length, blob_at + stored_length
            self.chunks.append((offset, length, stored_length))
        expect(tar_at == self.tar_len and not found[4], "the chunks are not the tar")
        self.implied, rest = set(), found[3]
        while rest:
            length = struct.unpack_from("<H", rest)[0]
            self.implied.add(rest[2:2 + length])
            rest = rest[2 + length:]
    @staticmethod
    def from_footer(blob):
        end = len(blob) - 80
        expect(struct.unpack_from("<II8sH", blob, end) == (0x184D2A5B, 72, b"LARDERFT", 1), "the blob has no footer")
        offset, stored, length, digest = struct.unpack_from("<QQQ32s", blob, end + 8 + 16)
        expect(offset + stored == end, "the footer does not follow the index")
        expect(struct.unpack_from("<II", blob, offset - 8) == (0x184D2A5B, stored), "the index is in no frame")
        expect(hashlib.sha256(blob[offset:end]).digest() == digest, "the stored index is damaged")
        index = zstd(blob[offset:end])
        expect(len(index) == length, "the index has another length")
        return index
    def tar(self):
        """The tar, mapped, after its digest was checked; so the chunks' own digests, BLAKE3 or not, can wait."""
        with tempfile.TemporaryFile() as file:
            with open(os.path.join(self.path, "device") if self.is_store else self.path, "rb") as source:
                shutil.copyfileobj(source, file) if self.is_store else zstd(source, file)
            file.truncate(self.tar_len) if self.is_store else None
            tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        expect(len(tar) == self.tar_len, "the tar has another length")
        expect(hashlib.sha256(tar).digest() == self.diff_id, "the tar has another digest")
        return tar

class Image:
    """Section 4: the metadata image."""
    def __init__(self, data):
        expect(struct.unpack_from("<I", data, 1024)[0] == 0xE0F5E1E2 and data[1036] == 9, "no metadata image")
        self.data, (self.root, self.inodes) = data, struct.unpack_from("<HQ", data, 1038)
        seconds, nanoseconds, self.blocks, _, self.xattr_block = struct.unpack_from("<qIIII", data, 1048)
        self.epoch = seconds * 10**9 + nanoseconds
        expect(self.blocks * BLOCK == len(data), "the metadata image has another length")
    def inode(self, nid):
        at = nid * 32
        form, words, mode, links, size, _, payload, _, uid, gid = struct.unpack_from("<HHHHIIIIHH", self.data, at)
        behind, mtime = at + 32, self.epoch
        if form & 1:
            size, payload, _, uid, gid, seconds, ns, links = struct.unpack_from("<QIIIIqII", self.data, at + 8)
            behind, mtime = at + 64, seconds * 10**9 + ns
        xattrs = self.data[behind:behind + (12 + 4 * (words - 1) if words else 0)]
        return Inode(form >> 1, mode, links, size, payload, uid, gid, mtime, xattrs, behind + len(xattrs))
    def content(self, inode):
        """The data of a directory or symlink, which lies in the image."""
        whole = inode.size if inode.layout == 0 else inode.size // BLOCK * BLOCK
        start = inode.payload * BLOCK
        return self.data[start:start + whole] + self.data[inode.behind:inode.behind + inode.size - whole]
    def entries(self, inode):
        content = self.content(inode)
        for block in (content[start:start + BLOCK] for start in range(0, len(content), BLOCK)):
            count = struct.unpack_from("<H", block, 8)[0] // 12
            table = [struct.unpack_from("<QHB", block, 12 * i) for i in range(count)]
            for (nid, start, kind), end in zip(table, [start for _, start, _ in table[1:]] + [len(block)]):
                name = block[start:end].split(b"\0")[0]
                expect(name and b"/" not in name, "a bad name")
                if name not in (b".", b".."):
                    yield name, nid, TYPES[kind]
    def walk(self):
        """(path, inode, first path of the inode); outer before inner, the root as the empty path."""
        first, pending = {}, [(b"", self.root, stat.S_IFDIR)]
        while pending:
            path, nid, kind = pending.pop()
            inode = self.inode(nid)
            expect(stat.S_IFMT(inode.mode) == kind, "an entry of another type than its inode")
            expect(nid not in first or kind != stat.S_IFDIR, "a directory with two parents")
            yield path, inode, first.setdefault(nid, path)
            if kind == stat.S_IFDIR:
                prefix = path + b"/" if path else b""
                pending += [(prefix + name, *entry) for name, *entry in reversed(list(self.entries(inode)))]
        expect(len(first) == self.inodes, "another number of inodes")
    def extents(self, inode):
        """(offset in the file, offset in the tar, length); what lies between is a hole."""
        chunk, blocks = inode.size, [inode.payload] if inode.size else []
        if inode.layout == 4:
            chunk = BLOCK << inode.payload
            blocks = struct.unpack_from(f"<{-(-inode.size // chunk)}I", self.data, inode.behind)
        for i, block in enumerate(blocks):
            if block != HOLE:
                yield i * chunk, (block - self.blocks) * BLOCK, min(chunk, inode.size - i * chunk)
    def xattrs(self, inode):
        def entry(data, at):
            name_len, prefix, value_len = struct.unpack_from("<BBH", data, at)
            end = at + 4 + name_len + value_len
            return PREFIXES[prefix] + data[at + 4:end - value_len], data[end - value_len:end], -(-end // 4) * 4
        at = 12 + 4 * inode.xattrs[4] if inode.xattrs else 0
        shared = struct.iter_unpack("<I", inode.xattrs[12:at])
        found = [entry(self.data, self.xattr_block * BLOCK + 4 * number)[:2] for number, in shared]
        while at < len(inode.xattrs):
            name, value, at = entry(inode.xattrs, at)
            found.append((name, value))
        return sorted(found)

def start_list(text):
    """Section 6: (milliseconds, row) of each chunk of a start list."""
    expect(text[:2] == "1:" and set(text[2:]) <= set(ALPHABET), "no start list of version 1")
    data = base64.urlsafe_b64decode(text[2:] + "=" * (-len(text[2:]) % 4))
    numbers, value, shift, millis, end, found = [], 0, 0, 0, 0, []
    for byte in data:
        value, shift = value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    expect(shift == 0 and len(numbers) % 3 == 0, "the start list ends inside a run")
    for later, step, more in zip(numbers[0::3], numbers[1::3], numbers[2::3]):
        millis, first = millis + later, end + (step >> 1 ^ -(step & 1))
        end = first + more + 1
        found += [(millis, row) for row in range(first, end)]
    expect(len({row for _, row in found}) == len(found), "a chunk twice")
    return found

def device(inode):
    return (inode.payload >> 8) & 0xFFF, (inode.payload & 0xFF) | (inode.payload >> 12) & 0xFFF00
def text(name):
    return "".join(chr(byte) if 32 < byte < 127 and byte != 37 else f"%{byte:02x}" for byte in name)

def pieces(image, inode, tar):
    """The bytes of a file, holes as zeros, at most 1 MiB at a time."""
    at, step = 0, 1 << 20
    for offset, tar_at, length in [*image.extents(inode), (inode.size, 0, 0)]:
        yield from (bytes(min(step, offset - start)) for start in range(at, offset, step))
        yield from (tar[start:min(start + step, tar_at + length)] for start in range(tar_at, tar_at + length, step))
        at = offset + length

def show(layer, tar):
    for path, inode, first in layer.image.walk():
        kind, extra = stat.S_IFMT(inode.mode), "" if stat.S_ISDIR(inode.mode) else f" {inode.links}"
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            extra += " %d:%d" % device(inode)
        elif kind == stat.S_IFREG:
            extra += f" {inode.size}"
            if tar is not None:
                digest = hashlib.sha256()
                collections.deque(map(digest.update, pieces(layer.image, inode, tar)), maxlen=0)
                extra += " " + digest.hexdigest()
        seconds, ns = divmod(inode.mtime, 10**9)
        target = " -> " + text(layer.image.content(inode)) if kind == stat.S_IFLNK else ""
        marks = target + (f" = /{text(first)}" if first != path else "") + " implied" * (path in layer.implied)
        print(f"{inode.mode:06o} {inode.uid}:{inode.gid} {seconds}.{ns:09}{extra} /{text(path)}{marks}")
        for name, value in layer.image.xattrs(inode):
            print(f"  {text(name)}={text(value)}")

def extract(layer, to):
    tar, done = layer.tar(), []
    for path, inode, first in layer.image.walk():
        at, kind = os.path.join(os.fsencode(to), path), stat.S_IFMT(inode.mode)
        if first != path:
            os.link(os.path.join(os.fsencode(to), first), at, follow_symlinks=False)
        elif kind == stat.S_IFDIR:
            os.makedirs(at, exist_ok=not path)
        elif kind == stat.S_IFLNK:
            os.symlink(layer.image.content(inode), at)
        elif kind == stat.S_IFREG:
            with open(at, "xb") as file:
                for piece in pieces(layer.image, inode, tar):
                    file.seek(len(piece), 1) if piece == bytes(len(piece)) else file.write(piece)
                file.truncate(inode.size)
        else:
            os.mknod(at, inode.mode, os.makedev(*device(inode)))
        done.append((at, inode))
    for at, inode in reversed(done):  # a directory after what is in it
        os.chown(at, inode.uid, inode.gid, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(at, stat.S_IMODE(inode.mode))
        for name, value in layer.image.xattrs(inode):
            os.setxattr(at, name, value, follow_symlinks=False)
        os.utime(at, ns=(inode.mtime, inode.mtime), follow_symlinks=False)

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["list", path]: show(Layer(path), None)
        case ["sums", path]: show(layer := Layer(path), layer.tar())
        case ["extract", path, to]: extract(Layer(path), to)
        case ["start", text]: print(*(f"{millis} {row}" for millis, row in start_list(text)), sep="\n")
        case _: sys.exit(__doc__)
