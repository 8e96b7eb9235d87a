//! Whether what clients saw of one name can be explained by one operation after the other, each at
//! some moment between its call and its answer.
//!
//! The search of Wing and Gong with Lowe's memory: walk through calls and answers in the order of
//! time; take any open call whose answer fits the state; at an answer of a call that was not taken,
//! go back. A state that was reached with the same set of operations taken is not searched again.
//! An operation whose outcome is unknown has no answer: it may be taken at any time after its
//! call, or never.

use std::collections::HashSet;

use coracle_model::WriteId;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Create { id: Uuid },
    Update { version: u64 },
    Delete,
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Done,
    Exists,
    Missing,
    Value(Value),
}

/// What a name stands for: the function, and the version that the last update gave it.
pub(crate) type Value = Option<(Uuid, u64)>;

#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) client: u64,
    /// Under which a write was sent, however often.
    pub(crate) write: WriteId,
    pub(crate) action: Action,
    pub(crate) called: u64,
    /// `None`: never, or nobody waited for it.
    pub(crate) answered: Option<(u64, Outcome)>,
}

/// The state after the operation, if it can have had that outcome.
fn step(state: Value, action: Action, outcome: Option<Outcome>) -> Option<Value> {
    let (after, real) = match (action, state) {
        (Action::Create { id }, None) => (Some((id, 0)), Outcome::Done),
        (Action::Create { .. }, some) => (some, Outcome::Exists),
        (Action::Update { version }, Some((id, _))) => (Some((id, version)), Outcome::Done),
        (Action::Delete, Some(_)) => (None, Outcome::Done),
        (Action::Update { .. } | Action::Delete, None) => (None, Outcome::Missing),
        (Action::Read, state) => (state, Outcome::Value(state)),
    };
    outcome.is_none_or(|seen| seen == real).then_some(after)
}

const HEAD: usize = usize::MAX;

/// A list of calls and answers in the order of time, from which pairs are lifted and put back.
struct Events {
    /// The operation, and whether this is its call.
    of: Vec<(usize, bool)>,
    next: Vec<usize>,
    before: Vec<usize>,
    first: usize,
    /// Where each operation's two are; an operation without an answer has no second.
    at: Vec<(usize, Option<usize>)>,
}

impl Events {
    fn new(ops: &[Op]) -> Self {
        let mut all: Vec<(u64, usize, bool)> = Vec::new();
        for (number, op) in ops.iter().enumerate() {
            all.push((op.called, number, true));
            if let Some((at, _)) = op.answered {
                all.push((at, number, false));
            }
        }
        // Moments are distinct numbers.
        all.sort_unstable();
        let mut at = vec![(0, None); ops.len()];
        for (place, (_, number, call)) in all.iter().enumerate() {
            if *call {
                at[*number].0 = place;
            } else {
                at[*number].1 = Some(place);
            }
        }
        let count = all.len();
        Self {
            of: all.into_iter().map(|(_, op, call)| (op, call)).collect(),
            next: (1..=count).collect(),
            before: (0..count)
                .map(|i| i.checked_sub(1).unwrap_or(HEAD))
                .collect(),
            first: 0,
            at,
        }
    }

    fn len(&self) -> usize {
        self.of.len()
    }

    fn unlink(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        match before {
            HEAD => self.first = next,
            before => self.next[before] = next,
        }
        if next < self.len() {
            self.before[next] = before;
        }
    }

    fn link(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        match before {
            HEAD => self.first = place,
            before => self.next[before] = place,
        }
        if next < self.len() {
            self.before[next] = place;
        }
    }

    fn lift(&mut self, op: usize) {
        let (call, answer) = self.at[op];
        self.unlink(call);
        if let Some(answer) = answer {
            self.unlink(answer);
        }
    }

    fn put_back(&mut self, op: usize) {
        let (call, answer) = self.at[op];
        if let Some(answer) = answer {
            self.link(answer);
        }
        self.link(call);
    }
}

