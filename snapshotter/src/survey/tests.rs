//! What two looks make of each other, and what is told of it.

use super::look::Look;
use super::*;

fn look(unknown: &[u64], absent: &[&str]) -> Look {
    Look {
        unknown: unknown.iter().copied().collect(),
        absent: absent.iter().map(|&name| name.to_owned()).collect(),
        snapshotter: "larder".into(),
    }
}

/// Promise: what only one look found came or went meanwhile, and is not told.
#[test]
fn what_one_look_alone_found_is_not_told() {
    let (first, second) = (look(&[1, 2], &["a"]), look(&[2, 3], &["b"]));
    assert_eq!(first.and(&second), look(&[2], &[]));
    assert!(look(&[1], &["a"]).and(&look(&[2], &["b"])).is_empty());
}

/// Promise: a wiped side is told with what to do, keeps the moment of its beginning, and is over when both
/// sides agree.
#[test]
fn what_both_sides_have_is_told_until_they_agree() {
    let survey = Survey::default();
    assert_eq!(survey.found(), None);
    survey.settle(Some(look(&[1, 2], &[])));
    let first = survey.found().unwrap();
    assert_eq!((first.unknown, first.absent), (2, 0));
    assert!(
        first
            .why
            .contains("does not know 2 snapshots that are here")
            && first.why.contains("ctr snapshots --snapshotter larder rm"),
        "{}",
        first.why
    );
    survey.settle(Some(look(&[1], &["default/1/a"])));
    let second = survey.found().unwrap();
    assert_eq!((second.unknown, second.absent), (1, 1));
    assert_eq!(second.since, first.since);
    assert!(
        second
            .why
            .contains("containerd has 1 snapshot that is not here")
            && second.why.contains("`ctr leases rm`")
            && second.why.contains("pull again"),
        "{}",
        second.why
    );
    survey.settle(None);
    assert_eq!(survey.found(), None);
}

/// Promise: only what is asked for during a look counts, and no flood of names takes the memory.
#[test]
fn names_are_heard_during_a_look_up_to_a_bound() {
    let survey = Survey::default();
    survey.asked("before", None);
    *lock(&survey.heard) = Some(Heard::default());
    survey.asked("here", Some(7));
    for number in 0..2 * NAMES_MAX {
        survey.asked(&number.to_string(), None);
    }
    let heard = lock(&survey.heard).take().unwrap();
    assert_eq!(heard.known, HashSet::from([7]));
    assert_eq!(heard.absent.len(), NAMES_MAX - 1);
    assert!(!heard.absent.contains("before"));
}

/// Regression: after a wiped side was put right, `status` went on to say for a while that it was not.
///
/// Promise: who asks gets what a look finds that began after he asked; nobody looks where nothing was found, and
/// where no look ends, the answer comes all the same.
#[tokio::test(start_paused = true)]
async fn who_asks_gets_what_is_so_now() {
    let survey = Arc::new(Survey::default());
    assert_eq!(survey.found_now().await, None);
    let begun = Instant::now();
    survey.settle(Some(look(&[1, 2], &[])));
    assert_eq!(survey.found_now().await.map(|found| found.unknown), Some(2));
    assert_eq!(begun.elapsed(), ASKED);
    let looking = Arc::clone(&survey);
    let looks = tokio::spawn(async move {
        for number in 1..=2 {
            looking.begun.store(number, Ordering::Release);
            sleep(Duration::from_millis(50)).await;
            if number == 2 {
                looking.settle(None);
            }
            looking.ended.send_replace(number);
            looking.wanted.notified().await;
        }
    });
    // In the middle of the first look, which says nothing of what is put right meanwhile.
    sleep(Duration::from_millis(10)).await;
    let begun = Instant::now();
    assert_eq!(survey.found_now().await, None);
    assert_eq!(begun.elapsed(), Duration::from_millis(90));
    looks.abort();
}
