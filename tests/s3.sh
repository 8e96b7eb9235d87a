#!/usr/bin/env bash
# The artifact store's conformance suite over S3: against moto, a local imitation from PyPI, or
# against a real bucket when CORACLE_TEST_S3 names one and the AWS_ variables say how to reach it.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/machine.sh
target=${CARGO_TARGET_DIR:-$PWD/target}

if [ -z "${CORACLE_TEST_S3:-}" ]; then
    venv=$target/moto
    if [ ! -x "$venv/bin/moto_server" ]; then
        say "moto"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet 'moto[server]==5.2.1'
    fi
    log=$target/moto.log
    "$venv/bin/python" -u -c '
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()' >"$log" 2>"$log.err" &
    server=$!
    trap 'kill "$server" 2>/dev/null || true' EXIT
    until [ -s "$log" ]; do
        kill -0 "$server" 2>/dev/null || { cat "$log.err" >&2; exit 1; }
        sleep 0.1
    done
    AWS_ENDPOINT=http://127.0.0.1:$(head -n 1 "$log")
    export AWS_ENDPOINT AWS_ALLOW_HTTP=true AWS_REGION=us-east-1
    export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
    export CORACLE_TEST_S3=coracle-test
    "$venv/bin/python" -c '
import boto3, os
boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT"]).create_bucket(Bucket=os.environ["CORACLE_TEST_S3"])'
    say "S3 is moto at $AWS_ENDPOINT"
fi
cargo test --locked -p coracle-controller --lib artifacts::conformance::s3 -- --ignored --exact
