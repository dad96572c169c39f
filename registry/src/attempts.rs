//! The course of one call: which endpoint next, whether to try again, and when to give up.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::failures::Failures;
use crate::plan::Plan;

/// What a call is for; it decides which endpoints are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Read content by digest: mirrors too.
    Pull,
    /// Ask what a tag means: mirrors that may answer that.
    Resolve,
    /// Ask what refers to a manifest: as what a tag means. Many do not know how, and that one fails at it says
    /// nothing of its content.
    List,
    /// Write: the registry itself only.
    Push,
}

/// The attempts of one call: all endpoints in order, and all of them again while that may help.
#[derive(Debug)]
pub(crate) struct Attempts {
    repository: Repository,
    plan: Arc<Plan>,
    endpoints: Vec<Arc<Endpoint>>,
    authority: Arc<Endpoint>,
    doing: String,
    purpose: Purpose,
    next: usize,
    failed: u32,
    time: Duration,
    deadline: Instant,
    failures: Failures,
}

impl Attempts {
    /// Begins a call that may take `time`.
    pub(crate) async fn begin(
        repository: &Repository,
        purpose: Purpose,
        doing: String,
        time: Duration,
    ) -> Result<Self, RegistryError> {
        let plan = match repository.plan().await {
            Ok(plan) => plan,
            Err(cause) => return Err(repository.error(&doing, cause)),
        };
        let (endpoints, authority) = plan.endpoints(purpose);
        Ok(Self {
            repository: repository.clone(),
            plan,
            endpoints,
            authority,
            doing,
            purpose,
            next: 0,
            failed: 0,
            time,
            deadline: Instant::now() + time,
            failures: Failures::default(),
        })
    }

    /// The endpoint to ask now.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoints[self.next])
    }

    /// Whether nobody is left who could say something else than the endpoint asked now: it is the
    /// authority, or the last one.
    pub(crate) fn is_final(&self) -> bool {
        let endpoint = &self.endpoints[self.next];
        Arc::ptr_eq(endpoint, &self.authority) || self.next + 1 == self.endpoints.len()
    }

    /// Runs one attempt, cutting it off at the call's deadline.
    pub(crate) async fn run<T>(
        &self,
        attempt: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        match tokio::time::timeout_at(self.deadline, attempt).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(self.out_of_time()),
        }
    }

    /// Notes that the call succeeded.
    pub(crate) fn succeeded(&self) {
        self.repository.note_trouble(None);
        self.plan.budget.earn();
    }

    /// Starts counting failures anew, because the call has come further than before.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
        self.failures.clear();
        self.deadline = Instant::now() + self.time;
        self.succeeded();
    }

    /// Notes a failure. Returns when the next attempt may begin; gives the call up otherwise.
    pub(crate) async fn failed(&mut self, cause: Cause) -> Result<(), RegistryError> {
        let endpoint = self.endpoint();
        tracing::debug!(host = endpoint.host, doing = self.doing, %cause, "attempt failed");
        let out_of_time = matches!(cause, Cause::Deadline { .. });
        if out_of_time {
            self.repository.note_trouble(Some(cause.to_string()));
        } else {
            self.failures.note(&endpoint.host, &cause);
            self.repository.note_trouble(Some(self.failures.told()));
        }
        let unfit = is_unfit(&cause);
        if unfit && self.endpoints.len() > 1 && self.purpose != Purpose::List {
            endpoint.pass_over();
        }
        // The authority's word is final; its troubles are not.
        let final_word = Arc::ptr_eq(&endpoint, &self.authority) && !unfit;
        let over = final_word || out_of_time;
        if self.next + 1 < self.endpoints.len() && !over {
            self.next += 1;
            return Ok(());
        }
        self.failed += 1;
        let policy = &self.repository.shared().options.retry;
        let clock = &self.repository.shared().options.clock;
        let again = cause.is_transient() && self.failed < policy.attempts_max;
        if !again || !self.plan.budget.pay(clock.uptime()) {
            return Err(self.give_up(cause));
        }
        let delay = policy.delay(self.failed, cause.retry_after(), clock.fraction());
        if Instant::now() + delay >= self.deadline {
            return Err(self.give_up(self.out_of_time()));
        }
        endpoint.counts.retried();
        clock.sleep(delay).await;
        self.next = 0;
        Ok(())
    }

    fn out_of_time(&self) -> Cause {
        let last = if self.failures.is_empty() {
            String::new()
        } else {
            format!("; before that: {}", self.failures.told())
        };
        Cause::Deadline {
            seconds: self.time.as_secs(),
            last,
        }
    }

    /// The error that this call ends with.
    fn give_up(&self, cause: Cause) -> RegistryError {
        // The end of the time tells the failures before it itself.
        let tells_all = matches!(cause, Cause::Deadline { .. });
        let error = self.repository.error(&self.doing, cause);
        if tells_all {
            error
        } else {
            error.among(&self.failures)
        }
    }
}

/// Whether a failure says something of the endpoint, rather than of what it was asked for.
const fn is_unfit(cause: &Cause) -> bool {
    cause.is_transient()
        || matches!(
            cause,
            Cause::Untrusted { .. } | Cause::WrongDigest { .. } | Cause::Malformed { .. }
        )
}
