//! Gcore functions: every field acted on, echoed, or refused.

use coracle_model::{
    Convention, Digest, InstanceId, LogLine, LogStream, Network, ProjectId, Source,
};
use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Server, gcore};

fn settings(server: &Server) -> coracle_model::RevisionSettings {
    let view = server.view();
    let name = "hello".parse().expect("a valid name");
    let function = coracle_model::FunctionRef {
        namespace: "space".parse().expect("valid"),
        name,
    };
    let record = view
        .function_named(ProjectId::DEFAULT, &function)
        .expect("the function");
    record.latest().settings.clone()
}

#[tokio::test]
async fn function_is_echoed_word_for_word() {
    let server = gcore::with_hello().await;
    let hello = gcore::hello(&server).await;
    for (member, value) in gcore::create().as_object().expect("an object") {
        assert_eq!(hello[member], *value, "{member}");
    }
    assert!(Uuid::try_parse(hello["id"].as_str().expect("text")).is_ok());
    assert_eq!(hello["created_at"], "2023-08-22T11:21:00Z");
    assert_eq!(
        hello["endpoint"],
        "https://example.com/fn/default/space/hello"
    );
}

#[tokio::test]
async fn function_fields_reach_the_model() {
    let server = gcore::with_hello().await;
    let settings = settings(&server);
    assert_eq!((settings.cpu.get(), settings.memory.mib()), (64, 64));
    assert_eq!(settings.timeout.secs(), 5);
    assert_eq!(settings.runtime.as_str(), "python3.11");
    assert_eq!(settings.runtime_requested, "python3.7.12");
    assert_eq!(settings.handler.entry, "main");
    assert_eq!(settings.handler.convention, Convention::Kubeless);
    assert_eq!(settings.concurrency.get(), 1);
    assert_eq!(settings.network, Network::Egress);
    assert_eq!(settings.env.iter().collect::<Vec<_>>(), [("A", "1")]);
    let code = Digest::of(b"def main():\n    return 'Hello World'");
    assert_eq!(settings.source, Source::Inline { code });
    assert_eq!(settings.dependencies, Some(Digest::of(b"requests==2.31.0")));
    let view = server.view();
    let function = &view.functions().next().expect("the function").function;
    assert_eq!((function.scale.min(), function.scale.max()), (1, 2));
    assert!(function.key_required && !function.disabled);
    assert_eq!(function.description, "Says hello.");
}

#[tokio::test]
async fn function_defaults() {
    let server = gcore::server().await;
    let mut body = gcore::create();
    for optional in [
        "dependencies",
        "description",
        "enable_api_key",
        "envs",
        "keys",
        "disabled",
    ] {
        body.as_object_mut().expect("an object").remove(optional);
    }
    server.post(gcore::FUNCTIONS, body).await.ok();
    let hello = gcore::hello(&server).await;
    for (member, value) in [
        ("dependencies", json!("")),
        ("description", json!("")),
        ("enable_api_key", json!(null)),
        ("envs", json!({})),
        ("keys", json!([])),
        ("disabled", json!(false)),
    ] {
        assert_eq!(hello[member], value, "{member}");
    }
    assert_eq!(settings(&server).dependencies, None);
}

#[tokio::test]
async fn a_timeout_of_zero_means_the_servers_and_reads_back_as_zero() {
    let server = gcore::server().await;
    let mut body = gcore::create();
    body["timeout"] = json!(0);
    server.post(gcore::FUNCTIONS, body).await.ok();
    assert_eq!(settings(&server).timeout.secs(), 60);
    assert_eq!(gcore::hello(&server).await["timeout"], 0);
    for (timeout, secs) in [(60, 60), (0, 60), (7, 7)] {
        server
            .patch(gcore::HELLO, json!({"timeout": timeout}))
            .await
            .ok();
        assert_eq!(gcore::hello(&server).await["timeout"], timeout);
        assert_eq!(settings(&server).timeout.secs(), secs);
    }
}

