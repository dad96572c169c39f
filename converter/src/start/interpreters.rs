//! Files that programs read when they begin, beside what they need to be loaded.
//!
//! | program | files |
//! |---|---|
//! | any, called NAME | `/etc/NAME.conf`, and the files of `/etc/NAME` and `/etc/NAME/conf.d` |
//! | `java` | the libraries, the module image and the configuration of its runtime, beside it |
//! | `node` | OpenSSL's configuration |
//! | `python` | see [`super::python`] |

use larder_proto::tree::Kind;

use crate::view::{Found, View};

/// Files of one program's configuration; one with more has them for something else than for starting.
const CONFIGURATION_MAX: usize = 32;

/// What `java` loads by itself before it runs anything, from the directory above its own.
const JAVA: [&str; 10] = [
    "lib/jvm.cfg",
    "lib/server/libjvm.so",
    "lib/libjava.so",
    "lib/libjimage.so",
    "lib/libzip.so",
    "lib/modules",
    "lib/libnio.so",
    "lib/libnet.so",
    "conf/security/java.security",
    "conf/net.properties",
];

/// What `node` reads before its script.
const NODE: [&str; 2] = ["/usr/lib/ssl/openssl.cnf", "/etc/ssl/openssl.cnf"];

/// The paths of the files that a program reads when it begins.
pub(super) fn startup(view: &View, program: &Found) -> Vec<Vec<u8>> {
    let (directory, name) = split(program.path());
    let mut paths = Vec::new();
    match name {
        b"java" => {
            let (home, _) = split(directory);
            let absolute = |path: &&str| [b"/", home, b"/", path.as_bytes()].concat();
            paths.extend(JAVA.iter().map(absolute));
        }
        b"node" | b"nodejs" => paths.extend(NODE.map(|path| path.as_bytes().to_vec())),
        _ => {}
    }
    let own = [b"/etc/", name].concat();
    paths.push([&own, &b".conf"[..]].concat());
    for directory in [own.clone(), [&own, &b"/conf.d"[..]].concat()] {
        paths.extend(files(view, &directory));
    }
    paths
}

/// Whether a file is a Python interpreter, by its name.
pub(super) fn is_python(program: &Found) -> bool {
    let (_, name) = split(program.path());
    let version = name.strip_prefix(b"python");
    version.is_some_and(|rest| {
        rest.iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.')
    })
}

/// The regular files of a directory.
fn files(view: &View, path: &[u8]) -> Vec<Vec<u8>> {
    let Ok(directory) = view.find(path, true) else {
        return Vec::new();
    };
    let is_file = |found: &Found| matches!(view.node(found).kind, Kind::Regular { .. });
    let entries = view.list(&directory).into_iter();
    let files = entries.filter(|(_, found)| is_file(found));
    let paths = files.map(|(name, _)| [path, b"/", &name].concat());
    paths.take(CONFIGURATION_MAX).collect()
}

/// A path's directory and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(end) => (&path[..end], &path[end + 1..]),
        None => (b"", path),
    }
}
