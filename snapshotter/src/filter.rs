//! containerd's filter language, as far as snapshots need it.
//!
//! ```text
//! filters   := any of filter
//! filter    := selector ("," selector)*          all must match; the empty filter matches all
//! selector  := path (operator value)?            without an operator: the field is present
//! path      := field ("." field)*
//! field     := [A-Za-z0-9_-]+ | "go string"
//! operator  := "==" | "!=" | "~="
//! value     := [^\s,]+ | "go string" | after "~=" also /regex/ and |regex|
//! ```

mod parse;
mod quote;

use std::collections::BTreeMap;

use regex::Regex;

pub use parse::FilterError;

/// Selectors one request may hold: containerd's own requests have two, and a hand-written one
/// rarely ten; the bound keeps the cost of compiling regular expressions small.
pub const SELECTORS_MAX: usize = 256;

/// Compiled size of one regular expression, bytes: a tenth of the crate's default, and ample for
/// patterns over names.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// A parsed list of filters.
#[derive(Debug, Default)]
pub struct Filter {
    /// Any of these matches; within one, all selectors must.
    any: Vec<Vec<Selector>>,
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Name of the snapshot.
    pub name: &'a str,
    /// Name of its parent, or empty.
    pub parent: &'a str,
    /// `active`, `view` or `committed`.
    pub kind: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` if the pattern is not a valid regular expression: it matches nothing, as in
    /// containerd.
    Matches(Option<Regex>),
}

impl Filter {
    /// Parses the filters of a request; no filter at all matches everything.
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        // Empty filters have no selector to count.
        if filters.len() > SELECTORS_MAX {
            return Err(FilterError::TooMany);
        }
        let mut any = Vec::new();
        let mut selectors = 0;
        for text in filters {
            let filter = parse::filter(text)?;
            selectors += filter.len();
            if selectors > SELECTORS_MAX {
                return Err(FilterError::TooMany);
            }
            any.push(filter);
        }
        Ok(Self { any })
    }

    /// Whether `subject` passes.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let passes = |all: &Vec<Selector>| all.iter().all(|selector| selector.matches(subject));
        self.any.is_empty() || self.any.iter().any(passes)
    }
}

impl Selector {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let value = subject.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            // A base layer has no parent, and `parent==""` asks for exactly those.
            Test::Equal(wanted) if self.path == ["parent"] => value.unwrap_or_default() == wanted,
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(regex) => regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(value.unwrap_or_default())),
        }
    }
}

impl<'a> Subject<'a> {
    /// The value at `path`, if the snapshot has one there.
    fn field(&self, path: &[String]) -> Option<&'a str> {
        let (first, rest) = path.split_first()?;
        match (first.as_str(), rest) {
            ("name", []) => Some(self.name),
            ("parent", []) => Some(self.parent).filter(|parent| !parent.is_empty()),
            ("kind", []) => Some(self.kind),
            ("labels", [_, ..]) => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    let mut builder = regex::RegexBuilder::new(pattern);
    builder.size_limit(REGEX_BYTES_MAX).build().ok()
}

#[cfg(test)]
mod tests;