#[tokio::test]
async fn an_unset_key_switch_differs_from_one_set_to_false() {
    let server = gcore::with_hello().await;
    for (set, read) in [
        (json!(false), json!(false)),
        (json!(null), json!(false)),
        (json!(true), json!(true)),
    ] {
        server
            .patch(gcore::HELLO, json!({"enable_api_key": set}))
            .await
            .ok();
        assert_eq!(gcore::hello(&server).await["enable_api_key"], read, "{set}");
    }
}

/// What another API has changed since is not hidden by what this one remembers.
#[tokio::test]
async fn echoes_follow_changes_made_elsewhere() {
    let server = gcore::server().await;
    let mut body = gcore::create();
    body["flavor"] = "64mCPU-64MB".into();
    body["timeout"] = json!(0);
    server.post(gcore::FUNCTIONS, body).await.ok();
    assert_eq!(gcore::hello(&server).await["flavor"], "64mCPU-64MB");
    let native = crate::support::native::HELLO;
    server
        .patch(native, json!({"memory_mib": 256, "timeout_seconds": 300}))
        .await
        .ok();
    let hello = gcore::hello(&server).await;
    assert_eq!(
        (&hello["flavor"], &hello["timeout"]),
        (&json!("64m-256MB"), &json!(300))
    );
}

#[tokio::test]
async fn function_patch_changes_each_field_and_nothing_else() {
    for (member, value) in [
        ("timeout", json!(9)),
        ("flavor", json!("100m-128MB")),
        (
            "autoscaling",
            json!({"min_instances": 0, "max_instances": 3}),
        ),
        ("code_text", json!("def main(): pass")),
        ("main_method", json!("run")),
        ("dependencies", json!("flask==3.0.0")),
        ("dependencies", json!("")),
        ("description", json!("")),
        ("enable_api_key", json!(false)),
        ("envs", json!({})),
        ("envs", json!({"B": "2"})),
        ("disabled", json!(true)),
    ] {
        let server = gcore::with_hello().await;
        let mut expected = gcore::hello(&server).await;
        server
            .patch(gcore::HELLO, json!({ member: value }))
            .await
            .ok();
        expected[member] = value;
        if member == "disabled" {
            expected["status"] = "Disabled".into();
        }
        assert_eq!(gcore::hello(&server).await, expected, "{member}");
    }
}

/// The Go client sends `autoscaling` with every update, empty or with one member.
#[tokio::test]
async fn autoscaling_is_merged() {
    let server = gcore::with_hello().await;
    for (patch, min, max) in [
        (json!({}), 1, 2),
        (json!({"max_instances": 5}), 1, 5),
        (json!({"min_instances": 4}), 4, 5),
        (json!({"min_instances": 0, "max_instances": null}), 0, 5),
    ] {
        server
            .patch(gcore::HELLO, json!({"autoscaling": patch}))
            .await
            .ok();
        let now = gcore::hello(&server).await;
        let expected = json!({"min_instances": min, "max_instances": max});
        assert_eq!(now["autoscaling"], expected, "{patch}");
    }
}

/// The seed's document gives 0 to 50 for both bounds.
#[tokio::test]
async fn a_maximum_of_no_instance_is_kept_and_shown() {
    let server = gcore::with_hello().await;
    server.run("hello");
    assert_eq!(gcore::hello(&server).await["status"], "Running");
    let none = json!({"min_instances": 0, "max_instances": 0});
    let patch = json!({"autoscaling": none});
    server.patch(gcore::HELLO, patch).await.ok();
    let now = gcore::hello(&server).await;
    assert_eq!(
        (&now["autoscaling"], &now["status"]),
        (&none, &json!("Disabled"))
    );
    assert_eq!(now["disabled"], false);
    let patch = json!({"autoscaling": {"max_instances": 1}});
    server.patch(gcore::HELLO, patch).await.ok();
    assert_eq!(gcore::hello(&server).await["status"], "Running");
}

#[tokio::test]
async fn an_empty_patch_changes_nothing_and_still_has_a_task() {
    let server = gcore::with_hello().await;
    server.run("hello");
    let before = gcore::hello(&server).await;
    let answer = server.patch(gcore::HELLO, json!({})).await.ok();
    let task = answer["tasks"][0].as_str().expect("a task").to_owned();
    assert_eq!(
        server.get(&format!("/v1/tasks/{task}")).await.ok()["state"],
        "FINISHED"
    );
    assert_eq!(gcore::hello(&server).await, before);
    let view = server.view();
    assert_eq!(
        view.functions()
            .next()
            .expect("the function")
            .function
            .latest
            .number,
        1
    );
}

