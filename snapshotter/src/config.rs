//! The configuration: what was written, checked, becomes what is meant.
//!
//! Every key is described in `docs/CONFIGURATION.md`.

mod bytes;
mod disk;
mod in_force;
mod kept;
mod places;
mod registry;
mod syntax;
mod text;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::metrics::MetricsAddress;
use crate::socket;
use bytes::Bytes;
pub use in_force::{InForce, OldConfiguration};
pub use kept::Kept;
use text::Text;

/// Where the daemon looks if no `--config` is given; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/larder/config.toml";
/// Default of `root`.
pub const DEFAULT_ROOT: &str = "/var/lib/larder";

/// Upper bound of the Prepare deadline, milliseconds: containerd's garbage collection waits for a
/// running Prepare, and everything else then waits for the collection.
const PREPARE_DEADLINE_MS_MAX: u64 = 10_000;
/// Bounds of the read deadline, seconds: below one, an ordinary registry's hiccup would fail
/// reads; above an hour, a process waits for good.
const READ_DEADLINE_S: std::ops::RangeInclusive<u64> = 1..=3600;
/// Least time after which a read is slow by default: what a person notices.
const SLOW_READ: Duration = Duration::from_secs(1);
/// Least time after which a read may be called slow: what a disk takes at its worst.
const SLOW_READ_MIN: Duration = Duration::from_millis(100);
/// Largest floor of free space, percent: one above it would keep a disk that is half empty from being
/// used, and is rather gigabytes that somebody took for percent.
const MIN_FREE_PERCENT_MAX: u8 = 50;

/// Smallest limit of the store, bytes: the largest chunks are 4 MiB, and a few of them must fit between
/// where eviction begins and where it ends. What is smaller is rather gigabytes without their unit.
const STORE_BYTES_MIN: u64 = 256 << 20;

/// Least bandwidth of completing layers, bytes per second: one of the largest chunks, 4 MiB, comes in 32 s,
/// about a read deadline; `pull --complete` gives up when nothing comes for two. What is smaller is rather
/// megabytes without their unit.
const BACKGROUND_BANDWIDTH_MIN: u64 = 128 << 10;

/// The keys of the configuration file, all optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    root: Option<PathBuf>,
    address: Option<PathBuf>,
    fs_driver: Option<Driver>,
    mount_plan: Option<MountPlan>,
    prepare_deadline_ms: Option<u64>,
    read_deadline_seconds: Option<u64>,
    min_free_percent: Option<u8>,
    metrics_address: Option<String>,
    slow_read_seconds: Option<f64>,
    store_bytes_max: Option<Bytes>,
    keep_removed: Option<bool>,
    complete_in_background: Option<bool>,
    background_bandwidth: Option<Bytes>,
    profiles: Option<bool>,
    quarantine: Option<Quarantine>,
    log: WrittenLog,
    containerd: WrittenContainerd,
    registry: WrittenRegistry,
    hosts: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenLog {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenContainerd {
    address: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRegistry {
    plain_http: Vec<String>,
    authfile: Option<PathBuf>,
    hosts_dir: Option<PathBuf>,
    extra_ca: Vec<PathBuf>,
}

/// Which file system shows a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// EROFS where the kernel can, else FUSE.
    #[default]
    Auto,
    /// EROFS, or refuse to start.
    Erofs,
    /// FUSE.
    Fuse,
}

impl Driver {
    /// The one driver it stands for, as a daemon reports it; `None` if the kernel decides.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Erofs => Some("erofs"),
            Self::Fuse => Some("fuse"),
        }
    }
}

/// How the layers of a chain are mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountPlan {
    /// As one where there are many of them, else as a stack.
    #[default]
    Auto,
    /// Each by itself, stacked by overlayfs.
    Stack,
    /// As one wherever that is possible.
    Merged,
}

/// What becomes of running containers whose layer turns out to be a lie. There are no new mounts of it
/// in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quarantine {
    /// They go on.
    #[default]
    Refuse,
    /// Their reads fail.
    Eio,
}

/// How much is logged.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How it is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// What the command line says; it wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--address` of the daemon.
    pub address: Option<PathBuf>,
    /// `--address` of the commands that talk to containerd.
    pub containerd: Option<PathBuf>,
    /// `--fs-driver`.
    pub fs_driver: Option<Driver>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
    /// What is logged where neither the command line nor the file says.
    pub log_level_unsaid: LogLevel,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
}

