//! The rows of the matrix: every fault, what it is done to, and what must come of it.

use std::time::Duration;

use larder_test_support::registry::{BadNames, Fault, Flaw, On};

use crate::site::{Site, Way};

/// One way in which things go wrong.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) way: Way,
    pub(crate) arms: Vec<Arm>,
    pub(crate) expected: Expected,
    /// Requests at the registry while the fault lasts, at most.
    pub(crate) requests_max: usize,
}

/// A fault, and how long it lasts.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    pub(crate) on: On,
    pub(crate) fault: Fault,
    /// For so many requests; `None` until it is cleared.
    pub(crate) times: Option<u32>,
}

/// What must come of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The right bytes, before the deadline.
    Served,
    /// EIO or an error by the deadline, with one of these reasons.
    Fails(&'static [&'static str]),
    /// The same while nothing is known of the registry yet; the right bytes later.
    FailsAtFirst(&'static [&'static str]),
}

use Expected::{Fails, FailsAtFirst, Served};

/// Requests of a read that is repeated until its deadline: seven rounds of three attempts, with a log-in.
const REPEATED: usize = 24;

/// Two looks at a source that says no, and a log-in before.
const LOOKED_TWICE: usize = 2;

/// The reasons of bytes that are not those of the index.
const WRONG: &[&str] = &["is wrong", "digest", "sent other content"];

impl Row {
    fn new(name: impl Into<String>, way: Way, arms: Vec<Arm>, expected: Expected) -> Self {
        Self {
            name: name.into(),
            way,
            arms,
            expected,
            requests_max: REPEATED,
        }
    }

    fn within(mut self, requests_max: usize) -> Self {
        self.requests_max = requests_max;
        self
    }

    /// Brings the faults on.
    pub(crate) fn arm(&self, site: &Site) {
        for arm in &self.arms {
            let fault = match &arm.fault {
                // The address of another host is known only now.
                Fault::RedirectTo(place) => {
                    let blob = site.fixture.digest;
                    let there = format!("{}/v2/team/app/blobs/{blob}", site.other.host());
                    Fault::RedirectTo(place.replace("OTHER", &there))
                }
                other => other.clone(),
            };
            match arm.times {
                Some(times) => site.registry.fault_times(times, arm.on.clone(), fault),
                None => site.registry.fault(arm.on.clone(), fault),
            }
        }
    }
}

fn always(fault: Fault) -> Vec<Arm> {
    on(On::Blobs, fault, None)
}

fn once(fault: Fault) -> Vec<Arm> {
    on(On::Blobs, fault, Some(1))
}

fn on(on: On, fault: Fault, times: Option<u32>) -> Vec<Arm> {
    vec![Arm { on, fault, times }]
}

fn status(code: u16) -> Fault {
    Fault::Status(code, None)
}

/// All rows.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = logins();
    rows.extend(urls());
    rows.extend(redirects());
    rows.extend(ranges());
    rows.extend(bodies());
    rows.extend(busy());
    rows.extend(network());
    rows.extend(certificates());
    rows.extend(mirrors());
    rows.extend(clocks());
    rows
}

