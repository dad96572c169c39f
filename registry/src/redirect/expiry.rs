//! Until when a redirect may be used again.

use std::time::{Duration, SystemTime};

use reqwest::header::{CACHE_CONTROL, HeaderMap};
use url::Url;

use crate::calendar::iso_date;

/// How long a target that says nothing about its end is used. Signed URLs live 5 minutes and
/// more; this is short enough to follow a store that moves.
const LIFE_DEFAULT: Duration = Duration::from_mins(1);

/// The longest use of any target: whatever it says, the registry may revoke access.
const LIFE_MAX: Duration = Duration::from_hours(1);

/// How long before its end a target is given up, so that it does not expire on its way; a quarter of a
/// life that is shorter than four times this, or what lives for seconds would never be used twice.
const MARGIN_MAX: Duration = Duration::from_secs(5);

/// How long `target` may be used, which was reached through an answer with `headers`; `now` is what the
/// time is where the answer comes from.
pub(crate) fn life(target: &Url, headers: &HeaderMap, now: SystemTime) -> Duration {
    let told = signed(target).map(|end| early(end.duration_since(now).unwrap_or_default()));
    let told = told.or_else(|| cached(headers));
    told.unwrap_or(LIFE_DEFAULT).min(LIFE_MAX)
}

/// A life without the time that the way takes.
pub(super) fn early(life: Duration) -> Duration {
    life.saturating_sub(MARGIN_MAX.min(life / 4))
}

/// The end that a signed URL of the usual object stores carries.
fn signed(target: &Url) -> Option<SystemTime> {
    let parameter = |name: &str| {
        let found = target
            .query_pairs()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.into_owned())
    };
    let seconds = |text: String| {
        text.parse::<u32>()
            .ok()
            .map(|s| Duration::from_secs(s.into()))
    };
    // S3 and its imitators, then Google: the moment of signing and a life.
    for (date, life) in [
        ("X-Amz-Date", "X-Amz-Expires"),
        ("X-Goog-Date", "X-Goog-Expires"),
    ] {
        if let (Some(date), Some(life)) = (parameter(date), parameter(life)) {
            return Some(iso_date(&date)? + seconds(life)?);
        }
    }
    // CloudFront, Google's and Aliyun's older signatures: the end, in seconds since 1970.
    if let Some(end) = parameter("Expires").and_then(seconds) {
        return Some(SystemTime::UNIX_EPOCH + end);
    }
    // Azure: the end as a date.
    parameter("se").and_then(|end| iso_date(&end))
}

/// The life that the answer's `Cache-Control` gives it; none if it must not be kept.
fn cached(headers: &HeaderMap) -> Option<Duration> {
    let text = headers
        .get(CACHE_CONTROL)?
        .to_str()
        .ok()?
        .to_ascii_lowercase();
    let mut directives = text.split(',').map(str::trim);
    if directives
        .clone()
        .any(|d| matches!(d, "no-store" | "no-cache"))
    {
        return Some(Duration::ZERO);
    }
    let age = directives.find_map(|directive| directive.strip_prefix("max-age="))?;
    age.parse::<u32>()
        .ok()
        .map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_read_from_the_url_or_the_headers() {
        let now = iso_date("20261120T120000Z").unwrap();
        let s = 1_795_176_000_u64;
        assert_eq!(now, SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        for (query, cache, life) in [
            ("", "", 60),
            ("X-Amz-Date=20261120T120000Z&X-Amz-Expires=300", "", 295),
            (
                "x-amz-date=20261120T115900Z&x-amz-expires=300",
                "max-age=7",
                235,
            ),
            (
                "X-Goog-Date=20261120T120000Z&X-Goog-Expires=604800",
                "",
                3_600,
            ),
            (&format!("Expires={}", s + 100), "", 95),
            (&format!("Expires={}", s - 100), "", 0),
            (&format!("Expires={}", s + 2), "", 1),
            ("X-Amz-Date=20261120T120000Z&X-Amz-Expires=8", "", 6),
            ("se=2026-11-20T12%3A10%3A00Z&sig=x", "", 595),
            ("se=never", "", 60),
            (
                "X-Amz-Date=20261120T120000Z&X-Amz-Expires=soon",
                "max-age=30",
                30,
            ),
            ("", "public, max-age=30", 30),
            ("", "max-age=99999", 3_600),
            ("", "no-store", 0),
            ("", "private", 60),
        ] {
            let url = Url::parse(&format!("https://cdn.io/b?{query}")).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, cache.parse().unwrap());
            let found = super::life(&url, &headers, now);
            assert_eq!(found.as_secs(), life, "{query} {cache}");
        }
    }
}