#[tokio::test]
async fn statuses_follow_the_newest_revision_and_what_serves() {
    let server = gcore::server().await;
    let check = async |build: &str, message: &str, status: &str| {
        let hello = gcore::hello(&server).await;
        let got = ["build_status", "build_message", "status"].map(|m| hello[m].clone());
        assert_eq!(got, [json!(build), json!(message), json!(status)]);
    };
    server.post(gcore::FUNCTIONS, gcore::create()).await.ok();
    check("Pending", "Waiting for a builder", "Pending").await;
    server.begin_build("hello");
    check("Building", "Building", "Building").await;
    server.finish_build("hello");
    check("Built", "Built", "Deploying").await;
    server.promote("hello");
    check("Built", "Built", "Running").await;

    server
        .patch(gcore::HELLO, json!({"code_text": "2"}))
        .await
        .ok();
    server.begin_build("hello");
    check("Building", "Building", "Running").await;
    server.fail_build("hello", "no such package");
    check("Failed", "no such package", "Running").await;

    server
        .patch(gcore::HELLO, json!({"code_text": "3"}))
        .await
        .ok();
    server.begin_build("hello");
    server.finish_build("hello");
    server.fail_deploy("hello", "it exits");
    check("Built", "Built, but it does not start: it exits", "Running").await;

    server
        .patch(gcore::HELLO, json!({"disabled": true}))
        .await
        .ok();
    check(
        "Built",
        "Built, but it does not start: it exits",
        "Disabled",
    )
    .await;
}

#[tokio::test]
async fn a_function_that_never_ran_has_failed() {
    let server = gcore::with_hello().await;
    server.begin_build("hello");
    server.fail_build("hello", "no such package");
    let hello = gcore::hello(&server).await;
    assert_eq!(
        (&hello["status"], &hello["build_status"]),
        (&json!("Failed"), &json!("Failed"))
    );
}

#[tokio::test]
async fn deploy_status_counts_instances() {
    let server = gcore::with_hello().await;
    server.set_instances(3, 2);
    let expected = json!({"total": 3, "ready": 2, "deployed": 2});
    assert_eq!(gcore::hello(&server).await["deploy_status"], expected);
}

