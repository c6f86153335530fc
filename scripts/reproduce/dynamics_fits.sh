#!/bin/sh
# How the ensemble is best fitted: one `mbrl fit` a cell, each of the same number of updates. The numbers of a cell are
# on its screen and in <FOLDER>/<cell>/dynamics/quality.json.
#
#   scripts/reproduce/dynamics_fits.sh DATASET FOLDER [STEPS] [key=value ...]
set -eu
dataset=$1 folder=$2 steps=${3:-4000}
shift; shift; [ $# -eq 0 ] || shift
for loss in nll beta_nll mse_mean; do
  for standardise in false true; do
    for schedule in constant cosine; do
      cell=$folder/$loss-$standardise-$schedule
      [ -e "$cell/dynamics/quality.json" ] || mbrl fit "dataset=$dataset" env=null dynamics=published \
        "dynamics.loss=$loss" "dynamics.standardise_targets=$standardise" "dynamics.schedule=$schedule" \
        "dynamics.max_steps=$steps" dynamics.max_epochs=null dynamics.patience=null dynamics.improvement=0 \
        "run_dir=$cell" "$@"
    done
  done
done
