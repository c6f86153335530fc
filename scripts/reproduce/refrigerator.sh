#!/usr/bin/env bash
# The figure of docs/belief.md: where a model of narrow data is wrong, and what selection by a score repairs.
# About two minutes on one CPU core; the figure is $1/diagnose/error_map.png.
set -euo pipefail
run_dir=${1:-runs/refrigerator}
mbrl fit task=refrigerator dynamics=published score=residual "score.hidden=[128,128,128]" score.steps=3000 seeds=2 \
  fit_gate=false run_dir="$run_dir"
mbrl diagnose "$run_dir"
