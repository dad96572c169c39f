//! What an image's config says about how it is started.

use serde_json::Value;

/// Where programs are looked for if the image does not say: containerd's default.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments and variables that are looked at, each: hundreds are common nowhere.
const TEXTS_MAX: usize = 256;

/// Directories of one search path.
const DIRECTORIES_MAX: usize = 64;

/// How a container of an image is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Command {
    /// Entrypoint and command.
    pub(super) arguments: Vec<String>,
    env: Vec<(String, String)>,
    /// Where it is started.
    pub(super) directory: String,
}

impl Command {
    /// The one in the part of a config that is called `config`. Docker never was strict about it, and what
    /// cannot be read is passed over.
    pub(crate) fn of(config: &Value) -> Self {
        let texts = |key: &str| {
            let list = match &config[key] {
                Value::Array(list) => list.as_slice(),
                one @ Value::String(_) => std::slice::from_ref(one),
                _ => &[],
            };
            let texts = list.iter().filter_map(Value::as_str).map(str::to_owned);
            texts.take(TEXTS_MAX).collect::<Vec<_>>()
        };
        let variable = |text: &String| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        Self {
            arguments: [texts("Entrypoint"), texts("Cmd")].concat(),
            env: texts("Env").iter().filter_map(variable).collect(),
            directory: config["WorkingDir"].as_str().unwrap_or("/").to_owned(),
        }
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let found = self.env.iter().rev().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The values of all variables.
    pub(super) fn values(&self) -> impl Iterator<Item = &str> {
        self.env.iter().map(|(_, value)| value.as_str())
    }

    /// The directories in which a program without a slash in its name is looked for.
    pub(super) fn path(&self) -> Vec<&str> {
        directories(self.variable("PATH").unwrap_or(PATH_DEFAULT))
    }

    /// A path as the program sees it: relative ones begin in its directory.
    pub(super) fn absolute(&self, path: &[u8]) -> Vec<u8> {
        if path.starts_with(b"/") {
            return path.to_vec();
        }
        [self.directory.as_bytes(), b"/", path].concat()
    }
}

/// The directories of a list with colons.
pub(super) fn directories(list: &str) -> Vec<&str> {
    let all = list.split(':').filter(|part| !part.is_empty());
    all.take(DIRECTORIES_MAX).collect()
}
