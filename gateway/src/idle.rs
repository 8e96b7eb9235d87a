//! Closing connections that take too long over a request's head, or rest too long between two.
//!
//! One look at all of a thread's connections now and then, instead of a timer armed and disarmed
//! for each request: that would cost as much as everything else that is done to a request's head.
//! The price is that a limit is kept to an eighth.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::body::{Cut, OutBody};

/// Looks per limit.
const LOOKS: u32 = 8;

/// The connections of one thread.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    looks: Cell<u32>,
    last: Cell<u64>,
    open: RefCell<HashMap<u64, Open>>,
}

#[derive(Debug)]
struct Open {
    state: Rc<State>,
    task: Option<AbortHandle>,
}

/// The look after which a connection began to wait for a request; `None` while one is served.
#[derive(Debug)]
struct State(Cell<Option<u32>>);

/// A connection is watched while this lives.
#[derive(Debug)]
pub(crate) struct Watched {
    connections: Rc<Connections>,
    number: u64,
    state: Rc<State>,
}

/// A request of a connection is being served while this lives.
#[derive(Debug)]
pub(crate) struct Serving {
    connections: Rc<Connections>,
    state: Rc<State>,
}

impl Connections {
    /// How long to wait between two looks.
    pub(crate) fn interval(limit: Duration) -> Duration {
        (limit / LOOKS).max(Duration::from_millis(1))
    }

    pub(crate) fn watch(self: &Rc<Self>) -> Watched {
        let number = self.last.get() + 1;
        self.last.set(number);
        let state = Rc::new(State(Cell::new(Some(self.looks.get()))));
        let open = Open {
            state: state.clone(),
            task: None,
        };
        self.open.borrow_mut().insert(number, open);
        Watched {
            connections: self.clone(),
            number,
            state,
        }
    }

    /// Names the task to end when the connection has to be closed.
    pub(crate) fn runs(&self, number: u64, task: AbortHandle) {
        if let Some(open) = self.open.borrow_mut().get_mut(&number) {
            open.task = Some(task);
        }
    }

    /// Ends the connections that have waited for the whole limit.
    pub(crate) fn look(&self) {
        let now = self.looks.get().wrapping_add(1);
        self.looks.set(now);
        let open = self.open.borrow();
        let late = open.values().filter_map(|Open { state, task }| {
            let since = state.0.get()?;
            // The first look may come right after the wait has begun.
            task.as_ref().filter(|_| now.wrapping_sub(since) > LOOKS)
        });
        let late: Vec<_> = late.cloned().collect();
        // Ended tasks take themselves out of the map.
        drop(open);
        for task in late {
            task.abort();
        }
    }
}

impl Watched {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn serving(&self) -> Serving {
        self.state.0.set(None);
        Serving {
            connections: self.connections.clone(),
            state: self.state.clone(),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.number);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.state.0.set(Some(self.connections.looks.get()));
    }
}

/// An answer's body; the request has been served when it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    body: OutBody,
    _serving: Serving,
}

impl Answer {
    pub(crate) fn new(body: OutBody, serving: Serving) -> Self {
        Self {
            body,
            _serving: serving,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_connections_that_wait_for_a_request_are_ended() {
        let connections = Rc::new(Connections::default());
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let watched = connections.watch();
                let task = tokio::spawn(std::future::pending::<()>());
                connections.runs(watched.number(), task.abort_handle());
                (watched, task)
            })
            .collect();
        let serving = tasks[1].0.serving();
        (0..LOOKS).for_each(|_| connections.look());
        tokio::task::yield_now().await;
        assert!(tasks.iter().all(|(_, task)| !task.is_finished()));
        connections.look();
        tokio::task::yield_now().await;
        assert!(tasks[0].1.is_finished() && !tasks[1].1.is_finished());

        drop(serving);
        (0..=LOOKS).for_each(|_| connections.look());
        tokio::task::yield_now().await;
        assert!(
            tasks[1].1.is_finished(),
            "counted from the end of its request"
        );
        drop(tasks);
        assert!(connections.open.borrow().is_empty());
    }
}
