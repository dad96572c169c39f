//! Listing snapshots a page at a time.

use std::ops::Bound;

use redb::ReadableDatabase;

use super::tables::SNAPSHOTS;
use super::{Kind, Record, Store, StoreError};
use crate::filter::{Filter, Subject};

/// A part of a listing.
#[derive(Debug, Default)]
pub struct Page {
    /// Snapshots with their names, in order of name.
    pub entries: Vec<(String, Record)>,
    /// The last name looked at, if there may be more.
    pub next: Option<String>,
}

impl Store {
    /// Up to `limit` snapshots after the name `after` that pass `filter`.
    pub fn list(
        &self,
        filter: &Filter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page::default();
        for entry in table.range::<&str>((start, Bound::Unbounded))? {
            let (name, value) = entry?;
            let record = Record::decode(value.value())?;
            let subject = Subject {
                name: name.value(),
                parent: &record.parent,
                kind: record.kind.as_str(),
                labels: &record.labels,
            };
            if !filter.matches(&subject) {
                continue;
            }
            page.entries.push((name.value().to_owned(), record));
            if page.entries.len() == limit {
                page.next = Some(name.value().to_owned());
                break;
            }
        }
        Ok(page)
    }

    /// All committed layers of images with their names, oldest first.
    pub fn committed(&self) -> Result<Vec<(String, Record)>, StoreError> {
        let mut page = self.list(&Filter::default(), None, usize::MAX)?;
        page.entries
            .retain(|(_, record)| record.layer_chain().is_some());
        page.entries.sort_by_key(|(_, record)| record.id);
        Ok(page.entries)
    }

    /// Whether a container, as a snapshot that is mounted is likely to be one, is older than `moment`,
    /// seconds since 1970.
    pub fn is_used_since_before(&self, moment: u64) -> Result<bool, StoreError> {
        let page = self.list(&Filter::default(), None, usize::MAX)?;
        let mut records = page.entries.iter().map(|(_, record)| record);
        Ok(records.any(|one| one.kind != Kind::Committed && one.created.seconds <= moment))
    }
}
