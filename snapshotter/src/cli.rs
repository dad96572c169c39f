//! The command line of `larder-snapshotter`.

mod asked;
mod complete;
mod doctor;
mod download;
mod fetch_blobs;
mod holders;
mod install;
mod mount;
mod output;
mod pin;
mod profile;
mod pull;
mod run;
mod signals;
mod status;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use larder_fuse::{stderr, supervisor};
use larder_registry::{ClientError, Reference};

use crate::config::{Config, ConfigError, Driver, LogFormat, LogLevel, Overrides};
use crate::containerd::Containerd;

/// Exit code for bad usage and bad configuration, as in sysexits.h.
const EX_USAGE: u8 = 64;

/// Root directory of images mounted by hand. Not below containerd's: the daemon clears away the
/// mounts it finds below its own root when it starts.
const MOUNT_ROOT: &str = "/var/lib/larder-mounts";

/// Blocking threads: each request uses one for a moment, and disk work queues behind this many. Twice
/// the 32 parallel Prepares that are tested, so that Mounts and Stat find one, too.
const BLOCKING_THREADS_MAX: usize = 64;

#[derive(Debug, Parser)]
#[command(name = "larder-snapshotter", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve containerd.
    Run(RunArgs),
    /// Mount an image's root file system, lazily and read-only, without containerd.
    Mount(MountArgs),
    /// Unmount an image that `mount` mounted.
    Umount {
        /// Root directory it was mounted with.
        #[arg(long, value_name = "DIR", default_value = MOUNT_ROOT)]
        root: PathBuf,
        /// Where it is mounted.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Pull an image into containerd, lazily: `ctr pull` of containerd 1.x downloads first.
    Pull {
        /// HOST/REPOSITORY:TAG or @DIGEST.
        #[arg(value_name = "REF", value_parser = in_registry)]
        image: Reference,
        /// Wait until every byte of the image is on this node and proven, so that it needs no registry.
        #[arg(long)]
        complete: bool,
        #[command(flatten)]
        containerd: ContainerdArgs,
    },
    /// Fetch a lazily pulled image's blobs into containerd, so that it can be pushed or exported.
    FetchBlobs {
        /// HOST/REPOSITORY:TAG or @DIGEST, as containerd lists it.
        #[arg(value_name = "REF", value_parser = in_registry)]
        image: Reference,
        #[command(flatten)]
        containerd: ContainerdArgs,
    },
    /// Show the layers of this node: lazy, complete or eager, and why.
    Status {
        /// Root directory of the daemon, or of `mount`; without it that of the configuration.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Configuration file of the daemon.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// For programs.
        #[arg(long)]
        json: bool,
        /// Tell every layer in full, however many there are.
        #[arg(short, long, conflicts_with = "json")]
        verbose: bool,
    },
    /// Keep the layers of an image, or one layer, whatever the store's limit says.
    Pin(pin::PinArgs),
    /// Undo `pin`.
    Unpin(pin::PinArgs),
    /// What starts of images are known to read: list, show, record, export, import, remove.
    Profile {
        #[command(subcommand)]
        command: profile::ProfileCommand,
    },
    /// Look at this machine and at containerd: what is missing, and the line to add.
    Doctor {
        /// Configuration file of the daemon.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// containerd's configuration file.
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/containerd/config.toml"
        )]
        containerd_config: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Make containerd know the snapshotter: edit its configuration, and keep the rest of it.
    Install {
        #[command(flatten)]
        args: InstallArgs,
        /// Leave CRI's snapshotter as it is: only who asks for this one gets it.
        #[arg(long)]
        no_cri: bool,
        /// Edit the file itself, also where containerd would read one of our own.
        #[arg(long)]
        in_place: bool,
    },
    /// Undo `install`; a file nobody changed since is what it was before, byte for byte.
    Uninstall {
        #[command(flatten)]
        args: InstallArgs,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Be the process beside `mount` that ends its sessions when it is killed.
    #[command(hide = true)]
    WatchSessions,
}

