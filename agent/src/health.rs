//! Whether this agent does its work, for readiness.

use std::sync::{Mutex, MutexGuard};

/// Serving does not depend on it: instances run and are reached whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Why the driver cannot be used, until it can.
    pub driver: Result<(), String>,
    /// Why no leader is followed, while none is.
    pub session: Result<(), String>,
}

impl Health {
    pub fn is_ready(&self) -> bool {
        self.driver.is_ok() && self.session.is_ok()
    }
}

#[derive(Debug)]
pub(crate) struct HealthCell(Mutex<Health>);

impl HealthCell {
    pub(crate) fn new() -> Self {
        let starting = || Err("starting".to_owned());
        Self(Mutex::new(Health {
            driver: starting(),
            session: starting(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().expect("never poisoned: no panic while held")
    }

    pub(crate) fn get(&self) -> Health {
        self.lock().clone()
    }

    pub(crate) fn set_driver(&self, driver: Result<(), String>) {
        self.lock().driver = driver;
    }

    pub(crate) fn set_session(&self, session: Result<(), String>) {
        crate::metrics::connected(session.is_ok());
        self.lock().session = session;
    }
}
