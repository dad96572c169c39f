//! `larder convert`.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use larder_proto::digest::Algorithm;
use larder_proto::limits;

use super::profile::read_profile;
use super::text::{parse_size, size};
use super::{AccessArguments, Failure, bars, print, print_json};
use crate::access::AccessError;
use crate::cache::Cache;
use crate::convert::{ConvertError, Referrers, Request, StartLists, convert};
use crate::layer::{LEVEL_DEFAULT, LayerOptions};
use crate::location::Location;
use crate::plan::PlatformFilter;
use crate::report::{Action, Report};

/// What to convert, where to, and how.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image to convert.
    source: Location,
    /// Where to put the result; a name that is there is replaced at the very end.
    #[arg(value_name = "DEST")]
    destination: Location,
    /// Only this platform, such as linux/amd64; may be given several times [default: all].
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<PlatformFilter>,
    /// Compression level, 1 to 19.
    #[arg(long, default_value_t = LEVEL_DEFAULT, value_name = "N")]
    level: i32,
    /// Size of the chunks that are fetched and verified at a time, such as 128K or 1M;
    /// 64K to 4M, a multiple of 512.
    #[arg(long, default_value_t = u64::from(limits::CHUNK_TARGET_DEFAULT), value_parser = parse_size, value_name = "BYTES")]
    chunk_size: u64,
    /// Digests of chunks; sha256 where a policy asks for it.
    #[arg(long, value_enum, default_value_t = DigestAlgorithm::Blake3)]
    digest_algorithm: DigestAlgorithm,
    /// Threads that compress [default: one per processor]. The result does not depend on it.
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    jobs: Option<NonZero<usize>>,
    /// SBOMs and other artifacts that refer to the image: copy them to the result, or leave them.
    /// Signatures are never copied: they sign another digest.
    #[arg(long, value_enum, default_value_t = ReferrersArgument::Skip)]
    referrers: ReferrersArgument,
    /// Convert every layer, even if its result is remembered or already there.
    #[arg(long)]
    no_cache: bool,
    /// Do not list what a start reads: nodes then fetch nothing before it is asked for.
    #[arg(long, conflicts_with = "profile")]
    no_start_list: bool,
    /// List what this profile says that a start reads, instead of what can be worked out from the image;
    /// `larder-snapshotter profile export` writes one.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    pub(super) access: AccessArguments,
}

/// Threads that may be asked for: more than any machine has processors to gain from, and few
/// enough that a typing error does not exhaust it.
const JOBS_MAX: usize = 1024;

fn parse_jobs(text: &str) -> Result<NonZero<usize>, String> {
    let jobs = text.parse::<NonZero<usize>>().ok();
    jobs.filter(|jobs| jobs.get() <= JOBS_MAX)
        .ok_or_else(|| format!("it is a number from 1 to {JOBS_MAX}"))
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DigestAlgorithm {
    Blake3,
    Sha256,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReferrersArgument {
    Copy,
    Skip,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let images = [&arguments.source, &arguments.destination];
    let access = arguments.access.access(&images).await?;
    let json = arguments.access.json;
    let request = request(arguments)?;
    let report = convert(&request, &access, bars::progress(json)).await;
    let report = report.map_err(|error| match error {
        ConvertError::Access(error @ AccessError::NoDestination { .. }) => {
            Failure::Usage(error.to_string())
        }
        error => error.into(),
    })?;
    if json {
        print_json(&report)
    } else {
        for manifest in &report.manifests {
            if let Some(reason) = &manifest.copied {
                eprintln!("manifest {} copied: {reason}", manifest.source);
            }
        }
        print(summary(&report).as_bytes())
    }
}

fn request(arguments: Arguments) -> Result<Request, Failure> {
    let algorithm = match arguments.digest_algorithm {
        DigestAlgorithm::Blake3 => Algorithm::Blake3,
        DigestAlgorithm::Sha256 => Algorithm::Sha256,
    };
    let options = LayerOptions::new(arguments.level, arguments.chunk_size, algorithm)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let one = NonZero::<usize>::MIN;
    Ok(Request {
        source: arguments.source,
        destination: arguments.destination,
        platforms: arguments.platforms,
        options,
        jobs: arguments
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(one)),
        referrers: match arguments.referrers {
            ReferrersArgument::Copy => Referrers::Copy,
            ReferrersArgument::Skip => Referrers::Skip,
        },
        reuse: !arguments.no_cache,
        cache: if arguments.no_cache {
            Cache::new(None, &options)
        } else {
            Cache::of_user(&options)
        },
        start: match &arguments.profile {
            _ if arguments.no_start_list => StartLists::None,
            Some(path) => StartLists::Profile(Arc::new(read_profile(path)?.0)),
            None => StartLists::WorkedOut,
        },
    })
}

fn summary(report: &Report) -> String {
    let ratio = report.size_after as f64 / (report.size_before.max(1)) as f64;
    // First what can be given to other commands; only registries name images by digest.
    let mut lines = match report.destination.parse() {
        Ok(Location::Registry(_)) => vec![format!("{}@{}", report.destination, report.digest)],
        _ => vec![
            report.destination.clone(),
            format!("digest: {}", report.digest),
        ],
    };
    lines.push(format!(
        "layers: {} converted, {} reused, {} copied; {} -> {} ({:.0} %); {} sent; {:.1} s",
        report.count(Action::Converted),
        report.count(Action::Reused),
        report.count(Action::Copied),
        size(report.size_before),
        size(report.size_after),
        ratio * 100.0,
        size(report.uploaded),
        report.seconds,
    ));
    lines.join("\n") + "\n"
}
