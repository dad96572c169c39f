//! Attributes of single files of a layer.

use larder_proto::erofs::FileType;

use super::Layer;

/// What a layer's metadata image says about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAttributes {
    /// Type.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Layer {
    /// The attributes of the file at `path`, its components separated by `/`; the empty path is
    /// the root. Symlinks are not followed. `None` when the layer has no such file.
    pub fn attributes(&self, path: &[u8]) -> Option<NodeAttributes> {
        let image = self.stored().image();
        let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
        let nid = names
            .into_iter()
            .try_fold(image.root(), |at, name| image.lookup(at, name))?;
        let inode = image.inode(nid)?;
        let xattrs = image.xattrs(nid);
        Some(NodeAttributes {
            file_type: inode.file_type,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            xattrs: xattrs.map(|x| (x.name(), x.value.to_vec())).collect(),
        })
    }

    /// The target of the symlink at `path`; `None` when the layer has no symlink there.
    pub fn link_target(&self, path: &[u8]) -> Option<Vec<u8>> {
        let image = self.stored().image();
        let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
        let nid = names
            .into_iter()
            .try_fold(image.root(), |at, name| image.lookup(at, name))?;
        image.read_link(nid).map(<[u8]>::to_vec)
    }
}
