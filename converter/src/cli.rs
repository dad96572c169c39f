//! The command line: what can be asked, and how answers and failures are told.

mod bars;
mod check;
mod convert;
mod files;
mod inspect;
mod profile;
mod text;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use larder_registry::{
    CREDENTIALS_BYTES_MAX, Client, ClientError, ClientOptions, HOSTS_DIR, bounded,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::access::Access;
use crate::containerd::{ADDRESS_DEFAULT, NAMESPACE_DEFAULT, Node};
use crate::location::Location;

/// Exit code for a command line that makes no sense; `sysexits.h` calls it `EX_USAGE`.
const EXIT_USAGE: u8 = 64;

/// Exit code after an interrupt: 128 and the number of SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// How long threads may take to notice that a command was interrupted: each looks at every
/// buffer, so this is about a stalled disk.
const STOP_TIME: Duration = Duration::from_secs(2);

/// Where images are, for the end of `--help`.
const IMAGE_FORMS: &str = "\
Forms of IMAGE:
  HOST/REPO:TAG, HOST/REPO@DIGEST   in a registry; without HOST, on Docker Hub
  oci:DIR[:TAG]                     a directory in the OCI image layout
  oci-archive:FILE[:TAG]            the same in a tar
  docker-archive:FILE[:REF]         what `docker save` writes
  containerd:REF                    of the local containerd, by its long name there";

/// The same for `convert`.
const SOURCE_AND_DEST_FORMS: &str = "\
Forms of SOURCE and DEST:
  HOST/REPO:TAG                     in a registry; without HOST, on Docker Hub
  oci:DIR[:TAG]                     a directory in the OCI image layout
  oci-archive:FILE[:TAG]            the same in a tar
  containerd:REF                    of the local containerd, by its long name there
Of SOURCE alone:
  HOST/REPO@DIGEST                  in a registry, by digest
  docker-archive:FILE[:REF]         what `docker save` writes";

/// Makes container images start before they have arrived.
#[derive(Debug, Parser)]
#[command(name = "larder", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Convert an image; it keeps its ID, its layers keep their contents.
    #[command(after_help = SOURCE_AND_DEST_FORMS)]
    Convert(convert::Arguments),
    /// Prove that a converted image is sound, and that it equals its original.
    #[command(after_help = IMAGE_FORMS)]
    Check(check::Arguments),
    /// Show an image's manifests, layers and indexes.
    #[command(after_help = IMAGE_FORMS)]
    Inspect(inspect::Arguments),
    /// List files of an image; of converted layers only the indexes are fetched.
    #[command(after_help = IMAGE_FORMS)]
    Ls(files::ListArguments),
    /// Print a file of an image; of converted layers only its chunks are fetched.
    #[command(after_help = IMAGE_FORMS)]
    Cat(files::CatArguments),
    /// Attach to an image what its start reads, show that, and take it off.
    #[command(subcommand)]
    Profile(profile::Command),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of all commands that read images.
#[derive(Debug, Clone, Args)]
struct AccessArguments {
    /// Speak plain HTTP to registries; for those on this machine that is the default.
    #[arg(long)]
    plain_http: bool,
    /// Take credentials from this file instead of those of docker and podman.
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Directory of per-registry settings in containerd's form (mirrors, private CAs)
    /// [default: /etc/containerd/certs.d if it is there].
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<PathBuf>,
    /// The socket of the containerd that `containerd:REF` means.
    #[arg(long, value_name = "SOCK", env = "CONTAINERD_ADDRESS", default_value = ADDRESS_DEFAULT)]
    address: PathBuf,
    /// The namespace of containerd that `containerd:REF` means.
    #[arg(long, value_name = "NAME", env = "CONTAINERD_NAMESPACE", default_value = NAMESPACE_DEFAULT)]
    namespace: String,
    /// Answer in JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The command line is at fault.
    Usage(String),
    /// Something else is.
    Failed(String),
    /// What is wrong was told already; this sums it up.
    Told(String),
    /// The user stopped it; what that means.
    Interrupted(&'static str),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl AccessArguments {
    /// Looks at the files that were named, and at what is configured for the registries of `images`.
    async fn access(&self, images: &[&Location]) -> Result<Access, Failure> {
        self.check_files().map_err(Failure::Usage)?;
        let certs_dir = self.certs_dir.as_deref().unwrap_or(HOSTS_DIR.as_ref());
        let certs_dir = certs_dir.to_path_buf();
        let options = ClientOptions {
            plain_http: self.plain_http,
            authfile: self.authfile.clone(),
            hosts_dir: Some(certs_dir).filter(|dir| dir.is_dir()),
            ..ClientOptions::default()
        };
        let unusable = |error: ClientError| Failure::Usage(error.to_string());
        let client = Client::new(options).map_err(unusable)?;
        for image in images {
            if let Location::Registry(reference) = image {
                client.check(reference).await.map_err(unusable)?;
            }
        }
        Ok(Access {
            client,
            node: Node {
                address: self.address.clone(),
                namespace: self.namespace.clone(),
            },
        })
    }

    /// A mistyped name would else be noticed as a refusal of the registry, or not at all.
    fn check_files(&self) -> Result<(), String> {
        if let Some(file) = &self.authfile {
            let refuse =
                |reason: &dyn std::fmt::Display| format!("--authfile {}: {reason}", file.display());
            let text =
                bounded::read(file, CREDENTIALS_BYTES_MAX).map_err(|error| refuse(&error))?;
            serde_json::from_slice::<serde::de::IgnoredAny>(&text)
                .map_err(|error| refuse(&format_args!("it is not JSON: {error}")))?;
        }
        match &self.certs_dir {
            Some(dir) if !dir.is_dir() => {
                Err(format!("--certs-dir {}: no such directory", dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Runs the tool with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    start_logging();
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, &arguments),
    };
    let json = cli.command.wants_json();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return tell(&Failure::from(error), json),
    };
    let stopped = cli.command.stopped();
    let result = runtime.block_on(async {
        tokio::select! {
            result = dispatch(cli.command) => result,
            () = interrupted() => Err(Failure::Interrupted(stopped)),
        }
    });
    runtime.shutdown_timeout(STOP_TIME);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => tell(&failure, json),
    }
}

impl Command {
    fn wants_json(&self) -> bool {
        match self {
            Self::Convert(arguments) => arguments.access.json,
            Self::Check(arguments) => arguments.access.json,
            Self::Inspect(arguments) => arguments.access.json,
            Self::Ls(arguments) => arguments.access.json,
            Self::Cat(arguments) => arguments.access.json,
            Self::Profile(command) => command.wants_json(),
            Self::Completions { .. } => false,
        }
    }

    /// What is said when it is interrupted.
    fn stopped(&self) -> &'static str {
        match self {
            Self::Convert(_) => "interrupted; the destination is as it was",
            _ => "interrupted",
        }
    }
}

/// What clap says about the command line: help on standard output, or what is wrong with it.
fn tell_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // It was not parsed, so whether JSON was asked for is a guess, and a good one.
    if arguments.iter().any(|argument| argument == "--json") {
        let _ = print_json(&serde_json::json!({ "error": sentence(&error.to_string()) }));
    }
    EXIT_USAGE.into()
}

/// What clap says first, up to the empty line before its advice, in one line.
fn sentence(text: &str) -> String {
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty());
    let all = lines.collect::<Vec<_>>().join(" ");
    all.strip_prefix("error: ").unwrap_or(&all).to_owned()
}

async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Convert(arguments) => convert::run(arguments).await,
        Command::Check(arguments) => check::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Ls(arguments) => files::list(arguments).await,
        Command::Cat(arguments) => files::cat(arguments).await,
        Command::Profile(command) => profile::run(command).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "larder", &mut script);
            print(&script)
        }
    }
}

/// Writes to standard output; a reader that has enough, as `head` does, is no failure.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Failed(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    print(&text)
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Without handlers the signals end the process, which is as good.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn tell(failure: &Failure, json: bool) -> ExitCode {
    let (text, code) = match failure {
        Failure::Usage(text) => (text.as_str(), EXIT_USAGE),
        Failure::Failed(text) | Failure::Told(text) => (text.as_str(), 1),
        Failure::Interrupted(text) => (*text, EXIT_INTERRUPTED),
    };
    eprintln!("larder: {text}");
    if json && !matches!(failure, Failure::Told(_)) {
        let _ = print_json(&serde_json::json!({ "error": text }));
    }
    code.into()
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LARDER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second run in one process, as in tests, keeps the first one's log.
    let _ = log.try_init();
}
