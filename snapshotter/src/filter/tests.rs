//! The filter language against a table.

use super::*;

fn labels() -> BTreeMap<String, String> {
    [
        ("containerd.io/snapshot.ref", "sha256:abc"),
        ("foo", "bar"),
        ("empty", ""),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn matches(filters: &[&str], name: &str, parent: &str, kind: &str) -> bool {
    let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
    let labels = labels();
    let subject = Subject {
        name,
        parent,
        kind,
        labels: &labels,
    };
    Filter::parse(&filters).unwrap().matches(&subject)
}

/// Promise: List answers containerd's filters as containerd's own snapshotters do.
#[test]
fn filters_select_what_containerd_means() {
    for (filters, expected) in [
        (&[][..], true),
        (&[""], true),
        (&["name==k8s.io/1/a"], true),
        (&["name==k8s.io/1/b"], false),
        (&["name==k8s.io/1/b", "kind==active"], true),
        (&["name==k8s.io/1/a,kind==committed"], false),
        (&["name != other , kind == active"], true),
        (&["parent"], true),
        (&["parent==base"], true),
        (&[r#"parent=="""#], false),
        (
            &[r#"labels."containerd.io/snapshot.ref"==sha256:abc"#],
            true,
        ),
        (
            &[r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="base""#],
            true,
        ),
        (
            &[r#"labels."containerd.io/snapshot.ref"=="sha256:abd""#],
            false,
        ),
        (&["labels.foo"], true),
        (&["labels.empty"], true),
        (&["labels.none"], false),
        (&["labels.none!=x"], true),
        (&["labels"], false),
        (&["unknown==x"], false),
        (&["name~=^k8s"], true),
        (&["name~=/1\\/a$/"], true),
        (&["name~=|^k8s\\.io/[0-9]+/a$|"], false),
        (&[r"name~=|^k8s[.]io/\x31/a$|"], true),
        (&[r#"name~="(a|b)$""#], true),
        (&["name~=("], false),
        (&[r#"name=="k8s.io\u002f1\/a""#], false),
    ] {
        let parsed: Vec<String> = filters.iter().map(ToString::to_string).collect();
        let got =
            Filter::parse(&parsed).is_ok() && matches(filters, "k8s.io/1/a", "base", "active");
        assert_eq!(got, expected, "{filters:?}");
    }
}

/// Promise: adoption of a base layer finds it, though it has no parent to compare with.
#[test]
fn an_absent_parent_equals_the_empty_text() {
    assert!(matches(&[r#"parent=="""#], "n", "", "committed"));
    assert!(!matches(&["parent"], "n", "", "committed"));
}

#[test]
fn text_outside_the_grammar_is_refused() {
    for text in [
        "==",
        "name=",
        "name===x",
        "name==",
        "name==x,",
        ",",
        "name==\"x",
        "name==\"\\q\"",
        "name==\"\\xff\"",
        "name==/x/",
        "name!x",
        "name==a b",
        "labels.",
        "name==\"\\ud800\"",
        "name==\"\\400\"",
        "ü==x",
        "name~=/a",
    ] {
        let parsed = Filter::parse(&[text.to_owned()]);
        assert!(
            matches!(parsed, Err(FilterError::Syntax { .. })),
            "{text}: {parsed:?}"
        );
    }
}

#[test]
fn quoted_text_escapes_as_in_go() {
    for (text, expected) in [
        (r#"a\n\t\\\"""#, "a\n\t\\\""),
        (r#"\x41\u00e9\U0001F600\101""#, "Aé😀A"),
        (r#"\xc3\xa9""#, "é"),
    ] {
        let (value, consumed) = quote::unquote(text, '"').unwrap();
        assert_eq!((value.as_str(), consumed), (expected, text.len()), "{text}");
    }
}

#[test]
fn a_flood_of_selectors_is_refused() {
    let flood = vec!["name~=a".to_owned(); SELECTORS_MAX + 1];
    assert_eq!(Filter::parse(&flood).unwrap_err(), FilterError::TooMany);
    let flood = vec!["name"; SELECTORS_MAX + 1].join(",");
    assert_eq!(Filter::parse(&[flood]).unwrap_err(), FilterError::TooMany);
}
