#!/usr/bin/env bash
# From a fresh clone on a fresh Debian or Ubuntu machine to running functions.
#   deploy/quickstart.sh          leaves the server running
#   deploy/quickstart.sh --once   shows everything, then stops and removes it
# Run again, it does not redo what is done. Settings are those of `coracle up`, as environment
# variables (CORACLE_DATA, CORACLE_INVOKE, CORACLE_API, CORACLE_ADMIN, ...).
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/machine.sh

once=
case "${1:-}" in
    --once) once=1 ;;
    '') ;;
    *) die "usage: deploy/quickstart.sh [--once]" ;;
esac

export CORACLE_DATA=${CORACLE_DATA:-/var/lib/coracle}
admin=${CORACLE_ADMIN:-127.0.0.1:9090}
log=${CORACLE_QUICKSTART_LOG:-/var/tmp/coracle-up.log}
started=$SECONDS

install_packages
install_rust

say "building the release binary (some minutes the first time)"
cargo build --release --locked --package coracle
coracle=${CARGO_TARGET_DIR:-target}/release/coracle

server=
stop() {
    [ -n "$once" ] || return 0
    if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
        say "stopping the server"
        $SUDO kill "$server"
        wait "$server" 2>/dev/null || true
    fi
    $SUDO "$coracle" down --purge || true
}
trap stop EXIT

if curl -fs "http://$admin/readyz" >/dev/null 2>&1; then
    say "a server is running already"
else
    say "starting coracle up (data in $CORACLE_DATA, log in $log)"
    # It will show the admin token, and /var/tmp is everybody's. A file that somebody else put there
    # is not written to.
    install -m 600 /dev/null "$log"
    if [ -n "$once" ]; then
        $SUDO "$coracle" up >"$log" 2>&1 &
    else
        $SUDO setsid "$coracle" up >"$log" 2>&1 </dev/null &
    fi
    server=$!
    for _ in $(seq 300); do
        curl -fs "http://$admin/readyz" >/dev/null 2>&1 && break
        kill -0 "$server" 2>/dev/null || { tail -n 20 "$log" >&2; die "the server ended"; }
        sleep 0.1
    done
    curl -fs "http://$admin/readyz" >/dev/null ||
        { tail -n 20 "$log" >&2; die "the server is not ready after 30 s"; }
fi

say "building the runtime images (kept in $CORACLE_DATA/images)"
$SUDO "$coracle" runtime build python3.11 nodejs20

say "deploying the examples"
$SUDO "$coracle" fn deploy hello-python --runtime python3.11 --handler handler \
    --file deploy/examples/hello-python/main.py \
    --dependencies deploy/examples/hello-python/requirements.txt
$SUDO "$coracle" fn deploy hello-node --runtime nodejs20 --handler handler \
    --file deploy/examples/hello-node/main.js \
    --dependencies deploy/examples/hello-node/package.json

for name in hello-python hello-node; do
    url=$($SUDO "$coracle" fn get "$name" -o json | sed -n 's/.*"endpoint": "\(.*\)".*/\1/p')
    say "curl $url"
    curl -sS --fail-with-body -D - "$url" | grep -iE '^(HTTP|server-timing|x-request-id|\{)|^[^:]*$' |
        tr -d '\r' | grep -v '^$'
done

say "coracle fn ls"
$SUDO "$coracle" fn ls

say "done in $((SECONDS - started)) s"
if [ -z "$once" ]; then
    # Not the shell's: it may have been running before, or have sudo in front of it.
    pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$CORACLE_DATA/server.json" 2>/dev/null || true)
    cat >&2 <<TEXT

Next:
  alias coracle='$SUDO $PWD/$coracle'
  coracle fn describe hello-python        what it runs, where, and why
  coracle fn logs -f hello-python         what it prints
  coracle fn deploy NAME --runtime python3.11 --handler handler --file main.py
  coracle key create --cloud gcore -o env credentials for that cloud's own clients
  ${SUDO:+sudo }kill $pid                            stops the server; instances stay and are adopted again
  coracle down --purge                    removes everything from this machine
TEXT
fi
