//! A replica as its users see it: threads, real files, real time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod group;
mod kill;
mod members;
mod single;
mod tape;