#[tokio::test]
async fn function_list_holds_whole_functions_of_its_namespace_only() {
    let server = gcore::with_hello().await;
    let mut second = gcore::create();
    second["name"] = "second".into();
    server.post(gcore::FUNCTIONS, second).await.ok();
    server
        .post(gcore::NAMESPACES, json!({"name": "elsewhere"}))
        .await
        .ok();
    let list = server
        .get(&format!("{}?order_by=name.asc", gcore::FUNCTIONS))
        .await
        .ok();
    assert_eq!(list["count"], 2);
    assert_eq!(list["results"][0], gcore::hello(&server).await);
    assert_eq!(list["results"][1]["name"], "second");
    let page = server
        .get(&format!("{}?search=sec&limit=1", gcore::FUNCTIONS))
        .await
        .ok();
    assert_eq!(
        (&page["count"], page["results"].as_array().map(Vec::len)),
        (&json!(1), Some(1))
    );
    let empty = server
        .get("/cloud/v1/faas/namespaces/1/1/elsewhere/functions")
        .await
        .ok();
    assert_eq!(empty, json!({"count": 0, "results": []}));
    let missing = server
        .get("/cloud/v1/faas/namespaces/1/1/nowhere/functions")
        .await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn function_names_are_taken_once_and_need_a_namespace() {
    let server = gcore::with_hello().await;
    let before = server.view();
    let taken = server.post(gcore::FUNCTIONS, gcore::create()).await;
    assert_eq!(taken.status, StatusCode::CONFLICT);
    assert_eq!(taken.json()["exception_class"], "AlreadyExistsError");
    let nowhere = "/cloud/v1/faas/namespaces/1/1/nowhere/functions";
    let missing = server.post(nowhere, gcore::create()).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(server.view() == before);
}

#[tokio::test]
async fn function_delete_is_done_when_its_task_is() {
    let server = gcore::with_hello().await;
    server.run("hello");
    let answer = server.delete(gcore::HELLO).await.ok();
    let task = answer["tasks"][0].as_str().expect("a task").to_owned();
    assert_eq!(
        server.get(&format!("/v1/tasks/{task}")).await.ok()["state"],
        "FINISHED"
    );
    for answer in [
        server.get(gcore::HELLO).await,
        server.delete(gcore::HELLO).await,
        server.patch(gcore::HELLO, json!({})).await,
        server.get(&format!("{}/logs", gcore::HELLO)).await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
    }
}

fn line(at_nanos: u64, message: &str) -> LogLine {
    LogLine {
        at_nanos,
        instance: InstanceId(Uuid::from_u128(5)),
        stream: LogStream::Stdout,
        request: None,
        message: message.to_owned(),
    }
}

#[tokio::test]
async fn logs_are_the_newest_lines_in_order() {
    let server = gcore::with_hello().await;
    let log = (0..5)
        .map(|n| line(1_000_000_000 * n + 7, &format!("line {n}")))
        .collect();
    server.set_log(log);
    let logs = server
        .get(&format!("{}/logs?limit=2", gcore::HELLO))
        .await
        .ok();
    let pod = "00000000-0000-0000-0000-000000000005";
    assert_eq!(
        logs,
        json!({"logs": [
            {"Message": "line 3", "Pod": pod, "Time": "1970-01-01T00:00:03.000000007Z"},
            {"Message": "line 4", "Pod": pod, "Time": "1970-01-01T00:00:04.000000007Z"},
        ]})
    );
    let all = server.get(&format!("{}/logs", gcore::HELLO)).await.ok();
    assert_eq!(all["logs"].as_array().map(Vec::len), Some(5));
}

#[tokio::test]
async fn flavors_runtimes_and_prices() {
    let server = Server::new();
    let flavors = server.get("/cloud/v1/faas/flavors/1/1").await.ok();
    assert_eq!(
        flavors["results"][0],
        json!({"name": "64m-64MB", "cpu": 64, "ram": 64})
    );
    assert_eq!(
        flavors["count"].as_u64(),
        flavors["results"].as_array().map(|a| a.len() as u64)
    );
    let one = server
        .get("/cloud/v1/faas/flavors/1/1?name=64mCPU-64MB")
        .await
        .ok();
    assert_eq!(
        one["results"],
        json!([{"name": "64m-64MB", "cpu": 64, "ram": 64}])
    );
    let runtimes = server.get("/cloud/v1/faas/runtimes/1/1").await.ok();
    assert_eq!(runtimes["runtimes"]["python"], json!(["python3.11"]));
    let price = server
        .post("/cloud/v1/pricing/1/1/faas/functions", json!({}))
        .await
        .ok();
    assert_eq!(
        (&price["price_status"], &price["price_per_hour"]),
        (&json!("hide"), &Value::Null)
    );
}

/// The code and dependencies of all of them together are never in memory at once; here only that
/// every one arrives whole.
#[tokio::test]
async fn long_lists_arrive_whole() {
    let server = gcore::server().await;
    for number in 0..40 {
        let mut body = gcore::create();
        body["name"] = format!("fn-{number}").into();
        body["code_text"] = format!("# {number}\n{}", "x".repeat(50_000)).into();
        server.post(gcore::FUNCTIONS, body).await.ok();
    }
    let list = server
        .get(&format!("{}?limit=40&order_by=name.asc", gcore::FUNCTIONS))
        .await
        .ok();
    let results = list["results"].as_array().expect("results");
    assert_eq!(results.len(), 40);
    assert!(results.iter().all(|one| {
        let number = one["name"]
            .as_str()
            .and_then(|name| name.strip_prefix("fn-"));
        let start = format!("# {}\n", number.expect("its name"));
        one["code_text"]
            .as_str()
            .is_some_and(|code| code.starts_with(&start))
    }));
}
