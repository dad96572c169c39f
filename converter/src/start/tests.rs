//! What the start list promises, on images made by hand and converted as any other.

use std::io::Cursor;
use std::num::NonZero;
use std::sync::Arc;

use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};

use super::sample::Elf;
use super::*;
use crate::layer::{
    Cancel, ConvertedLayer, LayerInput, LayerOptions, LayerOutput, Outcome, Workers, convert_layer,
};
use crate::view::indexed_layer;

const LOADER: &str = "/lib64/ld.so";

fn converted(tar: &[u8]) -> ConvertedLayer {
    let workers = Workers::start(LayerOptions::default(), NonZero::new(1).unwrap()).unwrap();
    let input = LayerInput {
        digest: Digest::of(tar),
        size: tar.len() as u64,
        diff_id: Digest::of(tar),
        blob: Box::new(Cursor::new(tar.to_vec())),
    };
    let output = LayerOutput {
        file: tempfile::tempfile().unwrap(),
        stays: false,
    };
    match convert_layer(input, &workers, output, &Cancel::default(), &|_| {}).unwrap() {
        Outcome::Converted(layer) => layer,
        Outcome::Unrepresentable(reason) => panic!("{reason}"),
    }
}

/// The merged view of these tars, the lowest first, and a reader of it.
async fn image(tars: &[TarBuilder]) -> (View, Reader<'static>) {
    let (mut layers, mut places) = (Vec::new(), Vec::new());
    for tar in tars.iter().rev() {
        let layer = converted(&tar.clone().finish());
        let place = Place::File(Arc::new(layer.file));
        let range = layer.location.offset..layer.size;
        let tail = place.range(&layer.digest, range).await.unwrap();
        let index = crate::tail::open(&tail, &layer.location, layer.size).unwrap();
        let descriptor = Descriptor::new("", layer.digest, layer.size);
        layers.push(indexed_layer(descriptor, index).unwrap());
        places.push((layer.digest, place));
    }
    (View::new(layers), Reader::new(places))
}

