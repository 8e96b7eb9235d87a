#!/usr/bin/env bash
# Measurements, each beside its peer in one run:
#   bench/run.sh warm [--pairs 10] [--seconds 2]     gateway and nginx, same upstream
#   bench/run.sh handlers                            Python and Node handlers
#   bench/run.sh cold [--functions 200]              first calls, from stems and without
#   bench/run.sh scratch [--pairs 20]               a container with no stem waiting, and by hand
#   bench/run.sh idle [--minutes 10]                 memory
# As root, with what tests/run.sh installs; nginx and wrk are installed here.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/machine.sh
install_packages
install_rust
apt_install nginx-light wrk
cargo build --release --locked --package coracle --package coracle-bench
target=${CARGO_TARGET_DIR:-$PWD/target}
export CORACLE_TEST_BINARY=$target/release/coracle
export CORACLE_TEST_IMAGES=${CORACLE_TEST_IMAGES:-/var/tmp/coracle-test-images}
case "${1:-}" in
    cold | idle | handlers | scratch)
        $SUDO "$CORACLE_TEST_BINARY" runtime build --images "$CORACLE_TEST_IMAGES" \
            python3.11 nodejs20 ;;
esac
exec $SUDO "$target/release/coracle-bench" "$@"