/// Options of `run`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Configuration file; the default one need not exist.
    #[arg(long, value_name = "FILE", help = format!("Configuration file [default: {}]", crate::config::DEFAULT_PATH))]
    config: Option<PathBuf>,
    /// Socket for containerd.
    #[arg(long, value_name = "SOCK")]
    address: Option<PathBuf>,
    /// Where snapshots and cached bytes are kept.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Which file system shows a layer.
    #[arg(long, alias = "driver", value_enum)]
    fs_driver: Option<Driver>,
    /// How much is logged.
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
    /// How it is logged.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Say whether the configuration can be used, and serve nothing: exit 64 and a sentence if not.
    #[arg(long)]
    check_config: bool,
}

/// Options of `mount`.
#[derive(Debug, clap::Args)]
struct MountArgs {
    /// Where cached bytes are kept; one process owns it.
    #[arg(long, value_name = "DIR", default_value = MOUNT_ROOT)]
    root: PathBuf,
    /// Which file system shows a layer.
    #[arg(long, value_enum)]
    fs_driver: Option<Driver>,
    /// Talk plain HTTP to the registry; loopback registries need no flag.
    #[arg(long)]
    plain_http: bool,
    /// Return once the image is mounted.
    #[arg(long)]
    detach: bool,
    /// Configuration file with the registry settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Be the process that --detach leaves behind.
    #[arg(long, hide = true, conflicts_with = "detach")]
    background: bool,
    /// HOST/REPOSITORY:TAG or @DIGEST of a converted image.
    #[arg(value_name = "REF", value_parser = in_registry)]
    image: Reference,
    /// An existing directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Which configuration is edited.
#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// containerd's configuration file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,
    /// Configuration file of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the snapshotter in containerd's configuration.
    #[arg(long, default_value = "larder", value_parser = install::name)]
    snapshotter: String,
    /// Show what would change, and change nothing.
    #[arg(long, visible_alias = "print")]
    dry_run: bool,
}

/// Which containerd, and how to reach registries.
#[derive(Debug, clap::Args)]
struct ContainerdArgs {
    /// containerd's socket; without it the configuration's `[containerd] address`.
    #[arg(long, value_name = "SOCK", env = "CONTAINERD_ADDRESS")]
    address: Option<PathBuf>,
    /// containerd's namespace.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Name of the snapshotter in containerd's configuration.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "larder")]
    snapshotter: String,
    /// Talk plain HTTP to the registry; loopback registries need no flag.
    #[arg(long)]
    plain_http: bool,
    /// Configuration file with the registry settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what was done for programs.
    #[arg(long)]
    json: bool,
}

impl ContainerdArgs {
    /// The configuration, with containerd's socket as the command line says.
    fn config(&self) -> Result<Config, ConfigError> {
        let overrides = Overrides {
            containerd: self.address.clone(),
            ..Overrides::default()
        };
        Config::load(self.config.as_deref(), &overrides)
    }
}

impl RunArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            root: self.root.clone(),
            address: self.address.clone(),
            fs_driver: self.fs_driver,
            log_level: self.log_level,
            log_format: self.log_format,
            ..Overrides::default()
        }
    }
}

/// Transports of `larder` and skopeo, which would else be taken for names on Docker Hub.
const TRANSPORTS: [&str; 8] = [
    "oci",
    "oci-archive",
    "docker",
    "docker-archive",
    "docker-daemon",
    "containerd",
    "containers-storage",
    "dir",
];

/// The name of an image in a registry.
fn in_registry(text: &str) -> Result<Reference, String> {
    match text.split_once(':') {
        Some((transport, _)) if TRANSPORTS.contains(&transport) => Err(format!(
            "images come from registries here, by HOST/REPOSITORY:TAG, not from {transport}:"
        )),
        _ => text.parse::<Reference>().map_err(|error| error.to_string()),
    }
}

