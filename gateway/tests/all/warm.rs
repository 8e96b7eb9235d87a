use std::sync::{Arc, atomic::Ordering::SeqCst};

use bytes::Bytes;
use coracle_model::SecretHash;
use coracle_proto::v1::{self, await_instance_response::Outcome};
use http::Request;
use http_body_util::Full;

use crate::support::{Act, World, code, until};

const HELLO: &str = "/fn/default/ns/hello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_call_touches_only_the_instance_and_says_where_the_time_went() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    let response = world.get(&format!("{HELLO}/a%20b?q=1&r")).await;
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (200, &b"ok"[..])
    );
    assert_eq!(response.headers()["content-length"], "2");
    let timing = response.headers()["server-timing"].to_str().unwrap();
    assert!(
        timing.starts_with("queue;dur=") && timing.contains("run;dur="),
        "{timing}"
    );
    let seen = instance.script.last();
    assert_eq!((&*seen.method, &*seen.target), ("GET", "/a%20b?q=1&r"));
    assert_eq!(response.headers()["x-request-id"], seen.id.as_str());
    assert_eq!(seen.header("traceparent").len(), 1);
    assert!((9_000..=10_000).contains(&seen.millis));
    let response = world.post(HELLO, "body").await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        (
            &*instance.script.last().target,
            &*instance.script.last().body
        ),
        ("/", &b"body"[..])
    );
    assert!(world.plane.activations.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_not_theirs_pass_in_neither_direction() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Answer(
        201,
        "x-coracle-error\0timeout\0x-request-id\0forged\0server-timing\0x\0\
         connection\0x-hop\0x-hop\x001\0content-length\x0099\0set-cookie\0a\0set-cookie\0b",
        b"made".to_vec(),
    ));
    let request = Request::get(HELLO)
        .header("x-request-id", "mine-1")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-coracle-function-error", "forged")
        .header("x-forwarded-for", "6.6.6.6")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .body(Full::default())
        .unwrap();
    let response = world.send(request).await;
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (201, &b"made"[..])
    );
    let headers = response.headers();
    assert_eq!(headers["x-request-id"], "mine-1");
    assert_eq!(headers["content-length"], "4");
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    assert!(!headers.contains_key("x-coracle-error") && !headers.contains_key("x-hop"));
    assert_eq!(headers.get_all("server-timing").iter().count(), 1);
    let seen = instance.script.last();
    for gone in ["x-private", "x-coracle-function-error", "connection"] {
        assert!(seen.header(gone).is_empty(), "{gone}");
    }
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(
        seen.header("traceparent"),
        ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_an_instance_are_kept() {
    let world = World::new(|c| c.threads = 1).await;
    let (_, instance) = world.warm(|_| ()).await;
    for _ in 0..20 {
        assert_eq!(world.get(HELLO).await.status(), 200);
    }
    assert_eq!(instance.script.connections.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_instance_is_tried_again_and_another_one_first() {
    let world = World::new(|_| ()).await;
    let (function, one) = world.warm(|_| ()).await;
    for _ in 0..3 {
        one.script.then(Act::Busy);
    }
    assert_eq!(world.post(HELLO, "body").await.status(), 200);
    assert_eq!(
        (one.script.calls(), &*one.script.last().body),
        (1, &b"body"[..])
    );

    let two = world.instance();
    world.publish(world.route(function, &[&one, &two])).await;
    one.script.then(Act::Busy);
    assert_eq!(world.get(HELLO).await.status(), 200);
    assert_eq!(one.script.calls() + two.script.calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_handler_raises_is_its_own_error_and_a_dead_instance_is_ours() {
    let world = World::new(|_| ()).await;
    let (_, instance) = world.warm(|_| ()).await;
    instance.script.then(Act::Fault);
    let response = world.get(HELLO).await;
    assert_eq!((response.status().as_u16(), code(&response)), (500, ""));
    assert_eq!(response.headers()["x-coracle-function-error"], "exception");
    let text = String::from_utf8(response.body().to_vec()).unwrap();
    assert!(
        text.contains("KeyError: 'x'") && !text.contains("secret.py"),
        "{text}"
    );

    instance.script.then(Act::Garbage);
    let response = world.get(HELLO).await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (502, "bad_response")
    );

    instance.script.then(Act::Die);
    let before = instance.script.calls();
    let response = world.post(HELLO, "once").await;
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (502, "instance_failed")
    );
    assert_eq!(
        instance.script.calls(),
        before + 1,
        "what may have run is not repeated"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_says_why_an_instance_broke_off() {
    let world = Arc::new(World::new(|_| ()).await);
    let (_, instance) = world.warm(|_| ()).await;
    // The broken connection is seen before the node has reaped the process.
    world.plane.ready(&instance);
    instance.script.then(Act::Die);
    let call = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("the node is asked", || world.plane.awaits.load(SeqCst) > 0).await;
    let memory = v1::exit_reason::OutOfMemory { limit_mib: 64 };
    let kind = Some(v1::exit_reason::Kind::OutOfMemory(memory));
    let reason = v1::ExitReason { kind };
    world.plane.settle(instance.id, Outcome::Failed(reason));
    let response = call.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), code(&response)),
        (502, "instance_failed")
    );
    let text = String::from_utf8_lossy(response.body()).into_owned();
    let expected = "the instance ended before it had answered: killed by the kernel: out of memory \
                    (limit 64 MiB)";
    assert!(text.contains(expected), "{text}");

    // It is not waited for: the next request asks for another one at once.
    let before = world.plane.activations.lock().unwrap().len();
    let next = tokio::spawn({
        let world = world.clone();
        async move { world.get(HELLO).await }
    });
    until("another one is asked for", || {
        world.plane.activations.lock().unwrap().len() > before
    })
    .await;
    next.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_cannot_be_reached_is_left_for_another_one() {
    let world = World::new(|c| c.threads = 1).await;
    let (function, mut dead) = world.warm(|_| ()).await;
    assert_eq!(world.get(HELLO).await.status(), 200);
    let alive = world.instance();
    world.publish(world.route(function, &[&dead, &alive])).await;
    dead.stop();
    until("the pooled connection is closed", || {
        dead.script.running.load(SeqCst) == 0
    })
    .await;
    for _ in 0..5 {
        assert_eq!(world.post(HELLO, "x").await.status(), 200);
    }
    assert_eq!(alive.script.calls(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_disabled_functions_and_unknown_addresses() {
    let world = World::new(|c| c.base_domain = Some("fn.test".into())).await;
    let (function, instance) = world
        .warm(|route| {
            route.key_required = true;
            route.keys = vec![v1::RouteKey {
                hash: Bytes::copy_from_slice(&SecretHash::of("sesame").0),
                expires_at: None,
            }];
        })
        .await;
    let with_key = |key: Option<&str>| {
        let request = Request::get("/x").header("host", "hello-ns.fn.test");
        let request = key
            .into_iter()
            .fold(request, |r, k| r.header("x-api-key", k));
        request.body(Full::default()).unwrap()
    };
    assert_eq!(world.send(with_key(Some("sesame"))).await.status(), 200);
    assert!(instance.script.last().header("x-api-key").is_empty());
    for key in [None, Some("wrong")] {
        let response = world.send(with_key(key)).await;
        assert_eq!(
            (response.status().as_u16(), code(&response)),
            (401, "unauthorized")
        );
    }
    for path in ["/fn/default/ns/other", "/", "/favicon.ico", "/robots.txt"] {
        let response = world.get(path).await;
        assert_eq!(
            (response.status().as_u16(), code(&response)),
            (404, "not_found"),
            "{path}"
        );
    }
    let mut route = world.route(function, &[&instance]);
    route.disabled = true;
    world.publish(route).await;
    assert_eq!(code(&world.get(HELLO).await), "disabled");
    let mut route = world.route(function, &[&instance]);
    route.scale = Some(v1::ScaleBounds { min: 0, max: 0 });
    world.publish(route).await;
    let refused = world.get(HELLO).await;
    assert_eq!(
        (refused.status().as_u16(), code(&refused)),
        (503, "no_instances")
    );
    let mut route = world.route(function, &[]);
    route.revision = None;
    world.publish(route).await;
    assert_eq!(code(&world.get(HELLO).await), "not_deployed");
    assert_eq!(instance.script.calls(), 1);
}
