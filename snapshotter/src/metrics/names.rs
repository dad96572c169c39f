//! Every metric: its name with its unit, its labels, and what it tells. `docs/METRICS.md` has the
//! same table, and a test holds the two together.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// One metric. The unit and, for counters, `_total` are added to `base`.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) base: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) kind: MetricType,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

impl Name {
    const fn gauge(base: &'static str, help: &'static str) -> Self {
        Self::new(base, MetricType::Gauge, help)
    }

    const fn counter(base: &'static str, help: &'static str) -> Self {
        Self::new(base, MetricType::Counter, help)
    }

    /// Durations, seconds.
    const fn durations(base: &'static str, help: &'static str) -> Self {
        Self::new(base, MetricType::Histogram, help).in_unit(Unit::Seconds)
    }

    const fn new(base: &'static str, kind: MetricType, help: &'static str) -> Self {
        Self {
            base,
            unit: None,
            kind,
            labels: &[],
            help,
        }
    }

    const fn in_unit(mut self, unit: Unit) -> Self {
        // Nothing was there that would have to be dropped.
        std::mem::forget(self.unit.replace(unit));
        self
    }

    const fn by(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }

    /// As it is scraped: of a histogram, the name its series begin with.
    #[cfg(test)]
    pub(super) fn full(&self) -> String {
        let unit = self.unit.as_ref();
        let unit = unit.map_or(String::new(), |unit| format!("_{}", unit.as_str()));
        let total = matches!(self.kind, MetricType::Counter);
        let total = if total { "_total" } else { "" };
        format!("{}{unit}{total}", self.base)
    }
}

pub(super) const BUILD: Name = Name::gauge(
    "larder_build_info",
    "1; the labels say which program this is, and which file system shows layers.",
)
.by(&["version", "driver"]);

pub(super) const STARTED: Name = Name::gauge(
    "larder_start_time",
    "When this process started, since 1970: each change is a restart.",
)
.in_unit(Unit::Seconds);

pub(super) const OLD_CONFIGURATION: Name = Name::gauge(
    "larder_old_configuration",
    "1 while the configuration file cannot be used and the process runs with the last one that could.",
);

pub(super) const TAKEOVERS: Name = Name::counter(
    "larder_takeovers",
    "Daemons that went on with what one before served, by how that had ended: killed, failed, \
     replaced (in order, as for an upgrade) or unknown. Counted across daemons, from a full start on.",
)
.by(&["cause"]);

pub(super) const LOGGED: Name = Name::counter(
    "larder_log_events",
    "Lines logged, by level: warn or error.",
)
.by(&["level"]);

pub(super) const SNAPSHOTS: Name = Name::gauge(
    "larder_snapshots",
    "Snapshots, by kind: committed, active (of containers) or view.",
)
.by(&["kind"]);

pub(super) const DATABASE: Name = Name::gauge(
    "larder_database",
    "What the database of snapshots takes on the disk, as du counts it.",
)
.in_unit(Unit::Bytes);

pub(super) const LAYERS: Name = Name::gauge(
    "larder_layers",
    "Layers of images, by state: lazy, complete, eager (unpacked by containerd), quarantined or lost (being fetched again).",
)
.by(&["state"]);

pub(super) const LAYER_LENGTH: Name = Name::gauge(
    "larder_layers_length",
    "Bytes of the lazily loaded layers, were all of them here.",
)
.in_unit(Unit::Bytes);

pub(super) const LAYER_PRESENT: Name = Name::gauge(
    "larder_layers_present",
    "Of those, bytes that are on this node.",
)
.in_unit(Unit::Bytes);

pub(super) const CACHING_STOPPED: Name = Name::gauge(
    "larder_caching_stopped",
    "1 while fetched bytes are served and not kept: the disk is full or fails.",
);

pub(super) const DISK_FREE: Name = Name::gauge(
    "larder_disk_free",
    "Free space where the root directory is, as df shows it.",
)
.in_unit(Unit::Bytes);

pub(super) const DISK_FLOOR: Name = Name::gauge(
    "larder_disk_floor",
    "What min_free_percent is there: with less free space, nothing that is fetched is kept.",
)
.in_unit(Unit::Bytes);

pub(super) const STORE: Name = Name::gauge(
    "larder_store",
    "What the store takes on the disk, by part: data (chunks of layers) or overhead (indexes, \
     metadata, records).",
)
.in_unit(Unit::Bytes)
.by(&["part"]);

pub(super) const STORE_LIMIT: Name = Name::gauge(
    "larder_store_limit",
    "What it may take, by store_bytes_max; 0 where there is no limit.",
)
.in_unit(Unit::Bytes);

pub(super) const STORE_EVICTABLE: Name = Name::gauge(
    "larder_store_evictable",
    "Of its data, what could be evicted, at once or when it is cold.",
)
.in_unit(Unit::Bytes);

pub(super) const PREPARES: Name = Name::counter(
    "larder_prepares",
    "Prepare calls, by outcome: lazy, eager (a layer that containerd unpacks; reason says why) or \
     plain (for a container).",
)
.by(&["outcome", "reason"]);

pub(super) const PREPARE_DURATION: Name = Name::durations(
    "larder_prepare_duration",
    "How long Prepare took, by outcome.",
)
.by(&["outcome"]);

