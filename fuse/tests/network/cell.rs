//! One cell of the matrix: one fault, met at one moment.

use std::path::Path;
use std::time::{Duration, Instant};

use larder_fuse::{DataPlane, Layer};
use larder_proto::access::Access;
use larder_test_support::layer::LayerFixture;
use larder_test_support::noise::noise;
use larder_test_support::registry::{Fault, On};
use larder_test_support::tar::{Entry, TarBuilder};

use crate::log;
use crate::rows::{Expected, Row};
use crate::site::{DEADLINE, Site};

/// What a read may take longer than its deadline before it counts as late: what a busy machine adds. The
/// deadline itself is kept to the millisecond where the clock is a test's, see `fuse/src/fetch/tests.rs`.
pub(crate) const BUSY: Duration = Duration::from_secs(10);

/// How long reads may take to heal after a fault has ended.
///
/// A source that said no is asked again after one deadline, and the rest heals within a few seconds; the
/// others are a busy machine's.
pub(crate) const HEALED_MAX: Duration = Duration::from_secs(45);

/// When a fault is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// While Prepare fetches the index.
    Index,
    /// By the first read of a mounted layer.
    FirstByte,
    /// In the middle of the body of a chunk.
    MidBody,
    /// While what another start read is fetched, before the first read.
    Profile,
    /// While the layer is completed in the background.
    Background,
}

impl Column {
    pub(crate) const ALL: [Self; 5] = [
        Self::Index,
        Self::FirstByte,
        Self::MidBody,
        Self::Profile,
        Self::Background,
    ];
}

/// How long a replay has met the fault when the reader comes: long enough to be under way, and to have failed
/// where that is quick.
const REPLAYED_FOR: Duration = Duration::from_millis(300);

/// All of a small layer, and more.
fn profile() -> Vec<Access> {
    let access = |chunk: u32| Access {
        micros: chunk.into(),
        chunk,
    };
    (0..8).map(access).collect()
}

/// What came of the action that met the fault.
type Outcome = Result<(), String>;

/// One cell.
pub(crate) struct Cell<'a> {
    pub(crate) row: &'a Row,
    pub(crate) column: Column,
    pub(crate) plane: &'a DataPlane,
    /// An empty directory of its own.
    pub(crate) place: &'a Path,
    pub(crate) number: u64,
}

/// The name of a cell, by which a failure is found again.
pub(crate) fn name(row: &Row, column: Column) -> String {
    format!("{} × {column:?}", row.name)
}

