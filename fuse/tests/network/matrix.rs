//! The matrix: every fault × {index, first byte, mid-body, profile, background}.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_fuse::{DataPlane, DataPlaneConfig, DriverChoice};
use larder_test_support::on_both_drivers;
use larder_test_support::registry::Fault;

use crate::cell::{Cell, Column, name};
use crate::rows::Row;
use crate::site::{DEADLINE, PASSWORD, certificates};
use crate::{log, rows};

/// Cells that run at once: most of them wait for a deadline.
const CELLS: usize = 32;

/// Unmounts what a failed test left, and deletes it.
pub(crate) struct Scratch(pub(crate) tempfile::TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        let root = self.0.path().canonicalize().unwrap();
        for mount in mounts().unwrap().iter().rev() {
            if mount.target.starts_with(&root) {
                let _ = unmount(&mount.target, Unmount::Lazy);
            }
        }
    }
}

/// A data plane with the deadline of these tests, ten times as short as that of nodes; so long, too, a
/// source is not asked again that has said no.
pub(crate) async fn plane(root: &Path, driver: DriverChoice) -> DataPlane {
    let mut config = DataPlaneConfig::new(root.join("root"));
    config.driver = driver;
    config.read_deadline = DEADLINE;
    config.refusals_last = DEADLINE;
    DataPlane::start(config).await.unwrap()
}

/// Cells that may fail for want of a processor, with so many beside them: each is tried once more, alone, which
/// takes some seconds. What is wrong with the code fails again, or in more of them. On a machine with fifty
/// others waiting for each processor it was nine.
const CROWDED_MAX: usize = 24;

/// A cell that is to run, its place and its number.
type Planned<'a> = (&'a Row, Column, PathBuf, u64);

fn planned<'a>(rows: &'a [Row], driver: DriverChoice, scratch: &Path) -> Vec<Planned<'a>> {
    // `LARDER_CELL=portal` runs what has that in its name.
    let wanted = std::env::var("LARDER_CELL").unwrap_or_default();
    let mut cells = Vec::new();
    for (row_number, row) in rows.iter().enumerate() {
        for (column_number, column) in Column::ALL.into_iter().enumerate() {
            // Below the kernel, both drivers are one: the rows are met once more by its reads.
            let is_met = driver == DriverChoice::Fuse && column != Column::FirstByte;
            if is_met || !name(row, column).contains(wanted.as_str()) {
                continue;
            }
            let number = row_number * Column::ALL.len() + column_number;
            let number = number as u64 + u64::from(driver == DriverChoice::Fuse) * 1_000_000;
            cells.push((row, column, scratch.join(number.to_string()), number));
        }
    }
    cells
}

async fn run<'a>(plane: &DataPlane, planned: Planned<'a>) -> Result<(), (String, Planned<'a>)> {
    let (row, column, place, number) = planned;
    std::fs::create_dir(&place).unwrap();
    let cell = Cell {
        row,
        column,
        plane,
        place: &place,
        number,
    };
    let begun = Instant::now();
    cell.run().await.map_err(|why| {
        let seconds = begun.elapsed().as_secs_f32();
        let told = format!("{} ({seconds:.1} s): {why}", name(row, column));
        let again = (row, column, place.with_extension("again"), number + 500_000);
        (told, again)
    })
}

/// Promise: whatever a registry or the network does, whenever it begins: no read gets a wrong byte or waits
/// beyond its deadline, the requests are counted, the reason is told, credentials stay at home, and when it
/// ends, reads go on by themselves.
async fn no_fault_hangs_lies_or_stays(driver: DriverChoice) {
    log::collect();
    drop(certificates());
    let scratch = Scratch(tempfile::tempdir().unwrap());
    let plane = plane(scratch.0.path(), driver).await;
    let rows = rows::all();
    let cells = planned(&rows, driver, scratch.0.path());
    let (begun, count) = (Instant::now(), cells.len());
    let ended: Vec<_> = stream::iter(cells)
        .map(|planned| run(&plane, planned))
        .buffer_unordered(CELLS)
        .collect()
        .await;
    let mut failed: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
    if failed.len() <= CROWDED_MAX {
        for (told, again) in std::mem::take(&mut failed) {
            println!("once more, alone: {told}");
            failed.extend(run(&plane, again).await.err());
        }
    }
    if std::env::var_os("LARDER_LOG").is_some() {
        for line in log::lines(|line| !line.contains("hyper")) {
            println!("{line}");
        }
    }
    println!("{count} cells in {:.0} s", begun.elapsed().as_secs_f32());
    let failed: Vec<_> = failed.into_iter().map(|(told, _)| told).collect();
    assert!(
        failed.is_empty(),
        "{} cells failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    let shown = log::lines(|line| line.contains(PASSWORD));
    assert_eq!(shown, Vec::<String>::new(), "the log shows the password");
    plane.shutdown().await;
}

/// Promise: no fault that the fake registry knows is left out of the matrix.
#[test]
fn every_fault_that_a_reader_can_meet_has_a_row() {
    let rows = rows::all();
    let arms = rows.iter().flat_map(|row| &row.arms);
    let used: BTreeSet<_> = arms.map(|arm| arm.fault.name()).collect();
    let missing: Vec<_> = Fault::READ
        .iter()
        .filter(|name| !used.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
    let names: BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
    assert_eq!(names.len(), rows.len(), "two rows of one name");
}

on_both_drivers!(no_fault_hangs_lies_or_stays);