fn logins() -> Vec<Row> {
    let refused = Fails(&["does not accept the credentials"]);
    let token = |fault| {
        let mut arms = on(On::Path("GET", "/token"), fault, None);
        arms.extend(once(Fault::RevokeTokens));
        arms
    };
    let realm = r#"Bearer realm="ftp://127.0.0.1/token",service="x""#;
    vec![
        Row::new(
            "token expires once",
            Way::Plain,
            once(Fault::RevokeTokens),
            Served,
        )
        .within(6),
        Row::new(
            "401 for ever, with challenge",
            Way::Plain,
            always(Fault::RevokeTokens),
            refused,
        )
        .within(4 * LOOKED_TWICE),
        Row::new(
            "401 for ever, without challenge",
            Way::Plain,
            always(status(401)),
            refused,
        )
        .within(2 * LOOKED_TWICE),
        Row::new(
            "token server 401 to a stranger",
            Way::Stranger,
            token(status(401)),
            Fails(&["there are none for it"]),
        )
        .within(4),
        Row::new(
            "challenge that names no server",
            Way::Plain,
            always(Fault::Challenge(realm.into())),
            Fails(&["token server it names is no URL"]),
        ),
        Row::new(
            "token server 503",
            Way::Plain,
            token(status(503)),
            Fails(&["status 503"]),
        )
        .within(2 * REPEATED),
        Row::new("token server 401", Way::Plain, token(status(401)), refused).within(4),
        Row::new(
            "token server silent",
            Way::Plain,
            token(Fault::StallBeforeHeaders),
            Fails(&["no answer within"]),
        ),
        Row::new(
            "token server portal",
            Way::Plain,
            token(Fault::Portal),
            Fails(&["is not JSON"]),
        ),
        Row::new(
            "403",
            Way::Plain,
            always(status(403)),
            Fails(&["access denied"]),
        )
        .within(LOOKED_TWICE),
        Row::new(
            "404",
            Way::Plain,
            always(status(404)),
            Fails(&["does not have the blob"]),
        )
        .within(LOOKED_TWICE),
        Row::new(
            "410",
            Way::Plain,
            always(status(410)),
            Fails(&["does not have the blob"]),
        )
        .within(LOOKED_TWICE),
        Row::new(
            "404 once",
            Way::Plain,
            once(status(404)),
            FailsAtFirst(&["does not have the blob"]),
        )
        .within(6),
    ]
}

fn urls() -> Vec<Row> {
    let cdn = |fault, times| on(On::Cdn, fault, times);
    let vain = Fails(&["has just signed"]);
    vec![
        Row::new("signed URLs", Way::Cdn, Vec::new(), Served),
        Row::new(
            "signed URL expires once",
            Way::Cdn,
            cdn(Fault::ExpireUrls, Some(1)),
            FailsAtFirst(&["has just signed"]),
        )
        .within(8),
        Row::new(
            "signed URL 400 XML once",
            Way::Cdn,
            cdn(Fault::Xml(400), Some(1)),
            FailsAtFirst(&["has just signed"]),
        )
        .within(8),
        Row::new(
            "signed URL 403 for ever",
            Way::Cdn,
            cdn(Fault::Xml(403), None),
            vain,
        ),
        Row::new(
            "signed URL 400 for ever",
            Way::Cdn,
            cdn(Fault::Xml(400), None),
            vain,
        ),
        Row::new(
            "store 503 for ever",
            Way::Cdn,
            cdn(status(503), None),
            Fails(&["status 503"]),
        ),
        Row::new(
            "store resets once",
            Way::Cdn,
            cdn(Fault::Reset, Some(1)),
            Served,
        ),
        Row::new(
            "store lies",
            Way::Cdn,
            cdn(Fault::OtherBlob, None),
            Fails(WRONG),
        ),
    ]
}

fn redirects() -> Vec<Row> {
    let to = |place: &str| always(Fault::RedirectTo(place.into()));
    let chain = |statuses| always(Fault::RedirectChain(statuses));
    vec![
        Row::new(
            "five relative redirects",
            Way::Plain,
            chain(&[307, 302, 308, 301, 303]),
            Served,
        )
        .within(40),
        Row::new(
            "six redirects",
            Way::Plain,
            chain(&[307; 6]),
            Fails(&["more than 5 times"]),
        )
        .within(6 * REPEATED),
        Row::new(
            "redirect loop",
            Way::Plain,
            always(Fault::RedirectLoop),
            Fails(&["more than 5 times"]),
        )
        .within(6 * REPEATED),
        Row::new(
            "redirect to another host",
            Way::Plain,
            to("http://OTHER"),
            Served,
        ),
        Row::new(
            "redirect over TLS to plain HTTP",
            Way::Tls,
            to("http://OTHER"),
            Fails(&["not following from https to http"]),
        ),
        Row::new(
            "redirect nowhere",
            Way::Plain,
            to(""),
            Fails(&["without saying where"]),
        ),
        Row::new(
            "redirect to ftp",
            Way::Plain,
            to("ftp://OTHER"),
            Fails(&["redirects to a URL of scheme"]),
        ),
        Row::new(
            "redirect to no URL",
            Way::Plain,
            to("http://"),
            Fails(&["no URL"]),
        ),
    ]
}