impl Cell<'_> {
    /// Brings the fault on, looks at what comes of it, ends it, and sees things heal.
    pub(crate) async fn run(&self) -> Result<(), String> {
        // One chunk: what becomes of a read that the kernel makes several requests of stands in `large`.
        let data = noise(self.number, 60_000);
        let tar = TarBuilder::new()
            .entry(Entry::file("data", &*data))
            .finish();
        let site = Site::new(self.row.way, LayerFixture::new(tar));
        let begun = Instant::now();
        let (outcome, layer) = if self.column == Column::Index {
            self.row.arm(&site);
            let begun = Instant::now();
            let added = self.plane.add_layer(site.spec()).await;
            in_time(begun)?;
            match added {
                Ok(layer) => (Ok(()), Some(layer)),
                Err(error) => (Err(error.to_string()), None),
            }
        } else {
            let layer = self.add(&site).await?;
            site.registry.clear_requests();
            (self.meet(&site, &layer, &data).await?, Some(layer))
        };
        let asked = site.registry.requests().len();
        self.judge(&site, outcome)?;
        let most = self.row.requests_max
            + match self.column {
                // The one that was broken in the middle came before the fault.
                Column::MidBody => 1,
                // What failed for nobody is tried once more for the reader.
                Column::Profile => self.row.requests_max,
                _ => 0,
            };
        if asked > most {
            let asked = format!("{asked} requests in {:?}", begun.elapsed());
            return Err(format!("{asked}, at most {most}"));
        }
        site.registry.clear_faults();
        site.pass_time();
        let layer = match layer {
            Some(layer) => layer,
            None => self.add(&site).await?,
        };
        self.heal(&layer, &data).await?;
        if site.leaks() {
            return Err("credentials were shown to another host".into());
        }
        self.take_down(layer).await
    }

    /// Adds the layer while nothing is wrong, within the time to heal.
    async fn add(&self, site: &Site) -> Result<Layer, String> {
        let begun = Instant::now();
        loop {
            match self.plane.add_layer(site.spec()).await {
                Ok(layer) => return Ok(layer),
                Err(error) if begun.elapsed() > HEALED_MAX => {
                    return Err(format!("the index does not heal: {error}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Does what meets the fault, with a layer that is there.
    async fn meet(&self, site: &Site, layer: &Layer, data: &[u8]) -> Result<Outcome, String> {
        if self.column == Column::Background {
            self.row.arm(site);
            return Ok(layer.fetch_all().await.map_err(|error| error.to_string()));
        }
        layer.mount(self.place, &[]).await.unwrap();
        if self.column == Column::MidBody {
            site.registry.fault_times(1, On::Blobs, Fault::StallMidBody);
        } else {
            self.row.arm(site);
        }
        if self.column == Column::Profile {
            self.plane.replay(layer, &profile());
            tokio::time::sleep(REPLAYED_FOR).await;
        }
        let begun = Instant::now();
        let path = self.place.join("data");
        let read = tokio::task::spawn_blocking(move || std::fs::read(path));
        if self.column == Column::MidBody {
            while site.registry.blob_bytes_sent() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                in_time(begun)?;
            }
            self.row.arm(site);
            site.registry.break_connections();
        }
        let read = tokio::time::timeout(DEADLINE + BUSY, read).await;
        let read = read.map_err(|_| "the read hangs")?.unwrap();
        in_time(begun)?;
        Ok(match read {
            Ok(bytes) if bytes == data => Ok(()),
            Ok(_) => return Err("WRONG BYTES".into()),
            Err(error) if error.raw_os_error() == Some(5) => Err(Self::logged(site)),
            Err(error) => return Err(format!("not EIO but {error}")),
        })
    }

    /// What the log says of the reads that failed.
    fn logged(site: &Site) -> String {
        log::complaints(&site.fixture.digest).join("\n")
    }

    /// Compares an outcome with what must come of the row.
    fn judge(&self, site: &Site, outcome: Outcome) -> Result<(), String> {
        let expected = match self.row.expected {
            Expected::FailsAtFirst(reasons) if self.column == Column::Index => {
                Expected::Fails(reasons)
            }
            Expected::FailsAtFirst(_) => Expected::Served,
            other => other,
        };
        match (expected, outcome) {
            (Expected::Served, Ok(())) => {
                let complaints = log::complaints(&site.fixture.digest);
                if complaints.is_empty() {
                    return Ok(());
                }
                Err(format!("complaints although all went well: {complaints:?}"))
            }
            (Expected::Served, Err(why)) => Err(format!("failed: {why}")),
            (_, Ok(())) => Err("served, although nobody could".into()),
            (Expected::Fails(reasons) | Expected::FailsAtFirst(reasons), Err(why)) => {
                if reasons.iter().any(|reason| why.contains(reason)) {
                    return Ok(());
                }
                Err(format!("the reason is not told: {why}"))
            }
        }
    }

    /// Reads everything, again and again until it works; any wrong byte is final.
    async fn heal(&self, layer: &Layer, data: &[u8]) -> Result<(), String> {
        let path = self.place.join("data");
        if matches!(self.column, Column::Index | Column::Background) {
            layer.mount(self.place, &[]).await.unwrap();
        }
        let begun = Instant::now();
        loop {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
            match read.unwrap() {
                Ok(bytes) if bytes == data => return Ok(()),
                Ok(_) => return Err("WRONG BYTES after the fault".into()),
                Err(error) if begun.elapsed() > HEALED_MAX => {
                    let why = layer.status().sources[0].last_failure.clone();
                    return Err(format!("does not heal: {error}; {why:?}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn take_down(&self, layer: Layer) -> Result<(), String> {
        let id = layer.id();
        let unmounted = self.plane.unmount(self.place).await;
        unmounted.map_err(|error| format!("cannot unmount: {error}"))?;
        drop(layer);
        let removed = self.plane.remove_layer(&id).await;
        removed.map_err(|error| format!("cannot remove: {error}"))
    }
}

/// Fails if what began at `begun` has taken longer than a read may.
fn in_time(begun: Instant) -> Result<(), String> {
    let waited = begun.elapsed();
    if waited > DEADLINE + BUSY {
        return Err(format!("took {waited:?}, the deadline is {DEADLINE:?}"));
    }
    Ok(())
}
