//! Waiting on a condition of a value, never on time.

use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(50);

/// Calls `observe` until `accept` likes what it returns; panics with the last value seen.
pub async fn eventually<T, F>(
    what: &str,
    limit: Duration,
    mut observe: impl FnMut() -> F,
    accept: impl Fn(&T) -> bool,
) -> T
where
    T: Debug,
    F: Future<Output = T>,
{
    let deadline = Instant::now() + limit;
    loop {
        let value = observe().await;
        if accept(&value) {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: not within {limit:?}; last seen: {value:#?}"
        );
        sleep(POLL).await;
    }
}