/// The paths that are listed, in order, each once.
async fn listed(tars: &[TarBuilder], config: Value) -> Vec<String> {
    let (view, mut reader) = image(tars).await;
    let command = Command::of(&config);
    let pieces = walk::pieces(&view, &mut reader, &command).await.unwrap();
    let mut paths: Vec<String> = Vec::new();
    for piece in pieces.sure.into_iter().chain(pieces.likely) {
        let path = String::from_utf8(piece.file.path().to_vec()).unwrap();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

fn program(path: &str, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry::file(path, bytes.into()).mode(0o755)
}

fn elf(needed: &[&str]) -> Vec<u8> {
    Elf {
        interpreter: Some(LOADER),
        needed,
        ..Elf::default()
    }
    .bytes()
}

fn library(needed: &[&str]) -> Vec<u8> {
    let needed = Elf {
        needed,
        ..Elf::default()
    };
    needed.bytes()
}

fn base() -> TarBuilder {
    TarBuilder::new()
        .entry(Entry::file("etc/passwd", "root:x:0:0::/:/bin/sh\n"))
        .entry(Entry::file("etc/ld.so.cache", "cache"))
        .entry(Entry::file(
            "etc/ld.so.conf",
            "include /etc/ld.so.conf.d/*.conf\n",
        ))
        .entry(Entry::file("etc/ld.so.conf.d/x.conf", "# own\n/opt/lib\n"))
        .entry(program("usr/lib64/ld-2.so", library(&[])))
        .entry(Entry::symlink("lib64", "usr/lib64"))
        .entry(Entry::symlink("usr/lib64/ld.so", "ld-2.so"))
        .entry(Entry::file("usr/lib64/libc.so.6", library(&["ld.so"])))
        .entry(program("usr/bin/sh", elf(&["libc.so.6"])))
        .entry(Entry::symlink("bin", "usr/bin"))
}

/// Promise: a program is found through PATH, symlinks and layers; its loader, the loader's cache and the
/// libraries follow in the order in which they are loaded, each once even where they need each other.
#[tokio::test]
async fn a_program_brings_its_loader_and_the_closure_of_its_libraries() {
    let upper = TarBuilder::new()
        .entry(program("opt/app/run", elf(&["liba.so", "libc.so.6"])))
        .entry(Entry::symlink("usr/bin/app", "/opt/app/run"))
        .entry(Entry::file("opt/lib/liba.so", library(&["libb.so"])))
        .entry(Entry::file(
            "usr/lib/libb.so",
            library(&["liba.so", "libmissing.so"]),
        ));
    let paths = listed(&[base(), upper], json!({"Cmd": ["app"]})).await;
    assert_eq!(
        paths,
        [
            "etc/passwd",
            "opt/app/run",
            "usr/lib64/ld-2.so",
            "etc/ld.so.cache",
            "opt/lib/liba.so",
            "usr/lib64/libc.so.6",
            "usr/lib/libb.so",
        ]
    );
}

/// Promise: the programs that a shell script names are listed behind what the command names, with their libraries,
/// also where a script calls another one; a script that calls itself ends.
#[tokio::test]
async fn a_script_brings_the_programs_it_names() {
    let upper = TarBuilder::new()
        .entry(program(
            "app/start",
            "#!/bin/sh\nbin=/opt/db\n/app/next &\nexec $bin/serve -D /srv\n",
        ))
        .entry(program("app/next", "#!/usr/bin/env sh\n/app/start; tool\n"))
        .entry(program("usr/bin/env", elf(&["libc.so.6"])))
        .entry(program("usr/bin/tool", elf(&[])))
        .entry(program("opt/db/serve", elf(&["libdb.so"])))
        .entry(Entry::file("opt/lib/libdb.so", library(&[])));
    let paths = listed(&[base(), upper], json!({"Cmd": ["/app/start"]})).await;
    let programs: Vec<_> = paths.iter().map(String::as_str).collect();
    let expected = [
        "app/start",
        "usr/bin/sh",
        "usr/lib64/libc.so.6",
        "app/next",
        "usr/bin/env",
        "opt/db/serve",
        "opt/lib/libdb.so",
        "usr/bin/tool",
    ];
    let places = expected.map(|path| programs.iter().position(|found| *found == path));
    assert!(places.iter().all(Option::is_some), "{programs:?}");
    assert!(places.is_sorted(), "{programs:?}");
}

/// Promise: of a compiler what it starts is listed, for the language it is called for.
#[tokio::test]
async fn a_compiler_brings_what_it_starts() {
    let collection = "usr/lib/gcc/x86_64-linux-gnu/12";
    let upper = TarBuilder::new()
        .entry(program(
            "usr/bin/x86_64-linux-gnu-gcc-12",
            elf(&["libc.so.6"]),
        ))
        .entry(Entry::symlink("usr/bin/gcc", "x86_64-linux-gnu-gcc-12"))
        .entry(program("usr/bin/x86_64-linux-gnu-as", elf(&["libas.so"])))
        .entry(Entry::symlink("usr/bin/as", "x86_64-linux-gnu-as"))
        .entry(Entry::file("opt/lib/libas.so", library(&[])))
        .entry(program(&format!("{collection}/cc1"), elf(&[])))
        .entry(program(&format!("{collection}/cc1plus"), elf(&[])))
        .entry(program(&format!("{collection}/collect2"), elf(&[])));
    let config = json!({"Cmd": ["sh", "-c", "gcc -o /tmp/a /app/a.c && exec /tmp/a"]});
    let paths = listed(&[base(), upper], config).await;
    for (path, expected) in [
        (format!("{collection}/cc1"), true),
        (format!("{collection}/collect2"), true),
        ("usr/bin/x86_64-linux-gnu-as".to_owned(), true),
        ("opt/lib/libas.so".to_owned(), true),
        (format!("{collection}/cc1plus"), false),
    ] {
        assert_eq!(paths.contains(&path), expected, "{path}: {paths:?}");
    }
}

/// Promise: what an upper layer puts in a file's place is listed, and what it removes is not.
#[tokio::test]
async fn the_topmost_layer_wins_and_whiteouts_hide() {
    let middle = TarBuilder::new()
        .entry(program("usr/local/bin/app", elf(&["libx.so"])))
        .entry(Entry::file("opt/lib/libx.so", library(&[])))
        .entry(Entry::file("usr/lib/libx.so", library(&[])));
    let upper = TarBuilder::new()
        .entry(Entry::file("opt/lib/.wh.libx.so", ""))
        .entry(Entry::file("etc/.wh.ld.so.cache", ""));
    let paths = listed(&[base(), middle, upper], json!({"Entrypoint": ["app"]})).await;
    assert!(paths.contains(&"usr/lib/libx.so".into()), "{paths:?}");
    assert!(!paths.contains(&"opt/lib/libx.so".into()), "{paths:?}");
    assert!(!paths.contains(&"etc/ld.so.cache".into()), "{paths:?}");
}

/// Promise: rpath and runpath with `$ORIGIN`, `LD_LIBRARY_PATH` and the configured directories are asked in
/// the loader's order, and a library for another machine is passed over.
#[tokio::test]
async fn libraries_are_found_where_the_loader_finds_them() {
    let with = |rpath, runpath| Elf {
        interpreter: Some(LOADER),
        needed: &["libx.so"],
        rpath,
        runpath,
        ..Elf::default()
    };
    let foreign = Elf {
        is_foreign: true,
        ..Elf::default()
    };
    let upper = |program_file: &Elf<'_>| {
        TarBuilder::new()
            .entry(program("app/bin/app", program_file.bytes()))
            .entry(Entry::file("app/lib/libx.so", library(&[])))
            .entry(Entry::file("env/libx.so", library(&[])))
            .entry(Entry::file("opt/lib/libx.so", foreign.bytes()))
            .entry(Entry::file("usr/lib/libx.so", library(&[])))
    };
    let env = json!(["LD_LIBRARY_PATH=/env", "PATH=/app/bin"]);
    for (file, env, expected) in [
        (
            with(Some("$ORIGIN/../lib"), None),
            env.clone(),
            "app/lib/libx.so",
        ),
        (
            with(None, Some("${ORIGIN}/../lib")),
            env.clone(),
            "env/libx.so",
        ),
        (
            with(None, Some("/nowhere:$ORIGIN/../lib")),
            json!(["PATH=/app/bin"]),
            "app/lib/libx.so",
        ),
        (
            with(Some("$PLATFORM/lib"), None),
            json!(["PATH=/app/bin"]),
            "usr/lib/libx.so",
        ),
    ] {
        let config = json!({"Cmd": ["app"], "Env": env});
        let paths = listed(&[base(), upper(&file)], config).await;
        let found: Vec<_> = paths
            .iter()
            .filter(|path| path.ends_with("libx.so"))
            .collect();
        assert_eq!(found, [expected], "{file:?}");
    }
}

/// Promise: a script brings its interpreters, through `env` as well, and the files that the command names.
#[tokio::test]
async fn scripts_bring_their_interpreters_and_commands_their_files() {
    let upper = TarBuilder::new()
        .entry(program("start.sh", "#!/bin/sh -e\nexec \"$@\"\n"))
        .entry(program("usr/bin/env", elf(&["libc.so.6"])))
        .entry(program(
            "usr/local/bin/serve",
            "#!/usr/bin/env -S tool --x\n",
        ))
        .entry(program("usr/local/bin/tool", elf(&[])))
        .entry(Entry::file("etc/tool.conf", "x"))
        .entry(Entry::file("etc/tool/a.conf", "x"))
        .entry(Entry::file("srv/app.conf", "x"))
        .entry(Entry::file("srv/rel.conf", "x"))
        .entry(Entry::file("srv/env.conf", "x"));
    let config = json!({
        "Entrypoint": ["/start.sh"],
        "Cmd": ["sh", "-c", "serve --config=/srv/app.conf rel.conf; missing"],
        "Env": ["CONF=/none:/srv/env.conf", 7],
        "WorkingDir": "/srv",
    });
    let paths = listed(&[base(), upper], config).await;
    assert_eq!(
        paths,
        [
            "etc/passwd",
            "start.sh",
            "usr/bin/sh",
            "usr/lib64/ld-2.so",
            "etc/ld.so.cache",
            "usr/lib64/libc.so.6",
            "usr/local/bin/serve",
            "usr/bin/env",
            "usr/local/bin/tool",
            "etc/tool.conf",
            "etc/tool/a.conf",
            "srv/app.conf",
            "srv/rel.conf",
            "srv/env.conf",
        ]
    );
}

/// Promise: a Python script brings what Python reads before it and the modules that it imports, compiled
/// where they are, with the libraries of extensions; what only functions import is left out.
#[tokio::test]
async fn a_python_script_brings_its_imports() {
    let lib = "usr/lib/python3.11";
    let file = |path: &str, text: &str| Entry::file(format!("{lib}/{path}"), text);
    let upper = TarBuilder::new()
        .entry(program("usr/bin/python3.11", elf(&["libc.so.6"])))
        .entry(Entry::symlink("usr/bin/python3", "python3.11"))
        .entry(file("os.py", "import stat\n"))
        .entry(file("stat.py", ""))
        .entry(file("__pycache__/stat.cpython-311.pyc", "compiled"))
        .entry(file("encodings/__init__.py", "from . import aliases\n"))
        .entry(file("encodings/aliases.py", ""))
        .entry(file("json.py", ""))
        .entry(file(
            "lib-dynload/_fast.cpython-311-x86_64-linux-gnu.so",
            "x",
        ))
        .entry(Entry::file(
            "usr/lib/python3/dist-packages/big/__init__.py",
            "from .core import *\n",
        ))
        .entry(Entry::file(
            "usr/lib/python3/dist-packages/big/core.py",
            "import _fast\nfrom ..big import ext\ndef f():\n    import json\n",
        ))
        .entry(Entry::file(
            "usr/lib/python3/dist-packages/big/ext.abi3.so",
            library(&["libbig.so"]),
        ))
        .entry(Entry::file("usr/lib/libbig.so", library(&[])))
        .entry(Entry::file("usr/lib/python3/dist-packages/a.pth", "x"))
        .entry(Entry::file(
            "app/helper.py",
            "import app_missing, big.core\n",
        ))
        .entry(Entry::file("app/run.py", "import helper\n"));
    let config = json!({"Cmd": ["python3", "run.py"], "WorkingDir": "/app"});
    let paths = listed(&[base(), upper], config).await;
    let place = |path: &str| {
        let found = paths.iter().position(|other| other.ends_with(path));
        found.unwrap_or_else(|| panic!("{path} is not in {paths:?}"))
    };
    let order = [
        "python3.11",
        "encodings/__init__.py",
        "encodings/aliases.py",
        "3.11/os.py",
        "stat.cpython-311.pyc",
        "a.pth",
        "app/run.py",
        "helper.py",
        "big/__init__.py",
        "big/core.py",
        "ext.abi3.so",
        "libbig.so",
    ];
    let places: Vec<_> = order.into_iter().map(place).collect();
    assert!(places.is_sorted(), "{paths:?}");
    assert!(
        !paths.iter().any(|path| path.ends_with("json.py")),
        "{paths:?}"
    );
    assert!(
        !paths.iter().any(|path| path.ends_with("3.11/stat.py")),
        "{paths:?}"
    );
}

/// Promise: of each layer the chunks of its own files are listed, in one order over all layers, each once,
/// and no more than the limit.
#[tokio::test]
async fn chunks_are_those_of_the_files_and_stay_within_the_limit() {
    let large = Elf {
        interpreter: Some(LOADER),
        needed: &["libc.so.6"],
        len: 24 << 20,
        ..Elf::default()
    };
    let upper = TarBuilder::new()
        .entry(Entry::file("noise", vec![7; 3 << 20]))
        .entry(program("usr/local/bin/app", large.bytes()));
    let (view, mut reader) = image(&[base(), upper]).await;
    let command = Command::of(&json!({"Cmd": ["app"]}));
    let lists = list(&view, &mut reader, &command).await.unwrap();
    let [upper, base] = &lists[..] else {
        panic!("{lists:?}");
    };
    let stored = |layer: usize, list: &[Access]| -> u64 {
        let index = view.index(layer).unwrap();
        let chunks = list
            .iter()
            .map(|access| index.chunk(access.chunk as usize).unwrap());
        chunks.map(|chunk| u64::from(chunk.stored_len)).sum()
    };
    let bytes = stored(0, upper) + stored(1, base);
    assert!(bytes <= chunks::LIKELY_BYTES_MAX, "{bytes}");
    assert!(bytes > chunks::LIKELY_BYTES_MAX - (1 << 20), "{bytes}");
    // passwd, then the program's head, then the loader.
    assert_eq!(base[0].micros, 0);
    assert!(upper[0].micros > 0 && upper[0].micros < 1_000_000);
    let program = view.find(b"usr/local/bin/app", true).unwrap();
    let first = view.extents(&program, &(0..1))[0].tar_offset;
    let row = view.index(0).unwrap().row_at(first).unwrap();
    assert_eq!(upper[0].chunk as usize, row);
    let mut rows: Vec<_> = upper.iter().map(|access| access.chunk).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), upper.len());
}

