//! What a metadata image costs: time to write and to validate it, and bytes per file.
//!
//! `cargo run --release -p larder-proto --example erofs_cost [DIRECTORY]` measures made-up trees of
//! 10,000 and 100,000 files, and 120,000 in 52 layers merged into one image; or the tree of a directory. With
//! `DIRECTORY LAYERS FILES` it puts such layers and their merged image there.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_proto::erofs::{Image, ImageError, merge, write};
use larder_proto::tree::{Extent, Kind, Mtime, Node, NodeId, ROOT, Tree};

/// Each time is the median of this many runs.
const RUNS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    const HEAD: &str =
        "what, files, image bytes, bytes/file, write ms, open ms, walk ms, to_tree ms";
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {}
        [directory] => {
            println!("{HEAD}");
            return measure("directory", &read(Path::new(directory))?);
        }
        [directory, layers, files, ..] => {
            return Stack::made_up(layers.parse()?, files.parse()?)?.put(Path::new(directory));
        }
        [..] => return Err("DIRECTORY, or DIRECTORY LAYERS FILES".into()),
    }
    // First, while the process is small.
    measure_merge(52, 130_000)?;
    println!("{HEAD}");
    measure("made up", &made_up(10_000))?;
    measure("made up", &made_up(100_000))
}

/// Layers of the same shape: each adds files of its own to the same directories.
struct Stack {
    bytes: Vec<Vec<u8>>,
    lens: Vec<u64>,
}

impl Stack {
    fn made_up(layers: usize, files: u32) -> Result<Self, Box<dyn Error>> {
        let per_layer = files / u32::try_from(layers)?;
        let (mut bytes, mut lens) = (Vec::new(), Vec::new());
        for number in 0..layers {
            let mut layer = made_up(per_layer);
            layer.rename_files(number);
            bytes.push(write(&layer.tree, layer.tar_len)?);
            lens.push(layer.tar_len);
        }
        Ok(Self { bytes, lens })
    }

    fn images(&self) -> Result<Vec<Image<&[u8]>>, ImageError> {
        let images = self.bytes.iter().zip(&self.lens);
        images
            .map(|(bytes, len)| Image::open(&bytes[..], *len))
            .collect()
    }

    /// Puts what the kernel mounts into `directory`: `meta-0` and `tar-0` of the lowest layer and so on, and
    /// `merged`. The tars are holes: what is measured is metadata.
    fn put(&self, directory: &Path) -> Result<(), Box<dyn Error>> {
        let images = self.images()?;
        for (number, (bytes, image)) in self.bytes.iter().zip(&images).enumerate() {
            fs::write(directory.join(format!("meta-{number}")), bytes)?;
            let tar = fs::File::create(directory.join(format!("tar-{number}")))?;
            tar.set_len(image.device_len())?;
        }
        let images: Vec<_> = images.iter().collect();
        Ok(fs::write(directory.join("merged"), merge(&images)?)?)
    }
}

fn measure_merge(layers: usize, files: u32) -> Result<(), Box<dyn Error>> {
    let stack = Stack::made_up(layers, files)?;
    let (images, lens) = (stack.images()?, &stack.lens);
    let images: Vec<_> = images.iter().collect();
    // The most is counted from here on.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = peak();
    let merged = merge(&images)?;
    let heap = peak().saturating_sub(before);
    let time = median(|| drop(merge(&images)));
    let open = median(|| drop(Image::open_merged(&merged[..], lens)));
    let files = Image::open_merged(&merged[..], lens)?.inode_count();
    println!(
        "{layers} layers, {files} files seen: {} bytes, merge {:.1} ms, open {:.1} ms, \
         at most {} KiB of memory more",
        merged.len(),
        time.as_secs_f64() * 1e3,
        open.as_secs_f64() * 1e3,
        heap,
    );
    Ok(())
}

/// The most memory the process had until now, KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// A tree and the length of the tar it would lie in.
struct Layer {
    tree: Tree,
    tar_len: u64,
}

fn measure(what: &str, layer: &Layer) -> Result<(), Box<dyn Error>> {
    let bytes = write(&layer.tree, layer.tar_len)?;
    let image = Image::open(&bytes[..], layer.tar_len)?;
    let write = median(|| drop(write(&layer.tree, layer.tar_len)));
    let open = median(|| drop(Image::open(&bytes[..], layer.tar_len)));
    let walk = median(|| _ = std::hint::black_box(walk(&image)));
    let to_tree = median(|| drop(image.to_tree()));
    let files = image.inode_count();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{what}, {files}, {}, {:.1}, {:.2}, {:.2}, {:.2}, {:.2}",
        bytes.len(),
        bytes.len() as f64 / files as f64,
        ms(write),
        ms(open),
        ms(walk),
        ms(to_tree),
    );
    Ok(())
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}

