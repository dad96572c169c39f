//! ELF files made by hand.

/// What a file says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Elf<'a> {
    pub(super) interpreter: Option<&'a str>,
    pub(super) needed: &'a [&'a str],
    pub(super) rpath: Option<&'a str>,
    pub(super) runpath: Option<&'a str>,
    /// Another machine than the others are for.
    pub(super) is_foreign: bool,
    pub(super) is_narrow: bool,
    pub(super) is_big: bool,
    /// Length of the file, at least, bytes.
    pub(super) len: usize,
}

impl Elf<'_> {
    /// The file: one segment that is all of it, addresses counted from 0x1000 on.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (header, row) = if self.is_narrow { (52, 32) } else { (64, 56) };
        let mut strings = vec![0];
        let mut text = |text: &str| {
            let at = strings.len();
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let mut entries: Vec<_> = self.needed.iter().map(|name| (1, text(name))).collect();
        entries.extend(self.rpath.map(|path| (15, text(path))));
        entries.extend(self.runpath.map(|path| (29, text(path))));
        let interpreter = self.interpreter.map(|path| (text(path), path.len() + 1));
        let strings_at = header + 3 * row;
        entries.extend([(5, 0x1000 + strings_at), (0, 0)]);
        let entry = |(tag, value): &(usize, usize)| [self.word(*tag), self.word(*value)].concat();
        let dynamic: Vec<u8> = entries.iter().flat_map(entry).collect();
        let dynamic_at = strings_at + strings.len();
        let len = self.len.max(dynamic_at + dynamic.len());
        let mut file = self.header(header, row);
        assert_eq!(file.len(), header);
        let (at, named) = interpreter.unwrap_or((0, 0));
        file.extend(self.segment(1, 0, len));
        file.extend(self.segment(2, dynamic_at, dynamic.len()));
        let kind = if named > 0 { 3 } else { 4 };
        file.extend(self.segment(kind, strings_at + at, named));
        file.extend(strings);
        file.extend(dynamic);
        // Bytes that do not compress, so that chunks have their size.
        let mut state = 7_u32;
        file.resize_with(len, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        file
    }

    fn number(&self, value: usize, len: usize) -> Vec<u8> {
        let mut bytes = value.to_le_bytes()[..len].to_vec();
        if self.is_big {
            bytes.reverse();
        }
        bytes
    }

    fn word(&self, value: usize) -> Vec<u8> {
        self.number(value, if self.is_narrow { 4 } else { 8 })
    }

    fn header(&self, len: usize, row: usize) -> Vec<u8> {
        let mut file = b"\x7fELF".to_vec();
        file.extend([2 - u8::from(self.is_narrow), 1 + u8::from(self.is_big), 1]);
        file.resize(16, 0);
        file.extend(self.number(3, 2));
        file.extend(self.number(if self.is_foreign { 183 } else { 62 }, 2));
        file.extend(self.number(1, 4));
        file.extend([0x1010, len, 0].map(|value| self.word(value)).concat());
        file.extend(self.number(0, 4));
        for value in [len, row, 3, 0, 0, 0] {
            file.extend(self.number(value, 2));
        }
        file
    }

    fn segment(&self, kind: usize, at: usize, len: usize) -> Vec<u8> {
        let place = [at, 0x1000 + at, 0, len, len].map(|value| self.word(value));
        let mut parts = vec![self.number(kind, 4), place.concat(), self.word(0)];
        parts.insert(if self.is_narrow { 2 } else { 1 }, self.number(5, 4));
        parts.concat()
    }
}
