//! What every answer has, whatever the route: an id, and the shape of its API.

use axum::body::Body;
use coracle_facades::{codes::Code, port::PortError};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, gcore, native};

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let server = Server::new();
    for (given, kept) in [("mine-1", true), ("bad id", false), ("", false)] {
        let request = Request::get("/nothing").header("x-request-id", given);
        let answer = server
            .send(request.body(Body::empty()).expect("a request"))
            .await;
        let id = answer.header("x-request-id").to_owned();
        assert_eq!(id == given, kept, "{given:?}: {id:?}");
        assert!(!id.is_empty());
        assert_eq!(answer.json()["request_id"], id);
    }
    let fine = server.get("/api/v1/version").await;
    assert!(!fine.header("x-request-id").is_empty());
}

#[tokio::test]
async fn unknown_routes_and_methods_have_the_shape_of_their_api() {
    let server = Server::new();
    for (method, path, status) in [
        (Method::GET, "/", StatusCode::NOT_FOUND),
        (Method::GET, "/api/v1/nothing", StatusCode::NOT_FOUND),
        (Method::GET, "/api/v2/version", StatusCode::NOT_FOUND),
        (
            Method::PUT,
            "/api/v1/version",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (
            Method::DELETE,
            "/api/v1/openapi.json",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
    ] {
        let answer = server.call(method, path, Value::Null).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
        let problem = answer.json();
        assert_eq!(problem["status"], status.as_u16());
        for member in ["type", "title", "detail", "code", "request_id"] {
            assert!(problem[member].is_string(), "{path}: {member}");
        }
    }
    for (method, path, status) in [
        (Method::GET, "/cloud/v1/nothing", StatusCode::NOT_FOUND),
        (Method::GET, "/cloud/v2/tasks", StatusCode::NOT_FOUND),
        (
            Method::PUT,
            gcore::NAMESPACES,
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (Method::DELETE, "/v1/tasks", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let answer = server.call(method, path, Value::Null).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("content-type"), "application/json", "{path}");
        for member in ["exception_class", "message", "request_id"] {
            assert!(answer.json()[member].is_string(), "{path}: {member}");
        }
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_or_not_json_are_refused_in_the_shape_of_the_api() {
    let server = gcore::server().await;
    let before = server.picture();
    let large = "x".repeat(4 * 1024 * 1024 + 1);
    for (body, status, code) in [
        (
            large.as_str(),
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
        ),
        ("{\"name\": ", StatusCode::BAD_REQUEST, "malformed_body"),
        ("", StatusCode::BAD_REQUEST, "malformed_body"),
        ("{} {}", StatusCode::BAD_REQUEST, "invalid_value"),
        ("[]", StatusCode::BAD_REQUEST, "invalid_value"),
        ("null", StatusCode::BAD_REQUEST, "invalid_value"),
        (
            "{\"name\": \"\\ud800\"}",
            StatusCode::BAD_REQUEST,
            "malformed_body",
        ),
    ] {
        for path in [gcore::FUNCTIONS, native::FUNCTIONS] {
            let admin = Some(server.admin.as_str());
            let answer = server
                .with_token(admin, Method::POST, path, body.to_owned())
                .await;
            let what: String = body.chars().take(20).collect();
            assert_eq!(answer.status, status, "{path} {what}: {}", answer.text);
            assert_eq!(answer.json()["code"], code, "{path} {what}");
            assert_eq!(answer.header("x-coracle-error"), code);
            let message = if path == gcore::FUNCTIONS {
                "message"
            } else {
                "detail"
            };
            let message = answer.json()[message]
                .as_str()
                .expect("a message")
                .to_owned();
            if code == "malformed_body" {
                assert!(message.contains("at line 1, column "), "{message}");
            }
        }
    }
    assert_eq!(server.picture(), before);
}

#[tokio::test]
async fn strange_requests_are_answered() {
    let server = gcore::with_hello().await;
    let deep = "[".repeat(200_000);
    for (method, path, body) in [
        (Method::GET, "/cloud/v1/faas/namespaces/1/1/%ff", ""),
        (Method::GET, "/cloud/v1/faas/namespaces/1/1/%00", ""),
        (Method::GET, "/cloud/v1/faas/namespaces/%ff/1", ""),
        (Method::GET, "/cloud/v1/faas/namespaces/1/1?limit=%ff", ""),
        (Method::GET, "/cloud/v1/tasks/not-a-uuid", ""),
        (Method::GET, "/api/v1/projects/%ff%fe/keys", ""),
        (Method::DELETE, "/api/v1/tokens/x", ""),
        (Method::POST, gcore::FUNCTIONS, deep.as_str()),
        (
            Method::POST,
            gcore::KEYS,
            "{\"name\": {\"a\": {\"b\": []}}}",
        ),
    ] {
        let admin = Some(server.admin.as_str());
        let answer = server
            .with_token(admin, method.clone(), path, body.to_owned())
            .await;
        assert!(
            answer.status.is_client_error(),
            "{method} {path}: {}",
            answer.status
        );
        assert!(answer.json()["request_id"].is_string(), "{method} {path}");
        assert!(answer.text.len() < 2_000, "{method} {path}");
    }
}

/// Stainless SDKs repeat a 409 unless told not to; then a create would be told of its own name.
#[tokio::test]
async fn clients_are_told_whether_to_repeat() {
    let server = gcore::server().await;
    let taken = server
        .post(gcore::NAMESPACES, json!({"name": "space"}))
        .await;
    assert_eq!(
        (taken.status, taken.header("x-should-retry")),
        (StatusCode::CONFLICT, "false")
    );
    server.fail_next(PortError::Unavailable("election".to_owned()));
    let down = server
        .post(gcore::NAMESPACES, json!({"name": "another"}))
        .await;
    assert_eq!(down.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        (down.header("x-should-retry"), down.header("retry-after")),
        ("true", "1")
    );
    assert_eq!(down.json()["code"], "no_controller");
}

#[tokio::test]
async fn our_own_failures_say_nothing_of_their_insides() {
    let server = gcore::server().await;
    for (error, status, code) in [
        (
            PortError::Internal("secret".to_owned()),
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
        ),
        (
            PortError::Unavailable("secret".to_owned()),
            StatusCode::SERVICE_UNAVAILABLE,
            "no_controller",
        ),
        (
            PortError::StorageFull("secret".to_owned()),
            StatusCode::INSUFFICIENT_STORAGE,
            "storage_full",
        ),
    ] {
        server.fail_next(error);
        let answer = server
            .post(gcore::NAMESPACES, json!({"name": "another"}))
            .await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (status, Some(code))
        );
        assert!(!answer.text.contains("secret"));
    }
}

/// "Nothing was changed" would be a guess: the first asking may have been applied.
#[tokio::test]
async fn an_unknown_outcome_stays_unknown_when_nobody_answers_the_second_time() {
    let server = gcore::server().await;
    for second in [
        PortError::Unavailable("election".to_owned()),
        PortError::Internal("nonsense".to_owned()),
    ] {
        server.fail_next(PortError::Unknown("the leader went away".to_owned()));
        server.fail_next(second);
        let answer = server
            .post(gcore::NAMESPACES, json!({"name": "another"}))
            .await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["code"], "outcome_unknown");
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_asked_again_under_the_same_id() {
    let server = gcore::server().await;
    server.lose_answers(1);
    server
        .post(gcore::NAMESPACES, json!({"name": "another"}))
        .await
        .ok();
    server.lose_answers(2);
    let answer = server
        .post(gcore::NAMESPACES, json!({"name": "third"}))
        .await;
    assert_eq!(answer.json()["code"], "outcome_unknown");
}

#[test]
fn codes_are_distinct_and_fit_a_file_name() {
    let mut names: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert!(
        names
            .iter()
            .all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
}