/// Looks whether containerd is there; the error says what to do, for who has a configuration.
async fn reach(containerd: &Containerd) -> anyhow::Result<()> {
    let reached = containerd.reach().await;
    reached.map_err(|error| {
        anyhow::anyhow!(
            "containerd does not answer at {}: {}; is it running, and may this user talk to it? Name \
             its socket with --address or CONTAINERD_ADDRESS, or as address under [containerd] in the \
             configuration file",
            containerd.address().display(),
            error.cause()
        )
    })
}

/// Runs the program: 0 for success, 1 for failure, 64 for bad usage or configuration.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if supervisor::is_supervised() {
                last_words(&error.to_string());
            } else {
                drop(error.print());
            }
            return if error.use_stderr() {
                EX_USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    if let Command::Run(args) = &cli.command
        && !args.check_config
        && let Some(code) = run::supervise()
    {
        return code;
    }
    let json = cli.wants_json();
    let done = cli.dispatch();
    // What was logged comes before what is said now.
    stderr::flush(stderr::LAST_WORDS_MAX);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let words = in_words(&error);
            if supervisor::is_supervised() {
                last_words(&words);
            } else {
                eprintln!("larder-snapshotter: {words}");
            }
            if json && !error.is::<doctor::Failed>() {
                drop(output::print_json(&serde_json::json!({ "error": words })));
            }
            let usage = error
                .chain()
                .any(|cause| cause.is::<ConfigError>() || cause.is::<ClientError>());
            if usage {
                EX_USAGE.into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Says why this daemon ends. Mounts may wait for the next one, and so nobody waits for whoever reads this.
fn last_words(words: &str) {
    stderr::say(words);
    stderr::flush(stderr::LAST_WORDS_MAX);
}

/// An error with its causes, leaving out those that an error before already repeats.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.contains(&cause) {
            continue;
        }
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&cause);
    }
    words
}

impl Cli {
    fn wants_json(&self) -> bool {
        match &self.command {
            Command::Status { json, .. } | Command::Doctor { json, .. } => *json,
            Command::Pull { containerd, .. } | Command::FetchBlobs { containerd, .. } => {
                containerd.json
            }
            Command::Pin(pin) | Command::Unpin(pin) => pin.json,
            Command::Profile { command } => command.wants_json(),
            Command::Run(_)
            | Command::Mount(_)
            | Command::Umount { .. }
            | Command::Install { .. }
            | Command::Uninstall { .. }
            | Command::Completions { .. }
            | Command::WatchSessions => false,
        }
    }

    fn dispatch(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(args) if args.check_config => run::check(&args),
            Command::Run(args) => run::daemon(&args),
            Command::Mount(args) => block_on(mount::mount(args)),
            Command::WatchSessions => watch::watch(),
            Command::Umount { root, directory } => block_on(mount::umount(&root, &directory)),
            Command::Pull {
                image,
                complete,
                containerd,
            } => block_on(pull::pull(containerd, image, complete)),
            Command::FetchBlobs { image, containerd } => {
                block_on(fetch_blobs::fetch_blobs(containerd, image))
            }
            Command::Status {
                root,
                config,
                json,
                verbose,
            } => {
                let overrides = Overrides {
                    root,
                    ..Overrides::default()
                };
                let config = Config::load(config.as_deref(), &overrides)?;
                block_on(status::status(&config.root, json, verbose))
            }
            Command::Pin(args) => block_on(pin::pin(args)),
            Command::Unpin(args) => block_on(pin::unpin(args)),
            Command::Profile { command } => command.dispatch(),
            Command::Doctor {
                config,
                containerd_config,
                json,
            } => {
                let config = Config::load(config.as_deref(), &Overrides::default())?;
                block_on(doctor::doctor(config, containerd_config, json))
            }
            Command::Install {
                args,
                no_cri,
                in_place,
            } => install::install(&args, !no_cri, !in_place),
            Command::Uninstall { args } => install::uninstall(&args),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                let mut command = Self::command();
                clap_complete::generate(shell, &mut command, "larder-snapshotter", &mut script);
                output::print(&String::from_utf8_lossy(&script))
            }
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_error_is_told_once() {
        let missing = ConfigError::Read {
            path: "/x".into(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        let told = in_words(&anyhow::Error::from(missing).context("start"));
        assert_eq!(told, "start: read configuration /x: entity not found");
    }

    /// Promise: a containerd that is not there is named once, with what to do about it.
    #[tokio::test]
    async fn a_containerd_that_does_not_answer_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("config.toml"), dir.path().join("none.sock"));
        std::fs::write(&file, format!("[containerd]\naddress = {socket:?}")).unwrap();
        let command = [
            "x",
            "pull",
            "--config",
            file.to_str().unwrap(),
            "r.test/app:1",
        ];
        let cli = Cli::try_parse_from(command).unwrap();
        let Command::Pull {
            image,
            complete,
            containerd,
        } = cli.command
        else {
            panic!("another command");
        };
        let pulled = pull::pull(containerd, image, complete).await;
        let command = ["x", "pin", "--config", command[3], "r.test/app:1"];
        let cli = Cli::try_parse_from(command).unwrap();
        let Command::Pin(args) = cli.command else {
            panic!("another command");
        };
        for refused in [pulled, pin::pin(args).await] {
            let words = in_words(&refused.unwrap_err());
            assert!(words.contains(socket.to_str().unwrap()), "{words}");
            for once in ["does not answer", "is it running", "[containerd]"] {
                assert_eq!(words.matches(once).count(), 1, "{words}");
            }
        }
    }

