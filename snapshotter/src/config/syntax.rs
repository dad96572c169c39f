//! Mistakes in the configuration file, in the words of its readers.

/// What the parser says of a value of the wrong kind, and what it means.
const KINDS: [(&str, &str); 9] = [
    (
        "expected a size",
        "must be a number of bytes, or text such as \"50GB\"",
    ),
    ("expected a boolean", "must be true or false"),
    (
        "expected u",
        "must be a whole number, without quotes and unit",
    ),
    ("expected path string", "must be a path in quotes"),
    ("expected a string", "must be text in quotes"),
    ("expected a sequence", "must be a list in brackets"),
    ("expected string or table", "must be text in quotes"),
    ("expected a map", "must be a table of keys and values"),
    ("expected struct", "must be a section with keys"),
];

/// Line, its text, and what is wrong there, in one line with a leading separator.
pub(super) fn in_words(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let kind = KINDS.iter().find(|(told, _)| message.contains(told));
    let meaning = match kind {
        _ if message.starts_with("invalid value: integer") => "is out of range".to_owned(),
        Some((_, meaning)) if message.starts_with("invalid type") => (*meaning).to_owned(),
        _ => message.lines().collect::<Vec<_>>().join(", "),
    };
    let before = error.span().and_then(|span| text.get(..span.start));
    let Some(number) = before.map(|before| before.matches('\n').count()) else {
        return format!(": {meaning}");
    };
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!(", line {}: {line}: {meaning}", number + 1)
}

/// The line of a key with its sections, such as `registry.authfile`; of one that is not there, nothing.
pub(super) fn line(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (mut table, mut place) = (Some(document.get_ref()), 0);
    for step in key.split('.') {
        let (key, value) = table?.iter().find(|(key, _)| key.get_ref() == step)?;
        place = key.span().start;
        table = value.get_ref().as_table();
    }
    Some(text.get(..place)?.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};

    /// Promise: a value out of range is told with file and line, unless a flag gave it.
    #[test]
    fn values_out_of_range_have_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "root = \"/x\"\n\n[registry]\n# nothing\nauthfile = \"/none\"\n";
        std::fs::write(file.path(), text).unwrap();
        let told = |overrides| {
            Config::load(Some(file.path()), &overrides)
                .unwrap_err()
                .to_string()
        };
        let path = file.path().display();
        let expected = format!("configuration {path}, line 5, key registry.authfile: /none ");
        let said = told(Overrides::default());
        assert!(said.starts_with(&expected), "{said}");
        let root = Some("relative".into());
        let said = told(Overrides {
            root,
            ..Overrides::default()
        });
        assert!(
            said.starts_with("configuration key root: relative"),
            "{said}"
        );
    }

    /// Promise: a value of the wrong kind is explained in one line, without the parser's types.
    #[test]
    fn values_of_the_wrong_kind_are_explained() {
        for (line, meaning) in [
            ("prepare_deadline_ms = \"2s\"", "whole number"),
            ("prepare_deadline_ms = -1", "out of range"),
            ("min_free_percent = 1000", "out of range"),
            ("store_bytes_max = true", "number of bytes"),
            ("store_bytes_max = \"much\"", "such as"),
            ("keep_removed = \"yes\"", "true or false"),
            ("root = 3", "path in quotes"),
            ("fs_driver = \"ext4\"", "`erofs`"),
            ("registry.plain_http = \"r.test:5000\"", "list in brackets"),
            ("rooot = \"/x\"", "unknown field `rooot`"),
            ("log = 3", "section with keys"),
            ("root = ", ""),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("# a comment\n{line}\n")).unwrap();
            let told = Config::load(Some(file.path()), &Overrides::default());
            let told = told.unwrap_err().to_string();
            assert!(told.contains(meaning), "{told}");
            assert!(
                told.contains(&format!("line 2: {}:", line.trim())),
                "{told}"
            );
            assert!(!told.contains('\n') && !told.contains("u64"), "{told}");
        }
    }
}
