//! Dates as HTTP headers and signed URLs write them.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Reads the date of an HTTP header: `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// The two obsolete forms are not read; no registry sends them.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    let (_weekday, rest) = text.trim().split_once(", ")?;
    let mut parts = rest.split(' ');
    let day = number(parts.next()?)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year = number(parts.next()?)?;
    let mut time = parts.next()?.split(':');
    let (hour, minute, second) = (time.next()?, time.next()?, time.next()?);
    if parts.next() != Some("GMT") || time.next().is_some() {
        return None;
    }
    moment(
        year,
        month,
        day,
        [number(hour)?, number(minute)?, number(second)?],
    )
}

/// Reads an ISO 8601 date in UTC: `20261120T204100Z`, `2026-11-20T20:41:00Z`, `2026-11-20`.
pub(crate) fn iso_date(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once('T').unwrap_or((text, "000000Z"));
    let date: String = date.chars().filter(|c| *c != '-').collect();
    let time: String = time
        .strip_suffix('Z')?
        .chars()
        .filter(|c| *c != ':')
        .collect();
    // Fractions of a second do not matter to an expiry.
    let time = time.split('.').next()?;
    if date.len() != 8 || !matches!(time.len(), 4 | 6) || !date.is_ascii() || !time.is_ascii() {
        return None;
    }
    let second = if time.len() == 6 {
        number(&time[4..])?
    } else {
        0
    };
    let clock = [number(&time[..2])?, number(&time[2..4])?, second];
    moment(
        number(&date[..4])?,
        number(&date[4..6])?,
        number(&date[6..])?,
        clock,
    )
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The moment of a date of the proleptic Gregorian calendar, from 1970 on.
fn moment(year: u64, month: u64, day: u64, clock: [u64; 3]) -> Option<SystemTime> {
    let [hour, minute, second] = clock;
    let sane = year >= 1970
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !sane {
        return None;
    }
    // Counting years from March puts the leap day at the end of the year: the months before the
    // m-th then have (153 m + 2) / 5 days.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(DAYS_TO_1970)?;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(moment: Option<SystemTime>) -> Option<u64> {
        moment.map(|m| m.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn dates_are_read_to_the_second() {
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2028 23:59:59 GMT", Some(1_835_481_599)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(seconds(http_date(text)), expected, "{text}");
        }
        for (text, expected) in [
            ("20000301T000000Z", Some(951_868_800)),
            ("2000-02-29T12:00:01Z", Some(951_825_601)),
            ("2000-02-29T12:00:01.5Z", Some(951_825_601)),
            ("2000-02-29T12:00Z", Some(951_825_600)),
            ("2000-03-01", Some(951_868_800)),
            ("2000-13-01", None),
            ("2000-03-01T25:00:00Z", None),
            ("2000-03-01T12:00:00", None),
            ("ü0000301T000000Z", None),
        ] {
            assert_eq!(seconds(iso_date(text)), expected, "{text}");
        }
    }
}