impl Overrides {
    /// Whether the value of a key with free text comes from here.
    fn has(&self, key: &str) -> bool {
        match key {
            "root" => self.root.is_some(),
            "address" => self.address.is_some(),
            "containerd.address" => self.containerd.is_some(),
            _ => false,
        }
    }
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where everything is kept.
    pub root: PathBuf,
    /// Socket for containerd.
    pub address: PathBuf,
    /// Which file system shows a layer.
    pub fs_driver: Driver,
    /// How the layers of a chain are mounted.
    pub mount_plan: MountPlan,
    /// After this long, Prepare falls back to an ordinary unpack.
    pub prepare_deadline: Duration,
    /// After this long, a read of bytes that cannot be fetched fails.
    pub read_deadline: Duration,
    /// Below this share of free space, nothing more is kept.
    pub min_free_percent: u8,
    /// Where metrics are read; without it, nowhere.
    pub metrics: Option<MetricsAddress>,
    /// A read that takes this long is reported; without it, none is.
    pub slow_read: Option<Duration>,
    /// Bytes the store may take; 0 for as many as there are.
    pub store_bytes_max: u64,
    /// Whether the bytes of a layer stay after its last snapshot was removed, until they are evicted.
    pub keep_removed: bool,
    /// Whether layers that are mounted and not proven are completed when nobody reads.
    pub complete_in_background: bool,
    /// Bytes per second that completing layers may take, all together; 0 for as many as readers leave.
    pub background_bandwidth: u64,
    /// Whether what starts read is recorded, and fetched ahead of the next ones.
    pub profiles: bool,
    /// What becomes of running containers whose layer lied.
    pub quarantine: Quarantine,
    /// How much is logged.
    pub log_level: LogLevel,
    /// How it is logged.
    pub log_format: LogFormat,
    /// containerd's own socket, to find what the labels of a layer do not say.
    pub containerd: PathBuf,
    /// How to reach registries.
    pub registry: RegistryConfig,
}

/// How to reach registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Registries, `host` or `host:port`, that speak plain HTTP. Loopback ones need no entry.
    pub plain_http: Vec<String>,
    /// Credentials in Docker's format; without, the usual places.
    pub authfile: Option<PathBuf>,
    /// containerd's `certs.d`.
    pub hosts_dir: Option<PathBuf>,
    /// Further certificate authorities, PEM.
    pub extra_ca: Vec<PathBuf>,
    /// What those files held when a daemon could last use them all.
    pub known_ca: BTreeMap<PathBuf, Vec<u8>>,
    /// containerd's labels name a registry without its port; this gives it back.
    pub ports: BTreeMap<String, String>,
    /// Whether files that cannot be used now are for those to tell who need them.
    pub unchecked: bool,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is not TOML, or has a key or value that does not exist.
    #[error("configuration {path}{what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, with a leading separator.
        what: String,
    },
    /// A value out of range.
    #[error("configuration key {key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it should be.
        reason: String,
    },
    /// A value out of range that the file has.
    #[error("configuration {path}, line {line}, key {key}: {reason}")]
    Place {
        /// The file.
        path: PathBuf,
        /// The line of the key.
        line: usize,
        /// The key.
        key: &'static str,
        /// What it should be.
        reason: String,
    },
}