pub(super) const READ_DURATION: Name = Name::durations(
    "larder_read_duration",
    "How long a read of the kernel took, by where its bytes were found: store or source. Failed \
     reads are among the latter.",
)
.by(&["found"]);

pub(super) const READ_BYTES: Name = Name::counter(
    "larder_read",
    "Bytes answered to reads. What the kernel has cached, it does not ask for again.",
)
.in_unit(Unit::Bytes);

pub(super) const READS_WAITING: Name = Name::gauge(
    "larder_reads_waiting",
    "Reads that wait for their bytes now.",
);

pub(super) const READS_FAILED: Name = Name::counter(
    "larder_reads_failed",
    "Reads that failed with EIO, by cause: deadline, refused (the registry's credentials), disk or \
     shutdown.",
)
.by(&["cause"]);

pub(super) const READS_SLOW: Name = Name::counter(
    "larder_reads_slow",
    "Reads slower than slow_read_seconds, by what took the time: queued, network, retry, \
     verification or disk.",
)
.by(&["cause"]);

pub(super) const PROFILES: Name = Name::gauge(
    "larder_profiles",
    "Images of which it is known what a start reads.",
);

pub(super) const PROFILE_STARTS: Name = Name::counter(
    "larder_profile_starts",
    "First starts on layers that came anew, by outcome: recorded (there was no profile), matched (it \
     went by its profile) or replaced (it read other things, which are its profile now).",
)
.by(&["outcome"]);

pub(super) const PROFILE_CHUNKS: Name = Name::counter(
    "larder_profile_chunks",
    "Chunks of starts that had a profile: hit (in the profile and read), idle (in the profile and not \
     read) or missed (read and not in the profile).",
)
.by(&["found"]);

pub(super) const PROFILE_LOOK_UPS: Name = Name::counter(
    "larder_profile_look_ups",
    "Looks for a profile that is attached to an image in its registry, by outcome: used, absent, unfit \
     (garbage, or of another image) or failed (the registry did not tell).",
)
.by(&["outcome"]);

pub(super) const SOURCE_REQUESTS: Name = Name::counter(
    "larder_source_requests",
    "Ranges of layers asked for, by what came of it: delivered, absent, refused, failed or silent.",
)
.by(&["outcome"]);

pub(super) const FETCHED: Name = Name::counter(
    "larder_fetched",
    "Bytes of layers that came and were right, by who sent them: the registry or a mirror of it. \
     The first 32 hosts are told apart, the rest is \"other\".",
)
.in_unit(Unit::Bytes)
.by(&["sender", "host"]);

pub(super) const CHUNKS_REJECTED: Name = Name::counter(
    "larder_chunks_rejected",
    "Chunks that came and were wrong, by who sent them.",
)
.by(&["sender", "host"]);

pub(super) const CHUNKS_DAMAGED: Name = Name::counter(
    "larder_chunks_damaged",
    "Chunks on this node's disk that were damaged, and were fetched again.",
);

pub(super) const LAYERS_QUARANTINED: Name = Name::counter(
    "larder_layers_quarantined",
    "Layers whose index was found to lie since the start.",
);

pub(super) const EVENTS: Name = Name::counter(
    "larder_containerd_events",
    "Events published through containerd, by outcome: published or failed.",
)
.by(&["outcome"]);

pub(super) const REGISTRY_REQUESTS: Name = Name::counter(
    "larder_registry_requests",
    "HTTP requests to registries, mirrors and where they redirect to, by status; none where no \
     answer came.",
)
.by(&["status"]);

pub(super) const REGISTRY_RETRIES: Name = Name::counter(
    "larder_registry_retries",
    "Calls to registries that were begun again after a failure.",
);

pub(super) const TOKEN_REQUESTS: Name = Name::counter(
    "larder_token_requests",
    "Requests to token servers, by outcome: granted or failed.",
)
.by(&["outcome"]);

/// All of them, in the order of the page.
#[cfg(test)]
pub(super) const ALL: &[&Name] = &[
    &BUILD,
    &STARTED,
    &OLD_CONFIGURATION,
    &TAKEOVERS,
    &LOGGED,
    &SNAPSHOTS,
    &DATABASE,
    &LAYERS,
    &LAYER_LENGTH,
    &LAYER_PRESENT,
    &CACHING_STOPPED,
    &DISK_FREE,
    &DISK_FLOOR,
    &STORE,
    &STORE_LIMIT,
    &STORE_EVICTABLE,
    &PREPARES,
    &PREPARE_DURATION,
    &READ_DURATION,
    &READ_BYTES,
    &READS_WAITING,
    &READS_FAILED,
    &READS_SLOW,
    &PROFILES,
    &PROFILE_STARTS,
    &PROFILE_CHUNKS,
    &PROFILE_LOOK_UPS,
    &SOURCE_REQUESTS,
    &FETCHED,
    &CHUNKS_REJECTED,
    &CHUNKS_DAMAGED,
    &LAYERS_QUARANTINED,
    &EVENTS,
    &REGISTRY_REQUESTS,
    &REGISTRY_RETRIES,
    &TOKEN_REQUESTS,
];
