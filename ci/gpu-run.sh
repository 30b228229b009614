#!/usr/bin/env bash
# The program of the GPU bundle (`make gpu-bundle`): needs a driver and CUDA's libraries, neither Rust nor network.
#
#   run.sh test               every case on the GPU, then the sums
#   run.sh bench [ARGS...]    ops, then whole models, beside what the device can do
#   run.sh sanitize           ops under compute-sanitizer: memcheck, initcheck, synccheck, racecheck
#   run.sh profile OP [ARGS]  what ncu says about an op's kernels
#
# Logs and tables go to RESULTS (default: results, beside this script).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=${RESULTS:-$here/results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
# Where Cargo would start them: the models lie beside.
cd "$here/repo/tests" || exit 1
export MINISGL_TEST_DEVICE=cuda CARGO_BIN_EXE_minisgl="$here/bin/minisgl"
MINISGL_COMMIT=$(cat "$here/commit")
export MINISGL_COMMIT

machine() {
    echo "commit $MINISGL_COMMIT, $(date -u +%F), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)"
}

# One line a suite: passed, failed, skipped, seconds.
run_tests() {
    local failed=0 suite name start status
    printf '%-18s %7s %7s %8s %8s\n' suite passed failed skipped seconds
    for suite in "$here"/tests/*; do
        name=$(basename "$suite")
        start=$(date +%s%N)
        status=0
        timeout "${SUITE_SECONDS:-300}" "$suite" >"$results/$name.log" 2>&1 || status=$?
        awk -v name="$name" -v ms="$((($(date +%s%N) - start) / 1000000))" -v status="$status" '
            /^test result:/ { passed += $4; failed += $6; skipped += $8; seen = 1 }
            END {
                if (!seen || (status != 0 && failed == 0)) { failed++ }
                printf "%-18s %7d %7d %8d %8.1f\n", name, passed, failed, skipped, ms / 1000
            }' "$results/$name.log" | tee -a "$results/sums"
        if [ "$status" != 0 ]; then failed=1; fi
    done
    awk '{ passed += $2; failed += $3; skipped += $4 }
         END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$results/sums"
    return "$failed"
}

run_bench() {
    "$here/bin/bench_ops" --device cuda --output-dir "$results" "$@" | tee "$results/ops.log"
    cd "$here/repo" && "$here/bin/bench_engine" --device cuda --output-dir "$results" | tee "$results/engine.log"
}

# The tools run side by side: each is slow on the host, and the device has room.
run_sanitizers() {
    local tool pids=() failed=0
    local args
    export MINISGL_TEST_CASES=${MINISGL_TEST_CASES:-3} MINISGL_TEST_SEED=${MINISGL_TEST_SEED:-1}
    for tool in memcheck initcheck synccheck racecheck; do
        args=()
        case $tool in
            memcheck) args=(--leak-check no) ;;
            racecheck) args=(--racecheck-report all --num-cuda-barriers 4096) ;;
            synccheck) args=(--num-cuda-barriers 4096) ;;
        esac
        timeout "${TOOL_SECONDS:-180}" compute-sanitizer --tool "$tool" "${args[@]}" --error-exitcode 9 \
            "$here/tests/ops_cuda" --test-threads 4 "$@" >"$results/$tool.log" 2>&1 &
        pids+=($!)
    done
    for tool in memcheck initcheck synccheck racecheck; do
        local status=0
        wait "${pids[0]}" || status=$?
        pids=("${pids[@]:1}")
        if [ "$status" != 0 ]; then failed=1; fi
        printf '%-10s status %3d  %s  %s\n' "$tool" "$status" \
            "$(grep -E '^========= (ERROR|RACECHECK) SUMMARY' "$results/$tool.log" | tail -n 1)" \
            "$(grep '^test result' "$results/$tool.log")"
    done
    return "$failed"
}

run_profile() {
    local op=$1
    shift
    ncu --set full --graph-profiling node --launch-skip 8 --launch-count 12 -f -o "$results/$op" \
        "$here/bin/bench_ops" --device cuda --ops "$op" --budget-ms 1 --limit-gbs 1 --limit-gflops 1 "$@" \
        >"$results/$op.ncu.log" 2>&1
    ncu --import "$results/$op.ncu-rep" --page details | tee "$results/$op.txt"
}

machine
: >"$results/sums"
case ${1:-} in
    test) run_tests ;;
    bench) run_bench "${@:2}" ;;
    sanitize) run_sanitizers "${@:2}" ;;
    profile) run_profile "${@:2}" ;;
    *)
        sed -n 's/^#   run/run/p' "$0" >&2
        exit 2
        ;;
esac
