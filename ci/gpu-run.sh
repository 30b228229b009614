#!/usr/bin/env bash
# The program of the GPU bundle (`make gpu-bundle`): needs a driver and CUDA's libraries, neither Rust nor network.
#
#   run.sh test               every case on the GPU, then the sums
#   run.sh bench [ARGS...]    ops, then whole models, beside what the device can do
#   run.sh sanitize           ops under compute-sanitizer: memcheck, initcheck, synccheck, racecheck
#   run.sh profile OP [ARGS]  what ncu says about an op's kernels
#   run.sh trace [BATCHxCONTEXT] [MODEL]  how long the GPU idles between decode steps
#   run.sh kernels [BATCHxCONTEXT] [MODEL]  which kernels a decode step's time goes to
#
# Logs and tables go to RESULTS (default: results, beside this script).
set -uo pipefail
case ${1:-} in
    test) run=run_tests ;;
    bench) run=run_bench ;;
    sanitize) run=run_sanitizers ;;
    profile) run=run_profile ;;
    trace) run=run_trace ;;
    kernels) run=run_kernels ;;
    *)
        sed -n 's/^#   run/run/p' "$0" >&2
        exit 2
        ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
results=${RESULTS:-$here/results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
if [ ! -e "$here/payload/commit" ]; then
    mkdir -p "$here/payload"
    tar -xJf "$here/payload.tar.xz" -C "$here/payload" || exit 1
fi
here=$here/payload
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
    # Models with random weights against Hugging Face transformers, where that is installed.
    if [ -x "$here/bin/parity" ] && python3 -c 'import torch, transformers' 2>/dev/null; then
        start=$SECONDS
        status=0
        timeout "${SUITE_SECONDS:-300}" python3 "$here/repo/tests/parity/parity.py" --program "$here/bin/parity" \
            --device cuda >"$results/parity.log" 2>&1 || status=$?
        printf '%-18s %7d %7d %8d %8.1f\n' parity "$((status == 0))" "$((status != 0))" 0 "$((SECONDS - start))" |
            tee -a "$results/sums"
        if [ "$status" != 0 ]; then failed=1; fi
    fi
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
    local tools=${SANITIZERS:-memcheck initcheck synccheck racecheck} tool failed=0
    declare -A pids
    export MINISGL_TEST_SEED=${MINISGL_TEST_SEED:-1}
    for tool in $tools; do
        local args=()
        case $tool in
            memcheck) args=(--leak-check no) ;;
            synccheck) args=(--num-cuda-barriers 4096) ;;
            racecheck) continue ;;
        esac
        MINISGL_TEST_CASES=${MINISGL_TEST_CASES:-3} timeout "${TOOL_SECONDS:-240}" compute-sanitizer --tool "$tool" \
            "${args[@]}" --error-exitcode 9 "$here/tests/ops_cuda" --test-threads 8 "$@" >"$results/$tool.log" 2>&1 &
        pids[$tool]=$!
    done
    if [[ " $tools " == *" racecheck "* ]]; then run_racecheck "$@" || failed=1; fi
    for tool in "${!pids[@]}"; do
        local status=0
        wait "${pids[$tool]}" || status=$?
        if [ "$status" != 0 ]; then failed=1; fi
        printf '%-10s status %3d, %d tests passed  %s\n' "$tool" "$status" \
            "$(grep -cE '^test .* ok$' "$results/$tool.log")" \
            "$(grep -E '^========= ERROR SUMMARY' "$results/$tool.log" | tail -n 1)"
    done
    return "$failed"
}

# By far the slowest tool: each test in a process of its own, eight at a time.
run_racecheck() {
    local end=$((SECONDS + ${TOOL_SECONDS:-240})) logs=$results/racecheck test log passed=0 others=() races=()
    mkdir -p "$logs"
    while read -r test; do
        while [ "$(jobs -rp | wc -l)" -ge 11 ]; do sleep 0.2; done
        [ "$SECONDS" -lt "$end" ] || break
        MINISGL_TEST_CASES=${MINISGL_TEST_CASES:-1} timeout $((end - SECONDS)) compute-sanitizer --tool racecheck \
            --racecheck-report all --num-cuda-barriers 4096 --error-exitcode 9 \
            "$here/tests/ops_cuda" --exact "$test" >"$logs/$test.log" 2>&1 &
        races+=($!)
    done < <("$here/tests/ops_cuda" --list "$@" | sed -n 's/: test$//p')
    wait "${races[@]}" || true
    while read -r test; do
        log=$logs/$test.log
        if grep -qE '^test .* ok$' "$log" 2>/dev/null && grep -q 'RACECHECK SUMMARY: 0 hazards' "$log"; then
            passed=$((passed + 1))
        elif grep -q 'RACECHECK SUMMARY' "$log" 2>/dev/null; then
            others+=("$test: $(grep -o 'RACECHECK SUMMARY.*' "$log")")
        else
            others+=("$test: did not end")
        fi
    done < <("$here/tests/ops_cuda" --list "$@" | sed -n 's/: test$//p')
    printf 'racecheck  %d tests without a hazard, %d others\n' "$passed" "${#others[@]}"
    [ "${#others[@]}" = 0 ] || printf '  %s\n' "${others[@]}"
    [ "${#others[@]}" = 0 ]
}