/// Promise: an image without a command, with one that is not there, or with a config of an odd shape has a
/// list all the same: of what is read of any image.
#[tokio::test]
async fn odd_commands_list_what_every_start_reads() {
    for config in [
        Value::Null,
        json!([]),
        json!({"Cmd": "missing", "Env": {"PATH": 1}}),
        json!({"Entrypoint": ["/etc"], "Cmd": [["x"], 7], "WorkingDir": 7}),
        json!({"Cmd": ["loop"]}),
    ] {
        let upper = TarBuilder::new().entry(program("usr/bin/loop", "#!/usr/bin/loop\n"));
        let paths = listed(&[base(), upper], config.clone()).await;
        assert_eq!(paths[0], "etc/passwd", "{config}");
        assert!(paths.len() <= 2, "{config}: {paths:?}");
    }
}

/// Promise: what a hostile image makes of the walk is bounded: modules that import themselves by ever new names,
/// and libraries that need hundreds of others each, end.
#[tokio::test]
async fn a_walk_that_would_never_end_ends() {
    let names: Vec<_> = (0..200).map(|number| format!("lib{number}.so")).collect();
    let needed: Vec<_> = names.iter().map(String::as_str).collect();
    let needs_all = Entry::file("usr/lib/lib0.so", library(&needed));
    let mut upper = TarBuilder::new()
        .entry(needs_all)
        .entry(program("usr/bin/python3.11", elf(&needed)))
        .entry(Entry::file("usr/lib/python3.11/os.py", ""))
        .entry(Entry::file("app/run.py", "import a\n"))
        .entry(Entry::file(
            "app/a/__init__.py",
            "from . import a, b\nfrom .a import b\nfrom .b.a import a\n",
        ))
        .entry(Entry::symlink("app/a/a", "../a"))
        .entry(Entry::symlink("app/a/b", "../a"));
    for name in &names[1..] {
        upper = upper.entry(Entry::file(format!("usr/lib/{name}"), library(&needed)));
    }
    let config = json!({"Cmd": ["python3.11", "/app/run.py"]});
    let paths = listed(&[base(), upper], config).await;
    assert!(paths.contains(&"app/a/__init__.py".into()), "{paths:?}");
    assert_eq!(
        paths
            .iter()
            .filter(|path| path.starts_with("usr/lib/lib"))
            .count(),
        200
    );
}
