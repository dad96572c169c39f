//! Writing the page: one call for each kind of metric.

use std::fmt;

use larder_fuse::{BOUNDS_SECONDS, Measured};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};

use super::names::Name;

/// Labels of one series, in the order of [`Name::labels`].
type Values<'a> = &'a [&'a str];

/// One page that is being written.
pub(super) struct Page<'e>(pub(super) DescriptorEncoder<'e>);

impl Page<'_> {
    pub(super) fn gauge(&mut self, name: &Name, value: f64) -> fmt::Result {
        self.metric(name)?.encode_gauge(&value)
    }

    pub(super) fn gauges<'a>(
        &mut self,
        name: &Name,
        series: impl IntoIterator<Item = (Vec<&'a str>, f64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name)?;
        for (values, value) in series {
            metric
                .encode_family(&labels(name, &values))?
                .encode_gauge(&value)?;
        }
        Ok(())
    }

    pub(super) fn counter(&mut self, name: &Name, value: u64) -> fmt::Result {
        self.metric(name)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    pub(super) fn counters<'a>(
        &mut self,
        name: &Name,
        series: impl IntoIterator<Item = (Vec<&'a str>, u64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name)?;
        for (values, value) in series {
            metric
                .encode_family(&labels(name, &values))?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    pub(super) fn durations<'a>(
        &mut self,
        name: &Name,
        series: impl IntoIterator<Item = (Vec<&'a str>, Measured)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name)?;
        for (values, measured) in series {
            let bounds = BOUNDS_SECONDS.into_iter().chain([f64::MAX]);
            let classes: Vec<_> = bounds.zip(measured.classes).collect();
            metric
                .encode_family(&labels(name, &values))?
                .encode_histogram::<NoLabelSet>(
                    measured.seconds,
                    measured.count(),
                    &classes,
                    None,
                )?;
        }
        Ok(())
    }

    fn metric<'s>(&'s mut self, name: &'s Name) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0
            .encode_descriptor(name.base, name.help, name.unit.as_ref(), name.kind)
    }
}

/// Labels with their names.
fn labels<'a>(name: &Name, values: Values<'a>) -> Vec<(&'static str, &'a str)> {
    debug_assert_eq!(name.labels.len(), values.len(), "{}", name.base);
    name.labels
        .iter()
        .copied()
        .zip(values.iter().copied())
        .collect()
}
