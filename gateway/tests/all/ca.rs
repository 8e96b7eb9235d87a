//! A certificate authority for tests.

use std::sync::Arc;

use coracle_base::{Clock as _, Credentials, SystemClock, Tls, Trust};
use coracle_identity::{Authority, Component, KeyPair};
use coracle_model::Timestamp;

pub(crate) struct Ca(Authority);

impl Ca {
    pub(crate) fn new() -> Self {
        Self(Authority::create("0badcafe", Self::now()).unwrap())
    }

    fn now() -> Timestamp {
        Timestamp(SystemClock.now_millis())
    }

    /// What `component` shows; nothing when there is none.
    pub(crate) fn tls(&self, component: Option<Component>) -> Tls {
        let own = component.map(|component| {
            let key = KeyPair::generate().unwrap();
            let issued = self.0.issue(component, &key.public(), Self::now()).unwrap();
            Credentials {
                chain: vec![issued.certificate, self.0.certificate().to_vec()],
                key: key.private(),
            }
        });
        let trust = Trust::Authority(self.0.certificate().to_vec());
        Tls::new(trust, own, Arc::new(SystemClock)).unwrap()
    }
}