/// What `find -ls` asks: every listing, every inode.
fn walk(image: &Image<&[u8]>) -> u64 {
    let mut sum = 0;
    let mut pending = vec![image.root()];
    while let Some(directory) = pending.pop() {
        for entry in image.read_dir(directory, 0).filter(|e| !e.is_dot()) {
            let found = image.lookup(directory, entry.name);
            let inode = found.and_then(|nid| image.inode(nid));
            sum += inode.map_or(0, |inode| inode.size);
            if entry.file_type == larder_proto::erofs::FileType::Directory {
                pending.push(entry.nid);
            }
        }
    }
    sum
}

/// Directories of twelve files each, four levels deep, with the mtimes of a hundred packages.
fn made_up(files: u32) -> Layer {
    let mut layer = Layer {
        tree: Tree::new(),
        tar_len: 0,
    };
    let mut directories = vec![ROOT];
    let mut made = 0;
    while made + 1 < files {
        let parent = directories[(made / 40) as usize % directories.len()];
        let directory = layer.add(parent, format!("package-{made}"), made, Node::directory());
        directories.push(directory);
        made += 1;
        for i in 0..12.min(files - made - 1) {
            let mut node = Node::directory();
            let size = u64::from(made % 50_000);
            node.kind = layer.data(size);
            node.mode = 0o644;
            layer.add(directory, format!("some_module_{i}.py"), made, node);
            made += 1;
        }
    }
    layer
}

impl Layer {
    fn data(&mut self, size: u64) -> Kind {
        self.tar_len += 512;
        let tar_offset = self.tar_len;
        self.tar_len += size.next_multiple_of(512);
        let extent = Extent {
            file_offset: 0,
            tar_offset,
            len: size,
        };
        let extents = if size > 0 { vec![extent] } else { Vec::new() };
        Kind::Regular { size, extents }
    }

    fn add(&mut self, parent: NodeId, name: String, made: u32, mut node: Node) -> NodeId {
        node.mtime.seconds = 1_700_000_000 + i64::from(made / 1000 % 100);
        let id = self.tree.add(node);
        self.link(parent, name.into_bytes(), id);
        id
    }

    /// Gives files names that no other layer has, and leaves directories as they are.
    fn rename_files(&mut self, layer: usize) {
        let is_directory: Vec<bool> = self
            .tree
            .nodes
            .iter()
            .map(|node| matches!(node.kind, Kind::Directory(_)))
            .collect();
        for node in &mut self.tree.nodes {
            let Kind::Directory(entries) = &mut node.kind else {
                continue;
            };
            let renamed = std::mem::take(entries).into_iter().map(|(mut name, id)| {
                if !is_directory[id.0 as usize] {
                    name.extend(format!("-{layer}").bytes());
                }
                (name, id)
            });
            *entries = renamed.collect();
        }
    }

    fn link(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) {
        if let Kind::Directory(entries) = &mut self.tree.node_mut(parent).kind {
            entries.insert(name, id);
        }
    }
}

/// The tree of a directory; files that are neither directory, regular nor symlink are pipes.
fn read(root: &Path) -> Result<Layer, Box<dyn Error>> {
    let mut layer = Layer {
        tree: Tree::new(),
        tar_len: 0,
    };
    let mut links: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut pending: Vec<(PathBuf, NodeId)> = vec![(root.to_owned(), ROOT)];
    while let Some((path, parent)) = pending.pop() {
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let metadata = fs::symlink_metadata(entry.path())?;
            let key = (metadata.dev(), metadata.ino());
            let known = links.get(&key).filter(|_| metadata.nlink() > 1).copied();
            let id = match known {
                Some(id) => id,
                None => node(&mut layer, &entry.path(), &metadata)?,
            };
            links.insert(key, id);
            layer.link(parent, entry.file_name().into_vec(), id);
            if metadata.is_dir() {
                pending.push((entry.path(), id));
            }
        }
    }
    Ok(layer)
}

fn node(layer: &mut Layer, path: &Path, of: &fs::Metadata) -> Result<NodeId, Box<dyn Error>> {
    let kind = if of.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if of.is_file() {
        layer.data(of.len())
    } else if of.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.as_os_str().as_bytes().to_vec())
    } else {
        Kind::Fifo
    };
    let node = Node {
        kind,
        mode: u16::try_from(of.mode() & 0o7777)?,
        uid: of.uid(),
        gid: of.gid(),
        // Tars hold whole seconds unless they were made by odd tools.
        mtime: Mtime {
            seconds: of.mtime(),
            nanoseconds: 0,
        },
        xattrs: BTreeMap::new(),
    };
    Ok(layer.tree.add(node))
}