/// `Err` names the operation at whose answer no explanation was left.
pub(crate) fn check(ops: &[Op]) -> Result<(), Op> {
    let mut events = Events::new(ops);
    let mut state: Value = None;
    let mut taken = vec![0_u64; ops.len().div_ceil(64)];
    let mut seen: HashSet<(Vec<u64>, Value)> = HashSet::new();
    let mut path: Vec<(usize, Value)> = Vec::new();
    let mut open = ops.iter().filter(|op| op.answered.is_some()).count();
    let mut furthest: Option<usize> = None;
    let mut place = events.first;
    while open > 0 {
        debug_assert!(
            place < events.len(),
            "an open operation has an answer ahead"
        );
        let (number, call) = events.of[place];
        let op = &ops[number];
        if call {
            let after = step(state, op.action, op.answered.map(|(_, outcome)| outcome));
            // What nobody saw and changes nothing explains nothing.
            let idle = op.answered.is_none() && after == Some(state);
            if let Some(after) = after.filter(|_| !idle) {
                taken[number / 64] |= 1 << (number % 64);
                if seen.insert((taken.clone(), after)) {
                    path.push((number, state));
                    state = after;
                    open -= usize::from(op.answered.is_some());
                    events.lift(number);
                    place = events.first;
                    continue;
                }
                taken[number / 64] &= !(1 << (number % 64));
            }
            place = events.next[place];
        } else {
            let answered = |number: usize| ops[number].answered.map(|(at, _)| at);
            if furthest.is_none_or(|known| answered(known) < answered(number)) {
                furthest = Some(number);
            }
            let Some((last, before)) = path.pop() else {
                return Err(ops[furthest.expect("just set")].clone());
            };
            state = before;
            taken[last / 64] &= !(1 << (last % 64));
            open += usize::from(ops[last].answered.is_some());
            events.put_back(last);
            place = events.next[events.at[last].0];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, called: u64, answered: Option<(u64, Outcome)>) -> Op {
        Op {
            client: 0,
            write: WriteId(Uuid::nil()),
            action,
            called,
            answered,
        }
    }

    const ONE: Uuid = Uuid::from_u128(1);
    const TWO: Uuid = Uuid::from_u128(2);

    #[test]
    fn overlapping_operations_may_go_either_way() {
        let ops = [
            op(Action::Create { id: ONE }, 1, Some((10, Outcome::Exists))),
            op(Action::Create { id: TWO }, 2, Some((9, Outcome::Done))),
            op(Action::Read, 3, Some((4, Outcome::Value(None)))),
            op(Action::Read, 11, Some((12, Outcome::Value(Some((TWO, 0)))))),
        ];
        assert!(check(&ops).is_ok());
    }

    #[test]
    fn a_stale_read_is_found() {
        let ops = [
            op(Action::Create { id: ONE }, 1, Some((2, Outcome::Done))),
            op(Action::Read, 3, Some((4, Outcome::Value(None)))),
        ];
        assert_eq!(check(&ops).unwrap_err().called, 3);
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never_and_not_twice() {
        let unknown = op(Action::Create { id: ONE }, 1, None);
        let read = |at, value| op(Action::Read, at, Some((at + 1, Outcome::Value(value))));
        let late = [unknown.clone(), read(3, None), read(5, Some((ONE, 0)))];
        assert!(check(&late).is_ok());
        assert!(check(&[unknown.clone(), read(3, None)]).is_ok());
        let delete = op(Action::Delete, 7, Some((8, Outcome::Done)));
        let twice = [
            unknown,
            read(5, Some((ONE, 0))),
            delete,
            read(9, None),
            read(11, Some((ONE, 0))),
        ];
        assert_eq!(check(&twice).unwrap_err().called, 11);
    }

    #[test]
    fn a_write_that_was_lost_is_found() {
        let ops = [
            op(Action::Create { id: ONE }, 1, Some((2, Outcome::Done))),
            op(Action::Update { version: 5 }, 3, Some((4, Outcome::Done))),
            op(Action::Update { version: 6 }, 3, None),
            op(Action::Read, 5, Some((6, Outcome::Value(Some((ONE, 0)))))),
        ];
        assert_eq!(check(&ops).unwrap_err().called, 5);
    }
}
