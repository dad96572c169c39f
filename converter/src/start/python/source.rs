//! The imports that a Python module makes when it is imported itself.
//!
//! Not a parser of Python: lines, indentation and triple quotes are enough to tell what a module does at its
//! top from what its functions do later. What is taken for an import and is none costs bytes.

/// Imports of one module: the largest have about a hundred.
const IMPORTS_MAX: usize = 512;

/// An import: `level` dots, a dotted name, and what is taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) level: usize,
    pub(super) name: String,
    pub(super) names: Vec<String>,
}

/// The imports in a module's text, in order.
pub(super) fn imports(text: &str) -> Vec<Import> {
    let mut found = Vec::new();
    // The indentation of the function whose body is passed over.
    let mut within: Option<usize> = None;
    let mut quote: Option<&str> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(open) = quote {
            if line.matches(open).count() % 2 == 1 {
                quote = None;
            }
            continue;
        }
        let code = line.trim_start();
        if code.is_empty() || code.starts_with('#') {
            continue;
        }
        let indent = line.len() - code.len();
        if within.is_some_and(|of| indent > of) {
            quote = opened(code);
            continue;
        }
        within = is_later(code).then_some(indent);
        let is_import = code.starts_with("import ") || code.starts_with("from ");
        if !is_import {
            quote = opened(code);
            continue;
        }
        let mut statement = without_comment(code).to_owned();
        while is_open(&statement) && statement.len() < 1 << 16 {
            let Some(more) = lines.next() else { break };
            statement.truncate(statement.trim_end_matches('\\').len());
            statement.push(' ');
            statement.push_str(without_comment(more.trim()));
        }
        for part in statement.split(';') {
            found.extend(statement_imports(part.trim()));
        }
        if found.len() > IMPORTS_MAX {
            break;
        }
    }
    found.truncate(IMPORTS_MAX);
    found
}

/// The triple quote that a line opens and does not close.
fn opened(code: &str) -> Option<&'static str> {
    let odd = |quote: &&str| code.matches(*quote).count() % 2 == 1;
    ["\"\"\"", "'''"].into_iter().find(odd)
}

/// Whether what is indented below a line does not run when the module is imported.
fn is_later(code: &str) -> bool {
    let starts = |word: &&str| code.starts_with(*word);
    let of_types = code.starts_with("if ") && code.contains("TYPE_CHECKING");
    of_types || ["def ", "async def ", "if __name__"].iter().any(starts)
}

fn is_open(statement: &str) -> bool {
    statement.ends_with('\\') || statement.contains('(') && !statement.contains(')')
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim_end()
}

fn statement_imports(statement: &str) -> Vec<Import> {
    if let Some(list) = statement.strip_prefix("import ") {
        let names = list.split(',').filter_map(first_word);
        let import = |name| Import {
            name,
            ..Import::default()
        };
        return names.map(import).collect();
    }
    let Some((from, list)) = statement
        .strip_prefix("from ")
        .and_then(|rest| rest.split_once(" import"))
    else {
        return Vec::new();
    };
    let from = from.trim();
    let name = from.trim_start_matches('.');
    let list = list.replace(['(', ')'], " ");
    vec![Import {
        level: from.len() - name.len(),
        name: name.to_owned(),
        names: list.split(',').filter_map(first_word).collect(),
    }]
}

/// The name that an item begins with, before ` as `.
fn first_word(item: &str) -> Option<String> {
    let word = item.split_whitespace().next()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') || byte > 127;
    word.bytes().all(fits).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let text_of = |import: Import| {
            let dots = ".".repeat(import.level);
            format!("{dots}{}:{}", import.name, import.names.join(","))
        };
        imports(text).into_iter().map(text_of).collect()
    }

    #[test]
    fn what_runs_at_import_is_found_and_what_functions_do_later_is_not() {
        let text = r#"
"""A module.
import not_this
"""
import os, sys as system
from a.b import (c,  # why
    d as e)
from . import sibling; from ..up import \
    more
if True:
    import inner
if TYPE_CHECKING:
    import never
class C:
    import attribute
    def f(self):
        import lazily
    import after
def g():
    """import quoted
    """
    import later
try: pass
except ImportError:
    from .fallback import *
if __name__ == "__main__":
    import main_only
"#;
        assert_eq!(
            names(text),
            [
                "os:",
                "sys:",
                "a.b:c,d",
                ".:sibling",
                "..up:more",
                "inner:",
                "attribute:",
                "after:",
                ".fallback:"
            ]
        );
    }

    #[test]
    fn odd_text_is_no_import() {
        for text in [
            "import",
            "import (",
            "from",
            "from x",
            "from x import",
            "import \\",
            "'''",
        ] {
            assert!(names(text).iter().all(|name| name.len() < 4), "{text}");
        }
        let many = "import a\n".repeat(10_000);
        assert_eq!(imports(&many).len(), IMPORTS_MAX);
    }
}
