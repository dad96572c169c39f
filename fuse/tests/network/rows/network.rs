//! What happens on the way to a registry: connections, names, certificates, proxies, mirrors, clocks.

use std::time::Duration;

use larder_test_support::registry::{BadNames, BadProxy, Fault, Flaw, On};

use super::Expected::{Fails, FailsAtFirst, Served};
use super::{Arm, LOST, Row, always, on, row, status};
use crate::site::{Site, Way};

pub(super) fn all() -> Vec<Row> {
    let tables = [
        connections(),
        names(),
        certificates(),
        proxies(),
        mirrors(),
        clocks(),
    ];
    tables.into_iter().flatten().collect()
}

/// A fault of the network, which is one for all requests.
fn network(fault: Fault) -> Vec<Arm> {
    on(On::All, fault, None)
}

fn connections() -> Vec<Row> {
    let ends = |times| network(Fault::GoAway(times));
    vec![
        row("connection refused", always(Fault::Refuse), Fails(LOST)),
        row("connection reset", always(Fault::HangUp), Fails(LOST)),
        // The first attempt waits in vain; the next one makes a new connection.
        row("connections fall silent", network(Fault::Mute), Served).within(8),
        row("HTTP/2 GOAWAY once", ends(1), Served)
            .by(Way::Tls)
            .within(8),
        row("HTTP/2 GOAWAY for ever", ends(u32::MAX), Fails(LOST))
            .by(Way::Tls)
            .within(0),
    ]
}

fn names() -> Vec<Row> {
    let names = |fault| network(Fault::Names(fault));
    let silent = FailsAtFirst(&["name servers", "no answer within", "timed out"]);
    vec![
        row(
            "unknown name",
            names(BadNames::Unknown),
            FailsAtFirst(&["no such name"]),
        ),
        row(
            "failing name servers",
            names(BadNames::Fail),
            FailsAtFirst(&["name servers fail"]),
        ),
        row("silent name servers", names(BadNames::Silent), silent),
        row(
            "first address refuses",
            names(BadNames::FirstRefuses),
            Served,
        ),
        row("first address dead", names(BadNames::FirstIsDead), Served),
        row("address of IPv6 dead", names(BadNames::Ipv6IsDead), Served),
        // Its token server is named by the old address.
        row(
            "moved to another address",
            names(BadNames::Moved),
            FailsAtFirst(LOST),
        )
        .within(8),
    ]
}

fn certificates() -> Vec<Row> {
    let flaws: [(Flaw, &'static [&'static str]); 7] = [
        (Flaw::Expired, &["has expired"]),
        (Flaw::NotYetValid, &["is not valid yet"]),
        (Flaw::OtherName, &["is for another name"]),
        (Flaw::SelfSigned, &["it signed its certificate itself"]),
        (Flaw::OtherAuthority, &["from nobody who is trusted here"]),
        (Flaw::OldProtocol, &["no version of TLS that is safe"]),
        (Flaw::Plain, &["it speaks no TLS"]),
    ];
    let tls = |flaw| network(Fault::Tls(flaw));
    let bad = |(flaw, reasons)| row(format!("TLS {flaw:?}"), tls(flaw), Fails(reasons)).within(0);
    let mut rows: Vec<_> = flaws.into_iter().map(bad).collect();
    // What was read of the CA file is read again after thirty seconds at the latest.
    let replaced = row(
        "authority replaced at both ends",
        tls(Flaw::OtherAuthority),
        Served,
    );
    rows.push(replaced.and(Site::trust_other_authority).within(8));
    rows.into_iter().map(|row| row.by(Way::Tls)).collect()
}

/// A proxy with a user and a password between client and registry, for plain HTTP and for TLS.
fn proxies() -> Vec<Row> {
    let faults: [(&str, Fault, &'static [&'static str]); 5] = [
        ("refuses connections", Fault::Refuse, LOST),
        ("resets connections", Fault::Proxy(BadProxy::Resets), LOST),
        (
            "wants a log-in",
            Fault::Proxy(BadProxy::WantsLogin),
            &["the proxy on the way wants"],
        ),
        (
            "is silent",
            Fault::Proxy(BadProxy::Silent),
            &["no answer within", "cannot talk to"],
        ),
        (
            "reaches nobody",
            Fault::Proxy(BadProxy::ReachesNobody),
            &["status 502", "tunnel error"],
        ),
    ];
    let mut rows = Vec::new();
    for way in [Way::Proxy, Way::TlsProxy] {
        rows.push(row(format!("{way:?}"), Vec::new(), Served).by(way));
        for (name, fault, reasons) in faults.clone() {
            let bad = row(format!("{way:?} {name}"), network(fault), Fails(reasons));
            rows.push(bad.by(way).within(0));
        }
    }
    // For hosts that are not to be asked by it.
    let resets = network(Fault::Proxy(BadProxy::Resets));
    rows.push(row("proxy for others resets connections", resets, Served).by(Way::NoProxy));
    rows
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
    let bad = |fault: Fault| {
        let name = match &fault {
            Fault::Status(code, _) => code.to_string(),
            other => other.name().to_owned(),
        };
        // It is asked once, and then left alone for a while.
        row(format!("mirror: {name}"), always(fault), Served)
            .by(Way::Mirror)
            .within(6)
    };
    faults.into_iter().map(bad).collect()
}

/// The wall clock of the node is set while a token and a signed URL live.
fn clocks() -> Vec<Row> {
    const HOUR: i64 = 3600;
    const YEARS: i64 = 10 * 365 * 24 * HOUR;
    let set = |(name, seconds)| {
        let clock = network(Fault::Clock(seconds));
        row(format!("clock {name}"), clock, Served).by(Way::Cdn)
    };
    let steps = [
        ("ten years ahead", YEARS),
        ("ten years behind", -YEARS),
        ("an hour ahead", HOUR),
        ("an hour behind", -HOUR),
    ];
    steps.into_iter().map(set).collect()
}
