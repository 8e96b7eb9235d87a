#!/usr/bin/env bash
# Power loss, as a file system sees it: a store writes to ext4 in an image; at a moment that the seed
# chooses, the image is cloned as the kernel has submitted it, mounted (the journal is replayed) and
# opened. Everything that was acknowledged before the clone has to be there and whole.
#
#   tests/faults/power-loss.sh [RUNS] [STORE...]     default: 40 of each of log and artifacts
#
# Seeds are 1 to RUNS. Prints a table: store, runs, acknowledged in all, runs that lost something,
# runs whose store did not open. Ends with status 1 when anything was lost.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
runs=${1:-40}
shift || true
[ $# -gt 0 ] || set -- log artifacts

# On XFS a clone is a moment: its extents are shared while no write is under way.
truncate -s 6G "$work/outer.img"
mkfs.xfs -q -m reflink=1 "$work/outer.img"
mkdir "$work/outer"
mount -o loop "$work/outer.img" "$work/outer"

lost_any=0
printf '%-10s %6s %14s %6s %14s\n' store runs acknowledged lost 'failed opens'
for store in "$@"; do
    lost=0 failed=0 all=0
    for seed in $(seq 1 "$runs"); do
        case $store in
            log) most=300 ;;
            artifacts) most=40 ;;
            *) die "no such store: $store" ;;
        esac
        here=$work/outer/$store-$seed
        mkdir -p "$here/fs" "$here/after"
        truncate -s 192M "$here/disk.img"
        mkfs.ext4 -q -F -E lazy_itable_init=0 "$here/disk.img"
        mount -o loop "$here/disk.img" "$here/fs"
        "$STORE_FAULTS" write "$store" "$here/fs" 0 >"$here/out" 2>"$here/err" &
        writer=$!
        until_true 60 at_least "$here/out" $((1 + $(random "$store $seed" $most)))
        # Not always right behind an acknowledgement.
        sleep "0.00$(random "$store $seed pause" 10)"
        # Counted before, so that nothing counts which was acknowledged after.
        count=$(acknowledged "$here/out")
        cp --reflink=always "$here/disk.img" "$here/cut.img"
        { kill -9 "$writer" && wait "$writer"; } 2>/dev/null || true
        writer=
        umount "$here/fs"
        all=$((all + count))
        mount -o loop "$here/cut.img" "$here/after"
        status=0
        "$STORE_FAULTS" check "$store" "$here/after" "$count" >"$here/check" 2>&1 || status=$?
        if ! grep -q ' lost, ' "$here/check"; then
            failed=$((failed + 1)) lost_any=1
            sed "s/^/$store seed $seed: /" "$here/check" >&2
        elif [ $status != 0 ]; then
            lost=$((lost + 1)) lost_any=1
            sed "s/^/$store seed $seed: /" "$here/check" >&2
        fi
        umount "$here/after"
        rm -rf "$here"
    done
    printf '%-10s %6s %14s %6s %14s\n' "$store" "$runs" "$all" "$lost" "$failed"
done
exit $lost_any
