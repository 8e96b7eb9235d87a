//! One running copy as the gateway sees it: where it listens and how full it is.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use coracle_model::{InstanceId, NodeId};
use tokio::{
    sync::SetOnce,
    time::{Instant, timeout},
};

/// How the cold start of an instance went, for the requests that waited for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Birth {
    pub(crate) schedule: Duration,
    /// What it was made from, as the node says it; empty for what this gateway does not know.
    pub(crate) from: &'static str,
    pub(crate) start: Duration,
    pub(crate) init: Duration,
}

/// Shared by all threads; lives on in the slots of its requests after the routes dropped it.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) node: NodeId,
    /// The revision's number within its function.
    pub(crate) revision: u32,
    pub(crate) concurrency: u32,
    pub(crate) socket: PathBuf,
    /// Known once its node has told, which may be after the feed announced it.
    birth: SetOnce<Birth>,
    /// When this gateway first heard of it.
    pub(crate) learned_at: Instant,
    /// Requests of this gateway inside it. The instance's own count is the authority: it answers
    /// BUSY when several gateways together ask for too much.
    in_flight: AtomicU32,
    /// The feed has named it at least once, so its absence from the feed means that it is gone.
    listed: AtomicBool,
    /// The feed cannot know of it: its node has not reported to the leader yet.
    unconfirmed: AtomicBool,
    draining: AtomicBool,
    gone: AtomicBool,
    /// A request in it ran past its deadline: it finishes the others and is then killed.
    retiring: AtomicBool,
    /// Requests in it that nobody waits for any more.
    abandoned: AtomicU32,
    /// Microseconds since `learned_at` until which it is left alone; 0 for none.
    cool_until: AtomicU64,
    /// Since when others want it while we have it, as `cool_until`; 0 for not.
    turn: AtomicU64,
    /// Refusals and failed dials in a row.
    streak: AtomicU32,
}

/// First pause after BUSY: another gateway's request, or our own last one that the shim has not
/// quite let go of.
const BUSY_FIRST: Duration = Duration::from_millis(1);
const BUSY_MOST: Duration = Duration::from_millis(16);
/// While other gateways are turned away, ours has an instance for this long, ...
const TURN: Duration = Duration::from_millis(60);
/// ... and then leaves it to them: they knock at least every [`BUSY_MOST`].
const YIELD: Duration = Duration::from_millis(20);
/// Pause after a failed dial. Long enough that the node's word (gone, or ready again after the
/// agent restarted) usually arrives first.
const DEAD: Duration = Duration::from_secs(1);

