#!/usr/bin/env bash
# What is to be believed? MOPO and MOBILE, each plain, with MOREC as our measurements recommend it and with MOREC as
# published, on two fits of the dynamics model: twelve cells, equal updates, one table.
#
#   scripts/reproduce/hopper_belief.sh DATASET.hdf5 FOLDER [key=value ...]
#   UPDATES=40000 SEEDS=3 FITS="published beta_nll" ALGOS="mopo mobile" FILTERS="plain morec morec_published" ...
#   SMOKE=1 ...      every cell for a moment: does it run?
#
# Weights are the published ones of hopper-medium-replay. Started again it goes on where it was stopped. One CPU core
# needs hours for a MOBILE cell: UPDATES, SEEDS and `rollout.lanes=` are what to lower.
set -euo pipefail
dataset=$1 folder=$2
shift 2
if [ -n "${SMOKE:-}" ]; then
  set -- dynamics.max_epochs=1 dynamics.members=3 dynamics.elites=2 "dynamics.hidden=[32,32]" rollout.lanes=50 \
    learner.hidden=[32,32] eval.episodes=2 "$@"
  UPDATES=${UPDATES:-200}
fi
updates=${UPDATES:-40000} seeds=${SEEDS:-3}
for fit in ${FITS:-published beta_nll}; do
  for algo in ${ALGOS:-mopo mobile}; do
    for filter in ${FILTERS:-plain morec morec_published}; do
      run=$folder/$algo-$filter-$fit
      if [ -e "$run/summary.json" ] && grep -q '"status": "finished"' "$run/summary.json"; then continue; fi
      if [ -e "$run/config.yaml" ]; then
        mbrl train "resume=$run" progress=false
        continue
      fi
      case $algo-$filter in
        mopo-plain) weights="rollout.penalise.coefficient=2.5" ;;
        mopo-*) weights="rollout.penalise.coefficient=15" ;;
        mobile-plain) weights="learner.target_penalty.coefficient=0.1" ;;
        mobile-*) weights="learner.target_penalty.coefficient=0.5" ;;
      esac
      filters="[$filter]"
      [ "$filter" != plain ] || filters="[]"
      smoke=()
      if [ -n "${SMOKE:-}" ] && [ "$filter" = morec_published ]; then
        smoke=(score.iterations=20 score.warm_up=0 score.pretraining_steps=20 score.snapshot_every=5 score.interval=1)
      elif [ -n "${SMOKE:-}" ] && [ "$filter" = morec ]; then
        smoke=(score.steps=50)
      fi
      mbrl train "dataset=$dataset" env=Hopper-v5 "algo=$algo" "filter=$filters" "dynamics=$fit" "$weights" \
        "updates=$updates" "seeds=$seeds" "eval.every=$((updates / 10))" "log_every=$((updates / 40))" \
        progress=false "run_dir=$run" ${smoke[@]+"${smoke[@]}"} "$@"
    done
  done
done
python "$(dirname "$0")/table.py" $(ls -d "$folder"/m*/)
