//! `status`: what the daemon does, layer by layer.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::anyhow;
#[cfg(test)]
use larder_proto::grpc::control::Disagreement;
use larder_proto::grpc::control::{
    Layer, Mounted, OldConfiguration, Profile, ProfileStart, Sender, Source, StatusResponse, Store,
};
use larder_proto::moment::moment;
use serde_json::json;
use tonic::{Code, Status};

use super::asked::{self, asked};
use super::output::{print, print_json};
use crate::config::Config;
use crate::control::LAYER_STATES;

/// Version of what `--json` prints. Fields are added without a new one; it grows when one goes or
/// means something else.
const FORMAT: u32 = 1;

/// Layers up to which each is told in full without being asked: two screens.
const TOLD_IN_FULL: usize = 12;

/// Asks the process that owns `root`, and prints what it says.
pub(super) async fn status(root: &Path, as_json: bool, verbose: bool) -> anyhow::Result<()> {
    let status = ask(root).await.map_err(|status| refused(root, &status))?;
    if as_json {
        print_json(&object(&status))
    } else if verbose {
        print(&in_words(&status, usize::MAX))
    } else {
        print(&text(&status))
    }
}

/// What the process that owns `root` says of itself.
pub(super) async fn ask(root: &Path) -> Result<StatusResponse, Status> {
    asked(root, async |mut control| control.status(()).await).await
}

/// What the daemon's refusal, or its absence, means.
pub(super) fn refused(root: &Path, status: &Status) -> anyhow::Error {
    refused_by(root, status, "--root or --config")
}

/// The same of a command that another root can be named to by `flags`.
pub(super) fn refused_by(root: &Path, status: &Status, flags: &str) -> anyhow::Error {
    let (socket, said) = (Config::control(root), status.message());
    if let Some(unserved) = asked::unserved(status) {
        return anyhow!(unserved);
    }
    if status.code() == Code::Unavailable {
        return anyhow!(
            "no daemon answers at {} ({said}): is it running, and is {} its root? Name another with \
             {flags}",
            socket.display(),
            root.display()
        );
    }
    anyhow!("ask the daemon at {}: {said}", socket.display())
}

fn text(status: &StatusResponse) -> String {
    in_words(status, TOLD_IN_FULL)
}

/// What people read. Of more than `in_full` layers, those that are well get a line each.
fn in_words(status: &StatusResponse, in_full: usize) -> String {
    let mut lines = vec![
        format!("larder-snapshotter {}", status.version),
        format!("driver: {} ({})", status.driver, status.driver_reason),
    ];
    lines.extend(status.old_configuration.as_ref().map(old_configuration));
    if !status.caching_stopped.is_empty() {
        let since = moment(status.caching_stopped_since);
        lines.push(format!(
            "caching: stopped since {since}, {}",
            status.caching_stopped
        ));
    }
    if status.containers_lost > 0 {
        let when = moment(status.containers_lost);
        lines.push(format!(
            "containers: restart those that have run since before {when}: the daemon and its supervisor \
             were both down, and their files with them"
        ));
    }
    if let Some(found) = &status.disagreement {
        let since = moment(found.since);
        lines.push(format!("snapshots: since {since}, {}", found.why));
    }
    lines.extend(status.store.as_ref().map(store));
    if status.layers_quarantined > 0 {
        let lies = status.layers_quarantined;
        lines.push(format!("quarantined since the start: {lies}"));
    }
    lines.extend(profiles(&status.profiles));
    for image in &status.mounted {
        lines.push(format!("mounted: {} at {}", image.reference, image.target));
    }
    let count = |state: &str| {
        let layers = status.layers.iter();
        layers.filter(|layer| layer.state == state).count()
    };
    let counts = LAYER_STATES.map(|state| (state, count(state)));
    let counts = counts
        .iter()
        .filter(|(state, count)| *count > 0 || !matches!(*state, "quarantined" | "lost"));
    let counts: Vec<_> = counts
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    lines.push(format!("layers: {}", counts.join(", ")));
    let detailed = status.layers.len() <= in_full;
    let layers = status.layers.iter();
    let (full, short): (Vec<_>, Vec<_>) = layers.partition(|layer| detailed || wants_a_look(layer));
    for layer in full {
        // Images mounted by hand have no snapshots, hence no chains.
        let name = [&layer.chain_id, &layer.blob, &layer.snapshot];
        let name = name.into_iter().find(|name| !name.is_empty());
        let name = name.map_or("", String::as_str);
        lines.push(format!("{:<8} {name} {}", layer.state, detail(layer)));
        if !layer.chain_id.is_empty() && !layer.blob.is_empty() {
            lines.push(format!("         layer {}", layer.blob));
        }
        if layer.state != "eager" {
            lines.push(format!("         {}", on_disk(layer)));
        }
        for source in &layer.sources {
            lines.extend(deliveries(source));
            if !source.failure.is_empty() {
                lines.push(format!("         its last failure: {}", source.failure));
            }
        }
    }
    lines.extend(short.iter().map(|layer| in_a_line(layer)));
    lines.extend(brought(&short));
    lines.join("\n") + "\n"
}

