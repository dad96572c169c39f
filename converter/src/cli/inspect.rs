//! `larder inspect`.

use clap::Args;

use super::text::{counted, size};
use super::{AccessArguments, Failure, print, print_json};
use crate::convert::load;
use crate::inspect::{ImageReport, LayerDetails, inspect};
use crate::location::Location;
use crate::plan::PlatformFilter;
use crate::source::Source;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image.
    image: Location,
    /// Only this platform; may be given several times [default: all].
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<PlatformFilter>,
    #[command(flatten)]
    pub(super) access: AccessArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let access = arguments.access.access(&[&arguments.image]).await?;
    let source = Source::open(&arguments.image, &access).await?;
    let image = load(&source, &arguments.platforms).await?;
    let report = inspect(&source, &image).await;
    if arguments.access.json {
        print_json(&report)
    } else {
        print(text(&report).as_bytes())
    }
}

fn text(report: &ImageReport) -> String {
    let mut lines = vec![
        format!("image     {}", report.digest),
        format!("type      {}", report.media_type),
    ];
    for manifest in &report.manifests {
        let facts = &manifest.facts;
        lines.push(format!("\nmanifest  {}", facts.digest));
        let optional = [
            ("platform", facts.platform.as_ref()),
            ("image ID", Some(&facts.image_id)),
            ("made from", facts.source.as_ref()),
            ("options", manifest.options.as_ref()),
            ("note", manifest.other.as_ref()),
        ];
        let given = optional
            .iter()
            .filter_map(|(name, value)| Some((name, (*value)?)));
        lines.extend(given.map(|(name, value)| format!("{name:<9} {value}")));
        lines.extend(manifest.layers.iter().map(|layer| {
            format!(
                "  {} {:>10}  {}",
                layer.digest,
                size(layer.size),
                form(layer)
            )
        }));
    }
    lines.join("\n") + "\n"
}

/// What a start is expected to read.
fn start(layer: &LayerDetails) -> String {
    match (&layer.start, &layer.problem) {
        (Some(start), _) => {
            let chunks = counted(start.chunks, "chunk");
            format!(", a start reads {chunks}, {}", size(start.stored_bytes))
        }
        (None, Some(problem)) => format!(", BAD: {problem}"),
        (None, None) => String::new(),
    }
}

fn form(layer: &LayerDetails) -> String {
    match (&layer.larder, &layer.absent, &layer.problem) {
        (Some(index), ..) => format!(
            "larder: tar {}, {} of {}, {} files, index {}{}",
            size(index.tar_size),
            counted(index.chunks, "chunk"),
            size(index.chunk_size.into()),
            index.inodes,
            size(index.index_stored_size),
            start(layer),
        ),
        (None, Some(absent), _) => format!("absent: {absent}"),
        (None, None, Some(problem)) => format!("BAD: {problem}"),
        (None, None, None) => layer.media_type.clone(),
    }
}