impl Instance {
    #[allow(
        clippy::too_many_arguments,
        reason = "a plain record made in two places"
    )]
    pub(crate) fn new(
        id: InstanceId,
        node: NodeId,
        revision: u32,
        concurrency: u32,
        socket: PathBuf,
        listed: bool,
        now: Instant,
    ) -> Self {
        Self {
            id,
            node,
            revision,
            concurrency: concurrency.max(1),
            socket,
            birth: SetOnce::new(),
            learned_at: now,
            in_flight: AtomicU32::new(0),
            listed: AtomicBool::new(listed),
            unconfirmed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            abandoned: AtomicU32::new(0),
            cool_until: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            streak: AtomicU32::new(0),
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.load(SeqCst) > 0
    }

    pub(crate) fn birth(&self) -> Option<&Birth> {
        self.birth.get()
    }

    /// Waits for it, but not for long.
    pub(crate) async fn birth_within(&self, patience: Duration) -> Option<&Birth> {
        match self.birth.get() {
            Some(birth) => Some(birth),
            None => timeout(patience, self.birth.wait()).await.ok(),
        }
    }

    /// The first word counts: a later one may be about an adoption by a restarted agent.
    pub(crate) fn set_birth(&self, birth: Birth) {
        // As said above.
        let _ = self.birth.set(birth);
    }

    /// Requests inside it now, when it may take another one.
    pub(crate) fn room(&self) -> Option<u32> {
        if self.is_leaving() || self.is_cooling() {
            return None;
        }
        Some(self.in_flight.load(SeqCst)).filter(|n| *n < self.concurrency)
    }

    /// Takes a slot if nobody else did since `seen` was read.
    pub(crate) fn take(&self, seen: u32) -> bool {
        self.in_flight
            .compare_exchange(seen, seen + 1, SeqCst, SeqCst)
            .is_ok()
    }

    pub(crate) fn give_back(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// Whether it takes requests, now or as soon as one of its own has ended.
    pub(crate) fn is_live(&self) -> bool {
        !self.is_leaving() && !self.is_dead()
    }

    fn is_leaving(&self) -> bool {
        [&self.draining, &self.gone, &self.retiring]
            .iter()
            .any(|flag| flag.load(SeqCst))
    }

    /// A request is given up on. True for the first one, which sees to the end of the instance.
    pub(crate) fn retire(&self) -> bool {
        self.abandoned.fetch_add(1, SeqCst);
        !self.retiring.swap(true, SeqCst)
    }

    /// Whether every request in it has been given up on.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.in_flight.load(SeqCst) <= self.abandoned.load(SeqCst)
    }

    fn is_cooling(&self) -> bool {
        let until = self.cool_until.load(SeqCst);
        until != 0 && self.age_micros() < until
    }

    /// The last dial failed, a moment ago.
    fn is_dead(&self) -> bool {
        self.is_cooling() && self.streak.load(SeqCst) >= Self::DEAD_STREAK
    }

    const DEAD_STREAK: u32 = u32::MAX / 2;

    fn age_micros(&self) -> u64 {
        u64::try_from(self.learned_at.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn cool(&self, pause: Duration) {
        let pause = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.cool_until
            .store(self.age_micros().saturating_add(pause).max(1), SeqCst);
    }

    /// It told us that it turned others away. Once our turn is over it is left alone for the time
    /// that is returned: whoever has a queue for it would otherwise keep it from all others.
    pub(crate) fn wanted(&self) -> Option<Duration> {
        let (now, began) = (self.age_micros(), self.turn.load(SeqCst));
        let lasted = Duration::from_micros(now.saturating_sub(began));
        if began == 0 || lasted > TURN * 10 {
            self.turn.store(now.max(1), SeqCst);
            return None;
        }
        if lasted < TURN {
            return None;
        }
        self.turn.store(0, SeqCst);
        self.cool(YIELD);
        Some(YIELD)
    }

    /// It said BUSY: leaves it alone for the time that is returned.
    pub(crate) fn busy(&self) -> Duration {
        self.turn.store(0, SeqCst);
        let streak = self.streak.fetch_add(1, SeqCst).min(10);
        let pause = (BUSY_FIRST * 2u32.pow(streak)).min(BUSY_MOST);
        self.cool(pause);
        pause
    }

    /// It could not be reached: leaves it alone for the time that is returned.
    pub(crate) fn unreachable(&self) -> Duration {
        self.streak.store(Self::DEAD_STREAK, SeqCst);
        self.cool(DEAD);
        DEAD
    }

    /// It answers.
    pub(crate) fn answered(&self) {
        if self.streak.load(SeqCst) != 0 {
            self.streak.store(0, SeqCst);
            self.cool_until.store(0, SeqCst);
        }
    }

    /// It will not come back under this id.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, SeqCst);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, SeqCst);
    }

    pub(crate) fn set_listed(&self) {
        self.listed.store(true, SeqCst);
        self.unconfirmed.store(false, SeqCst);
    }

    pub(crate) fn set_unconfirmed(&self) {
        self.unconfirmed.store(true, SeqCst);
    }

    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(SeqCst)
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_when_others_want_the_instance_and_not_before() {
        let (id, node) = (InstanceId(Uuid::new_v4()), NodeId(Uuid::new_v4()));
        let instance = Instance::new(id, node, 1, 1, "/x".into(), true, Instant::now());
        let pass = |time| tokio::time::advance(time);
        pass(Duration::from_millis(1)).await;
        assert_eq!(instance.wanted(), None, "the turn begins");
        pass(TURN / 2).await;
        assert_eq!(instance.wanted(), None);
        pass(TURN / 2).await;
        assert!(instance.room().is_some());
        assert_eq!(instance.wanted(), Some(YIELD));
        assert_eq!(instance.room(), None, "left to the others");
        assert!(instance.is_live(), "and not for dead");
        pass(YIELD).await;
        assert!(instance.room().is_some());
        // An old sign is none: a new turn begins.
        assert_eq!(instance.wanted(), None);
        pass(TURN * 11).await;
        assert_eq!(instance.wanted(), None);
        // Whoever was turned away has no turn to give up.
        pass(TURN).await;
        instance.busy();
        pass(TURN).await;
        assert_eq!(instance.wanted(), None);
    }
}
