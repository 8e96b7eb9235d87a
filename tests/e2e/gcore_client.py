"""Drives the server through Gcore's SDK: what the vendor's own users would write."""

import os
import sys
import urllib.request

from gcore import APIStatusError, ConflictError, Gcore, NotFoundError

client = Gcore()
project, region = os.environ["GCORE_CLOUD_PROJECT_ID"], os.environ["GCORE_CLOUD_REGION_ID"]
namespaces = f"/cloud/v1/faas/namespaces/{project}/{region}"

CODE = """import os
import markupsafe

def main(event, context):
    name = (event["data"] or {}).get("name", "nobody") if isinstance(event["data"], dict) else "nobody"
    return {"greeting": os.environ["GREETING"], "escaped": str(markupsafe.escape("<%s>" % name))}
"""


def post(path, body):
    return client.post(path, cast_to=object, body=body)


def get(path):
    return client.get(path, cast_to=object)


def wait(answer):
    """With the SDK's own poller."""
    return client.cloud.tasks.poll(answer["tasks"][0], polling_interval_seconds=1)


def function(**changes):
    body = {
        "name": "hello",
        "runtime": "python3.7.12",
        "timeout": 10,
        "flavor": "128m-128MB",
        "autoscaling": {"min_instances": 0, "max_instances": 2},
        "code_text": CODE,
        "main_method": "main",
        "dependencies": "markupsafe==2.1.5",
        "envs": {"GREETING": "good day"},
    }
    return body | changes


def call(url, data=b'{"name": "you"}', headers=None):
    headers = {"content-type": "application/json"} | (headers or {})
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
        return answer.read().decode()


def happy():
    wait(post(namespaces, {"name": "shop", "description": "", "envs": {}}))
    task = wait(post(f"{namespaces}/shop/functions", function()))
    assert task.state == "FINISHED" and task.created_resources.faas_functions, task
    shown = get(f"{namespaces}/shop/functions/hello")
    assert shown["code_text"] == CODE and shown["status"] == "Running", shown
    assert shown["runtime"] == "python3.7.12" and shown["flavor"] == "128m-128MB", shown
    answer = call(shown["endpoint"])
    assert '"good day"' in answer and "&lt;you&gt;" in answer, answer
    try:
        post(f"{namespaces}/shop/functions", function())
        raise AssertionError("a taken name was accepted")
    except ConflictError as error:
        assert "hello" in error.body["message"], error.body
    wait(client.patch(f"{namespaces}/shop/functions/hello", cast_to=object,
                      body={"envs": {"GREETING": "good night"}, "autoscaling": {"max_instances": 3}}))
    assert "good night" in call(shown["endpoint"])
    assert get(f"{namespaces}/shop/functions/hello")["autoscaling"] == {"min_instances": 0, "max_instances": 3}
    wait(client.delete(f"{namespaces}/shop/functions/hello", cast_to=object))
    try:
        get(f"{namespaces}/shop/functions/hello")
        raise AssertionError("a deleted function is still there")
    except NotFoundError:
        pass
    wait(client.delete(f"{namespaces}/shop", cast_to=object))


def bad_dependency():
    wait(post(namespaces, {"name": "shop"}))
    # Not for this Python: the seed's own sample pins it.
    answer = post(f"{namespaces}/shop/functions", function(dependencies="numpy==1.21.0\npandas==1.3.0"))
    try:
        wait(answer)
        raise AssertionError("the task finished")
    except AssertionError:
        raise
    except Exception as error:
        assert "numpy" in str(error) and "1.21.0" in str(error), error
    shown = get(f"{namespaces}/shop/functions/hello")
    assert shown["build_status"] == "Failed" and "numpy" in shown["build_message"], shown
    # The same function with pins that install.
    wait(client.patch(f"{namespaces}/shop/functions/hello", cast_to=object,
                      body={"dependencies": "markupsafe==2.1.5"}))
    assert "good day" in call(get(f"{namespaces}/shop/functions/hello")["endpoint"])


{"happy": happy, "bad_dependency": bad_dependency}[sys.argv[1]]()