fn ranges() -> Vec<Row> {
    let large = Fault::Body(vec![0; 9 << 20].into());
    vec![
        Row::new(
            "HEAD refused",
            Way::Plain,
            on(On::All, Fault::NoHead, None),
            Served,
        ),
        Row::new(
            "no Content-Length",
            Way::Plain,
            always(Fault::Chunked),
            Served,
        ),
        Row::new(
            "range ignored",
            Way::Plain,
            always(Fault::IgnoreRange),
            Served,
        ),
        Row::new(
            "range ignored, large blob",
            Way::Plain,
            always(large),
            Fails(&["exceeds the limit"]),
        ),
        Row::new(
            "wrong Content-Range",
            Way::Plain,
            always(Fault::WrongContentRange),
            Fails(&["it was asked for bytes"]),
        ),
        Row::new(
            "another blob",
            Way::Plain,
            always(Fault::OtherBlob),
            Fails(WRONG),
        ),
        Row::new(
            "flipped bit",
            Way::Plain,
            always(Fault::FlippedBit),
            Fails(WRONG),
        ),
        Row::new(
            "flipped bit once",
            Way::Plain,
            once(Fault::FlippedBit),
            Served,
        ),
        Row::new(
            "multipart/byteranges",
            Way::Plain,
            always(Fault::Multipart),
            Fails(&["sends something else"]),
        ),
        Row::new(
            "gzip",
            Way::Plain,
            always(Fault::Gzip),
            Fails(&["compressed on its way"]),
        ),
        Row::new(
            "portal page",
            Way::Plain,
            always(Fault::Portal),
            Fails(&["login page"]),
        ),
        Row::new(
            "416",
            Way::Plain,
            always(status(416)),
            Fails(&["answered 416"]),
        ),
    ]
}

fn bodies() -> Vec<Row> {
    let broken: &[&str] = &["cannot talk to"];
    let slow: &[&str] = &["stalled", "no answer within"];
    let stopped: &[&str] = &["stalled", "no answer within", "cannot talk to"];
    let drip = || Fault::Drip(1, Duration::from_millis(500));
    let mut rows = vec![
        Row::new(
            "long body",
            Way::Plain,
            always(Fault::LongBody),
            Fails(&["more bytes than it was asked for"]),
        ),
        Row::new(
            "late answer",
            Way::Plain,
            always(Fault::Delay(Duration::from_millis(200))),
            Served,
        ),
        Row::new("drip", Way::Plain, always(drip()), Fails(slow)),
    ];
    for (fault, reasons) in [
        (Fault::ShortBody, broken),
        (Fault::Reset, broken),
        (Fault::DropAnswer, broken),
        (Fault::StallBeforeHeaders, slow),
        (Fault::StallMidBody, stopped),
    ] {
        let name = fault.name();
        rows.push(
            Row::new(
                format!("{name} once"),
                Way::Plain,
                once(fault.clone()),
                Served,
            )
            .within(8),
        );
        rows.push(Row::new(
            format!("{name} for ever"),
            Way::Plain,
            always(fault),
            Fails(reasons),
        ));
    }
    rows
}

