#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need, builds, runs the required suites, and ends with one line of totals: "N passed, N failed".
#
#   ./test.sh                     everything: suites unit, sim, fs, e2e and fault on a debug build, then all but fault under ASan and UBSan
#   ./test.sh --fast              without the sanitizers
#   ./test.sh --thread            only: engine, cache, server and file system under the thread sanitizer (some 4 minutes on two idle cores, without the build)
#   ./test.sh SUITE...            only these suites, without the sanitizers
#
# TARN_TEST_SCALE=N  lengthens the tests that take a factor      TARN_TEST_SEED=N  repeats the random ones      CI=true  a required suite that was skipped is a failure
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")"

suites=(unit sim fs e2e fault) sanitized=(unit sim fs e2e) threads=()
case "${1:-}" in
'') ;;
--fast) sanitized=() ;;
--thread) suites=() sanitized=() threads=(sync-two server-order server-crash server-maintain) ;; # besides unit and fs
-*) sed -n '3,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
*) suites=("$@") sanitized=() ;;
esac
failures=0 logs=()

scripts/install-deps.sh test || exit 1

join() { local IFS=,; echo "$*"; }

# build DIR OPTION...: 0 if it builds without an error. Warnings count as errors in CI.
build() {
        local dir=$1
        shift
        if [ ! -e "$dir/build.ninja" ]; then
                local wipe=
                mkdir -p "$dir"
                [ ! -d "$dir/meson-private" ] || wipe=--wipe # a setup that did not end
                meson setup $wipe "$dir" "$@" >"$dir/setup.log" 2>&1 || { cat "$dir/setup.log"; return 1; }
        fi
        ninja -C "$dir" >"$dir/ninja.log" 2>&1 || { grep -E 'error|FAILED|undefined' -A 5 "$dir/ninja.log" | head -n 60; return 1; }
}

# run DIR FACTOR LOG NAME...: tests by name
run() {
        local dir=$1 factor=$2 log=$3
        shift 3
        rm -f "$dir/meson-logs/$log.json"
        meson test -C "$dir" --no-rebuild --print-errorlogs --num-processes "${TARN_TEST_JOBS:-2}" --timeout-multiplier "$factor" --logbase "$log" "$@" || true
        if [ -s "$dir/meson-logs/$log.json" ]; then
                logs+=("$dir/meson-logs/$log.json")
        else
                echo "FAILED:  the tests of $dir did not run"
                failures=1
        fi
}

# run_suites DIR FACTOR SUITE...
run_suites() {
        local dir=$1 factor=$2 args=()
        shift 2
        for s in "$@"; do args+=(--suite "$s"); done
        run "$dir" "$factor" testlog "${args[@]}"
}

werror=()
[ "${CI:-}" = true ] && werror=(--werror)
if [ ${#suites[@]} = 0 ]; then
        :
elif build build-test "${werror[@]}"; then
        run_suites build-test 1 "${suites[@]}"
else
        echo "FAILED:  build-test does not build"
        failures=1
fi
if [ ${#sanitized[@]} -gt 0 ]; then
        export ASAN_OPTIONS=${ASAN_OPTIONS:-abort_on_error=1:detect_stack_use_after_return=1:strict_string_checks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:abort_on_error=1:print_stacktrace=1}
        if CC=${TARN_ASAN_CC:-clang} build build-asan -Db_sanitize=address,undefined -Db_lundef=false; then
                run_suites build-asan 4 "${sanitized[@]}"
        else
                echo "FAILED:  build-asan does not build"
                failures=1
        fi
fi
if [ ${#threads[@]} -gt 0 ]; then
        # tests fork a process that has threads and go on with threads of its own
        export TSAN_OPTIONS=${TSAN_OPTIONS:-die_after_fork=0:second_deadlock_stack=1}
        if CC=${TARN_TSAN_CC:-clang} build build-tsan -Db_sanitize=thread -Db_lundef=false; then
                run_suites build-tsan 6 unit fs
                run build-tsan 6 threads "${threads[@]}"
        else
                echo "FAILED:  build-tsan does not build"
                failures=1
        fi
fi

totals=$(scripts/meson-totals.py --required "$(join "${suites[@]}")" "${logs[@]:-/dev/null}") || failures=1
# a build that failed counts as one failure, so that the last line never looks better than it was
if [ "$failures" != 0 ] && [[ ${totals##*$'\n'} == *" 0 failed" ]]; then
        totals=${totals/% 0 failed/ 1 failed}
fi
echo "$totals"
exit "$failures"
