//! Which files a start reads, in which order, and which parts of them.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use larder_proto::limits::BLOCK;
use larder_proto::tree::Kind;

use super::Content;
use super::arguments;
use super::chunks::{LISTED_BYTES_MAX, Piece, Pieces};
use super::command::Command;
use super::elf::HEAD_BYTES;
use super::interpreters;
use super::libraries::Libraries;
use super::object::Object;
use super::python::{Imports, Python};
use super::shebang::shebang;
use super::shell::{self, SCRIPT_BYTES_MAX};
use crate::view::{At, Found, View};

/// Files that are looked at for one image: what a start of a large program reads, and a bound for what a
/// hostile image makes of the walk.
const FILES_MAX: usize = 4096;

/// Names of libraries that are looked for: each in up to about 150 directories, so that all of them take seconds.
const NAMES_MAX: usize = 16 << 10;

/// Scripts run by scripts: Linux refuses the sixth.
const SCRIPTS_MAX: usize = 5;

/// Shell scripts of one image whose words are looked at: an entrypoint and what it runs.
const SHELL_SCRIPTS_MAX: usize = 16;

/// Files up to this length are listed whole, bytes: readahead and the size of chunks bring as much anyhow.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// The same of programs and libraries: of those below, starts read most chunks, of larger ones a seventh to three
/// quarters (measured, `docs/adr/0013-start-list.md`).
const WHOLE_OBJECT_BYTES_MAX: u64 = 10 << 20;

/// Of a file that its program maps and reads all of, bytes: the classes that Java keeps ready are 13 MB.
const MAPPED_BYTES_MAX: u64 = 32 << 20;

/// What is surely read at the beginning of a larger ELF file, bytes: the header and the tables of symbols
/// and relocations, which the loader walks through.
const HEAD_OF_LARGE: u64 = 512 << 10;

/// Bytes of a script or configuration file that is listed: they are texts.
const TEXT_BYTES_MAX: u64 = 256 << 10;

/// Bytes of files after which no more are looked for: code compresses to a third or a quarter, so all that
/// can be listed is in them.
const SURE_BYTES_MAX: u64 = 6 * LISTED_BYTES_MAX;

/// What the runtime reads of an image before it starts the program.
const BEFORE: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// What nearly every libc reads early.
const EARLY: [&str; 3] = [
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
];

/// The pieces of files that a start reads, in the order in which it does.
pub(super) async fn pieces(
    view: &View,
    content: &mut impl Content,
    command: &Command,
) -> Result<Pieces, String> {
    let libraries = Libraries::of(view, content, command).await?;
    let mut walk = Walk {
        view,
        content,
        command,
        libraries,
        python: None,
        scripts: VecDeque::new(),
        seen: HashSet::new(),
        names: 0,
        found: Pieces::default(),
    };
    walk.command().await?;
    Ok(walk.found)
}

/// The regular file at `path`, symlinks followed.
pub(super) fn regular(view: &View, path: &[u8]) -> Option<Found> {
    let found = view.find(path, true).ok()?;
    matches!(view.node(&found).kind, Kind::Regular { .. }).then_some(found)
}

struct Walk<'a, C> {
    view: &'a View,
    content: &'a mut C,
    command: &'a Command,
    libraries: Libraries,
    /// The Python that was started last.
    python: Option<Python>,
    /// Shell scripts whose words were not looked at yet.
    scripts: VecDeque<Found>,
    seen: HashSet<At>,
    /// Names of libraries looked for so far.
    names: usize,
    found: Pieces,
}

