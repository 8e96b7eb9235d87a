//! A standalone server that a release wrote, opened by today's binary. Run by `run.sh`, which says
//! where both are.

use std::path::PathBuf;

use coracle_tests::{Server, ServerOptions};
use http::Method;
use serde_json::json;

/// Answers with its variable and a number that another process would not have.
const CODE: &str = "import os, uuid\nBIRTH = uuid.uuid4().hex\n\ndef main(request):\n    return \
                    os.environ['WORD'] + ' ' + BIRTH\n";

#[tokio::test]
async fn what_a_release_wrote_and_ran_goes_on() {
    let release: PathBuf = std::env::var_os("CORACLE_TEST_RELEASE")
        .expect("tests/upgrade/run.sh sets it")
        .into();
    let options = ServerOptions {
        binary: Some(release),
        ..ServerOptions::default()
    };
    let mut server = Server::with(options).await;
    let settings = json!({"scale": {"min": 1, "max": 2}, "env": {"WORD": "kept"}});
    let _deployed = server.deploy("old", CODE, settings).await;
    let keys = server.api("projects/default/keys");
    let key = json!({"name": "door", "description": "from before"});
    let _key = server.admin.json(Method::POST, &keys, &key).await.ok();
    server
        .ready_instances("old", 1, std::time::Duration::from_secs(20))
        .await;
    let before = server.call("old").await.ok().text();
    let instances = server.instances("old").await;
    let function = server.function("old").await;

    server.kill();
    server.use_binary(None);
    server.start_processes().await;

    let after = server.call("old").await.ok().text();
    assert_eq!(
        after, before,
        "another process answers: the instance was not adopted"
    );
    assert_eq!(server.instances("old").await, instances);
    let now = server.function("old").await;
    for field in [
        "id",
        "revision",
        "serving_revision",
        "environment",
        "created_at",
    ] {
        assert_eq!(now[field], function[field], "{field}");
    }
    let found = server.admin.get(&format!("{keys}/door")).await.ok().json();
    assert_eq!(found["description"], "from before");

    // And it can be changed from here on: a build, a new revision, a deletion.
    let updated = server.update("old", json!({"env": {"WORD": "new"}})).await;
    assert_eq!(updated["revision"]["stage"], "running", "{updated}");
    assert!(server.call("old").await.ok().text().starts_with("new "));
}
