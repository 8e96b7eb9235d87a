#!/usr/bin/env bash
# Faults on a cluster of real processes on loopback, with the fake driver; no root. See tests/faults/main.rs.
#   tests/faults/run.sh leader-kill --runs 20 --seed 1
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
profile=${CORACLE_FAULTS_PROFILE:-dev}
cargo build --quiet --locked --profile "$profile" --package coracle --features fake-driver
cargo build --quiet --locked --profile "$profile" --package coracle-tests --bin faults
[ "$profile" = dev ] && profile=debug
export CORACLE_TEST_BINARY=${CORACLE_TEST_BINARY:-$target/$profile/coracle}
exec "$target/$profile/faults" "$@"
