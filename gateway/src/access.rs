//! Who may invoke: function keys.

use coracle_model::{SecretHash, Timestamp};
use http::HeaderMap;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    function::Route,
    headers::API_KEY,
    respond::{Code, Error},
};

/// Refuses who has no live key of a function that asks for one.
///
/// All keys are compared, each in constant time, so that the answer's time tells nothing about
/// which one was close.
pub(crate) fn check(route: &Route, headers: &HeaderMap, now: Timestamp) -> Result<(), Error> {
    if !route.key_required {
        return Ok(());
    }
    let refused = || {
        Error::new(
            Code::Unauthorized,
            "a live key of this function is required",
        )
    };
    let secret = headers
        .get(API_KEY)
        .and_then(|key| key.to_str().ok())
        .ok_or_else(refused)?;
    let sent = SecretHash::of(secret).0;
    let mut opened = Choice::from(0);
    for key in &route.keys {
        let live = key.expires_at.is_none_or(|at| now < at);
        opened |= key.hash.0.ct_eq(&sent) & Choice::from(u8::from(live));
    }
    if bool::from(opened) {
        Ok(())
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::function::Key;

    #[test]
    fn only_live_keys_of_the_function_open_it() {
        let key = |secret, expires_at: Option<u64>| Key {
            hash: SecretHash::of(secret),
            expires_at: expires_at.map(Timestamp),
        };
        let route = Route {
            key_required: true,
            keys: vec![key("for-ever", None), key("brief", Some(100))],
            ..Route::default()
        };
        let sent = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )])
        };
        let ask = |headers: &HeaderMap, now| check(&route, headers, Timestamp(now)).is_ok();
        assert!(ask(&sent("x-api-key", "for-ever"), 1_000));
        assert!(ask(&sent("x-api-key", "brief"), 99));
        assert!(!ask(&sent("x-api-key", "brief"), 100));
        assert!(!ask(&sent("x-api-key", "wrong"), 0));
        assert!(!ask(&sent("authorization", "for-ever"), 0));
        assert!(!ask(&HeaderMap::new(), 0));
        let open = Route {
            key_required: false,
            ..route.clone()
        };
        assert!(check(&open, &HeaderMap::new(), Timestamp(0)).is_ok());
    }
}
