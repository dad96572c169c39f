//! The first line of a script: `#!INTERPRETER [ARGUMENT]`, as Linux reads it.

/// Bytes of a script's beginning that Linux looks at.
const LINE_BYTES_MAX: usize = 256;

/// What a script is run by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shebang {
    /// Path of the interpreter.
    pub(super) interpreter: Vec<u8>,
    /// The rest of the line as one argument.
    argument: Vec<u8>,
}

/// The shebang line at the beginning of a file, if it has one.
pub(super) fn shebang(head: &[u8]) -> Option<Shebang> {
    let line = head.strip_prefix(b"#!")?;
    let line = &line[..line.len().min(LINE_BYTES_MAX - 2)];
    let line = line.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = line.iter().position(is_blank).unwrap_or(line.len());
    let (interpreter, argument) = line.split_at(end);
    (!interpreter.is_empty()).then(|| Shebang {
        interpreter: interpreter.to_vec(),
        argument: argument.trim_ascii().to_vec(),
    })
}

impl Shebang {
    /// The program that `env` starts, if the interpreter is `env`: the first word that is no option and
    /// sets no variable.
    pub(super) fn through_env(&self) -> Option<&[u8]> {
        let name = self.interpreter.rsplit(|&byte| byte == b'/').next()?;
        let words = self.argument.split(u8::is_ascii_whitespace);
        let is_program =
            |word: &&[u8]| !word.is_empty() && !word.starts_with(b"-") && !word.contains(&b'=');
        (name == b"env").then(|| words.into_iter().find(is_program))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_found_as_linux_and_env_find_them() {
        for (line, interpreter, program) in [
            ("#!/bin/sh\necho", "/bin/sh", None),
            ("#! /bin/sh -e\n", "/bin/sh", None),
            (
                "#!\t/usr/bin/env python3\r\n",
                "/usr/bin/env",
                Some("python3"),
            ),
            (
                "#!/usr/bin/env -S A=b node --x",
                "/usr/bin/env",
                Some("node"),
            ),
            ("#!/usr/bin/env", "/usr/bin/env", None),
        ] {
            let found = shebang(line.as_bytes()).unwrap();
            assert_eq!(found.interpreter, interpreter.as_bytes(), "{line}");
            assert_eq!(found.through_env(), program.map(str::as_bytes), "{line}");
        }
        for line in ["", "#", "#!", "#! \n/bin/sh", "\u{7f}ELF"] {
            assert_eq!(shebang(line.as_bytes()), None, "{line}");
        }
        let long = format!("#!/{}", "x".repeat(1000));
        assert_eq!(shebang(long.as_bytes()).unwrap().interpreter.len(), 254);
    }
}
