#!/usr/bin/env bash
# NOT RUN ON A GPU YET: rehearsed on a CPU with tiny settings only.
#
# As much of the GPU studies as fits into a few minutes; called again, it goes on: first the targets with five seeds at
# 64 pixels (studies/targets.yaml), then Swin-T at 224 pixels, dense and pruned (studies/swin-t-224.yaml).
#
#   source .gpu/setup.sh && bash benchmarks/gpu.sh            in the project's root, on a machine without network
#
#   --minutes 9     stop after so many, packing included; run folders stay in --work for the next call
#   --jobs 3        runs at a time on the one GPU
#   --only targets  or swin-t-224: one of the two
#   --seeds 0,1     other seeds for the targets
#   --set a.b=c     for every run, repeatable: rehearsals
#   --work DIR      default /tmp/fedskew-gpu
#
# Reads $HAM10000 (the data set) and $PYTHON (default python3). Writes to $OUT (default: WORK/out) records.tar.gz.00, .01 …
# of at most 15 MB: `cat records.tar.gz.* | tar -xz` gives records/<study>/ for docs/results/, and unfinished/ with the
# metrics and the ends of the logs of runs that are not done. No models.
# Exit code 75: not finished, call it again. 1: some runs failed; unfinished/ says why.
set -euo pipefail

minutes=9 jobs=3 only= seeds=0,1,2,3,4 work=/tmp/fedskew-gpu settings=()
while [[ $# -gt 0 ]]; do
  [[ $# -gt 1 ]] || { echo "gpu.sh: $1 needs a value (see the head of this file)" >&2; exit 2; }
  case $1 in
    --minutes) minutes=$2 ;;
    --jobs) jobs=$2 ;;
    --only) only=$2 ;;
    --seeds) seeds=$2 ;;
    --work) work=$2 ;;
    --set) settings+=(--set "$2") ;;
    *) echo "gpu.sh: unknown option $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done
: "${HAM10000:?gpu.sh: set HAM10000 to the folder of the data set (source .gpu/setup.sh does)}"
[[ $minutes =~ ^[0-9]+$ && $minutes -gt 0 ]] || { echo "gpu.sh: --minutes takes a whole number" >&2; exit 2; }
[[ -z $only || $only == targets || $only == swin-t-224 ]] || { echo "gpu.sh: no study $only" >&2; exit 2; }
out=${OUT:-$work/out}
studies=$(dirname "$0")/studies
reserve=45 # seconds for starting, for ending the runs, and for packing
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
fedskew() { "${PYTHON:-python3}" -c 'from fedskew.cli.main import app; app()' "$@"; }

# sweep STUDY [OPTION…]: go on with a study in the time that is left; returns the exit code of `fedskew sweep`
sweep() {
  local study=$1 left=$((minutes * 60 - SECONDS - reserve))
  shift
  [[ $left -gt 0 ]] || return 75
  fedskew sweep "$studies/$study.yaml" --out "$work/$study" --data-dir "$HAM10000" --jobs "$jobs" \
    --time-limit "$(awk "BEGIN { print $left / 60 }")" ${settings[@]+"${settings[@]}"} "$@"
}

# pack STUDY: its finished runs as committable records, of the others what tells how far they are
pack() {
  local study=$1 run
  [[ -d $work/$study ]] || return 0
  if compgen -G "$work/$study/*/summary.json" > /dev/null; then
    fedskew records "$work/$study" "$work/pack/records/$study" > /dev/null || echo "gpu.sh: $study has no finished run"
  fi
  for run in "$work/$study"/*/; do
    run=$(basename "$run")
    if [[ -f $work/$study/$run/metrics.jsonl && ! -d $work/pack/records/$study/$run ]]; then
      mkdir -p "$work/pack/unfinished/$study/$run"
      cp "$work/$study/$run"/{config.yaml,metrics.jsonl} "$work/pack/unfinished/$study/$run/"
    fi
    if [[ -f $work/$study/logs/$run.log && ! -d $work/pack/records/$study/$run ]]; then
      mkdir -p "$work/pack/unfinished/$study"
      tail -n 40 "$work/$study/logs/$run.log" > "$work/pack/unfinished/$study/$run.log"
    fi
  done
}

code=0
for study in targets swin-t-224; do
  [[ -z $only || $only == "$study" ]] || continue
  if [[ $study == targets ]]; then sweep "$study" --seeds "$seeds" || found=$?; else sweep "$study" || found=$?; fi
  case ${found:-0} in
    0) ;;
    1) code=1 ;;
    75) code=75; break ;;
    *) exit "$found" ;;
  esac
  found=0
done

rm -rf "$work/pack"
mkdir -p "$work/pack/records" "$work/pack/unfinished" "$out"
for study in targets swin-t-224; do pack "$study"; done
rm -f "$out"/records.tar.gz.*
tar -C "$work/pack" -czf - . | split -b 15m -d - "$out/records.tar.gz."
ls -l "$out"
exit "$code"
