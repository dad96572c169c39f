//! The words of a shell script that may name programs and files.
//!
//! Nothing is run, and no grammar is followed: whether a branch is taken, and what substitutions give, is not
//! known here. Words that name nothing are passed over by whoever looks them up.

use std::collections::{HashMap, HashSet};

use super::command::Command;

/// Bytes of a script that are looked at: entrypoints have some kilobytes.
pub(super) const SCRIPT_BYTES_MAX: u64 = 64 << 10;

/// Words of one script.
const WORDS_MAX: usize = 1024;

/// Variables of one script, and the bytes of the value of one, so that values of values stay small.
const VARIABLES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 1024;

/// Bytes of a line from which on variables stay as they are, so that a line of variables stays small.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Names of programs that shells have built in, so that no file is read for them.
const BUILT_IN: [&str; 9] = [
    "[", "echo", "false", "kill", "printf", "pwd", "read", "test", "true",
];

/// Whether a program that is called so runs shell scripts.
pub(super) fn is_shell(called: &[u8]) -> bool {
    let name = called.rsplit(|&byte| byte == b'/').next();
    let shells: [&[u8]; 7] = [b"sh", b"bash", b"dash", b"ash", b"ksh", b"zsh", b"busybox"];
    name.is_some_and(|name| shells.contains(&name))
}

/// Absolute paths, and names that may be programs', in the order of the script, each once. Variables that are set
/// to plain text, by the script or by `command`, are put in their place; comments are left out.
pub(super) fn words(script: &[u8], command: &Command) -> Vec<String> {
    let text = String::from_utf8_lossy(script);
    let mut variables = HashMap::new();
    let (mut seen, mut words) = (HashSet::new(), Vec::new());
    for line in text.lines() {
        let line = expanded(without_comment(line), &variables, command);
        if variables.len() < VARIABLES_MAX
            && let Some((name, value)) = assignment(&line)
        {
            variables.insert(name.to_owned(), value.to_owned());
        }
        let ends = |byte: char| byte.is_whitespace() || "\"'`;&|()<>{}=:,".contains(byte);
        for word in line.split(ends).filter(|word| may_name(word)) {
            if words.len() < WORDS_MAX && seen.insert(word.to_owned()) {
                words.push(word.to_owned());
            }
        }
    }
    words
}

/// Whether a word is an absolute path, or a name without a slash that could be a program's.
fn may_name(word: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-[".contains(&byte);
    let is_name = word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '[')
        && !word.contains('/')
        && !BUILT_IN.contains(&word);
    word.bytes().all(is_plain) && (word.starts_with('/') || is_name)
}

fn without_comment(line: &str) -> &str {
    let line = line.trim_start();
    let is_comment = |at: &usize| *at == 0 || line[..*at].ends_with([' ', '\t']);
    let mut marks = line.match_indices('#').map(|(at, _)| at);
    marks.find(is_comment).map_or(line, |at| &line[..at])
}

/// NAME and value of a line that begins with `NAME=value`, be it exported.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let before = ["export ", "readonly ", "local ", "declare "];
    let stripped = before.iter().find_map(|word| line.strip_prefix(word));
    let (name, rest) = stripped.unwrap_or(line).split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let value = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest[1..].split(quote).next()?,
        _ => rest.split([' ', '\t', ';', '&']).next()?,
    };
    let is_plain = !name.is_empty() && name.bytes().all(is_name) && !value.contains(['$', '`']);
    (is_plain && value.len() <= VALUE_BYTES_MAX).then_some((name, value))
}

/// A line with the values of variables that are known, `$NAME` and `${NAME}`; the value that is meant where there
/// is none of `${NAME:-value}`.
fn expanded(line: &str, variables: &HashMap<String, String>, command: &Command) -> String {
    let value_of = |name: &str| {
        let set = variables.get(name).map(String::as_str);
        set.or_else(|| command.variable(name))
    };
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        let (name, default, after) = variable(behind);
        match value_of(name).or(default) {
            Some(value) if !name.is_empty() && out.len() <= LINE_BYTES_MAX => {
                out.push_str(value);
            }
            _ => out.push('$'),
        }
        rest = after;
    }
    out + rest
}