run_profile() {
    local op=$1
    shift
    ncu --set full --graph-profiling node --launch-skip 8 --launch-count 12 -f -o "$results/$op" \
        "$here/bin/bench_ops" --device cuda --ops "$op" --budget-ms 1 --limit-gbs 1 --limit-gflops 1 "$@" \
        >"$results/$op.ncu.log" 2>&1
    ncu --import "$results/$op.ncu-rep" --page details | tee "$results/$op.txt"
}

# Runs decode steps with the tracer loaded: run_traced STEPS BATCHxCONTEXT MODEL. Lines by start in trace.txt.
run_traced() {
    local cuda
    cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")
    cd "$here/repo" || return 1
    cc -O2 -shared -fPIC -o "$results/gpu_trace.so" bench/trace/gpu_trace.c -I"$cuda/include" \
        -I"$cuda/extras/CUPTI/include" -L"$cuda/lib64" -L"$cuda/extras/CUPTI/lib64" -lcupti || return 1
    TRACE_FILE="$results/unsorted.txt" CUDA_INJECTION64_PATH="$results/gpu_trace.so" \
        LD_LIBRARY_PATH="$cuda/lib64:$cuda/extras/CUPTI/lib64:${LD_LIBRARY_PATH:-}" \
        "$here/bin/bench_engine" --device cuda --models "$3" --parts decode --decode "$2" --steps "$1" \
        --repeats 1 || return 1
    sort -n "$results/unsorted.txt" >"$results/trace.txt"
    rm -f "$results/unsorted.txt"
}

# Gaps between the graphs of neighbouring decode steps, and how much of each no kernel and no copy fills: of the last
# steps, because the start replays graphs too.
run_trace() {
    local shape=${1:-256x1024} model=${2:-bench/shapes/qwen3-0.6b} steps=128
    run_traced "$steps" "$shape" "$model" || return 1
    awk '
        $3 == "graph" {
            if (seen) {
                filled = 0; edge = end
                for (i = 0; i < count; i++) {
                    from = starts[i] > edge ? starts[i] : edge; to = ends[i] < $1 ? ends[i] : $1
                    if (to > from) { filled += to - from; edge = to }
                }
                # A longer gap is no gap between two decode steps.
                if ($1 - end < 1e6) printf "%.1f %.1f %.1f\n", ($1 - end - filled) / 1e3, ($1 - end) / 1e3, (end - start) / 1e3
            }
            start = $1; end = $2; count = 0; seen = 1; next
        }
        seen { starts[count] = $1; ends[count++] = $2 }' "$results/trace.txt" | tail -n $((steps - 1)) | sort -n >"$results/idle.txt"
    rm -f "$results/trace.txt"
    awk -v shape="$shape" '{ idle[NR] = $1; gap += $2; graph += $3 }
        END { if (NR) printf "%s: %d gaps, GPU idle in each: median %.1f us, 95th percentile %.1f us, worst %.1f us; " \
                  "gap with copies and kernels %.1f us, graph %.1f us on average\n", shape, NR, idle[int((NR + 1) / 2)],
                  idle[int(NR * 0.95) + (NR < 20)], idle[NR], gap / NR, graph / NR }' "$results/idle.txt"
}

# Time of the last steps by kernel. Kernels overlap, so that one counts from the end of the one before it to its own; a
# traced step is slower than others.
run_kernels() {
    local shape=${1:-256x1024} model=${2:-bench/shapes/qwen3-0.6b} steps=32
    TRACE_KERNELS=1 run_traced "$steps" "$shape" "$model" || return 1
    # A step ends with the kernel that draws its tokens.
    c++filt <"$results/trace.txt" | awk -v steps=$((steps / 2)) '
        $3 == "kernel" || $3 == "memset" {
            name = $0; sub(/^[0-9]+ [0-9]+ (kernel )?/, "", name); sub(/^void /, "", name); gsub(/msgl::|\(anonymous namespace\)::/, "", name)
            sub(/\(.*/, "", name)
            starts[n] = $1; ends[n] = $2; names[n++] = name
            if (name ~ /^finish_kernel/) last[drawn++] = n
        }
        END {
            from = last[drawn - 1 - steps]; edge = ends[from - 1]
            for (i = from; i < last[drawn - 1]; i++) {
                us = (ends[i] - edge) / 1e3
                if (ends[i] > edge) { sum[names[i]] += us; all += us; edge = ends[i] }
                own[names[i]] += (ends[i] - starts[i]) / 1e3; calls[names[i]]++
            }
            printf "%10s %8s %8s %8s %6s  kernel (us; a step takes %.0f)\n", "a step", "calls", "each", "alone", "share", all / steps
            for (name in sum) printf "%10.1f %8.1f %8.2f %8.2f %5.1f%%  %s\n", sum[name] / steps, calls[name] / steps,
                sum[name] / calls[name], own[name] / calls[name], 100 * sum[name] / all, name | "sort -rn"
        }' | tee "$results/kernels-$(basename "$model")-$shape.txt"
    rm -f "$results/trace.txt"
}

machine
: >"$results/sums"
"$run" "${@:2}"