impl<C: Content> Walk<'_, C> {
    async fn command(&mut self) -> Result<(), String> {
        for path in BEFORE {
            self.text(path.as_bytes());
        }
        let Some((program, rest)) = self.command.arguments.split_first() else {
            return Ok(());
        };
        if let Some((called, file)) = self.program_named(program.as_bytes()) {
            self.program(called, file).await?;
        }
        for path in EARLY {
            if let Some(file) = regular(self.view, path.as_bytes()) {
                self.whole(&file, WHOLE_BYTES_MAX);
            }
        }
        if let Some(module) = arguments::module(rest) {
            self.imports(|python| python.module(module)).await?;
        }
        for word in arguments::words(rest) {
            self.word(word).await?;
        }
        self.shell_scripts().await?;
        let values: Vec<_> = self.command.values().flat_map(arguments::paths).collect();
        for path in values {
            self.text(path.as_bytes());
        }
        Ok(())
    }

    /// What a word of the command stands for: a file, or a program to be started by the first one.
    async fn word(&mut self, word: &str) -> Result<(), String> {
        let path = self.command.absolute(word.as_bytes());
        let found = regular(self.view, &path).map(|file| (path, file));
        let Some((path, file)) = found.or_else(|| self.program_named(word.as_bytes())) else {
            return Ok(());
        };
        if path.ends_with(b".py") {
            self.whole(&file, TEXT_BYTES_MAX);
            return self.imports(|python| python.script(&file)).await;
        }
        if self.is_executable(&file) {
            return self.program(path, file).await;
        }
        self.whole(&file, TEXT_BYTES_MAX);
        Ok(())
    }

    /// The programs that shell scripts name, and the files with their paths: behind what the command itself
    /// names, as nobody knows here what of a script is run.
    async fn shell_scripts(&mut self) -> Result<(), String> {
        for _ in 0..SHELL_SCRIPTS_MAX {
            let Some(script) = self.scripts.pop_front() else {
                break;
            };
            let text = 0..SCRIPT_BYTES_MAX;
            let text = self.content.read(self.view, &script, text).await?;
            for word in shell::words(&text, self.command) {
                if self.is_full() {
                    return Ok(());
                }
                if word.starts_with('/') {
                    self.word(&word).await?;
                } else if let Some((called, file)) = self.program_named(word.as_bytes()) {
                    self.program(called, file).await?;
                }
            }
        }
        Ok(())
    }

    fn is_executable(&self, file: &Found) -> bool {
        self.view.node(file).mode & 0o111 != 0
    }

    /// The program that a shell or the runtime finds by this name, with the path that it is called by.
    fn program_named(&self, name: &[u8]) -> Option<(Vec<u8>, Found)> {
        let executable = |path: Vec<u8>| {
            let found = regular(self.view, &path)?;
            self.is_executable(&found).then_some((path, found))
        };
        if name.contains(&b'/') {
            return executable(self.command.absolute(name));
        }
        let directories = self.command.path();
        directories.iter().find_map(|directory| {
            let path = [directory.as_bytes(), b"/", name].concat();
            executable(self.command.absolute(&path))
        })
    }

    /// A program and all it is run by.
    async fn program(&mut self, called: Vec<u8>, file: Found) -> Result<(), String> {
        let (mut called, mut file) = (called, file);
        for _ in 0..SCRIPTS_MAX {
            let head = self.content.read(self.view, &file, 0..HEAD_BYTES).await?;
            let Some(line) = shebang(&head) else {
                return self.binary(&called, &file).await;
            };
            if !self.whole(&file, TEXT_BYTES_MAX) {
                return Ok(());
            }
            let script = file;
            let Some(interpreter) = self.program_named(&line.interpreter) else {
                return Ok(());
            };
            (called, file) = interpreter;
            if let Some(name) = line.through_env() {
                self.binary(&called, &file).await?;
                let Some(named) = self.program_named(name) else {
                    return Ok(());
                };
                (called, file) = named;
            }
            if shell::is_shell(&called) {
                self.scripts.push_back(script.clone());
            }
            if interpreters::is_python(&file) {
                self.binary(&called, &file).await?;
                return self.imports(|python| python.script(&script)).await;
            }
        }
        Ok(())
    }

    /// An ELF program: itself, its loader, the libraries in the order in which they are loaded, and what it
    /// reads when it begins.
    async fn binary(&mut self, called: &[u8], file: &Found) -> Result<(), String> {
        if self.seen.contains(&file.place()) {
            return Ok(());
        }
        let Some(program) = Object::open(self.view, self.content, file).await? else {
            self.whole(file, TEXT_BYTES_MAX);
            return Ok(());
        };
        self.object(&program);
        if let Some(loader) = &program.interpreter
            && let Some(loader) = regular(self.view, loader)
        {
            self.whole(&loader, u64::MAX);
            self.text(b"/etc/ld.so.preload");
            self.text(b"/etc/ld.so.cache");
        }
        self.closure(program.clone(), &program).await?;
        for path in interpreters::startup(self.view, file) {
            if let Some(file) = regular(self.view, &path) {
                self.file(&file).await?;
            }
        }
        for path in interpreters::mapped(file) {
            if let Some(file) = regular(self.view, &path) {
                self.whole(&file, MAPPED_BYTES_MAX);
            }
        }
        if interpreters::is_python(file) {
            self.python = Python::of(self.view, self.command, called, file);
            self.imports(Python::first).await?;
            let python = self.python.as_ref();
            let announcements = python.map(|python| python.announcements(self.view));
            for path in announcements.unwrap_or_default() {
                self.text(&path);
            }
        }
        Ok(())
    }

    /// A file that a program reads: a library with all it needs, or the beginning of another.
    async fn file(&mut self, file: &Found) -> Result<(), String> {
        if self.seen.contains(&file.place()) {
            return Ok(());
        }
        if !file.path().ends_with(b".so") && !self.is_executable(file) {
            if !self.whole(file, WHOLE_BYTES_MAX) && self.enter(file) {
                push(&mut self.found.sure, file, 0..HEAD_OF_LARGE);
            }
            return Ok(());
        }
        match Object::open(self.view, self.content, file).await? {
            Some(object) => {
                self.object(&object);
                self.closure(object.clone(), &object).await?;
            }
            None => {
                self.whole(file, WHOLE_BYTES_MAX);
            }
        }
        Ok(())
    }

    /// The libraries that `object` needs, breadth first as loaders load them.
    async fn closure(&mut self, object: Object, program: &Object) -> Result<(), String> {
        let mut names: HashSet<Vec<u8>> = HashSet::new();
        let mut queue = VecDeque::from([object]);
        while let Some(by) = queue.pop_front() {
            for name in &by.needed {
                if self.names >= NAMES_MAX || !names.insert(name.clone()) {
                    continue;
                }
                self.names += 1;
                let found = self.libraries.candidates(self.view, name, &by, program);
                for file in found {
                    if self.seen.contains(&file.place()) {
                        break;
                    }
                    let object = Object::open(self.view, self.content, &file).await?;
                    if let Some(object) = object.filter(|found| found.form == program.form) {
                        self.object(&object);
                        queue.push_back(object);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// What is read of an object: of small ones everything that is mapped, of others what the loader reads,
    /// and later the rest.
    fn object(&mut self, object: &Object) {
        let file = &object.file;
        if !self.enter(file) {
            return;
        }
        let loaded: Vec<_> = object.loaded().collect();
        let bytes: u64 = loaded
            .iter()
            .map(|(range, _)| range.end - range.start)
            .sum();
        if bytes <= WHOLE_OBJECT_BYTES_MAX {
            for (range, _) in loaded {
                push(&mut self.found.sure, file, range);
            }
            return;
        }
        push(&mut self.found.sure, file, 0..HEAD_OF_LARGE);
        for (range, is_writable) in loaded {
            if is_writable {
                push(&mut self.found.sure, file, head_of(&range, WHOLE_BYTES_MAX));
            } else {
                push(&mut self.found.likely, file, range);
            }
        }
        if let Some(entry) = object.entry {
            push(&mut self.found.sure, file, entry..entry + BLOCK);
        }
    }

    /// What the Python that was started imports.
    async fn imports(&mut self, which: impl FnOnce(&Python) -> Imports<'_>) -> Result<(), String> {
        let Some(python) = self.python.clone() else {
            return Ok(());
        };
        let mut imports = which(&python);
        while let Some(file) = imports.next(self.view, self.content).await? {
            if self.is_full() {
                break;
            }
            self.file(&file).await?;
        }
        Ok(())
    }

    /// Whether more has been found than can be listed: the rest need not be looked for.
    fn is_full(&self) -> bool {
        let len = |piece: &Piece| piece.range.end.saturating_sub(piece.range.start);
        self.found.sure.iter().map(len).sum::<u64>() > SURE_BYTES_MAX
            || self.seen.len() >= FILES_MAX
    }

    fn text(&mut self, path: &[u8]) {
        if let Some(file) = regular(self.view, path) {
            self.whole(&file, TEXT_BYTES_MAX);
        }
    }

    /// Lists all of a file of at most `limit` bytes; whether it was not listed before.
    fn whole(&mut self, file: &Found, limit: u64) -> bool {
        let Kind::Regular { size, .. } = self.view.node(file).kind else {
            return false;
        };
        let enters = size <= limit && self.enter(file);
        if enters {
            push(&mut self.found.sure, file, 0..size);
        }
        enters
    }

    fn enter(&mut self, file: &Found) -> bool {
        self.seen.len() < FILES_MAX && self.seen.insert(file.place())
    }
}

fn push(pieces: &mut Vec<Piece>, file: &Found, range: Range<u64>) {
    let file = file.clone();
    pieces.push(Piece { file, range });
}

fn head_of(range: &Range<u64>, len: u64) -> Range<u64> {
    range.start..range.end.min(range.start.saturating_add(len))
}
