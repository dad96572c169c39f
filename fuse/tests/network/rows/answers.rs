//! What registries and their stores answer, and how.

use std::time::Duration;

use larder_test_support::registry::{Fault, On};

use super::Expected::{Fails, FailsAtFirst, Served};
use super::{LOOKED_TWICE, LOST, REPEATED, Row, SLOW, WRONG, always, on, once, row, status};
use crate::site::Way;

pub(super) fn all() -> Vec<Row> {
    let tables = [logins(), urls(), redirects(), ranges(), bodies(), busy()];
    tables.into_iter().flatten().collect()
}

fn logins() -> Vec<Row> {
    let refused = Fails(&["does not accept the credentials"]);
    let token = |fault| {
        let mut arms = on(On::Path("GET", "/token"), fault, None);
        arms.extend(once(Fault::RevokeTokens));
        arms
    };
    let revoked = || always(Fault::RevokeTokens);
    let realm = r#"Bearer realm="ftp://127.0.0.1/token",service="x""#;
    let challenge = Fault::Challenge(realm.into());
    let no_server = Fails(&["token server it names is no URL"]);
    let stranger = Fails(&["there are none for it"]);
    let absent = Fails(&["does not have the blob"]);
    let absent_at_first = FailsAtFirst(&["does not have the blob"]);
    vec![
        row("token expires once", once(Fault::RevokeTokens), Served).within(6),
        row("401 for ever, with challenge", revoked(), refused).within(4 * LOOKED_TWICE),
        row(
            "401 for ever, without challenge",
            always(status(401)),
            refused,
        )
        .within(2 * LOOKED_TWICE),
        row(
            "token server 401 to a stranger",
            token(status(401)),
            stranger,
        )
        .by(Way::Stranger)
        .within(4),
        row(
            "challenge that names no server",
            always(challenge),
            no_server,
        ),
        row(
            "token server 503",
            token(status(503)),
            Fails(&["status 503"]),
        )
        .within(2 * REPEATED),
        row("token server 401", token(status(401)), refused).within(4),
        row(
            "token server silent",
            token(Fault::StallBeforeHeaders),
            Fails(SLOW),
        ),
        row(
            "token server portal",
            token(Fault::Portal),
            Fails(&["is not JSON"]),
        ),
        row("403", always(status(403)), Fails(&["access denied"])).within(LOOKED_TWICE),
        row("404", always(status(404)), absent).within(LOOKED_TWICE),
        row("410", always(status(410)), absent).within(LOOKED_TWICE),
        row("404 once", once(status(404)), absent_at_first).within(6),
    ]
}

/// At a registry whose blobs lie behind signed URLs on another host.
fn urls() -> Vec<Row> {
    let cdn = |fault, times| on(On::Cdn, fault, times);
    let (vain, vain_at_first) = (
        Fails(&["has just signed"]),
        FailsAtFirst(&["has just signed"]),
    );
    let lies = cdn(Fault::OtherBlob, None);
    let rows = vec![
        row("signed URLs", Vec::new(), Served),
        row(
            "signed URL expires once",
            cdn(Fault::ExpireUrls, Some(1)),
            vain_at_first,
        )
        .within(8),
        row(
            "signed URL 400 XML once",
            cdn(Fault::Xml(400), Some(1)),
            vain_at_first,
        )
        .within(8),
        row("signed URL 403 for ever", cdn(Fault::Xml(403), None), vain),
        row("signed URL 400 for ever", cdn(Fault::Xml(400), None), vain),
        row(
            "store 503 for ever",
            cdn(status(503), None),
            Fails(&["status 503"]),
        ),
        row("store resets once", cdn(Fault::Reset, Some(1)), Served),
        row("store lies", lies, Fails(WRONG)),
    ];
    rows.into_iter().map(|row| row.by(Way::Cdn)).collect()
}

fn redirects() -> Vec<Row> {
    let to = |place: &str| always(Fault::RedirectTo(place.into()));
    let chain = |statuses| always(Fault::RedirectChain(statuses));
    let (too_many, many) = (Fails(&["more than 5 times"]), 6 * REPEATED);
    let down = Fails(&["not following from https to http"]);
    let scheme = Fails(&["redirects to a URL of scheme"]);
    vec![
        row(
            "five relative redirects",
            chain(&[307, 302, 308, 301, 303]),
            Served,
        )
        .within(40),
        row("six redirects", chain(&[307; 6]), too_many).within(many),
        row("redirect loop", always(Fault::RedirectLoop), too_many).within(many),
        row("redirect to another host", to("http://OTHER"), Served),
        row("redirect over TLS to plain HTTP", to("http://OTHER"), down).by(Way::Tls),
        row("redirect nowhere", to(""), Fails(&["without saying where"])),
        row("redirect to ftp", to("ftp://OTHER"), scheme),
        row("redirect to no URL", to("http://"), Fails(&["no URL"])),
    ]
}

