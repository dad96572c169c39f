//! `larder check`.

use std::num::NonZero;

use clap::Args;

use super::text::counted;
use super::{AccessArguments, Failure, print, print_json};
use crate::check::{CheckReport, check};
use crate::location::Location;
use crate::plan::PlatformFilter;
use crate::source::Source;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image to check.
    image: Location,
    /// The image it was converted from: same image ID, same layers bit for bit.
    #[arg(long, value_name = "ORIGINAL")]
    against: Option<Location>,
    /// Only this platform; may be given several times [default: all].
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<PlatformFilter>,
    #[command(flatten)]
    pub(super) access: AccessArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let images: Vec<_> = std::iter::once(&arguments.image)
        .chain(&arguments.against)
        .collect();
    let access = arguments.access.access(&images).await?;
    let source = Source::open(&arguments.image, &access).await?;
    let original = match &arguments.against {
        Some(original) => Some(Source::open(original, &access).await?),
        None => None,
    };
    let jobs = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let report = check(&source, original.as_ref(), &arguments.platforms, jobs).await?;
    if arguments.access.json {
        print_json(&report)?;
    } else {
        print(text(&report, arguments.against.as_ref()).as_bytes())?;
    }
    let problems = report.problems().count();
    // The report itself says what; this is for the exit code.
    match report.problems().next() {
        None => Ok(()),
        Some(first) => Err(Failure::Told(format!(
            "{} found: {first}",
            counted(problems, "problem")
        ))),
    }
}

fn text(report: &CheckReport, against: Option<&Location>) -> String {
    let mut lines = vec![format!("image {}", report.digest)];
    for manifest in &report.manifests {
        let facts = &manifest.facts;
        let platform = facts.platform.as_deref().unwrap_or("not an image");
        let (digest, id) = (&facts.digest, &facts.image_id);
        lines.push(format!("manifest {digest} ({platform}), image ID {id}"));
        for layer in &manifest.layers {
            let form = match (layer.problems.is_empty(), layer.larder) {
                (false, _) => "BAD".into(),
                (true, true) => format!("ok, {}", counted(layer.chunks, "chunk")),
                (true, false) => "ok, not converted".into(),
            };
            lines.push(format!("  layer {}: {form}", layer.digest));
        }
    }
    lines.extend(
        report
            .problems()
            .map(|problem| format!("problem: {problem}")),
    );
    let layers = report.manifests.iter().flat_map(|found| &found.layers);
    let lazy = layers.clone().filter(|layer| layer.larder).count();
    let all = counted(layers.count(), "layer");
    lines.push(format!("{lazy} of {all} in Larder's form"));
    if report.problems().next().is_none() {
        let compared = against.map(|original| format!(", and nothing differs from {original}"));
        let compared = compared.unwrap_or_default();
        lines.push(format!("everything is as it should be{compared}"));
    }
    lines.join("\n") + "\n"
}