    /// Promise: the help of a command that has others below it names all of them.
    #[test]
    fn help_names_every_command_below() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().unwrap().to_string();
            let shown = |below: &&clap::Command| !below.is_hide_set();
            for below in command.get_subcommands().filter(shown) {
                let name = below.get_name();
                assert!(about.contains(name), "{}: {name}", command.get_name());
            }
        }
    }

    /// Promise: every command that has `--json` prints `{"error": …}` when it fails.
    #[test]
    fn whoever_asked_for_json_gets_failures_as_json() {
        let mut asked = Vec::new();
        for command in Cli::command().get_subcommands() {
            let mut arguments = command.get_arguments();
            if !arguments.any(|argument| argument.get_long() == Some("json")) {
                continue;
            }
            let name = command.get_name();
            let images = command.get_positionals().map(|_| "r.test/app:1");
            let images: Vec<_> = images.collect();
            let parse = |json: Option<&'static str>| {
                let words = ["x", name].into_iter().chain(images.clone()).chain(json);
                Cli::try_parse_from(words).unwrap()
            };
            assert!(parse(Some("--json")).wants_json(), "{name}");
            assert!(!parse(None).wants_json(), "{name}");
            asked.push(name.to_owned());
        }
        assert_eq!(
            asked,
            ["pull", "fetch-blobs", "status", "pin", "unpin", "doctor"]
        );
    }

    /// Promise: what names no registry is bad usage, not a request to Docker Hub.
    #[test]
    fn only_registries_have_images_to_pull() {
        for text in [
            "oci:dir",
            "oci-archive:a.tar:v1",
            "containerd:x",
            "UPPER/a b",
        ] {
            assert!(in_registry(text).is_err(), "{text}");
        }
        for text in ["alpine:3", "localhost:5000/a/b:c", "r.test/oci:dir"] {
            assert!(in_registry(text).is_ok(), "{text}");
        }
    }

    /// Regression: a name with a space ended `install` with 1, the code of a failure.
    ///
    /// Promise: what cannot be a snapshotter's name is bad usage.
    #[test]
    fn a_name_that_no_snapshotter_can_have_is_bad_usage() {
        let long = "x".repeat(65);
        for command in ["install", "uninstall"] {
            for name in ["a b", "", "../a", &long] {
                let refused = Cli::try_parse_from(["x", command, "--snapshotter", name]);
                assert!(refused.is_err_and(|error| error.use_stderr()), "{name}");
            }
            assert!(Cli::try_parse_from(["x", command, "--snapshotter", "a-b_2"]).is_ok());
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