fn ranges() -> Vec<Row> {
    let large = Fault::Body(vec![0; 9 << 20].into());
    let other_range = Fails(&["it was asked for bytes"]);
    vec![
        row("HEAD refused", on(On::All, Fault::NoHead, None), Served),
        row("no Content-Length", always(Fault::Chunked), Served),
        row("range ignored", always(Fault::IgnoreRange), Served),
        row(
            "range ignored, large blob",
            always(large),
            Fails(&["exceeds the limit"]),
        ),
        row(
            "wrong Content-Range",
            always(Fault::WrongContentRange),
            other_range,
        ),
        row("another blob", always(Fault::OtherBlob), Fails(WRONG)),
        row("flipped bit", always(Fault::FlippedBit), Fails(WRONG)),
        row("flipped bit once", once(Fault::FlippedBit), Served),
        row(
            "multipart/byteranges",
            always(Fault::Multipart),
            Fails(&["sends something else"]),
        ),
        row(
            "gzip",
            always(Fault::Gzip),
            Fails(&["compressed on its way"]),
        ),
        row("portal page", always(Fault::Portal), Fails(&["login page"])),
        row("416", always(status(416)), Fails(&["answered 416"])),
    ]
}

fn bodies() -> Vec<Row> {
    let stopped: &[&str] = &["stalled", "no answer within", "cannot talk to"];
    let late = Fault::Delay(Duration::from_millis(200));
    let drip = Fault::Drip(1, Duration::from_millis(500));
    let too_long = Fails(&["more bytes than it was asked for"]);
    let mut rows = vec![
        row("long body", always(Fault::LongBody), too_long),
        row("late answer", always(late), Served),
        row("drip", always(drip), Fails(SLOW)),
    ];
    for (fault, reasons) in [
        (Fault::ShortBody, LOST),
        (Fault::Reset, LOST),
        (Fault::DropAnswer, LOST),
        (Fault::StallBeforeHeaders, SLOW),
        (Fault::StallMidBody, stopped),
    ] {
        let name = fault.name();
        rows.push(row(format!("{name} once"), once(fault.clone()), Served).within(8));
        rows.push(row(
            format!("{name} for ever"),
            always(fault),
            Fails(reasons),
        ));
    }
    rows
}

/// Statuses that pass, with every form of `Retry-After`.
fn busy() -> Vec<Row> {
    const DECADES: &str = "Sun, 06 Nov 2094 08:49:37 GMT";
    const AGES: &str = "99999999999999999999";
    let mut rows = Vec::new();
    for (code, asked, told) in [
        (429, "", "status 429"),
        (429, "1", "status 429"),
        (429, "86400", "status 429"),
        (429, AGES, "status 429"),
        (429, "-1", "status 429"),
        (429, "soon", "status 429"),
        (503, "", "status 503"),
        (503, "0", "status 503"),
        (503, "Sun, 06 Nov 1994 08:49:37 GMT", "status 503"),
        (503, DECADES, "status 503"),
        (408, "", "status 408"),
        (500, "", "status 500"),
        (502, "", "status 502"),
        (504, "", "status 504"),
    ] {
        let asked_for = (!asked.is_empty()).then(|| asked.to_owned());
        let fault = Fault::Status(code, asked_for);
        let reasons: &'static [&'static str] = vec![told].leak();
        let name = format!("{code} Retry-After {asked:?}");
        // Prepare does not wait for half a minute.
        let first = match asked {
            "86400" | AGES | DECADES => FailsAtFirst(reasons),
            _ => Served,
        };
        rows.push(row(format!("{name} once"), once(fault.clone()), first).within(8));
        rows.push(row(
            format!("{name} for ever"),
            always(fault),
            Fails(reasons),
        ));
    }
    let burst = [500, 502, 504]
        .into_iter()
        .flat_map(|code| once(status(code)));
    let first = FailsAtFirst(&["status 50"]);
    rows.push(row("500, 502, 504", burst.collect(), first).within(12));
    rows
}
