//! Documents of registries and of the machine: manifests, indexes, configs, answers about tokens and
//! credentials, refusals. Whatever they say, no panic, and memory in proportion to them.
//!
//! - A manifest or an index that is accepted is one of the two alone, and is written back as what it
//!   was read as.
//! - What the converter takes for a manifest or an index, the registry client does, too.
//! - A config that is accepted names its layers by SHA-256.
//! - An ELF file, whatever it says, names at most as many libraries as are looked for.
//! - What is wrong with credentials is told without any of them.
//! - A refusal is repeated in at most 303 characters, none of which a terminal obeys.
//!
//! The first byte of the input chooses the parser.
#![no_main]

use larder_registry::fuzzing;
use larder_registry::oci::{ImageIndex, Manifest};
use libfuzzer_sys::fuzz_target;

#[path = "../../converter/src/start/elf.rs"]
#[expect(dead_code, reason = "its crate uses more of it")]
mod elf;
#[path = "../../converter/src/manifest.rs"]
#[expect(dead_code, reason = "its crate uses more of it")]
mod manifest;

use manifest::{Document, ImageConfig, Parsed};

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 16 {
        0 => fuzzing::manifest(bytes),
        1 => fuzzing::index(bytes),
        2 => parsed(bytes),
        3 => drop(serde_json::from_slice::<ImageConfig>(bytes)),
        4 => fuzzing::credentials(bytes),
        8 => program(bytes),
        _ => fuzzing::refusal(bytes),
    }
});

/// Reads a program as the walk for a start list does, from a file that is all there.
fn program(file: &[u8]) {
    let piece = |start: u64, end: u64| {
        let [start, end] =
            [start, end].map(|at| usize::try_from(at).map_or(file.len(), |at| at.min(file.len())));
        file.get(start..end).unwrap_or_default()
    };
    let Some(header) = elf::header(file) else {
        return;
    };
    let segments = header
        .form
        .segments(piece(header.table.start, header.table.end));
    for segment in segments
        .iter()
        .filter(|segment| segment.kind == elf::Kind::Dynamic)
    {
        let dynamic = header
            .form
            .dynamic(piece(segment.file.start, segment.file.end));
        assert!(dynamic.needed.len() <= elf::NEEDED_MAX);
        let names = dynamic
            .needed
            .into_iter()
            .chain(dynamic.rpath)
            .chain(dynamic.runpath);
        for name in names.chain(dynamic.strings).chain([header.entry]) {
            if let Some(at) = elf::place(&segments, name) {
                assert!(segments.iter().any(|segment| segment.file.contains(&at)));
                elf::text(piece(at, u64::MAX));
            }
        }
    }
}

fn parsed(bytes: &[u8]) {
    match Parsed::parse(&Document::new("application/json", bytes.to_vec())) {
        Ok(Parsed::Manifest(one)) => assert_eq!(*one, Manifest::parse(bytes).expect("the same")),
        Ok(Parsed::Index(one)) => assert_eq!(*one, ImageIndex::parse(bytes).expect("the same")),
        Err(_) => {}
    }
}