/// What stands behind a `$`: a name, the value to take if it has none, and the rest of the line.
fn variable(behind: &str) -> (&str, Option<&str>, &str) {
    let name_end = |text: &str| {
        let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
        text.find(|byte| !is_name(byte)).unwrap_or(text.len())
    };
    let Some(braced) = behind.strip_prefix('{') else {
        let (name, after) = behind.split_at(name_end(behind));
        return (name, None, after);
    };
    let Some((inside, after)) = braced.split_once('}') else {
        return ("", None, behind);
    };
    let (name, how) = inside.split_at(name_end(inside));
    let default = how.strip_prefix(":-").or_else(|| how.strip_prefix('-'));
    let is_odd = default.is_none() && !how.is_empty();
    (if is_odd { "" } else { name }, default, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(script: &str) -> Vec<String> {
        let config = serde_json::json!({"Env": ["HOME=/srv", "APP=/opt/app"]});
        words(script.as_bytes(), &Command::of(&config))
    }

    /// Promise: programs are found by their paths and names, also through variables that the script or the image
    /// sets; comments, options, and what shells do by themselves name none.
    #[test]
    fn a_script_names_its_programs() {
        let script = "#!/bin/sh\n\
            # not /bin/this\n\
            set -e\n\
            dir=/usr/lib/db/bin # nor that\n\
            export as=\"setpriv --reuid=db\"\n\
            echo a#b\n\
            if [ \"$1\" = db ]; then exec $as $dir/db -D \"${DATA:-/srv/data}\" \"$@\"; fi\n\
            x=$(/bin/id -u)\n\
            ${APP}/run && $HOME/tool `other` ${missing}/no ${HOME%/*}/odd\n";
        let expected = [
            "set",
            "dir",
            "/usr/lib/db/bin",
            "export",
            "as",
            "setpriv",
            "db",
            "if",
            "then",
            "exec",
            "/usr/lib/db/bin/db",
            "/srv/data",
            "fi",
            "x",
            "/bin/id",
            "/opt/app/run",
            "/srv/tool",
            "other",
        ];
        let words = found(script);
        let missing: Vec<_> = expected
            .iter()
            .filter(|word| !words.contains(&(**word).to_owned()))
            .collect();
        assert_eq!(missing, [&""; 0], "{words:?}");
        for word in ["/bin/this", "that", "echo", "[", "no", "/no", "-e", "-D"] {
            assert!(!words.contains(&word.to_owned()), "{word}: {words:?}");
        }
    }

    /// Promise: a script costs bounded time and memory, whatever it sets.
    #[test]
    fn values_of_values_stay_small() {
        let mut script = "a=xxxxxxxxxx\n".to_owned();
        for _ in 0..200 {
            script += "a=\"$a$a$a$a\"\n";
        }
        script += &"/p$a".repeat(2000);
        assert!(found(&script).len() <= WORDS_MAX);
        let names: Vec<_> = (0..5000).map(|number| format!("p{number}")).collect();
        let names = names.join(" ");
        assert_eq!(found(&names).len(), WORDS_MAX);
        for odd in [
            "$",
            "${",
            "${}",
            "$$",
            "=",
            "a=",
            "a='",
            "'\"`",
            "\u{e9}=$\u{e9}",
            "${a:-",
            "#",
        ] {
            found(odd);
        }
    }

    /// Promise: shells are known by their names alone.
    #[test]
    fn shells_are_known_by_their_names() {
        for (called, expected) in [
            ("/bin/sh", true),
            ("bash", true),
            ("/usr/bin/perl", false),
            ("", false),
        ] {
            assert_eq!(is_shell(called.as_bytes()), expected, "{called}");
        }
    }
}
