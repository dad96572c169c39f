//! What reading ELF files promises: what a loader would read, and no panic on anything.

use super::*;
use crate::start::sample::Elf;

/// Interpreter, libraries and dynamic section.
type Read = (Option<Vec<u8>>, Vec<Vec<u8>>, Dynamic);

/// All that is known of a file that is in memory.
fn read(file: &[u8]) -> Option<Read> {
    let piece = |range: &Range<u64>| {
        let [start, end] = [range.start, range.end]
            .map(|at| usize::try_from(at).map_or(file.len(), |at| at.min(file.len())));
        &file[start..end]
    };
    let header = header(file)?;
    let segments = header.form.segments(piece(&header.table));
    let part = |kind| segments.iter().find(|segment| segment.kind == kind);
    let interpreter = part(Kind::Interpreter).and_then(|part| text(piece(&part.file)));
    let dynamic = part(Kind::Dynamic).map(|part| header.form.dynamic(piece(&part.file)));
    let dynamic = dynamic.unwrap_or_default();
    let strings = dynamic.strings.and_then(|at| place(&segments, at));
    let names = dynamic.needed.iter().filter_map(|name| {
        let at = strings?.checked_add(*name)?;
        text(piece(&(at..u64::MAX)))
    });
    let names = names.map(<[u8]>::to_vec).collect();
    Some((interpreter.map(<[u8]>::to_vec), names, dynamic))
}

#[test]
fn programs_of_every_width_and_order_say_what_they_need() {
    for (is_narrow, is_big) in [(false, false), (true, false), (false, true), (true, true)] {
        let file = Elf {
            interpreter: Some("/lib/ld.so"),
            needed: &["libc.so.6", "libm.so.6"],
            runpath: Some("$ORIGIN/../lib"),
            is_narrow,
            is_big,
            len: 5000,
            ..Elf::default()
        };
        let (interpreter, names, dynamic) = read(&file.bytes()).unwrap();
        assert_eq!(interpreter.as_deref(), Some(&b"/lib/ld.so"[..]));
        assert_eq!(names, [b"libc.so.6", b"libm.so.6"]);
        assert!(dynamic.runpath.is_some() && dynamic.rpath.is_none());
    }
}

#[test]
fn what_is_no_program_is_none() {
    let sound = Elf::default().bytes();
    assert!(header(&sound).is_some());
    for (at, value) in [(0, 0), (4, 3), (5, 0), (16, 1), (54, 1), (57, 1)] {
        let mut odd = sound.clone();
        odd[at] = value;
        assert_eq!(header(&odd), None, "byte {at}");
    }
    assert_eq!(header(&[]), None);
    assert_eq!(
        header(&sound[..63]).map(|header| header.table),
        header(&sound).map(|header| header.table)
    );
    assert_eq!(header(&sound[..56]), None);
}

/// Promise: hostile files cost nothing: any bytes are read without a panic, and what they say stays within
/// the limits.
#[test]
fn damaged_files_are_read_without_a_panic() {
    let now = std::time::SystemTime::now();
    let seed = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = seed.subsec_nanos() | 1;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize % below
    };
    let names: Vec<_> = (0..400).map(|number| format!("lib{number}.so")).collect();
    let needed: Vec<_> = names.iter().map(String::as_str).collect();
    for round in 0..20_000 {
        let mut file = Elf {
            interpreter: Some("/lib/ld.so"),
            needed: if round % 50 == 0 {
                &needed
            } else {
                &needed[..3]
            },
            is_narrow: random(4) == 0,
            is_big: random(4) == 0,
            ..Elf::default()
        }
        .bytes();
        let head = file.len().min(300);
        for _ in 0..random(8) {
            file[random(head)] = random(256).to_le_bytes()[0];
        }
        file.truncate(file.len() - random(16));
        if let Some((_, _, dynamic)) = read(&file) {
            assert!(dynamic.needed.len() <= NEEDED_MAX);
        }
    }
}