/// Whether something about a layer is not as it should be.
fn wants_a_look(layer: &Layer) -> bool {
    let failed = layer.sources.iter().any(|one| !one.failure.is_empty());
    failed || !matches!(layer.state.as_str(), "lazy" | "complete")
}

fn in_a_line(layer: &Layer) -> String {
    let present = size(layer.bytes_present);
    let total = size(layer.bytes_total);
    let name = if layer.blob.is_empty() {
        &layer.snapshot
    } else {
        &layer.blob
    };
    format!("{:<8} {present:>10} of {total:>10}  {name}", layer.state)
}

/// Who delivered how much to all of `layers`, the most first.
fn brought(layers: &[&Layer]) -> Vec<String> {
    let mut sums: BTreeMap<&str, Source> = BTreeMap::new();
    for source in layers.iter().flat_map(|layer| &layer.sources) {
        let sum = sums.entry(&source.name).or_insert_with(|| Source {
            name: source.name.clone(),
            ..Source::default()
        });
        sum.bytes_fetched += source.bytes_fetched;
        for sender in &source.senders {
            match sum.senders.iter_mut().find(|one| one.host == sender.host) {
                Some(known) => known.bytes_fetched += sender.bytes_fetched,
                None => sum.senders.push(sender.clone()),
            }
        }
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_by_key(|sum| std::cmp::Reverse(sum.bytes_fetched));
    sums.iter().flat_map(deliveries).collect()
}

/// What the store takes, in one line.
fn store(store: &Store) -> String {
    let limit = match store.limit {
        0 => "no limit".to_owned(),
        limit => format!("limit {}", size(limit)),
    };
    let removed = match store.removed {
        0 => String::new(),
        removed => format!(" {} of removed layers that are open,", size(removed)),
    };
    let kept = match store.kept {
        0 => String::new(),
        kept => format!(" {} that no snapshot has,", size(kept)),
    };
    format!(
        "store: {} on disk ({limit}), {} of it evictable, {} pinned,{removed}{kept} {} indexes and records; \
         database {}, profiles {}",
        size(store.total),
        size(store.evictable),
        size(store.pinned),
        size(store.overhead),
        size(store.database),
        size(store.profiles)
    )
}

/// How many images there are profiles of, and how the starts of this process went by them.
fn profiles(all: &[Profile]) -> Vec<String> {
    if all.is_empty() {
        return Vec::new();
    }
    let started = all.iter().filter_map(|one| Some((one, one.latest_start?)));
    let mut lines = vec![format!("profiles: {}", all.len())];
    lines.extend(started.map(|(one, start)| {
        let name = if one.image.is_empty() {
            &one.key
        } else {
            &one.image
        };
        format!("         {name}: {}", start_in_words(&start))
    }));
    lines
}

/// How a start went by its profile.
pub(super) fn start_in_words(start: &ProfileStart) -> String {
    let percent = start.read.saturating_mul(100) / start.planned.max(1);
    format!(
        "hit rate {percent} % ({} of {} chunks), {} more were read",
        start.read, start.planned, start.missed
    )
}

/// A profile, for programs.
pub(super) fn profile_object(profile: &Profile) -> serde_json::Value {
    let start = |start: &ProfileStart| json!({"planned": start.planned, "read": start.read, "missed": start.missed});
    json!({
        "key": profile.key,
        "image": profile.image,
        "layers": profile.layers,
        "chunks": profile.reads,
        "bytes": profile.bytes,
        "used": moment(profile.used),
        "latest_start": profile.latest_start.as_ref().map(start),
    })
}

/// Who delivered how much: the registry itself, and each mirror that stood in for it.
fn deliveries(source: &Source) -> Vec<String> {
    let registry = source.name.split('/').next();
    let from = |bytes, name: &str| format!("         {} from {name} since the start", size(bytes));
    let mirrors = source
        .senders
        .iter()
        .filter(|sender| Some(sender.host.as_str()) != registry);
    let mut lines: Vec<_> = mirrors
        .clone()
        .map(|sender| {
            let name = format!("{}, a mirror of {}", sender.host, source.name);
            from(sender.bytes_fetched, &name)
        })
        .collect();
    let mirrored: u64 = mirrors.map(|sender| sender.bytes_fetched).sum();
    let rest = source.bytes_fetched.saturating_sub(mirrored);
    if rest > 0 || lines.is_empty() {
        lines.push(from(rest, &source.name));
    }
    lines
}

fn detail(layer: &Layer) -> String {
    match layer.state.as_str() {
        "eager" => format!("({})", layer.reason),
        "complete" => format!("all of {}", size(layer.bytes_total)),
        "quarantined" => format!("its index lied: {}", layer.reason),
        "lost" => format!(
            "being fetched again, its files cannot be read: {}",
            layer.reason
        ),
        _ => {
            let (present, total) = (layer.bytes_present, layer.bytes_total);
            let percent = present.saturating_mul(100) / total.max(1);
            format!("{} of {} ({percent} %)", size(present), size(total))
        }
    }
}

/// What a layer takes on the disk, and what keeps it there.
fn on_disk(layer: &Layer) -> String {
    let (data, beside) = (size(layer.data_on_disk), size(layer.beside_on_disk));
    let mut told = vec![format!("{data} on disk, {beside} beside")];
    if layer.last_used > 0 {
        told.push(format!("last read {}", moment(layer.last_used)));
    }
    if !layer.in_use {
        told.push("not in use".to_owned());
    }
    if !layer.pins.is_empty() {
        told.push(format!("pinned as {}", layer.pins.join(", ")));
    }
    told.extend(kept(layer).map(str::to_owned));
    told.join(", ")
}

/// What keeps a layer that no snapshot has.
fn kept(layer: &Layer) -> Option<&'static str> {
    match layer.kept.as_str() {
        "" => None,
        "pinned" => Some("no snapshot has it, its pin keeps it"),
        "keep_removed" => Some("no snapshot has it, keep_removed keeps it"),
        _ => Some("no snapshot has it, it goes soon"),
    }
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// What a daemon runs with whose configuration file cannot be used.
fn old_configuration(old: &OldConfiguration) -> String {
    let (since, why) = (moment(old.since), &old.why);
    format!("configuration: the one of {since}, until this is mended and reloaded: {why}")
}

fn old_object(old: &OldConfiguration) -> serde_json::Value {
    json!({"since": moment(old.since), "why": old.why})
}

fn store_object(store: &Store) -> serde_json::Value {
    json!({
        "limit": (store.limit > 0).then_some(store.limit),
        "total": store.total,
        "data": store.data,
        "overhead": store.overhead,
        "evictable": store.evictable,
        "pinned": store.pinned,
        "removed": store.removed,
        "kept": store.kept,
        "database": store.database,
        "profiles": store.profiles,
    })
}

fn object(status: &StatusResponse) -> serde_json::Value {
    let sender =
        |sender: &Sender| json!({"host": sender.host, "bytes_fetched": sender.bytes_fetched});
    let caching_stopped = (!status.caching_stopped.is_empty()).then(
        || json!({"why": status.caching_stopped, "since": moment(status.caching_stopped_since)}),
    );
    let lost = (status.containers_lost > 0).then(|| moment(status.containers_lost));
    let layer = |layer: &Layer| {
        let sources: Vec<_> = layer
            .sources
            .iter()
            .map(|source| {
                json!({
                    "name": source.name,
                    "bytes_fetched": source.bytes_fetched,
                    "failure": source.failure,
                    "senders": source.senders.iter().map(sender).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "snapshot": layer.snapshot,
            "chain_id": layer.chain_id,
            "state": layer.state,
            "reason": layer.reason,
            "blob": layer.blob,
            "bytes_total": layer.bytes_total,
            "bytes_present": layer.bytes_present,
            "index": layer.index,
            "data_on_disk": layer.data_on_disk,
            "beside_on_disk": layer.beside_on_disk,
            "in_use": layer.in_use,
            "last_used": (layer.last_used > 0).then(|| moment(layer.last_used)),
            "pins": layer.pins,
            "proven": layer.proven,
            "kept": (!layer.kept.is_empty()).then_some(&layer.kept),
            "sources": sources,
        })
    };
    let mounted = |image: &Mounted| json!({"reference": image.reference, "target": image.target});
    json!({
        "format": FORMAT,
        "version": status.version,
        "driver": status.driver,
        "driver_reason": status.driver_reason,
        "old_configuration": status.old_configuration.as_ref().map(old_object),
        "caching_stopped": caching_stopped,
        "containers_lost": lost,
        "store": status.store.as_ref().map(store_object),
        "profiles": status.profiles.iter().map(profile_object).collect::<Vec<_>>(),
        "disagreement": status.disagreement.as_ref().map(|found| json!({
            "unknown": found.unknown,
            "absent": found.absent,
            "since": moment(found.since),
            "why": found.why,
        })),
        "layers_proven": status.layers_proven,
        "layers_quarantined": status.layers_quarantined,
        "mounted": status.mounted.iter().map(mounted).collect::<Vec<_>>(),
        "layers": status.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(state: &str, reason: &str, bytes_present: u64) -> Layer {
        Layer {
            state: state.into(),
            reason: reason.into(),
            bytes_present,
            bytes_total: 2_500_000,
            ..Layer::default()
        }
    }

    /// That of a daemon that is well: nothing is told in such words, or in such a field.
    fn untold(words: &str, field: &str) -> StatusResponse {
        let status = StatusResponse::default();
        assert!(!text(&status).contains(words));
        assert!(object(&status)[field].is_null());
        status
    }

    /// Promise: a daemon that is not there is told in one sentence with what to do, and no more.
    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_told_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let refused = status(dir.path(), false, false).await.unwrap_err();
        let words = super::super::in_words(&refused);
        assert!(words.contains("control.sock"), "{words}");
        assert!(words.contains("--root"), "{words}");
        assert!(!words.contains("transport"), "{words}");
    }

    /// Promise: `status` says that nothing is cached, why and since when, to people and programs; and
    /// nothing of it while all is well.
    #[test]
    fn a_stop_of_caching_is_told_with_its_beginning() {
        let mut status = untold("caching", "caching_stopped");
        status.caching_stopped = "the disk is full: free some".into();
        status.caching_stopped_since = 1_800_000_000;
        let said = "caching: stopped since 2027-01-15T08:00:00Z, the disk is full: free some\n";
        assert!(text(&status).contains(said), "{}", text(&status));
        let stopped = &object(&status)["caching_stopped"];
        assert_eq!(stopped["why"], "the disk is full: free some");
        assert_eq!(stopped["since"], "2027-01-15T08:00:00Z");
    }

    /// Promise: that a daemon runs with an old configuration is told with the reason, to people and programs; and
    /// nothing of it otherwise.
    #[test]
    fn an_old_configuration_is_told_with_what_is_wrong_with_the_new_one() {
        let mut status = untold("configuration:", "old_configuration");
        status.old_configuration = Some(OldConfiguration {
            since: 1_800_000_000,
            why: "configuration /x, line 2: a mistake".into(),
        });
        let said = "configuration: the one of 2027-01-15T08:00:00Z, until this is mended and reloaded: \
                    configuration /x, line 2: a mistake\n";
        assert!(text(&status).contains(said), "{}", text(&status));
        let old = &object(&status)["old_configuration"];
        assert_eq!(old["since"], "2027-01-15T08:00:00Z");
        assert_eq!(old["why"], "configuration /x, line 2: a mistake");
    }

    /// Promise: that containers have to be restarted is told with the moment, to people and programs;
    /// and nothing of it otherwise.
    #[test]
    fn containers_that_must_be_restarted_are_told() {
        let mut status = untold("containers:", "containers_lost");
        status.containers_lost = 1_800_000_000;
        let said = "restart those that have run since before 2027-01-15T08:00:00Z";
        assert!(text(&status).contains(said), "{}", text(&status));
        assert_eq!(object(&status)["containers_lost"], "2027-01-15T08:00:00Z");
    }

    /// Promise: what containerd and the root directory do not agree on is told with its moment and what to
    /// do, to people and programs; and nothing of it otherwise.
    #[test]
    fn a_wiped_side_is_told_with_what_to_do() {
        let mut status = untold("snapshots:", "disagreement");
        status.disagreement = Some(Disagreement {
            unknown: 3,
            since: 1_800_000_000,
            why: "containerd does not know 3 snapshots".into(),
            ..Disagreement::default()
        });
        let said = "snapshots: since 2027-01-15T08:00:00Z, containerd does not know 3 snapshots\n";
        assert!(text(&status).contains(said), "{}", text(&status));
        let found = &object(&status)["disagreement"];
        assert_eq!(
            (&found["unknown"], &found["absent"]),
            (&json!(3), &json!(0))
        );
        assert_eq!(found["why"], "containerd does not know 3 snapshots");
    }

    /// Promise: of many layers, each that is well takes a line, and those that are not are told in
    /// full; who delivered is told in sum; `--verbose` tells everything.
    #[test]
    fn a_hundred_layers_take_a_line_each() {
        let source = |failure: &str| Source {
            name: "r.test/team/app".into(),
            bytes_fetched: 1_000_000,
            failure: failure.into(),
            ..Source::default()
        };
        let mut layers: Vec<_> = (0..100)
            .map(|number| Layer {
                chain_id: format!("sha256:chain{number}"),
                blob: format!("sha256:blob{number}"),
                sources: vec![source("")],
                ..layer("lazy", "", 1_250_000)
            })
            .collect();
        layers.push(layer("eager", "no index", 0));
        layers.push(Layer {
            sources: vec![source("it is on fire")],
            ..layer("lazy", "", 0)
        });
        let status = StatusResponse {
            layers,
            ..StatusResponse::default()
        };
        let told = text(&status);
        assert!(
            told.contains("\nlayers: 101 lazy, 0 complete, 1 eager\n"),
            "{told}"
        );
        assert!(
            told.contains("\nlazy         1.2 MB of     2.5 MB  sha256:blob7\n"),
            "{told}"
        );
        assert!(told.contains("(no index)\n"), "{told}");
        assert!(told.contains("its last failure: it is on fire\n"), "{told}");
        assert!(
            told.contains(" 100.0 MB from r.test/team/app since the start\n"),
            "{told}"
        );
        assert!(told.lines().count() < 112, "{told}");
        let everything = in_words(&status, usize::MAX);
        assert!(everything.contains("layer sha256:blob7\n"), "{everything}");
        assert!(everything.lines().count() > 300, "{everything}");
    }

    /// Promise: every field that is documented is printed, and says which form it is of.
    #[test]
    fn documented_fields_are_printed() {
        let status = StatusResponse {
            caching_stopped: "the disk is full".into(),
            store: Some(Store::default()),
            disagreement: Some(Disagreement::default()),
            old_configuration: Some(OldConfiguration::default()),
            mounted: vec![Mounted::default()],
            profiles: vec![Profile {
                latest_start: Some(ProfileStart::default()),
                ..Profile::default()
            }],
            layers: vec![Layer {
                sources: vec![Source {
                    senders: vec![Sender::default()],
                    ..Source::default()
                }],
                ..Layer::default()
            }],
            ..StatusResponse::default()
        };
        let object = object(&status);
        assert_eq!(object["format"], FORMAT);
        let document = include_str!("../../../docs/OPERATIONS.md");
        let section = document.split("## `status --json`").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let fields = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let fields: Vec<_> = fields.filter_map(|line| line.split('`').next()).collect();
        assert!(fields.len() > 15, "{fields:?}");
        for field in fields {
            let pointer = format!("/{}", field.replace("[]", "/0").replace('.', "/"));
            assert!(object.pointer(&pointer).is_some(), "{field} in {object}");
        }
    }

    /// Promise: who looks learns what the store takes and why a layer stays, in one line each.
    #[test]
    fn what_is_on_the_disk_is_told_with_what_keeps_it_there() {
        let mut status = StatusResponse::default();
        assert!(!text(&status).contains("store:"));
        status.store = Some(Store {
            limit: 10_000_000_000,
            total: 2_000_000_000,
            overhead: 20_000_000,
            removed: 3_000_000,
            kept: 4_000_000,
            ..Store::default()
        });
        let kept = |kept: &str| Layer {
            kept: kept.into(),
            ..layer("lazy", "", 0)
        };
        status.layers = vec![
            Layer {
                data_on_disk: 1_000_000,
                last_used: 1_800_000_000,
                pins: vec!["default/r.test/app:1".into()],
                ..layer("lazy", "", 0)
            },
            kept("pinned"),
            kept("keep_removed"),
            kept("passing"),
        ];
        let told = text(&status);
        assert!(
            told.contains("store: 2.0 GB on disk (limit 10.0 GB), 0 bytes of it evictable"),
            "{told}"
        );
        assert!(
            told.contains("3.0 MB of removed layers that are open, 4.0 MB that no snapshot has"),
            "{told}"
        );
        for why in ["its pin keeps it", "keep_removed keeps it", "it goes soon"] {
            let line = format!("not in use, no snapshot has it, {why}\n");
            assert!(told.contains(&line), "{told}");
        }
        let line = "1.0 MB on disk, 0 bytes beside, last read 2027-01-15T08:00:00Z, not in use, \
                    pinned as default/r.test/app:1\n";
        assert!(told.contains(line), "{told}");
        let object = object(&status);
        assert_eq!(object["store"]["limit"], 10_000_000_000_u64);
        assert_eq!(object["layers"][0]["pins"][0], "default/r.test/app:1");
        assert!(object["layers"][0]["kept"].is_null());
        assert_eq!(object["layers"][2]["kept"], "keep_removed");
    }

    /// Promise: how a start went by its profile is told to people and programs; nothing of profiles while there
    /// are none.
    #[test]
    fn the_hit_rate_of_a_start_is_told() {
        let mut status = StatusResponse::default();
        assert!(!text(&status).contains("profiles:"));
        let start = ProfileStart {
            planned: 200,
            read: 150,
            missed: 3,
        };
        status.profiles = vec![
            Profile {
                image: "r.test/app:1".into(),
                latest_start: Some(start),
                ..Profile::default()
            },
            Profile::default(),
        ];
        let told = text(&status);
        let line = "profiles: 2\n         r.test/app:1: hit rate 75 % (150 of 200 chunks), 3 more were read\n";
        assert!(told.contains(line), "{told}");
        let object = object(&status);
        assert_eq!(object["profiles"][0]["latest_start"]["read"], 150);
        assert!(object["profiles"][1]["latest_start"].is_null());
    }

    /// Promise: who delivered is named by its host, mirror or not.
    #[test]
    fn a_mirror_that_delivers_is_named() {
        let sender = |host: &str, bytes_fetched| Sender {
            host: host.into(),
            bytes_fetched,
        };
        let mut source = Source {
            name: "up.test/team/app".into(),
            bytes_fetched: 3000,
            ..Source::default()
        };
        let told = |source: &Source| deliveries(source).join("\n").replace("         ", "");
        assert_eq!(
            told(&source),
            "3.0 kB from up.test/team/app since the start"
        );
        source.senders = vec![sender("m.test:5000", 3000)];
        let mirror = "from m.test:5000, a mirror of up.test/team/app since the start";
        assert_eq!(told(&source), format!("3.0 kB {mirror}"));
        source.senders = vec![sender("up.test", 1000), sender("m.test:5000", 2000)];
        assert_eq!(
            told(&source),
            format!("2.0 kB {mirror}\n1.0 kB from up.test/team/app since the start")
        );
    }

    /// Promise: a line says how far a layer is in words, and why it is not lazy.
    #[test]
    fn every_state_is_told_in_words() {
        for (layer, said) in [
            (layer("lazy", "", 1_250_000), "1.2 MB of 2.5 MB (50 %)"),
            (layer("lazy", "", 0), "0 bytes of 2.5 MB (0 %)"),
            (layer("complete", "", 2_500_000), "all of 2.5 MB"),
            (layer("eager", "no index", 0), "(no index)"),
            (
                layer("lost", "its index is not in the store", 0),
                "being fetched again, its files cannot be read: its index is not in the store",
            ),
            (
                layer("quarantined", "other mode", 9),
                "its index lied: other mode",
            ),
        ] {
            assert_eq!(detail(&layer), said);
        }
        assert_eq!(size(12_300_000_000), "12.3 GB");
        assert_eq!(size(999), "999 bytes");
    }
}
