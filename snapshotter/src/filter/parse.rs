//! The parser of the filter language: one pass, no backtracking.

use super::{Selector, Test, compile, quote};

/// A filter that does not follow the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The text stops following the grammar at a byte.
    #[error("filter {filter:?}, byte {at}: expected {expected}")]
    Syntax {
        /// The filter, cut to a printable length.
        filter: String,
        /// Byte offset.
        at: usize,
        /// What should have been there.
        expected: &'static str,
    },
    /// A request asks for more comparisons than any reasonable one.
    #[error("more than {} selectors in one request", super::SELECTORS_MAX)]
    TooMany,
}

/// Characters of an offending filter that an error repeats: containerd's own have about a hundred.
const QUOTED_CHARS_MAX: usize = 200;

/// Parses one filter; the empty text has no selector and matches everything.
pub(super) fn filter(text: &str) -> Result<Vec<Selector>, FilterError> {
    let mut parser = Parser { text, at: 0 };
    let mut selectors = Vec::new();
    if text.is_empty() {
        return Ok(selectors);
    }
    loop {
        selectors.push(parser.selector()?);
        if selectors.len() > super::SELECTORS_MAX {
            return Err(FilterError::TooMany);
        }
        match parser.next_char() {
            None => return Ok(selectors),
            Some(',') => parser.at += 1,
            Some(_) => return Err(parser.expected("a comma or the end")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.next_char() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        if matches!(self.next_char(), None | Some(',')) {
            let test = Test::Present;
            return Ok(Selector { path, test });
        }
        let test = match self.operator() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => Test::Matches(compile(&self.value(true)?)),
            _ => return Err(self.expected("an operator: ==, != or ~=")),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        match self.next_char() {
            Some('"') => self.quoted('"'),
            Some(c) if is_field_char(c) => Ok(self.take_while(is_field_char).to_owned()),
            _ => Err(self.expected("a field name")),
        }
    }

    /// The operator; nothing is consumed if there is none.
    fn operator(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|b| b"=!~".contains(b)).count();
        if matches!(&rest[..len], "==" | "!=" | "~=") {
            self.at += len;
            return &rest[..len];
        }
        ""
    }

    fn value(&mut self, regex: bool) -> Result<String, FilterError> {
        match self.next_char() {
            Some(quote @ '"') => self.quoted(quote),
            Some(quote @ ('/' | '|')) if regex => self.quoted(quote),
            // A digest or a path in quotes is a value; these characters begin a quoted regular
            // expression and have no other meaning.
            Some('/' | '|') => Err(self.expected("a value without these quotes")),
            Some(c) if is_value_char(c) => Ok(self.take_while(is_value_char).to_owned()),
            _ => Err(self.expected("a value")),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let inside = self.at + quote.len_utf8();
        let Some((value, consumed)) = quote::unquote(&self.text[inside..], quote) else {
            return Err(self.expected("a quoted string that ends and escapes as in Go"));
        };
        self.at = inside + consumed;
        Ok(value)
    }

    /// The next character that is not white space, which is skipped.
    fn next_char(&mut self) -> Option<char> {
        self.take_while(char::is_whitespace);
        self.text[self.at..].chars().next()
    }

    fn take_while(&mut self, keep: fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !keep(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn expected(&self, expected: &'static str) -> FilterError {
        FilterError::Syntax {
            filter: self.text.chars().take(QUOTED_CHARS_MAX).collect(),
            at: self.at,
            expected,
        }
    }
}

fn is_field_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn is_value_char(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
