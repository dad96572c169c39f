//! The words of a command that may name files or programs.

/// Words of one command that are looked at.
const WORDS_MAX: usize = 256;

/// The words of these arguments. What a shell is told to run is one argument of several words: what it makes
/// of them does not matter, those that name nothing are passed over.
pub(super) fn words(arguments: &[String]) -> impl Iterator<Item = &str> {
    let ends = |byte: char| byte.is_whitespace() || "\"'`;&|()<>{}".contains(byte);
    let words = arguments
        .iter()
        .flat_map(move |argument| argument.split(ends));
    let words = words.filter_map(|word| match word.split_once('=') {
        // An option or a variable with a path.
        Some((_, value)) => value.starts_with('/').then_some(value),
        None => Some(word),
    });
    words
        .filter(|word| !word.is_empty() && !word.starts_with(['-', '$', '.']) || is_path(word))
        .take(WORDS_MAX)
}

fn is_path(word: &str) -> bool {
    word.starts_with("./") || word.starts_with("../")
}

/// The absolute paths in a variable's value, which may be a list.
pub(super) fn paths(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(':')
        .filter(|path| path.starts_with('/'))
        .take(WORDS_MAX)
}

/// The module that Python is told to run: the argument after `-m`.
pub(super) fn module(arguments: &[String]) -> Option<&str> {
    let pairs = arguments.windows(2);
    pairs
        .filter(|pair| pair[0] == "-m")
        .map(|pair| pair[1].as_str())
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_may_name_something_are_found() {
        for (argument, expected) in [
            ("/app/run.py", vec!["/app/run.py"]),
            (
                "exec node ./a.js --port=1 \"$X\"",
                vec!["exec", "node", "./a.js"],
            ),
            ("--config=/etc/a.conf", vec!["/etc/a.conf"]),
            ("-c", vec![]),
            ("daemon off;", vec!["daemon", "off"]),
            ("A=/b c&&d", vec!["/b", "c", "d"]),
        ] {
            let list = [argument.to_owned()];
            assert_eq!(words(&list).collect::<Vec<_>>(), expected, "{argument}");
        }
        let path = paths("/a:b:/c").collect::<Vec<_>>();
        assert_eq!(path, ["/a", "/c"]);
        let list = ["-u", "-m", "flask"].map(String::from);
        assert_eq!(module(&list), Some("flask"));
        assert_eq!(module(&list[..2]), None);
    }
}
