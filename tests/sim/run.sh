#!/usr/bin/env bash
# The cluster in one thread: tests/sim/run.sh --seeds N --from SEED [--events N] [--trace] [--plant BUG]
# The last line is `N seeds, N failed`. README.md beside this says more.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --quiet --locked --profile sim -p coracle-sim
exec "${CARGO_TARGET_DIR:-target}/sim/coracle-sim" "$@"