impl Config {
    /// Reads `path`, or the default file if there is one, and checks it.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        Text::read(path)?.config(overrides)
    }

    /// What is meant, but for the files it names.
    fn resolve(written: Written, overrides: &Overrides) -> Result<Self, ConfigError> {
        let read_deadline = Duration::from_secs(written.read_deadline_seconds.unwrap_or(30));
        let pick = |flag: &Option<PathBuf>, key: Option<PathBuf>, default: &str| {
            flag.clone().or(key).unwrap_or_else(|| default.into())
        };
        let config = Self {
            root: pick(&overrides.root, written.root, DEFAULT_ROOT),
            address: pick(
                &overrides.address,
                written.address,
                "/run/larder/larder.sock",
            ),
            fs_driver: overrides
                .fs_driver
                .or(written.fs_driver)
                .unwrap_or_default(),
            mount_plan: written.mount_plan.unwrap_or_default(),
            prepare_deadline: Duration::from_millis(written.prepare_deadline_ms.unwrap_or(2000)),
            read_deadline,
            metrics: metrics_address(written.metrics_address.as_deref())?,
            slow_read: slow_read(written.slow_read_seconds, read_deadline)?,
            min_free_percent: written.min_free_percent.unwrap_or(5),
            store_bytes_max: written.store_bytes_max.unwrap_or_default().0,
            keep_removed: written.keep_removed.unwrap_or_default(),
            complete_in_background: written.complete_in_background.unwrap_or(true),
            background_bandwidth: written.background_bandwidth.unwrap_or_default().0,
            profiles: written.profiles.unwrap_or(true),
            quarantine: written.quarantine.unwrap_or_default(),
            log_level: overrides
                .log_level
                .or(written.log.level)
                .unwrap_or(overrides.log_level_unsaid),
            log_format: overrides
                .log_format
                .or(written.log.format)
                .unwrap_or_default(),
            containerd: pick(
                &overrides.containerd,
                written.containerd.address,
                "/run/containerd/containerd.sock",
            ),
            registry: RegistryConfig {
                plain_http: written.registry.plain_http,
                authfile: written.registry.authfile,
                hosts_dir: written.registry.hosts_dir,
                extra_ca: written.registry.extra_ca,
                known_ca: BTreeMap::new(),
                ports: written.hosts,
                unchecked: false,
            },
        };
        config.check()?;
        Ok(config)
    }

    /// The socket for `status`, `mount` and `umount` of a root directory.
    pub fn control(root: &Path) -> PathBuf {
        root.join("control.sock")
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_path("root", &self.root)?;
        check_path("address", &self.address)?;
        check_path("containerd.address", &self.containerd)?;
        check_socket("address", &self.address)?;
        check_socket("root", &Self::control(&self.root))?;
        let prepare = self.prepare_deadline.as_millis();
        if prepare == 0 || prepare > u128::from(PREPARE_DEADLINE_MS_MAX) {
            let reason = format!("must be between 1 and {PREPARE_DEADLINE_MS_MAX}");
            return Err(ConfigError::Value {
                key: "prepare_deadline_ms",
                reason,
            });
        }
        if !READ_DEADLINE_S.contains(&self.read_deadline.as_secs()) {
            let reason = format!("must be in {READ_DEADLINE_S:?}");
            return Err(ConfigError::Value {
                key: "read_deadline_seconds",
                reason,
            });
        }
        registry::check(&self.registry)?;
        if self.min_free_percent > MIN_FREE_PERCENT_MAX {
            let reason = format!("must be at most {MIN_FREE_PERCENT_MAX}");
            return Err(ConfigError::Value {
                key: "min_free_percent",
                reason,
            });
        }
        if (1..STORE_BYTES_MIN).contains(&self.store_bytes_max) {
            let reason = format!(
                "must be at least {STORE_BYTES_MIN} bytes (256 MiB), or 0 for no limit; is a unit \
                 missing?"
            );
            return Err(ConfigError::Value {
                key: "store_bytes_max",
                reason,
            });
        }
        if (1..BACKGROUND_BANDWIDTH_MIN).contains(&self.background_bandwidth) {
            let reason = format!(
                "must be at least {BACKGROUND_BANDWIDTH_MIN} bytes (128 KiB) per second, or 0 for no \
                 limit; is a unit missing?"
            );
            return Err(ConfigError::Value {
                key: "background_bandwidth",
                reason,
            });
        }
        Ok(())
    }
}

fn metrics_address(text: Option<&str>) -> Result<Option<MetricsAddress>, ConfigError> {
    let address = text.filter(|text| !text.is_empty()).map(str::parse);
    address.transpose().map_err(|reason| ConfigError::Value {
        key: "metrics_address",
        reason,
    })
}

/// From when on a read is slow: as written, or a thirtieth of its deadline, at least
/// [`SLOW_READ`]. 0 stands for never.
fn slow_read(
    written: Option<f64>,
    read_deadline: Duration,
) -> Result<Option<Duration>, ConfigError> {
    let Some(seconds) = written else {
        return Ok(Some((read_deadline / 30).max(SLOW_READ)));
    };
    let wrong = |reason: String| {
        Err(ConfigError::Value {
            key: "slow_read_seconds",
            reason,
        })
    };
    if seconds == 0.0 {
        return Ok(None);
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(slow) if slow >= SLOW_READ_MIN && slow <= read_deadline => Ok(Some(slow)),
        _ => wrong(format!(
            "must be 0, or between {} and read_deadline_seconds",
            SLOW_READ_MIN.as_secs_f64()
        )),
    }
}

/// Paths end up in mount options, where these characters have a meaning.
fn check_path(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    let refuse = |reason: &str| {
        Err(ConfigError::Value {
            key,
            reason: format!("{} {reason}", path.display()),
        })
    };
    let Some(text) = path.to_str() else {
        return refuse("is not valid UTF-8");
    };
    if !path.is_absolute() {
        return refuse("is not an absolute path");
    }
    if text.contains([',', ':', '\\']) || text.contains(char::is_whitespace) {
        return refuse("contains a comma, colon, backslash or space");
    }
    Ok(())
}

fn check_socket(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    if path.as_os_str().len() > socket::PATH_BYTES_MAX {
        let max = socket::PATH_BYTES_MAX;
        let reason = format!(
            "the socket {} has a path longer than {max} bytes",
            path.display()
        );
        return Err(ConfigError::Value { key, reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
