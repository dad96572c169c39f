//! Files that programs read when they begin, beside what they need to be loaded.
//!
//! | program | files |
//! |---|---|
//! | any, called NAME | `/etc/NAME.conf`, and the files of `/etc/NAME` and `/etc/NAME/conf.d` |
//! | `java` | the libraries, the module image, the classes kept ready and the configuration of its runtime, beside it |
//! | `gcc`, `cc`, `g++`, `c++` | the compiler proper, the assembler and the linkers that it starts |
//! | `node` | OpenSSL's configuration |
//! | `python` | see [`super::python`] |

use larder_proto::tree::Kind;

use crate::view::{Found, View};

/// Files of one program's configuration; one with more has them for something else than for starting.
const CONFIGURATION_MAX: usize = 32;

/// What `java` loads by itself before it runs anything, from the directory above its own.
const JAVA: [&str; 12] = [
    "lib/jvm.cfg",
    "lib/server/libjvm.so",
    "lib/libjava.so",
    "lib/libjimage.so",
    "lib/libzip.so",
    "lib/modules",
    "lib/libjsvml.so",
    "lib/tzdb.dat",
    "lib/libnio.so",
    "lib/libnet.so",
    "conf/security/java.security",
    "conf/net.properties",
];

/// The classes that `java` keeps ready for itself, and maps at once: a start touches all of them.
const JAVA_MAPPED: [&str; 1] = ["lib/server/classes.jsa"];

/// What a compiler of the GNU collection starts, in its own directory; the first for C alone.
const COMPILERS: [&str; 2] = ["cc1", "cc1plus"];
const BESIDE_COMPILERS: [&str; 2] = ["collect2", "liblto_plugin.so"];

/// What it starts from elsewhere.
const TOOLS: [&str; 2] = ["/usr/bin/as", "/usr/bin/ld"];

/// Where it has that directory, below one for the machine and one for the version.
const COLLECTION: &[u8] = b"/usr/lib/gcc";

/// Machines and versions in that directory that are looked at, each.
const VERSIONS_MAX: usize = 8;

/// What `node` reads before its script.
const NODE: [&str; 2] = ["/usr/lib/ssl/openssl.cnf", "/etc/ssl/openssl.cnf"];

/// The paths of the files that a program reads when it begins.
pub(super) fn startup(view: &View, program: &Found) -> Vec<Vec<u8>> {
    let (directory, name) = split(program.path());
    let mut paths = Vec::new();
    match name {
        b"java" => {
            paths.extend(JAVA.iter().map(|path| below_home(directory, path)));
        }
        name if let Some(compiler) = compiler(name) => paths.extend(collection(view, compiler)),
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

/// The paths of the files that a program maps when it begins and reads all of.
pub(super) fn mapped(program: &Found) -> Vec<Vec<u8>> {
    let (directory, name) = split(program.path());
    let paths = JAVA_MAPPED.iter().filter(|_| name == b"java");
    paths.map(|path| below_home(directory, path)).collect()
}

/// A path below the directory above the one of programs.
fn below_home(programs: &[u8], path: &str) -> Vec<u8> {
    let (home, _) = split(programs);
    [b"/", home, b"/", path.as_bytes()].concat()
}

/// What a program called `name` compiles with, if it is a compiler of the GNU collection: `gcc`, or
/// `x86_64-linux-gnu-g++-12`.
fn compiler(name: &[u8]) -> Option<&'static str> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.trim_end_matches(|byte: char| byte.is_ascii_digit() || "-.".contains(byte));
    match name.rsplit('-').next()? {
        "gcc" | "cc" => Some(COMPILERS[0]),
        "g++" | "c++" => Some(COMPILERS[1]),
        _ => None,
    }
}

/// The files that a compiler starts, in the order in which it does.
fn collection(view: &View, compiler: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for machine in directories(view, COLLECTION) {
        for version in directories(view, &machine) {
            let file = |name: &str| [&version, &b"/"[..], name.as_bytes()].concat();
            if view.find(&file(compiler), true).is_ok() {
                found.push(file(compiler));
                found.extend(BESIDE_COMPILERS.map(file));
            }
        }
    }
    if !found.is_empty() {
        found.splice(1..1, TOOLS.map(|path| path.as_bytes().to_vec()));
    }
    found
}

/// The directories in a directory.
fn directories(view: &View, path: &[u8]) -> Vec<Vec<u8>> {
    let is_directory = |kind: &Kind| matches!(kind, Kind::Directory(_));
    entries(view, path, VERSIONS_MAX, is_directory)
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
    let is_file = |kind: &Kind| matches!(kind, Kind::Regular { .. });
    entries(view, path, CONFIGURATION_MAX, is_file)
}

/// The paths of what a directory has of a kind, at most so many.
fn entries(
    view: &View,
    path: &[u8],
    max: usize,
    is_wanted: impl Fn(&Kind) -> bool,
) -> Vec<Vec<u8>> {
    let Ok(directory) = view.find(path, true) else {
        return Vec::new();
    };
    let entries = view.list(&directory).into_iter();
    let entries = entries.filter(|(_, found)| is_wanted(&view.node(found).kind));
    let paths = entries.map(|(name, _)| [path, b"/", &name].concat());
    paths.take(max).collect()
}

/// A path's directory and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(end) => (&path[..end], &path[end + 1..]),
        None => (b"", path),
    }
}
