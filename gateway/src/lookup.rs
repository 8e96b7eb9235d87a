//! Which function a request is for, and what of its path the function sees.

use std::{ops::Range, sync::Arc};

use http::{HeaderMap, Uri, header};

use crate::{function::Function, routes::Names};

const PREFIX: &str = "/fn/";

/// A function and the part of the request's path that is its own; empty stands for `/`.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) function: Arc<Function>,
    pub(crate) path: Range<usize>,
}

/// Host first, then path.
pub(crate) fn lookup(
    names: &Names,
    base_domain: Option<&str>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<Found> {
    let path = uri.path();
    if let Some(base) = base_domain
        && let Some(label) = host_label(uri, headers, base)
    {
        let function = names.hosts.get(&*label)?.clone()?;
        return Some(Found {
            function,
            path: 0..path.len(),
        });
    }
    let key = path.strip_prefix(PREFIX)?;
    let end = key
        .bytes()
        .enumerate()
        .filter(|(_, byte)| *byte == b'/')
        .nth(2)
        .map_or(key.len(), |(at, _)| at);
    let function = names.paths.get(&key[..end])?.clone();
    Some(Found {
        function,
        path: PREFIX.len() + end..path.len(),
    })
}

/// The part of the host before the base domain, in lower case.
fn host_label(uri: &Uri, headers: &HeaderMap, base: &str) -> Option<String> {
    let host = match uri.host() {
        Some(host) => host,
        None => {
            let said = headers.get(header::HOST)?.to_str().ok()?;
            // An IPv6 literal is never one of our names, so cutting inside it does no harm.
            said.split_once(':').map_or(said, |(host, _port)| host)
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let label = host.strip_suffix(base)?.strip_suffix('.')?;
    (!label.is_empty()).then(|| label.to_owned())
}

/// Paths that browsers and crawlers ask for by themselves; they must not wake anything.
pub(crate) fn is_noise(path: &str) -> bool {
    matches!(path, "/favicon.ico" | "/robots.txt")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn names() -> Names {
        let function = Arc::new(Function::for_test("default/ns/hello", 1));
        let mut names = Names::default();
        names
            .paths
            .insert("default/ns/hello".into(), function.clone());
        names.hosts.insert("hello-ns".into(), Some(function));
        names
    }

    fn find(host: Option<&str>, uri: &str) -> Option<String> {
        let uri: Uri = uri.parse().unwrap();
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        let found = lookup(&names(), Some("fn.example"), &uri, &headers)?;
        Some(uri.path()[found.path].to_owned())
    }

    #[test]
    fn hosts_win_over_paths_and_the_rest_is_the_functions() {
        let cases = [
            (None, "/fn/default/ns/hello", Some("")),
            (None, "/fn/default/ns/hello/", Some("/")),
            (None, "/fn/default/ns/hello/a/b?q=1", Some("/a/b")),
            (None, "/fn/default/ns/hello//a", Some("//a")),
            (None, "/fn/default/ns/hell", None),
            (None, "/fn/default/ns", None),
            (None, "/fn/", None),
            (None, "/", None),
            (None, "/fn/default//hello", None),
            (
                Some("hello-ns.fn.example"),
                "/fn/default/ns/hello",
                Some("/fn/default/ns/hello"),
            ),
            (Some("HELLO-ns.fn.example:8080"), "/a", Some("/a")),
            (Some("hello-ns.fn.example."), "/", Some("/")),
            (Some("other-ns.fn.example"), "/fn/default/ns/hello", None),
            (Some("fn.example"), "/fn/default/ns/hello/x", Some("/x")),
            (Some("hello-nsfn.example"), "/", None),
            (Some("[::1]:8080"), "/fn/default/ns/hello/x", Some("/x")),
            (None, "http://hello-ns.fn.example/abs", Some("/abs")),
        ];
        for (host, uri, expected) in cases {
            assert_eq!(find(host, uri).as_deref(), expected, "{host:?} {uri}");
        }
    }
}