/// Statuses that pass, with every form of `Retry-After`.
fn busy() -> Vec<Row> {
    let mut rows = Vec::new();
    for (code, asked, told) in [
        (429, "", "status 429"),
        (429, "1", "status 429"),
        (429, "86400", "status 429"),
        (429, "99999999999999999999", "status 429"),
        (429, "-1", "status 429"),
        (429, "soon", "status 429"),
        (503, "", "status 503"),
        (503, "0", "status 503"),
        (503, "Sun, 06 Nov 1994 08:49:37 GMT", "status 503"),
        (503, "Sun, 06 Nov 2094 08:49:37 GMT", "status 503"),
        (408, "", "status 408"),
        (500, "", "status 500"),
        (502, "", "status 502"),
        (504, "", "status 504"),
    ] {
        let asked_for = (!asked.is_empty()).then(|| asked.to_owned());
        let fault = Fault::Status(code, asked_for);
        let reasons: &'static [&'static str] = match told {
            "status 429" => &["status 429"],
            "status 503" => &["status 503"],
            "status 408" => &["status 408"],
            "status 500" => &["status 500"],
            "status 502" => &["status 502"],
            _ => &["status 504"],
        };
        let name = format!("{code} Retry-After {asked:?}");
        // Prepare does not wait for half a minute.
        let long = matches!(asked, "86400" | "99999999999999999999") || asked.contains("2094");
        let first = if long { FailsAtFirst(reasons) } else { Served };
        rows.push(
            Row::new(
                format!("{name} once"),
                Way::Plain,
                once(fault.clone()),
                first,
            )
            .within(8),
        );
        rows.push(Row::new(
            format!("{name} for ever"),
            Way::Plain,
            always(fault),
            Fails(reasons),
        ));
    }
    let burst = [500, 502, 504]
        .into_iter()
        .flat_map(|code| once(status(code)));
    rows.push(
        Row::new(
            "500, 502, 504",
            Way::Plain,
            burst.collect(),
            FailsAtFirst(&["status 50"]),
        )
        .within(12),
    );
    rows
}

fn network() -> Vec<Row> {
    let names = |fault| on(On::All, Fault::Names(fault), None);
    let lost: &[&str] = &["cannot talk to"];
    vec![
        Row::new(
            "connection refused",
            Way::Plain,
            always(Fault::Refuse),
            Fails(lost),
        ),
        Row::new(
            "connection reset",
            Way::Plain,
            always(Fault::HangUp),
            Fails(lost),
        ),
        Row::new(
            "unknown name",
            Way::Plain,
            names(BadNames::Unknown),
            FailsAtFirst(&["no such name"]),
        ),
        Row::new(
            "silent name servers",
            Way::Plain,
            names(BadNames::Silent),
            FailsAtFirst(&["name servers", "no answer within", "timed out"]),
        ),
        Row::new(
            "first address refuses",
            Way::Plain,
            names(BadNames::FirstRefuses),
            Served,
        ),
        Row::new(
            "first address dead",
            Way::Plain,
            names(BadNames::FirstIsDead),
            Served,
        ),
    ]
}

fn certificates() -> Vec<Row> {
    let flaws: [(Flaw, &'static [&'static str]); 6] = [
        (Flaw::Expired, &["has expired"]),
        (Flaw::NotYetValid, &["is not valid yet"]),
        (Flaw::OtherName, &["is for another name"]),
        (Flaw::SelfSigned, &["it signed its certificate itself"]),
        (Flaw::OldProtocol, &["no version of TLS that is safe"]),
        (Flaw::Plain, &["it speaks no TLS"]),
    ];
    let row = |(flaw, reasons)| {
        let arms = on(On::All, Fault::Tls(flaw), None);
        Row::new(format!("TLS {flaw:?}"), Way::Tls, arms, Fails(reasons)).within(0)
    };
    flaws.into_iter().map(row).collect()
}

/// A bad mirror before a good server.
fn mirrors() -> Vec<Row> {
    let faults = [
        status(503),
        status(404),
        Fault::StallBeforeHeaders,
        Fault::Drip(1, Duration::from_millis(500)),
        Fault::FlippedBit,
        Fault::OtherBlob,
        Fault::Portal,
        Fault::Refuse,
        Fault::WrongContentRange,
    ];
    let row = |fault: Fault| {
        let name = format!("mirror: {}", described(&fault));
        // It is asked once, and then left alone for a while.
        Row::new(name, Way::Mirror, always(fault), Served).within(6)
    };
    faults.into_iter().map(row).collect()
}

fn described(fault: &Fault) -> String {
    match fault {
        Fault::Status(code, _) => code.to_string(),
        other => other.name().to_owned(),
    }
}

fn clocks() -> Vec<Row> {
    const YEARS: i64 = 10 * 365 * 86_400;
    let clock = |seconds| on(On::All, Fault::Clock(seconds), None);
    vec![
        Row::new("clock ten years ahead", Way::Cdn, clock(YEARS), Served),
        Row::new("clock ten years behind", Way::Cdn, clock(-YEARS), Served),
        Row::new("clock an hour behind", Way::Cdn, clock(-3600), Served),
    ]
}
